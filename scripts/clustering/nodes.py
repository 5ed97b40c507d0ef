"""A Ray cluster of several nodes on one machine.

As root each node has a network namespace of its own, with an address on a bridge that only this
machine has: nodes that see each other through the network alone. Otherwise `ray.cluster_utils`
starts them side by side on loopback.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

OBJECT_STORE_BYTES = 150_000_000
GONE_S = 10.0
"""How long killed processes may take to disappear."""


def build_nodes(*, cpus: int) -> NamespaceNodes | LocalNodes:
    """A head without CPUs, and workers of `cpus` logical CPUs, by the best means there are."""
    if os.geteuid() == 0 and shutil.which("ip"):
        return NamespaceNodes(cpus)
    return LocalNodes(cpus)


class NamespaceNodes:
    """Nodes in network namespaces; `with` ends them all."""

    described = "each node in a network namespace of its own"

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        # Several drills at a time must not meet: names and addresses are made of the process's id.
        self._prefix = f"rml{os.getpid() % 10_000}"
        self._subnet = f"10.77.{os.getpid() % 250 + 2}"
        self._count = 0
        self._alive: dict[str, int] = {}
        self._temp = Path(tempfile.mkdtemp(prefix="rml-", dir="/tmp"))
        self._own_folder = Path(tempfile.mkdtemp(prefix="rml-nodes-", dir="/tmp"))
        self.environment = _environment()

    def __enter__(self) -> NamespaceNodes:
        try:
            _run("ip", "link", "add", f"{self._prefix}br", "type", "bridge")
            _run("ip", "addr", "add", f"{self._subnet}.254/24", "dev", f"{self._prefix}br")
            _run("ip", "link", "set", f"{self._prefix}br", "up")
            self._head = self._make_node()
            self._start(
                *("--head", "--num-cpus=0", f"--node-ip-address={self._ip(self._head)}"),
                *("--port=6379", f"--dashboard-host={self._ip(self._head)}"),
                *("--dashboard-port=8265", f"--temp-dir={self._temp}"),
                name=self._head,
            )
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in list(self._alive):
            self.kill(name)
            _run("ip", "netns", "delete", name, check=False)
            shutil.rmtree(f"/etc/netns/{name}", ignore_errors=True)
        for number in range(1, self._count + 1):
            _run("ip", "netns", "delete", f"{self._prefix}n{number}", check=False)
            shutil.rmtree(f"/etc/netns/{self._prefix}n{number}", ignore_errors=True)
        _run("ip", "link", "delete", f"{self._prefix}br", check=False)
        shutil.rmtree(self._temp, ignore_errors=True)
        shutil.rmtree(self._own_folder, ignore_errors=True)

    @property
    def address(self) -> str:
        """Of the head's dashboard."""
        return f"http://{self._ip(self._head)}:8265"

    def add_worker(self) -> str:
        """Starts another node; its name."""
        name = self._make_node()
        self._start(
            f"--address={self._ip(self._head)}:6379",
            f"--num-cpus={self._cpus}",
            f"--node-ip-address={self._ip(name)}",
            name=name,
        )
        return name

    def find_node(self, pid: int) -> str | None:
        """The worker that a process belongs to."""
        name = _run("ip", "netns", "identify", str(pid), check=False).strip()
        return name if name in self._alive and name != self._head else None

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node, as a power cut would."""
        deadline_s = time.monotonic() + GONE_S
        while time.monotonic() < deadline_s:
            pids = [int(pid) for pid in _run("ip", "netns", "pids", name, check=False).split()]
            if not pids:
                break
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.2)
        self._alive.pop(name, None)

    def _make_node(self) -> str:
        self._count += 1
        name = f"{self._prefix}n{self._count}"
        # Without a resolver that answers at once, each start of Ray waits for it.
        folder = Path("/etc/netns") / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:1\n")
        host = os.uname().nodename
        lines = [f"{self._subnet}.{number} {self._prefix}n{number}" for number in range(1, 10)]
        own = f"{self._subnet}.{self._count} {host}"
        (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", own, *lines, ""]))
        _run("ip", "netns", "add", name)
        self._alive[name] = self._count
        outside, inside = f"{self._prefix}v{self._count}", "eth0"
        _run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside, "netns", name)
        _run("ip", "link", "set", outside, "master", f"{self._prefix}br", "up")
        _run("ip", "-n", name, "addr", "add", f"{self._ip(name)}/24", "dev", inside)
        _run("ip", "-n", name, "link", "set", inside, "up")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    def _ip(self, name: str) -> str:
        return f"{self._subnet}.{name.rpartition('n')[2]}"

    def _start(self, *arguments: str, name: str) -> None:
        # Ray's folder has the same name on every node; here each has one of its own behind it.
        own = self._own_folder / name
        own.mkdir(parents=True)
        start = f'mount --bind {own} {self._temp} && exec ray start "$@"'
        common = [f"--object-store-memory={OBJECT_STORE_BYTES}", "--disable-usage-stats"]
        _run(
            *("ip", "netns", "exec", name, "sh", "-c", start, "sh", *arguments, *common),
            environment=self.environment,
        )


class LocalNodes:
    """Nodes side by side on loopback; `with` ends them all."""

    described = "the nodes side by side on loopback (no root, no namespaces)"

    def __init__(self, cpus: int) -> None:
        self._cpus = cpus
        self._workers: dict[str, Any] = {}
        self.environment = _environment()

    def __enter__(self) -> LocalNodes:
        self._environment_before = dict(os.environ)
        change_environment(self.environment)
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True,
            head_node_args={
                "num_cpus": 0,
                "include_dashboard": True,
                "dashboard_port": 0,
                "dashboard_agent_listen_port": 0,  # another head's may have the usual one
            },
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._cluster.shutdown()
        change_environment(self._environment_before)

    @property
    def address(self) -> str:
        """Of the head's dashboard."""
        return f"http://{self._cluster.head_node.webui_url}"

    def add_worker(self) -> str:
        """Starts another node; its name."""
        node = self._cluster.add_node(
            num_cpus=self._cpus, object_store_memory=OBJECT_STORE_BYTES, include_dashboard=False
        )
        name = f"n{len(self._workers) + 2}"
        self._workers[name] = node
        return name

    def find_node(self, pid: int) -> str | None:
        """The worker that a process belongs to."""
        with suppress(psutil.NoSuchProcess):
            above = {parent.pid for parent in psutil.Process(pid).parents()}
            for name, node in self._workers.items():
                if above & _pids(node):
                    return name
        return None

    def kill(self, name: str) -> None:
        """SIGKILL to every process of a node, as a power cut would."""
        node = self._workers.pop(name)
        family = [psutil.Process(pid) for pid in _pids(node)]
        family += [child for process in family for child in process.children(recursive=True)]
        for process in family:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(family, timeout=GONE_S)
        self._cluster.remove_node(node, allow_graceful=False)


def _pids(node: Any) -> set[int]:
    return {info.process.pid for infos in node.all_processes.values() for info in infos}


def _environment() -> dict[str, str]:
    """Of every process of the cluster, and of who submits to it."""
    own = {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # As on nodes that do nothing else; Ray's default of 15 starves them beside any load.
        "RAY_worker_niceness": "0",
    }
    return {**os.environ, **own}


def change_environment(environment: dict[str, str]) -> None:
    """Replaces this process's variables; Ray remembers what they said of tokens (2.60)."""
    from ray._private.authentication.authentication_token_setup import (
        AuthenticationTokenLoader,
        Config,
    )

    os.environ.clear()
    os.environ.update(environment)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _run(*command: str, check: bool = True, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, timeout=120
    )
    if check and done.returncode:
        raise SystemExit(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout
