"""The manifests of one run: an overlay of k8s/, with names, sizes and storage from its config.

The overlay is the only source of everything else, so a change in k8s/ reaches rendered runs too.
The config that the pods read is the run's own, with what a cluster has to know beforehand written
out: CPUs, GPUs, and the folder as the pods see it.
"""

from __future__ import annotations

import copy
import hashlib
import math
import re
from pathlib import PurePosixPath
from typing import Any

import yaml

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.deploy.kustomize import Manifest, manifests_folder, render
from retro_ml.deploy.quota import check_quota

OVERLAYS = ("cpu", "gpu", "gpu-spot", "autoscaling", "kueue")
WITH_GPU = frozenset({"gpu", "gpu-spot", "kueue"})
LONGEST_NAME = 47
"""Of a RayJob: KubeRay adds to it what a label of 63 characters must still hold."""
ENV_RUNNERS_PER_POD = 8
"""At most (this project's choice: half of a common machine of 16 CPUs)."""
VOLUME = PurePosixPath("/runs")
GPU = "nvidia.com/gpu"
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]*", re.ASCII)
_SYSTEM = ("bin", "boot", "dev", "etc", "home", "lib", "opt", "proc", "root", "run", "sbin", "sys",
           "tmp", "usr", "var")  # fmt: skip


class CannotRender(ValueError):
    """The config and the overlay do not go together; `faults` has a line for each reason."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def render_run(
    config: ExperimentConfig,
    *,
    overlay: str,
    image: str | None,
    memory_bytes: int,
    disk_bytes: int,
) -> list[Manifest]:
    """Everything that `kubectl apply` needs for one run.

    Args:
        config: the run.
        overlay: one of OVERLAYS.
        image: in place of the one in k8s/.
        memory_bytes: what the run's main process will take.
        disk_bytes: what the run's folder will take.

    Raises: CannotRender.
    """
    faults = [
        *_check_gpus(config, overlay),
        *_check_output_dir(config.output_dir),
        *_check_init_from(config),
        *_check_image(image),
    ]
    if faults:
        raise CannotRender(faults)
    on_s3 = config.output_dir.startswith("s3://")
    folder = manifests_folder() / "overlays" / overlay
    manifests = render(folder, swap={"pvc": "s3"} if on_s3 else {})
    (job,) = (manifest for manifest in manifests if manifest["kind"] == "RayJob")
    cluster = job["spec"]["rayClusterSpec"]
    (trainer,) = cluster["workerGroupSpecs"]
    settled = _settle(config, overlay=overlay, cpus=int(_limits(trainer)["cpu"]))
    cluster["workerGroupSpecs"] = _build_groups(trainer, settled, memory_bytes=memory_bytes)
    if on_s3:
        _make_room_to_stage(cluster, disk_bytes)
    else:
        _mount(cluster, PurePosixPath(settled.output_dir))
    _name(manifests, job, settled)
    if image is not None:
        _set_image(job, image)
    faults = check_quota(manifests)
    if faults:
        raise CannotRender(faults)
    return manifests


def job_name(experiment_id: str) -> str:
    """A RayJob's name: the id itself where it is a DNS label, otherwise near it and unique."""
    name = re.sub("[^a-z0-9]+", "-", experiment_id.lower()).strip("-")
    if not name[0].isalpha():
        name = f"run-{name}"
    if name == experiment_id and len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(experiment_id.encode()).hexdigest()[:6]
    return f"{name[: LONGEST_NAME - len(digest) - 1].rstrip('-')}-{digest}"


def _check_gpus(config: ExperimentConfig, overlay: str) -> list[str]:
    asked = config.resources.num_gpus
    if overlay not in WITH_GPU and asked:
        return [f"resources.num_gpus: {asked:g} -> 0, or an overlay with GPUs: --overlay gpu"]
    if overlay in WITH_GPU and (not config.use_gpu or asked == 0):
        field = "resources.num_gpus: 0" if config.use_gpu else "use_gpu: false"
        return [f"{field} -> leave it out, or take an overlay without GPUs: --overlay cpu"]
    return []


def _check_output_dir(output_dir: str) -> list[str]:
    scheme, separator, _ = output_dir.partition("://")
    if separator:
        return [] if scheme == "s3" else [f"output_dir: {output_dir} -> a folder or s3://BUCKET"]
    path = PurePosixPath(output_dir)
    if ".." in path.parts or ":" in output_dir:  # no mount path has a colon
        return [f"output_dir: {output_dir} -> a folder below {VOLUME}, or an absolute one"]
    if path.is_absolute() and (len(path.parts) == 1 or path.parts[1] in _SYSTEM):
        return [f"output_dir: {output_dir} -> a folder that a volume can be mounted at, e.g. runs"]
    return []


def _check_init_from(config: ExperimentConfig) -> list[str]:
    if config.init_from is None:
        return []
    folder, file = PurePosixPath(_in_the_pods(config.output_dir)), PurePosixPath(config.init_from)
    volume = VOLUME if folder.is_relative_to(VOLUME) else folder
    if "://" not in config.output_dir and file.is_relative_to(volume) and ".." not in file.parts:
        return []
    remedy = f"a file on the volume, as the pods see it, e.g. {VOLUME}/RUN/model.zip"
    return [f"init_from: {config.init_from} -> {remedy}; they do not have this one"]


def _check_image(image: str | None) -> list[str]:
    if image is None or _IMAGE.fullmatch(image):
        return []
    return [f"--image: {image} -> a name as REGISTRY/retro-ml:TAG or REGISTRY/retro-ml@sha256:..."]


