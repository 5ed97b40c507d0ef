"""A Ray to run on: the one named, the one that is there, or one of our own.

An embedded Ray leaves no trace: its files lie in a short temporary folder (Unix socket paths end at
107 bytes) that is removed at the end, or by the next start if this process was killed; its token
comes by environment instead of a file in HOME; it listens on loopback only; its workers run at the
niceness of this process (Ray's default of 15 starves a trial beside any other load).
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import node, ray_constants
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader

from retro_ml.cluster.sweeper import Sweeper
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.machine import count_cpus

logger = logging.getLogger("retro_ml.cluster")

FOLDER_PREFIX = "retro_ml-"
OBJECT_STORE_BYTES = 1_000_000_000
"""Shared memory of an embedded Ray: rollouts of 64 remote env runners take less than half of it."""
SET_BY_RAY = ("RAY_AUTH_MODE", "PYTHONBREAKPOINT")
"""Variables that ray.init leaves in this process's environment."""
REACH_TIMEOUT_S = 10.0
"""How long a named cluster may take to accept a connection."""
SPIN_COUNT = "30000"
"""GOMP_SPINCOUNT of the trials' processes: for how long PyTorch's threads wait awake. 1.5 ms spans
the gaps between an update's operations (an update of 32 takes 26 ms instead of 31 with 1,000), and
ends soon after the update, when the emulator needs the cores."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What trials can be placed on."""

    cpus: int
    gpus: float
    embedded: bool
    scratch_dir: Path | None
    """The embedded Ray's folder, gone after the run."""


@contextmanager
def connect(address: str | None) -> Iterator[Cluster]:
    """Attaches to a Ray, or starts one and ends it afterwards.

    Args:
        address: a cluster's address; None takes RAY_ADDRESS, or the Ray that this process is
            attached to already, or starts one.

    Raises:
        LaunchError: there is no Ray at that address, or none can be started here.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_reachable(address)
    if ray.is_initialized():
        yield _describe(embedded=False, scratch_dir=None)
    elif address and address != "local":
        _attach(address)
        try:
            yield _describe(embedded=False, scratch_dir=None)
        finally:
            ray.shutdown()
    else:
        with _embedded() as cluster:
            yield cluster


@contextmanager
def environment(values: dict[str, str]) -> Iterator[None]:
    """Sets variables for Ray and the processes that it starts; puts back what was there."""
    names = {*values, *SET_BY_RAY}
    before: dict[str, Any] = {name: os.environ.get(name) for name in names}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _check_reachable(address: str) -> None:
    """Ray itself tries for a quarter of an hour, and says so on the screen."""
    if address in {"auto", "local"}:  # Ray looks for it, or starts one
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise LaunchError(f"{address} is no Ray address; give it as host:port, e.g. head:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_TIMEOUT_S).close()
    except (OSError, OverflowError) as error:
        raise LaunchError(f"nothing answers at the Ray address {address}: {error}") from None


def _attach(address: str) -> None:
    try:
        with _own_signal_handlers():
            ray.init(
                address=address,
                log_to_driver=True,
                runtime_env={"env_vars": _worker_environment()},
            )
    except Exception as error:
        # Ray raises many kinds here (ConnectionError, RuntimeError, its own), all of them final.
        raise LaunchError(
            f"no Ray cluster can be reached at {address}: {_first_line(error)}"
        ) from error


@contextmanager
def _embedded() -> Iterator[Cluster]:
    _remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=_short_tmp()))
    variables = {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_worker_niceness": "0",
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        **_worker_environment(),
    }
    sweeper = Sweeper(folder)
    try:
        with (
            environment(variables),
            _fresh_token(),
            _loopback_only(),
            _bare_head(),
        ):
            try:
                with _own_signal_handlers():
                    ray.init(
                        num_cpus=count_cpus(),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=True,
                        _temp_dir=str(folder),
                    )
            except Exception as error:
                raise LaunchError(f"Ray cannot be started here: {_first_line(error)}") from error
            sweeper.note_processes()
            try:
                yield _describe(embedded=True, scratch_dir=folder)
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sweeper.dismiss()


@contextmanager
def _fresh_token() -> Iterator[None]:
    """Lets Ray read the token from the environment; it keeps the first that a process has used."""
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        AuthenticationTokenLoader.instance().reset_cache()


@contextmanager
def _own_signal_handlers() -> Iterator[None]:
    """Puts back this process's handlers, which ray.init replaces (SIGTERM would just end us)."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def _loopback_only() -> Iterator[None]:
    """Lets Ray take 127.0.0.1 for this machine's address, as it does on macOS.

    `ray.init(_node_ip_address="127.0.0.1")` is turned into the outside address on Linux, and Ray
    listens on it (2.60). The constant is read from the environment when Ray is imported, which
    may have happened long ago; the processes that Ray starts read it anew.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _bare_head() -> Iterator[None]:
    """Starts Ray without its autoscaler and its dashboard's server, which nothing here asks.

    They take 100 MB and a second at each start and each end. ray.init offers no choice (2.60):
    `include_dashboard=False` starts the server all the same.
    """

    def no_server(self: Any, **_: Any) -> None:
        self._webui_url = None

    before = node.Node.start_monitor, node.Node.start_api_server
    node.Node.start_monitor = lambda self: None
    node.Node.start_api_server = no_server
    try:
        yield
    finally:
        node.Node.start_monitor, node.Node.start_api_server = before


def _describe(*, embedded: bool, scratch_dir: Path | None) -> Cluster:
    resources = ray.cluster_resources()
    return Cluster(
        cpus=int(resources.get("CPU", 0)),
        gpus=float(resources.get("GPU", 0)),
        embedded=embedded,
        scratch_dir=scratch_dir,
    )


def _worker_environment() -> dict[str, str]:
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT)}


def _short_tmp() -> str:
    # Ray adds up to 62 bytes of its own below this folder.
    tmp = tempfile.gettempdir()
    return tmp if len(os.fsencode(tmp)) <= 20 else "/tmp"


def _remove_orphans() -> None:
    """Removes folders whose process is gone; others' folders are not ours to touch."""
    for folder in Path(_short_tmp()).glob(f"{FOLDER_PREFIX}*-*"):
        with suppress(OSError, ValueError):
            pid = int(folder.name.removeprefix(FOLDER_PREFIX).partition("-")[0])
            if folder.stat().st_uid == os.getuid() and not Path(f"/proc/{pid}").exists():
                shutil.rmtree(folder, ignore_errors=True)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
