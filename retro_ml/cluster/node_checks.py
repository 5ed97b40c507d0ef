"""Proves on every node of a cluster what a run needs there, before it begins.

One small task for each node: the same versions, the game's ROM, a storage folder in which each node
reads what the others wrote, and a PyTorch that sees the GPUs which the node promises to Ray.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from retro_ml.cluster.driver_process import first_line
from retro_ml.core.artifacts.remote_folder import RemoteFolder, StorageError
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig

logger = logging.getLogger("retro_ml.cluster")

ANSWER_TIMEOUT_S = 60.0
"""How long a node may take to start a worker and answer (measured: 2 to 5 s)."""
PROBE_PREFIX = ".retro_ml-probe-"
DRIVER_FILE = "driver"
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"
STORAGE_REMEDY = "give a folder that all nodes share and may write, or s3://... (--output-dir)"
MOST_NAMED = 3
"""Nodes with the same fault that are named."""

Fault = tuple[str, str]
"""A node's name, what is wrong there and what to do about it."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at, or one fault of it."""

    name: str
    found: str
    fault: str | None = None
    """What is wrong and what to do about it, in one line; None if nothing is."""

    def as_dict(self) -> dict[str, str | None]:
        """The same as JSON types."""
        return {"name": self.name, "found": self.found, "fault": self.fault}


def prove_nodes(configs: Sequence[ExperimentConfig], *, embedded: bool) -> None:
    """Proves that the nodes can run these experiments, before one of them begins.

    This process's own node is among them if it promises GPUs that may be used; what else it must
    have, this process finds by itself.

    Args:
        configs: the experiments.
        embedded: whether Ray is this process's own, on this machine alone.

    Raises:
        LaunchError: a node cannot; several faults are logged, a line each.
    """
    if embedded:
        return
    here, use_gpu = ray.get_runtime_context().get_node_id(), any(one.use_gpu for one in configs)
    nodes = [
        node
        for node in alive_nodes()
        if node["NodeID"] != here or (use_gpu and _promised_gpus(node))
    ]
    if not nodes:
        return
    faults = [check.fault for check in check_nodes(configs, nodes) if check.fault]
    if len(faults) > 1:
        for fault in faults:
            logger.error("%s", fault)
        raise LaunchError(
            f"the nodes have {len(faults)} faults, a line each in the log; the first: {faults[0]}"
        )
    if faults:
        raise LaunchError(faults[0])


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of each node that is there."""
    return [node for node in ray.nodes() if node["Alive"]]


def check_nodes(
    configs: Sequence[ExperimentConfig], nodes: Sequence[dict[str, Any]]
) -> list[Check]:
    """What was found on these nodes: a check for each subject, or one for each of its faults."""
    roms = sorted({config.game.rom for config in configs})
    folders = sorted({_storage_of(config) for config in configs})
    with _probes(folders) as (probes, unwritable):
        answers, silent = _ask(nodes, roms=roms, probes=probes)
        unread = [fault for probe in probes for fault in _read_back(probe, answers)]
    unusable = [
        (name, f"cannot use {_shown(folder)}: {error} -> {STORAGE_REMEDY}")
        for name, answer in answers.items()
        for folder, error in answer["storage"].items()
    ]
    shown = ", ".join(_shown(folder) for folder in folders)
    checks = [
        *_conclude("nodes", f"{len(answers)} of {len(nodes)} answered", silent),
        *_check_versions(answers),
        *_check_roms(answers, roms),
        *_conclude(
            "storage", f"{shown}: written and read by each node", [*unwritable, *unusable, *unread]
        ),
    ]
    gpus = [node for node in nodes if _promised_gpus(node)]
    if gpus and any(config.use_gpu for config in configs):
        checks += _check_gpus(gpus, answers)
    return checks


def look_around(roms: Sequence[str], probes: Sequence[str], name: str, gpus: int) -> dict[str, Any]:
    """What a node finds of these things on itself. Runs there.

    Args:
        roms: the games.
        probes: folders of the storage, with a file by the driver in each.
        name: of the file that this node leaves there.
        gpus: which the node promises; counted if there are any.
    """
    storage = {}
    for probe in probes:
        try:
            folder = RemoteFolder(probe)
            folder.put(name, folder.get(DRIVER_FILE))
        except (StorageError, OSError) as error:
            # Nodes with the same fault are to say the same.
            storage[probe.rpartition("/")[0]] = first_line(error).replace(name, "a file")
    return {
        "versions": versions_here(),
        "missing_roms": [rom for rom in roms if not has_rom(rom)],
        "storage": storage,
        "gpus": _count_gpus() if gpus else 0,
    }


def versions_here() -> dict[str, str]:
    """Of what has to be the same everywhere."""
    found = {"Python": ".".join(platform.python_version_tuple()[:2])}
    for package in ("ray", "retro_ml", "ale-py", "torch"):
        try:
            # Without the build's kind: a CPU's and a GPU's PyTorch go together.
            found[package] = importlib.metadata.version(package).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def has_rom(rom: str) -> bool:
    """Whether ale-py brings this game here."""
    home = importlib.util.find_spec("ale_py")
    folders = (home and home.submodule_search_locations) or []
    return any(os.path.isfile(os.path.join(folder, "roms", f"{rom}.bin")) for folder in folders)


def _count_gpus() -> int:
    # Ray hides the GPUs from a task that asked for none, and a task that asks would wait for them.
    visible = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    done = subprocess.run(
        [sys.executable, "-c", COUNT_GPUS],
        env=visible,
        capture_output=True,
        text=True,
        timeout=ANSWER_TIMEOUT_S,
        check=False,
    )
    return int(done.stdout) if done.stdout.strip().isdigit() else 0


def _ask(
    nodes: Sequence[dict[str, Any]], *, roms: Sequence[str], probes: Sequence[str]
) -> tuple[dict[str, dict[str, Any]], list[Fault]]:
    """Each node's answer by its name, and what is wrong with those that gave none."""
    task = ray.remote(look_around)
    waiting = {}
    for node in nodes:
        placed = task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        gpus = _promised_gpus(node)
        waiting[placed.remote(list(roms), list(probes), node["NodeID"], gpus)] = node
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=ANSWER_TIMEOUT_S)
    answers: dict[str, dict[str, Any]] = {}
    silent = [
        (
            node_name(waiting[task]),
            f"no answer within {ANSWER_TIMEOUT_S:g} s -> look at its raylet, or take it away",
        )
        for task in late
    ]
    for finished in done:
        node = waiting[finished]
        try:
            answers[node_name(node)] = ray.get(finished)
        except Exception as error:  # a missing package, a node that has died: Ray's own kinds
            cause = str(getattr(error, "cause", None) or error).strip().splitlines()
            fault = (
                f"cannot run retro_ml: {cause[-1] if cause else error} -> install the same "
                "retro_ml on each node, or ship it (--ship)"
            )
            silent.append((node_name(node), fault))
    return answers, silent