def _settle(config: ExperimentConfig, *, overlay: str, cpus: int) -> ExperimentConfig:
    """What a run otherwise decides from the machine it finds."""
    asked = config.resources
    gpus = asked.num_gpus
    if gpus is None:
        gpus = float(max(asked.num_learners, 1)) if overlay in WITH_GPU else 0.0
    resources = asked.model_copy(update={"num_cpus": asked.num_cpus or cpus, "num_gpus": gpus})
    output_dir = _in_the_pods(config.output_dir)
    return config.model_copy(update={"resources": resources, "output_dir": output_dir})


def _in_the_pods(output_dir: str) -> str:
    path = PurePosixPath(output_dir)
    if "://" in output_dir or path.is_absolute():
        return output_dir
    return str(VOLUME / (PurePosixPath(*path.parts[1:]) if path.parts[:1] == ("runs",) else path))


def _build_groups(
    trainer: Manifest, config: ExperimentConfig, *, memory_bytes: int
) -> list[Manifest]:
    """The worker groups in which every bundle of the trial finds a place (TrialActor's request)."""
    resources = config.resources
    gpus, learners, players = (
        resources.num_gpus or 0,
        resources.num_learners,
        resources.num_env_runners,
    )
    base = trainer
    trainer = _resize(
        base,
        cpus=resources.num_cpus or 1,
        gpus=0 if learners else gpus,
        memory_gib=max(_read_gib(_limits(base)["memory"]), math.ceil(memory_bytes * 1.25 / 2**30)),
    )
    groups = [trainer]
    if learners:
        per_learner = gpus / learners
        cpus = 1 if not gpus else 2  # with a GPU Ray asks for none, but the process needs some
        group = _resize(base, cpus=cpus, gpus=per_learner, memory_gib=4)
        groups.append(_repeat(group, "learners", learners))
    if players:
        pods = math.ceil(players / ENV_RUNNERS_PER_POD)
        cpus = math.ceil(players / pods)
        group = _resize(base, cpus=cpus, gpus=0, memory_gib=2 + cpus)
        groups.append(_repeat(group, "env-runners", pods))
    return groups


def _resize(base: Manifest, *, cpus: int, gpus: float, memory_gib: int) -> Manifest:
    group = copy.deepcopy(base)
    for sizes in _container(group)["resources"].values():
        sizes["cpu"] = str(cpus)
        sizes["memory"] = f"{memory_gib}Gi"
        sizes.pop(GPU, None)
        if gpus:
            sizes[GPU] = str(math.ceil(gpus))
    if gpus:
        return group
    group["rayStartParams"]["num-gpus"] = "0"
    if GPU in _limits(base):  # nothing lets it onto machines that are kept for GPUs
        pod = group["template"]["spec"]
        pod["tolerations"] = [other for other in pod["tolerations"] if other["key"] != GPU]
    return group


def _repeat(group: Manifest, name: str, replicas: int) -> Manifest:
    """`group` under another name; where the overlay scales, it may grow as the trainer may."""
    most = group["maxReplicas"] * replicas
    return group | {
        "groupName": name,
        "replicas": replicas,
        "minReplicas": replicas,
        "maxReplicas": most,
    }


def _make_room_to_stage(cluster: Manifest, disk_bytes: int) -> None:
    """A bucket takes whole objects: the driver and the trial have the run's files on disk too."""
    more = math.ceil(disk_bytes * 1.25 / 2**30)
    for group in (cluster["headGroupSpec"], cluster["workerGroupSpecs"][0]):
        for sizes in _container(group)["resources"].values():
            sizes["ephemeral-storage"] = f"{_read_gib(sizes['ephemeral-storage']) + more}Gi"


def _mount(cluster: Manifest, output_dir: PurePosixPath) -> None:
    """The volume at /runs, or, for an absolute folder elsewhere, there."""
    if output_dir.is_relative_to(VOLUME):
        return
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        for mount in _container(group)["volumeMounts"]:
            if mount["name"] == "runs":
                mount["mountPath"] = str(output_dir)


def _name(manifests: list[Manifest], job: Manifest, config: ExperimentConfig) -> None:
    """The job and its config by the run's own name, so that runs stand side by side."""
    name = job_name(config.experiment_id)
    job["metadata"]["name"] = name
    job["metadata"]["annotations"] = {"retro-ml/experiment-id": config.experiment_id}
    (mapping,) = (manifest for manifest in manifests if manifest["kind"] == "ConfigMap")
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for volume in head["volumes"]:
        if volume.get("configMap", {}).get("name") == mapping["metadata"]["name"]:
            volume["configMap"]["name"] = name
    mapping["metadata"]["name"] = name
    fields = config.model_dump(mode="json")
    mapping["data"] = {"config.yaml": yaml.safe_dump(fields, sort_keys=False)}


def _set_image(job: Manifest, image: str) -> None:
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    templates = [job["spec"]["submitterPodTemplate"], *(group["template"] for group in groups)]
    for template in templates:
        template["spec"]["containers"][0]["image"] = image


def _container(group: Manifest) -> dict[str, Any]:
    container: dict[str, Any] = group["template"]["spec"]["containers"][0]
    return container


def _limits(group: Manifest) -> dict[str, str]:
    limits: dict[str, str] = _container(group)["resources"]["limits"]
    return limits


def _read_gib(text: str) -> int:
    return int(text.removesuffix("Gi"))
