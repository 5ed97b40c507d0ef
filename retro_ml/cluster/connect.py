"""A Ray to run on: the one named, the one that is there, or one of our own."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import ray

from retro_ml.cluster.access import describe_token_fault, is_open
from retro_ml.cluster.driver_process import first_line, own_signal_handlers, worker_environment
from retro_ml.cluster.embedded import start_ray
from retro_ml.cluster.placement import Node
from retro_ml.core.engine.launcher import LaunchError

REACH_TIMEOUT_S = 10.0
"""How long a named cluster may take to accept a connection."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What trials can be placed on."""

    cpus: int
    gpus: float
    nodes: tuple[Node, ...] = ()
    """The same, node by node; empty: one node has it all."""
    scratch_dir: Path | None = None
    """The embedded Ray's folder, gone after the run; None on another Ray."""

    @property
    def all_nodes(self) -> tuple[Node, ...]:
        """The nodes, or the one that has it all."""
        return self.nodes or (Node(cpus=self.cpus, gpus=self.gpus),)

    @property
    def embedded(self) -> bool:
        """Whether this Ray was started for this run."""
        return self.scratch_dir is not None

    @property
    def logs_dir(self) -> Path | None:
        """Where the embedded Ray's processes write what they print."""
        return self.scratch_dir and self.scratch_dir / "session_latest" / "logs"


@contextmanager
def connect(address: str | None, *, allow_open: bool = False) -> Iterator[Cluster]:
    """Attaches to a Ray, or starts one and ends it afterwards.

    Args:
        address: a cluster's address; None takes RAY_ADDRESS, or the Ray that this process is
            attached to already, or starts one.
        allow_open: use a cluster although it lets everybody in who reaches it.

    Raises:
        LaunchError: there is no Ray at that address, or none that may be used, or none can be
            started here.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None:
        _check_reachable(address)
    if ray.is_initialized():
        yield _describe()
    elif address and address != "local":
        _attach(address)
        try:
            if not allow_open:
                _refuse_open(address)
            yield _describe()
        finally:
            ray.shutdown()
    else:
        with start_ray() as folder:
            yield _describe(folder)


def read_nodes() -> tuple[Node, ...]:
    """The nodes of the Ray that this process is attached to, as they are now."""
    alive = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
    return tuple(
        Node(
            cpus=has.get("CPU", 0),
            gpus=has.get("GPU", 0),
            node_id=node_id,
            memory_bytes=has.get("memory", 0),
        )
        for node_id, has in alive
    )


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
        raise LaunchError(
            f"nothing answers at the Ray address {address}: {error} -> give the head's own, e.g. "
            "head:6379, and start it (ray start --head) if it is down"
        ) from None


def _attach(address: str) -> None:
    fault = describe_token_fault()
    if fault is not None:
        raise LaunchError(fault)
    try:
        with own_signal_handlers():
            ray.init(
                address=address,
                log_to_driver=True,
                runtime_env={"env_vars": worker_environment()},
            )
    except Exception as error:
        # Ray raises many kinds here (ConnectionError, RuntimeError, its own), all of them final.
        raise LaunchError(
            f"no Ray cluster can be reached at {address}: {first_line(error)} -> ray status on the "
            "head says whether it is up; Ray's version and the token must be the same on both sides"
        ) from error


def _refuse_open(address: str) -> None:
    if is_open(ray.get_runtime_context().gcs_address):
        raise LaunchError(
            f"the Ray cluster at {address} has no token authentication: whoever reaches it runs "
            "code there (CVE-2023-48022); start its nodes with RAY_AUTH_MODE=token, or accept it "
            "with --allow-open-cluster"
        )


def _describe(scratch_dir: Path | None = None) -> Cluster:
    nodes = read_nodes()
    return Cluster(
        cpus=int(sum(node.cpus for node in nodes)),
        gpus=float(sum(node.gpus for node in nodes)),
        nodes=nodes,
        scratch_dir=scratch_dir,
    )
