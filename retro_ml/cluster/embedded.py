"""A Ray of our own: on this machine, for one run, leaving no trace.

Its files lie in a short temporary folder (Unix socket paths end at 107 bytes) that is removed at
the end, or by the next start if this process was killed; its token comes by environment instead of
a file in HOME; it listens on loopback only; its workers run at the niceness of this process (Ray's
default of 15 starves a trial beside any other load).

It has a head (GCS) and a node (raylet) and nothing else of what Ray starts beside them: autoscaler,
dashboard and its agent, the agent for runtime environments, the log monitor. Nothing here asks
them, and they take 250 MB and the two seconds in which a trial could begin. ray.init offers no
choice (2.60: `include_dashboard=False` starts all but the dashboard's pages), so its private parts
are patched while it runs; `retro_ml.cluster.worker_output` reads the logs instead.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray
from ray._private import node, ray_constants, services
from ray._private.authentication.authentication_token_setup import AuthenticationTokenLoader
from ray.tune.execution import class_cache

from retro_ml.cluster.sweeper import Sweeper
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.machine import count_cpus

FOLDER_PREFIX = "retro_ml-"
OBJECT_STORE_BYTES = 1_000_000_000
"""Shared memory of an embedded Ray: rollouts of 64 remote env runners take less than half of it."""
SET_BY_RAY = ("RAY_AUTH_MODE", "PYTHONBREAKPOINT")
"""Variables that ray.init leaves in this process's environment."""
SPIN_COUNT = "30000"
"""GOMP_SPINCOUNT of the trials' processes: for how long PyTorch's threads wait awake. 1.5 ms spans
the gaps between an update's operations (an update of 32 takes 26 ms instead of 31 with 1,000), and
ends soon after the update, when the emulator needs the cores."""
PLACEHOLDER = 'sh -c "exec tail --pid=$PPID -f /dev/null"'
NODE_OPTIONS = {
    # The node insists on two commands, to which it adds arguments, and ends them with itself.
    "--dashboard_agent_command": PLACEHOLDER,
    "--runtime_env_agent_command": PLACEHOLDER,
    # With a port the node does not wait for an agent to name one; nobody listens there.
    "--metrics-agent-port": "1",
    "--metrics_export_port": "1",
    "--dashboard_agent_listen_port": "1",
    "--runtime_env_agent_port": "1",
    # One for the trial; env runners and learners start when they are asked for.
    "--num_prestart_python_workers": "1",
}
"""What is put in place of the node's own options."""


@contextmanager
def start_ray() -> Iterator[Path]:
    """A Ray with this process's CPUs, ended afterwards; gives its folder.

    Raises:
        LaunchError: none can be started here.
    """
    _remove_orphans()
    folder = Path(tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-", dir=_short_tmp()))
    variables = {
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": os.environ.get("RAY_USAGE_STATS_ENABLED", "0"),
        "RAY_worker_niceness": "0",
        "RAY_enable_metrics_collection": "0",
        **class_cache.DEFAULT_ENV_VARS,
        ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR: "0",
        **worker_environment(),
    }
    sweeper = Sweeper(folder)
    try:
        with (
            environment(variables),
            _fresh_token(),
            _loopback_only(),
            _bare_node(),
        ):
            try:
                with own_signal_handlers():
                    ray.init(
                        num_cpus=count_cpus(),
                        object_store_memory=OBJECT_STORE_BYTES,
                        include_dashboard=False,
                        log_to_driver=False,
                        _temp_dir=str(folder),
                    )
            except Exception as error:
                raise LaunchError(f"Ray cannot be started here: {first_line(error)}") from error
            sweeper.note_processes()
            try:
                yield folder
            finally:
                ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        sweeper.dismiss()


def logs_dir(folder: Path) -> Path:
    """Where the processes of the Ray in `folder` write what they print."""
    return folder / "session_latest" / "logs"


def worker_environment() -> dict[str, str]:
    """Variables that trials' processes want, here and on a cluster."""
    return {"GOMP_SPINCOUNT": os.environ.get("GOMP_SPINCOUNT", SPIN_COUNT)}


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


@contextmanager
def own_signal_handlers() -> Iterator[None]:
    """Puts back this process's handlers, which ray.init replaces (SIGTERM would just end us)."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for signum, handler in before.items():
                signal.signal(signum, handler)


@contextmanager
def _fresh_token() -> Iterator[None]:
    """Lets Ray read the token from the environment; it keeps the first that a process has used."""
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        AuthenticationTokenLoader.instance().reset_cache()


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
def _bare_node() -> Iterator[None]:
    """Starts Ray's head and node without what goes with them; see above."""

    def start_process(command: list[str], process_type: str, *args: Any, **how: Any) -> Any:
        if process_type == ray_constants.PROCESS_TYPE_RAYLET:
            kept = [part for part in command if part.partition("=")[0] not in NODE_OPTIONS]
            command = kept + [f"{name}={value}" for name, value in NODE_OPTIONS.items()]
        return ray_start_process(command, process_type, *args, **how)

    def start_nothing(self: Any, **_: Any) -> None:
        self._webui_url = None

    # Tune gives its actors variables by a runtime environment, which takes an agent to make and a
    # worker of its own to use; here they come from this process.
    tune_variables = class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE
    ray_start_process = services.start_ray_process
    unwanted = ("start_monitor", "start_api_server", "start_log_monitor")
    before = {name: getattr(node.Node, name) for name in unwanted}
    services.start_ray_process = start_process
    class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = {}, set()
    for name in unwanted:
        setattr(node.Node, name, start_nothing)
    try:
        yield
    finally:
        services.start_ray_process = ray_start_process
        class_cache.DEFAULT_ENV_VARS, class_cache.ENV_VARS_TO_PROPAGATE = tune_variables
        for name, function in before.items():
            setattr(node.Node, name, function)


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


def first_line(error: Exception) -> str:
    """What an exception of Ray's says, short enough for a message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
