"""Can a Ray cluster run an experiment? Asked from inside it, or by a job from anywhere."""

from __future__ import annotations

import json
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

import ray

from retro_ml.cluster.connect import Cluster, connect
from retro_ml.cluster.job_package import build_entrypoint, pack, take_files
from retro_ml.cluster.jobs import Jobs
from retro_ml.cluster.node_checks import Check, alive_nodes, check_nodes
from retro_ml.cluster.placement import bundles_of, choose_resources, count_at_once
from retro_ml.cluster.trials import place_memory
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions

BEGIN = '{"checks": '
"""Of the line with the checks in what the job prints."""


def check_cluster(address: str, config: ExperimentConfig, options: RunOptions) -> list[Check]:
    """What is found on a cluster that this process can attach to."""
    try:
        with connect(address, allow_open=options.allow_open_cluster) as cluster:
            return [
                _describe_cluster(cluster),
                *check_nodes([config], alive_nodes()),
                check_placement(config, cluster, options),
            ]
    except LaunchError as error:
        return [Check("cluster", "", str(error))]


def check_placement(config: ExperimentConfig, cluster: Cluster, options: RunOptions) -> Check:
    """What one trial takes, and how many of them have room."""
    nodes = cluster.nodes
    try:
        cpus, gpus = choose_resources(config, nodes, wait_for_nodes=options.wait_for_nodes)
    except LaunchError as error:
        return Check("placement", "", str(error))
    memory_bytes = place_memory(config, cluster, num_cpus=cpus, num_gpus=gpus)
    bundles = bundles_of(config.resources, cpus, gpus, memory_bytes)
    needs = sum(bundle["CPU"] for bundle in bundles)
    count = count_at_once(bundles, nodes)
    return Check(
        "placement",
        f"a trial takes {needs:g} CPUs, {gpus:g} GPUs and {memory_bytes / 1e9:.1f} GB of memory; "
        f"{count} have room at once",
    )


def check_cluster_by_job(
    address: str,
    config: ExperimentConfig,
    options: RunOptions,
    *,
    words: Sequence[str],
    ship: bool = False,
) -> list[Check]:
    """The same for a cluster whose jobs API can be reached, by a job that looks from inside.

    Args:
        address: of the head's dashboard.
        config: the experiment.
        options: `allow_open_cluster`.
        words: the options that `config` was made of, for the job to read again.
        ship: this retro_ml too, to nodes that have none.
    """
    fault = describe_output_fault(config.output_dir)
    if fault is not None:
        return [Check("storage", "", fault)]
    try:
        jobs = Jobs(address, allow_open=options.allow_open_cluster)
        job_id = f"doctor-{uuid.uuid4().hex[:12]}"
        changed, files = take_files(["doctor", "--json", *words])
        with tempfile.TemporaryDirectory(prefix="retro_ml-job-") as folder:
            jobs.start(
                job_id,
                entrypoint=build_entrypoint(changed, ship=ship),
                runtime_env=pack(Path(folder), files, ship=ship),
            )
        printed: list[str] = []
        outcome = jobs.follow(job_id, printed.append, notice=lambda line: None)
    except LaunchError as error:
        return [Check("cluster", "", str(error))]
    lines = "".join(printed).splitlines()
    found = [line for line in lines if line.startswith(BEGIN)]
    if found:
        checks = [Check(**check) for check in json.loads(found[-1])["checks"]]
        return [Check("jobs API", f"{jobs.address}, Ray {ray.__version__} on both sides"), *checks]
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reasons = errors or [outcome.error or f"job {job_id} ended with {outcome.exit_code}"]
    return [Check("cluster", "", reason) for reason in reasons]


def describe_output_fault(output_dir: str) -> str | None:
    """Why a job cannot leave its files there; None if it can."""
    if "://" in output_dir or output_dir.startswith("/"):
        return None
    return (
        f"output_dir: {output_dir} -> the whole name of a folder that all nodes share, or "
        "s3://...: a job's own folder is gone after it (--output-dir)"
    )


def _describe_cluster(cluster: Cluster) -> Check:
    count = len(cluster.nodes)
    return Check("cluster", f"{count} nodes, {cluster.cpus} CPUs, {cluster.gpus:g} GPUs")
