"""Every pod meets the restricted Pod Security Standard and what goes beyond it here."""

import copy
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from retro_ml.deploy.kustomize import manifests_folder, render

from .conftest import pods_of

pytestmark = pytest.mark.unit

Manifest = dict[str, Any]
VOLUMES = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim",
           "projected", "secret"}  # fmt: skip
"""That the restricted standard allows (kubernetes.io, Pod Security Standards, 1.34)."""
MAY_HAVE_A_TOKEN = {"autoscaler"}


def containers(pod: Manifest) -> list[Manifest]:
    return [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]


def faults(pod: Manifest) -> Iterator[str]:
    """Where a pod is not restricted."""
    spec, pod_context = pod["spec"], pod["spec"].get("securityContext", {})
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(name):
            yield name
    for volume in spec.get("volumes", []):
        if not set(volume) - {"name"} <= VOLUMES:
            yield f"volume {volume['name']}"
    for container in containers(pod):
        context = container.get("securityContext", {})
        both = {**pod_context, **context}
        wrong = {
            "privileged": context.get("privileged", False),
            "allowPrivilegeEscalation": context.get("allowPrivilegeEscalation", True),
            "capabilities.drop": context.get("capabilities", {}).get("drop") != ["ALL"],
            "capabilities.add": context.get("capabilities", {}).get("add"),
            "runAsNonRoot": both.get("runAsNonRoot") is not True,
            "runAsUser": both.get("runAsUser", 0) == 0,
            "seccompProfile": both.get("seccompProfile", {}).get("type") != "RuntimeDefault",
            "procMount": context.get("procMount", "Default") != "Default",
            "hostPort": any("hostPort" in port for port in container.get("ports", [])),
            # What follows the standard does not ask for.
            "readOnlyRootFilesystem": context.get("readOnlyRootFilesystem") is not True,
            "limits": not {"cpu", "memory"} <= container["resources"]["limits"].keys(),
            "image": container["image"].endswith(":latest") or ":" not in container["image"],
        }
        yield from (f"{container['name']}: {name}" for name, fault in wrong.items() if fault)
    if spec.get("automountServiceAccountToken") is not False:
        yield "automountServiceAccountToken"


def test_every_pod_is_restricted(pods: list[Manifest]) -> None:
    assert len(pods) >= 2
    for pod in pods:
        assert list(faults(pod)) == [], pod["metadata"]["name"]


def test_only_the_autoscaler_gets_a_token_of_the_cluster(pods: list[Manifest]) -> None:
    for pod in pods:
        volumes = {
            volume["name"]
            for volume in pod["spec"].get("volumes", [])
            if any("serviceAccountToken" in part
                   for part in volume.get("projected", {}).get("sources", []))
        }  # fmt: skip
        holders = {
            container["name"]
            for container in containers(pod)
            if volumes & {mount["name"] for mount in container.get("volumeMounts", [])}
        }
        assert holders <= MAY_HAVE_A_TOKEN


def test_every_writable_place_is_a_volume_and_every_mount_has_one(pods: list[Manifest]) -> None:
    for pod in pods:
        volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
        for container in containers(pod):
            mounts = {mount["name"] for mount in container["volumeMounts"]}
            assert {"tmp", "home"} <= mounts <= volumes


def test_training_has_time_for_a_checkpoint_before_its_pod_ends(pods: list[Manifest]) -> None:
    for pod in pods:
        if "ray.io/node-type" in pod["metadata"]["labels"]:
            (command,) = [
                container["lifecycle"]["preStop"]["exec"]["command"]
                for container in pod["spec"]["containers"]
                if "lifecycle" in container
            ]
            # `ray stop` takes 10 s at most, see end-node.
            assert command[0] == "end-node"
            assert int(command[1]) + 10 < pod["spec"]["terminationGracePeriodSeconds"]


SPOILED: dict[str, Callable[[Manifest], Any]] = {
    "hostNetwork": lambda pod: pod["spec"].update(hostNetwork=True),
    "volume": lambda pod: pod["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}}),
    "seccompProfile": lambda pod: [
        context.pop("seccompProfile", None)
        for context in (
            pod["spec"]["securityContext"],
            pod["spec"]["containers"][0]["securityContext"],
        )
    ],
    "wait-gcs-ready: capabilities.drop": lambda pod: pod["spec"]["initContainers"][0].update(
        securityContext={}
    ),
    "runAsUser": lambda pod: pod["spec"]["containers"][0]["securityContext"].update(runAsUser=0),
    "automountServiceAccountToken": lambda pod: pod["spec"].pop("automountServiceAccountToken"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_pod_that_is_not_restricted_is_found(fault: str) -> None:
    manifests = render(manifests_folder() / "overlays/gpu")
    pods = [pod for manifest in manifests for pod in pods_of(manifest)]
    worker = copy.deepcopy(pods[1])
    SPOILED[fault](worker)
    assert any(fault in found for found in faults(worker))


def test_kubernetes_knows_every_field(manifests: list[Manifest], pods: list[Manifest]) -> None:
    core = [m for m in manifests if not m["apiVersion"].startswith("ray.io/")]
    for manifest in [*core, *pods]:
        kubernetes_validate.validate(manifest, "1.34", strict=True)


def find_trivy() -> str:
    found = shutil.which("trivy", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if found is None:
        pytest.skip("trivy is not installed")
    return found


def test_trivy_finds_nothing_in_any_pod(tmp_path: Path) -> None:
    trivy, folder = find_trivy(), tmp_path / "pods"
    folder.mkdir()
    for name in ("autoscaling", "gpu-spot", "interactive", "sweep"):
        manifests = render(manifests_folder() / "overlays" / name)
        others = [m for m in manifests if not m["apiVersion"].startswith("ray.io/")]
        pods = [pod for manifest in manifests for pod in pods_of(manifest)]
        (folder / f"{name}.yaml").write_text(yaml.safe_dump_all([*others, *pods]))
    # These ask of every object whether it is the namespace's LimitRange and ResourceQuota.
    (tmp_path / "ignore").write_text("KSV-0039\nKSV-0040\n")
    command = [trivy, "config", "--quiet", "--skip-check-update", "--skip-version-check"]
    command += ["--format", "json", "--ignorefile", str(tmp_path / "ignore")]
    command += ["--cache-dir", str(tmp_path / "cache"), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    results = json.loads(done.stdout)["Results"]
    failed = [
        f"{result['Target']}: {fault['ID']} {fault['Title']}: {fault['Message']}"
        for result in results
        for fault in result.get("Misconfigurations", [])
    ]
    assert sum(result["MisconfSummary"]["Successes"] for result in results) > 100
    assert failed == []
