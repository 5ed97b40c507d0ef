"""Every way in which the manifests are rendered, and the pods that KubeRay makes of them."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.deploy.kustomize import manifests_folder, render
from retro_ml.deploy.run_manifests import OVERLAYS, render_run

Manifest = dict[str, Any]
FOLDERS = sorted(path.name for path in (manifests_folder() / "overlays").iterdir())
# What `kubectl apply -k` users may put together themselves, from components.
COMPOSED = {
    "s3": ["s3", "run-cluster"],
    "s3-identity": ["s3", "s3-identity", "gpu", "run-cluster"],
    "s3-identity-autoscaling": ["s3", "autoscaling", "s3-identity", "run-cluster"],
    "spot-autoscaling": ["pvc", "gpu", "spot", "autoscaling", "run-cluster"],
}
ROOT = Path(__file__).parents[3]


def compose(folder: Path, components: list[str]) -> Path:
    """A kustomization of one's own beside the ones in the repository."""
    k8s = os.path.relpath(manifests_folder(), folder)
    kustomization = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"{k8s}/run"],
        "components": [f"{k8s}/components/{name}" for name in components],
    }
    folder.mkdir(exist_ok=True)
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def rendered_run(overlay: str, **fields: Any) -> list[Manifest]:
    with_gpu = overlay in {"gpu", "gpu-spot", "kueue"}
    defaults: dict[str, Any] = {
        "game_id": "pong",
        "experiment_id": "pong-1",
        "resources": {"num_env_runners": 4, "num_learners": 2, "num_gpus": 2 if with_gpu else 0},
    }
    config = ExperimentConfig(**{**defaults, **fields})
    return render_run(config, overlay=overlay, image=None, memory_bytes=2**30, disk_bytes=2**30)


WAYS = [
    *(f"overlay {name}" for name in FOLDERS),
    *(f"composed {name}" for name in COMPOSED),
    *(f"rendered {name}" for name in OVERLAYS),
    "rendered gpu to s3",
]


@pytest.fixture(scope="session", params=WAYS)
def manifests(request: pytest.FixtureRequest, tmp_path_factory: Any) -> list[Manifest]:
    """All manifests, in each of the ways to come by them. Nobody changes them."""
    kind, name, *storage = request.param.split(maxsplit=2)
    if kind == "overlay":
        return render(manifests_folder() / "overlays" / name)
    if kind == "composed":
        return render(compose(tmp_path_factory.mktemp("composed") / name, COMPOSED[name]))
    return rendered_run(name, **({"output_dir": "s3://bucket/runs"} if storage else {}))


@pytest.fixture(scope="session")
def pods(manifests: list[Manifest]) -> list[Manifest]:
    return [pod for manifest in manifests for pod in pods_of(manifest)]


def pods_of(manifest: Manifest) -> list[Manifest]:
    """The pods of a RayJob or RayCluster, with what KubeRay 1.7 adds to their templates."""
    spec = manifest.get("spec", {})
    if manifest["kind"] == "RayJob":
        cluster = spec["rayClusterSpec"]
        submitter = build_pod(manifest, spec["submitterPodTemplate"], {})
        return [*pods_of_cluster(manifest, cluster), submitter]
    return pods_of_cluster(manifest, spec) if manifest["kind"] == "RayCluster" else []


def pods_of_cluster(owner: Manifest, cluster: Manifest) -> list[Manifest]:
    head = build_pod(
        owner, cluster["headGroupSpec"]["template"], {"ray.io/node-type": "head"}, in_ray=True
    )
    if cluster.get("enableInTreeAutoscaling"):
        options = cluster["autoscalerOptions"]
        image = head["spec"]["containers"][0]["image"]
        autoscaler = {"name": "autoscaler", "image": image}
        kept = ("resources", "securityContext", "volumeMounts", "env", "envFrom")
        autoscaler |= {name: options[name] for name in kept if name in options}
        add_token(autoscaler, owner)
        logs = {"name": "ray-logs", "mountPath": "/tmp/ray"}
        head["spec"]["volumes"].append({"name": "ray-logs", "emptyDir": {}})
        head["spec"]["containers"].append(copy.deepcopy(autoscaler))
        for container in head["spec"]["containers"]:
            container["volumeMounts"].append(logs)
    workers = []
    for group in cluster["workerGroupSpecs"]:
        pod = build_pod(owner, group["template"], {"ray.io/node-type": "worker"}, in_ray=True)
        pod["metadata"]["name"] += f"-{group['groupName']}"
        container = pod["spec"]["containers"][0]
        kept = ("image", "imagePullPolicy", "securityContext", "env", "envFrom", "volumeMounts")
        waiting = {name: copy.deepcopy(container[name]) for name in kept if name in container}
        sizes = {"cpu": "200m", "memory": "256Mi"}
        resources = {"limits": sizes, "requests": sizes}
        pod["spec"]["initContainers"] = [
            {"name": "wait-gcs-ready", "resources": resources, **waiting}
        ]
        workers.append(pod)
    return [head, *workers]


def add_token(container: Manifest, owner: Manifest) -> None:
    """From the Secret that the operator makes for a cluster."""
    secret = {"name": owner["metadata"]["name"], "key": "auth_token"}
    container.setdefault("env", []).extend(
        [
            {"name": "RAY_AUTH_MODE", "value": "token"},
            {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": secret}},
        ]
    )


def build_pod(
    owner: Manifest, template: Manifest, labels: dict[str, str], *, in_ray: bool = False
) -> Manifest:
    template = copy.deepcopy(template)
    container = template["spec"]["containers"][0]
    if in_ray:
        memory = {"medium": "Memory", "sizeLimit": container["resources"]["requests"]["memory"]}
        template["spec"]["volumes"].append({"name": "shared-mem", "emptyDir": memory})
        container["volumeMounts"].append({"name": "shared-mem", "mountPath": "/dev/shm"})
    add_token(container, owner)
    name = f"{owner['metadata']['name']}-{container['name']}"
    labels = {**template["metadata"].get("labels", {}), **labels}
    metadata = {"name": name, "namespace": owner["metadata"]["namespace"], "labels": labels}
    if "annotations" in template["metadata"]:
        metadata["annotations"] = template["metadata"]["annotations"]
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}