def node_name(node: dict[str, Any]) -> str:
    """How a node is called in messages."""
    return f"node {node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _promised_gpus(node: dict[str, Any]) -> int:
    return int(node["Resources"].get("GPU", 0))


def _check_versions(answers: dict[str, dict[str, Any]]) -> list[Check]:
    ours = versions_here()
    faults = [
        (name, f"{package} {theirs}, the driver has {ours[package]} -> install the same there")
        for name, answer in answers.items()
        for package, theirs in answer["versions"].items()
        if theirs != ours[package]
    ]
    found = ", ".join(f"{package} {version}" for package, version in ours.items())
    return _conclude("versions", f"{found} on each node", faults)


def _check_roms(answers: dict[str, dict[str, Any]], roms: Sequence[str]) -> list[Check]:
    faults = [
        (name, f"no ROM of {', '.join(answer['missing_roms'])} -> install ale-py 0.12 there")
        for name, answer in answers.items()
        if answer["missing_roms"]
    ]
    return _conclude("games", f"the ROM of {', '.join(roms)} on each node", faults)


def _check_gpus(nodes: Sequence[dict[str, Any]], answers: dict[str, dict[str, Any]]) -> list[Check]:
    faults = []
    promised = 0
    for node in nodes:
        gpus = _promised_gpus(node)
        promised += gpus
        seen = answers.get(node_name(node), {}).get("gpus", gpus)
        if seen < gpus:
            fault = (
                f"{gpus} GPUs are promised and PyTorch sees {seen} -> install a CUDA build of "
                f"PyTorch and the driver for it, or start the node with --num-gpus={seen}"
            )
            faults.append((node_name(node), fault))
    return _conclude("GPUs", f"PyTorch sees all {promised}", faults)


@contextmanager
def _probes(folders: Sequence[str]) -> Iterator[tuple[list[str], list[Fault]]]:
    """A folder of its own in each storage, with a file by this process; removed afterwards."""
    probes, faults = [], []
    for folder in folders:
        probe = f"{folder}/{PROBE_PREFIX}{uuid.uuid4().hex}"
        try:
            RemoteFolder(probe).put(DRIVER_FILE, probe.encode())
            probes.append(probe)
        except (StorageError, OSError) as error:
            fault = f"cannot write {_shown(folder)}: {first_line(error)} -> {STORAGE_REMEDY}"
            faults.append(("the driver", fault))
    try:
        yield probes, faults
    finally:
        for probe in probes:
            with suppress(StorageError, OSError):
                RemoteFolder(probe.rpartition("/")[0]).delete_folder(probe.rpartition("/")[2])


def _read_back(probe: str, answers: dict[str, dict[str, Any]]) -> Iterator[Fault]:
    """What the driver does not see of what the nodes wrote."""
    found = RemoteFolder(probe).list()
    folder = probe.rpartition("/")[0]
    for name, answer in answers.items():
        node_id = name.rpartition("(")[2].rstrip(")")
        wrote = folder not in answer["storage"]
        if wrote and not any(file.startswith(node_id) for file in found):
            fault = f"what it writes to {_shown(folder)} is not seen by the driver"
            yield name, f"{fault} -> {STORAGE_REMEDY}"


def _storage_of(config: ExperimentConfig) -> str:
    """The output folder as a URI."""
    if "://" in config.output_dir:
        return config.output_dir.rstrip("/")
    return config.experiment_dir.parent.as_uri()


def _shown(folder: str) -> str:
    """A URI as people write it."""
    return folder.removeprefix("file://")


def _conclude(name: str, found: str, faults: Sequence[Fault]) -> list[Check]:
    """What was found, or a check for each fault: nodes that have the same share one."""
    nodes: dict[str, list[str]] = {}
    for node, fault in faults:
        nodes.setdefault(fault, []).append(node)
    return [Check(name, "", f"{_named(names)}: {fault}") for fault, names in nodes.items()] or [
        Check(name, found)
    ]


def _named(nodes: Sequence[str]) -> str:
    """A node's name, or how many there are and the first few."""
    if len(nodes) == 1:
        return nodes[0]
    more = ["..."] if len(nodes) > MOST_NAMED else []
    return f"{len(nodes)} nodes ({', '.join([*nodes[:MOST_NAMED], *more])})"
