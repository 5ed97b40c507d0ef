"""Proves on every node of a cluster what a run needs there, before it begins.

One small task for each node: the same versions, the game's ROM, a storage folder in which each node
reads what the others wrote, and a PyTorch that sees the GPUs which the node promises to Ray.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
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

ANSWER_TIMEOUT_S = 60.0
"""How long a node may take to start a worker and answer (measured: 2 to 5 s)."""
PROBE_PREFIX = ".retro_ml-probe-"
DRIVER_FILE = "driver"
COUNT_GPUS = "import torch; print(torch.cuda.device_count())"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at."""

    name: str
    found: str
    fault: str | None = None
    """What is wrong and what to do about it, in one line; None if nothing is."""

    def as_dict(self) -> dict[str, str | None]:
        """The same as JSON types."""
        return {"name": self.name, "found": self.found, "fault": self.fault}


def check_other_nodes(configs: Sequence[ExperimentConfig]) -> None:
    """Proves that the nodes other than this one can run these experiments.

    Raises:
        LaunchError: one cannot, with all faults.
    """
    here = ray.get_runtime_context().get_node_id()
    nodes = [node for node in alive_nodes() if node["NodeID"] != here]
    if not nodes:
        return
    faults = [check.fault for check in check_nodes(configs, nodes) if check.fault]
    if faults:
        raise LaunchError("; ".join(faults))


def alive_nodes() -> list[dict[str, Any]]:
    """Ray's description of each node that is there."""
    return [node for node in ray.nodes() if node["Alive"]]


def check_nodes(
    configs: Sequence[ExperimentConfig], nodes: Sequence[dict[str, Any]]
) -> list[Check]:
    """What was found on these nodes: one check for each subject."""
    roms = sorted({config.game.rom for config in configs})
    folders = sorted({_storage_of(config) for config in configs})
    with _probes(folders) as (probes, storage_faults):
        answers, silent = _ask(nodes, roms=roms, probes=probes)
        unread = [fault for probe in probes for fault in _read_back(probe, answers)]
    storage_faults += [
        f"{name} cannot use {_shown(folder)}: {error}"
        for name, answer in answers.items()
        for folder, error in answer["storage"].items()
    ]
    storage_faults += unread
    gpus = [node for node in nodes if node["Resources"].get("GPU", 0) >= 1]
    checks = [
        Check("nodes", f"{len(answers)} of {len(nodes)} answered", _join(silent)),
        _check_versions(answers),
        _check_roms(answers, roms),
        Check(
            "storage",
            f"{', '.join(_shown(folder) for folder in folders)}: written and read by each node",
            _join(
                storage_faults,
                "give a folder that all nodes share and may write, or s3://... (--output-dir)",
            ),
        ),
    ]
    if gpus and any(config.use_gpu for config in configs):
        checks.append(_check_gpus(gpus, answers))
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
            storage[probe.rpartition("/")[0]] = first_line(error)
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
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Each node's answer by its name, and what is wrong with those that gave none."""
    task = ray.remote(look_around)
    waiting = {}
    for node in nodes:
        placed = task.options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
        )
        gpus = int(node["Resources"].get("GPU", 0))
        waiting[placed.remote(list(roms), list(probes), node["NodeID"], gpus)] = node
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=ANSWER_TIMEOUT_S)
    answers: dict[str, dict[str, Any]] = {}
    silent = [
        f"{node_name(waiting[task])} does not answer within {ANSWER_TIMEOUT_S:g} s -> look at its "
        "raylet, or take the node away"
        for task in late
    ]
    for finished in done:
        node = waiting[finished]
        try:
            answers[node_name(node)] = ray.get(finished)
        except Exception as error:  # a missing package, a node that has died: Ray's own kinds
            cause = str(getattr(error, "cause", None) or error).strip().splitlines()
            silent.append(
                f"{node_name(node)} cannot run retro_ml: {cause[-1] if cause else error} -> "
                "install the same retro_ml on each node, or ship it (retro-ml submit --ship)"
            )
    return answers, silent


def node_name(node: dict[str, Any]) -> str:
    """How a node is called in messages."""
    return f"node {node['NodeManagerAddress']} ({node['NodeID'][:6]})"


def _check_versions(answers: dict[str, dict[str, Any]]) -> Check:
    ours = versions_here()
    faults = [
        f"{name} has {package} {theirs}, the driver {ours[package]} -> install the same there"
        for name, answer in answers.items()
        for package, theirs in answer["versions"].items()
        if theirs != ours[package]
    ]
    found = ", ".join(f"{package} {version}" for package, version in ours.items())
    return Check("versions", f"{found} on each node", _join(faults))


def _check_roms(answers: dict[str, dict[str, Any]], roms: Sequence[str]) -> Check:
    faults = [
        f"{name} has no ROM of {', '.join(answer['missing_roms'])} -> install ale-py 0.12 there"
        for name, answer in answers.items()
        if answer["missing_roms"]
    ]
    return Check("games", f"the ROM of {', '.join(roms)} on each node", _join(faults))


def _check_gpus(nodes: Sequence[dict[str, Any]], answers: dict[str, dict[str, Any]]) -> Check:
    faults = []
    promised = 0
    for node in nodes:
        gpus = int(node["Resources"]["GPU"])
        promised += gpus
        seen = answers.get(node_name(node), {}).get("gpus", gpus)
        if seen < gpus:
            faults.append(
                f"{node_name(node)} promises {gpus} GPUs, PyTorch sees {seen} there -> install a "
                "CUDA build of PyTorch and the driver for it, or start the node with --num-gpus="
                f"{seen}"
            )
    return Check("GPUs", f"PyTorch sees all {promised}", _join(faults))


@contextmanager
def _probes(folders: Sequence[str]) -> Iterator[tuple[list[str], list[str]]]:
    """A folder of its own in each storage, with a file by this process; removed afterwards."""
    probes, faults = [], []
    for folder in folders:
        probe = f"{folder}/{PROBE_PREFIX}{uuid.uuid4().hex}"
        try:
            RemoteFolder(probe).put(DRIVER_FILE, probe.encode())
            probes.append(probe)
        except (StorageError, OSError) as error:
            faults.append(f"the driver cannot write {_shown(folder)}: {first_line(error)}")
    try:
        yield probes, faults
    finally:
        for probe in probes:
            with suppress(StorageError, OSError):
                RemoteFolder(probe.rpartition("/")[0]).delete_folder(probe.rpartition("/")[2])


def _read_back(probe: str, answers: dict[str, dict[str, Any]]) -> Iterator[str]:
    """What the driver does not see of what the nodes wrote."""
    found = RemoteFolder(probe).list()
    folder = probe.rpartition("/")[0]
    for name, answer in answers.items():
        node_id = name.rpartition("(")[2].rstrip(")")
        wrote = folder not in answer["storage"]
        if wrote and not any(file.startswith(node_id) for file in found):
            yield f"what {name} writes to {_shown(folder)} is not seen by the driver"


def _storage_of(config: ExperimentConfig) -> str:
    """The output folder as a URI."""
    if "://" in config.output_dir:
        return config.output_dir.rstrip("/")
    return config.experiment_dir.parent.as_uri()


def _shown(folder: str) -> str:
    """A URI as people write it."""
    return folder.removeprefix("file://")


def _join(faults: Sequence[str], remedy: str = "") -> str | None:
    if not faults:
        return None
    return "; ".join(faults) + (f" -> {remedy}" if remedy else "")
