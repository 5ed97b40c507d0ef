"""Can this machine run an experiment with a Ray of its own?"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch

from retro_ml.cluster.embedded import OBJECT_STORE_BYTES
from retro_ml.cluster.node_checks import Check, has_rom, versions_here
from retro_ml.cluster.placement import Node, choose_resources
from retro_ml.cluster.plan import plan_run
from retro_ml.core.artifacts.remote_folder import StorageError
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.engine.storage_opening import prove_writable
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.locations import STAGING_VARIABLE, is_uri
from retro_ml.core.machine import count_cpus
from retro_ml.rllib.machine import resolve_precision

SHARED_MEMORY = Path("/dev/shm")
NVIDIA_DEVICE = Path("/dev/nvidia0")
"""There where Linux knows an NVIDIA GPU."""


def check_machine(config: ExperimentConfig) -> list[Check]:
    """What is found here."""
    plan = plan_run(config)
    disk = f"up to {_size(plan.disk_bytes)} of {_size(plan.free_disk_bytes)} that are free"
    memory = f"about {_size(plan.memory_bytes)} of {_size(plan.free_memory_bytes)} that are free"
    lower = "lower dqn.replay_size" if config.algorithm == "DQN" else "end what else takes it"
    versions = ", ".join(f"{name} {version}" for name, version in versions_here().items())
    return [
        Check("versions", versions),
        Check(
            "game",
            f"the ROM of {config.game.rom}",
            None
            if has_rom(config.game.rom)
            else f"no ROM of {config.game.rom} -> pip install 'ale-py>=0.12.1,<0.13'",
        ),
        _check_folder(config),
        Check(
            "disk",
            disk,
            None
            if plan.disk_bytes <= plan.free_disk_bytes
            else f"the run takes {disk} -> free some, lower checkpointing.keep, or another "
            "--output-dir",
        ),
        Check(
            "memory",
            memory,
            None
            if plan.memory_bytes <= plan.free_memory_bytes
            else f"the run takes {memory} -> {lower}",
        ),
        *_check_shared_memory(config),
        _check_gpu(config),
        _check_precision(config),
        _check_placement(config),
    ]


def _check_folder(config: ExperimentConfig) -> Check:
    """The folder that the run's is made in, and the storage that it is sent to, if it is."""
    folder = config.paths.experiment_dir.parent
    there = next(path for path in [folder, *folder.parents] if path.exists())
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        remedy = "another --output-dir"
        if is_uri(config.output_dir):
            remedy = f"another folder in {STAGING_VARIABLE}"
        return Check("storage", "", f"{there} cannot be written -> {remedy}")
    if not is_uri(config.output_dir):
        return Check("storage", f"{folder} can be written")
    try:
        prove_writable(config.output_dir)
    except (StorageError, OSError) as error:
        return Check("storage", "", str(error))
    return Check("storage", f"{config.output_dir}: written and read; {folder} can be written")


def _check_shared_memory(config: ExperimentConfig) -> list[Check]:
    if not config.resources.num_env_runners or not SHARED_MEMORY.is_dir():
        return []
    free = shutil.disk_usage(SHARED_MEMORY).free
    found = f"{_size(free)} free, Ray takes {_size(OBJECT_STORE_BYTES)}"
    fault = f"{SHARED_MEMORY}: {found} -> start the container with --shm-size=1g or more"
    return [Check("shared memory", found, fault if free < OBJECT_STORE_BYTES else None)]


def _check_gpu(config: ExperimentConfig) -> Check:
    seen = torch.cuda.device_count()
    if config.use_gpu and not seen and NVIDIA_DEVICE.exists():
        return Check(
            "GPUs",
            "",
            f"{NVIDIA_DEVICE} is there, but PyTorch {torch.__version__} sees no GPU -> install a "
            "CUDA build of PyTorch, or set use_gpu to false",
        )
    return Check("GPUs", f"PyTorch sees {seen}")


def _check_precision(config: ExperimentConfig) -> Check:
    gpu = config.use_gpu and torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    native = resolve_precision("auto", device)
    asked = config.resources.precision
    if asked == "bf16" and native != "bf16":
        fault = "bf16 is not in this hardware, and slow without -> resources.precision auto"
        return Check("precision", "", fault)
    return Check("precision", native if asked == "auto" else asked)


def _check_placement(config: ExperimentConfig) -> Check:
    node = Node(cpus=count_cpus(), gpus=torch.cuda.device_count())
    try:
        cpus, gpus = choose_resources(config, [node])
    except LaunchError as error:
        return Check("placement", "", str(error))
    runners = config.resources.num_env_runners
    return Check(
        "placement", f"{cpus} of {node.cpus:g} CPUs and {gpus:g} GPUs, {runners} env runners beside"
    )


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"
