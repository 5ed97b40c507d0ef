"""RayJobs and RayClusters: KubeRay's schemas, the operator's own rules, and this project's."""

import os
import re
import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from packaging.requirements import Requirement

pytestmark = pytest.mark.unit

Manifest = dict[str, Any]
ROOT = Path(__file__).parents[3]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# KubeRay's custom resource definitions are not part of this repository.
SCHEMAS = Path(os.environ.get("RETRO_ML_CRDS", ROOT.parent / "shared/crds"))
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


def customs(manifests: list[Manifest]) -> list[Manifest]:
    return [manifest for manifest in manifests if manifest["apiVersion"] == "ray.io/v1"]


def cluster_of(manifest: Manifest) -> Manifest:
    spec: Manifest = manifest["spec"]
    return spec["rayClusterSpec"] if manifest["kind"] == "RayJob" else spec


def close(schema: Any) -> Any:
    """The same schema, in which an object has no other fields than it names."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: close(item) for name, item in schema.items()}
    if isinstance(schema.get("properties"), dict):
        open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
        if "additionalProperties" not in schema and not open_ended:
            closed["additionalProperties"] = False
    return closed


@pytest.fixture(scope="session")
def schemas() -> dict[str, Any]:
    found = {}
    for kind, name in (("RayJob", "rayjobs"), ("RayCluster", "rayclusters")):
        paths = sorted(SCHEMAS.glob(f"ray.io_{name}.v*.yaml"))
        if not paths:
            pytest.skip(f"KubeRay's schemas are not in {SCHEMAS} (RETRO_ML_CRDS)")
        loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
        definition = yaml.load(paths[-1].read_text(encoding="utf-8"), Loader=loader)
        (schema,) = [
            entry["schema"]["openAPIV3Schema"]
            for entry in definition["spec"]["versions"]
            if entry["name"] == "v1"
        ]
        schema["properties"]["metadata"] = {"type": "object"}
        found[kind] = close(schema)
    return found


def test_kuberay_knows_every_field(manifests: list[Manifest], schemas: dict[str, Any]) -> None:
    found = customs(manifests)
    assert len(found) == 1
    for manifest in found:
        errors = jsonschema.Draft7Validator(schemas[manifest["kind"]]).iter_errors(manifest)
        assert [f"{error.json_path}: {error.message}" for error in errors] == []


def test_a_mistyped_field_is_found(schemas: dict[str, Any]) -> None:
    spec = {"rayClusterSpec": {"headGroupSpec": {"templat": {}, "template": {}}}}
    manifest = {"apiVersion": "ray.io/v1", "kind": "RayJob", "spec": spec}
    errors = jsonschema.Draft7Validator(schemas["RayJob"]).iter_errors(manifest)
    assert any("templat" in error.message for error in errors)


def test_ray_is_the_pinned_one(manifests: list[Manifest]) -> None:
    (pin,) = [Requirement(text) for text in PROJECT["dependencies"] if text.startswith("ray[")]
    for manifest in customs(manifests):
        ray = cluster_of(manifest)["rayVersion"]
        assert ray in pin.specifier
        assert ray == version("ray")
        lock = (ROOT / "docker/requirements/runtime.txt").read_text(encoding="utf-8")
        assert f"\nray=={ray} " in lock


def test_the_image_is_this_version_everywhere(pods: list[Manifest]) -> None:
    images = {
        container["image"]
        for pod in pods
        for container in [*pod["spec"].get("initContainers", []), *pod["spec"]["containers"]]
    }
    assert images == {f"retro-ml:{PROJECT['version']}"}


def test_the_operator_accepts_them(manifests: list[Manifest]) -> None:
    """What KubeRay 1.7 checks in ray-operator/controllers/ray/utils/validation.go."""
    for manifest in customs(manifests):
        name, spec, cluster = manifest["metadata"]["name"], manifest["spec"], cluster_of(manifest)
        assert DNS_LABEL.fullmatch(name)
        assert len(name) <= (47 if manifest["kind"] == "RayJob" else 53)
        if manifest["kind"] == "RayJob":
            assert spec["shutdownAfterJobFinishes"]  # or it can neither be suspended nor have a TTL
            assert "upgradeStrategy" not in cluster
            assert "clusterSelector" not in spec
            assert "deletionStrategy" not in spec  # excludes shutdownAfterJobFinishes
            for field in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
                assert spec[field] > 0
            assert min(spec["backoffLimit"], spec["ttlSecondsAfterFinished"]) >= 0
        scales = cluster.get("enableInTreeAutoscaling", False)
        groups = cluster["workerGroupSpecs"]
        assert len({group["groupName"] for group in groups}) == len(groups)
        for group in [cluster["headGroupSpec"], *groups]:
            assert not {"resources", "labels"} & group.keys()
            pod = group["template"]["spec"]
            assert len(pod["containers"]) == 1
            assert pod.get("restartPolicy", "Never") == "Never" or not scales
            assert not any(
                variable["name"].startswith(("RAY_enable_autoscaler", "RAY_REDIS", "RAY_AUTH"))
                for variable in pod["containers"][0].get("env", [])
            )
        for group in groups:
            assert 0 <= group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
            assert scales or group["minReplicas"] == group["maxReplicas"]
        assert ("autoscalerOptions" in cluster) == scales
        assert not {"networkPolicy", "tlsOptions", "historyServerOptions"} & cluster.keys()


def test_the_cluster_asks_for_a_token_and_leaves_work_to_workers(
    manifests: list[Manifest],
) -> None:
    for manifest in customs(manifests):
        cluster = cluster_of(manifest)
        assert cluster["authOptions"] == {"mode": "token"}
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert "nvidia.com/gpu" not in str(cluster["headGroupSpec"])
        if cluster.get("enableInTreeAutoscaling"):
            assert cluster["autoscalerOptions"]["version"] == "v2"


def test_ray_counts_a_gpu_only_where_the_pod_asks_for_one(manifests: list[Manifest]) -> None:
    """Elsewhere it would count those that a machine shows to every pod."""
    for manifest in customs(manifests):
        cluster = cluster_of(manifest)
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            (container,) = group["template"]["spec"]["containers"]
            asks = "nvidia.com/gpu" in container["resources"]["limits"]
            assert group["rayStartParams"].get("num-gpus") == (None if asks else "0")


def test_no_label_ties_a_pod_to_machines_with_gpus(pods: list[Manifest]) -> None:
    """None tells of them on every cluster, nor on a machine that is still to be started."""
    for pod in pods:
        assert "nodeSelector" not in pod["spec"]
        assert "nvidia" not in str(pod["spec"].get("affinity"))


def test_a_sweep_asks_for_workers_where_the_cluster_scales(manifests: list[Manifest]) -> None:
    for manifest in customs(manifests):
        entrypoint = manifest["spec"].get("entrypoint", "")
        if cluster_of(manifest).get("enableInTreeAutoscaling") and "sweep" in entrypoint.split():
            assert "--wait-for-nodes" in entrypoint.split()


def test_kueue_takes_the_job(manifests: list[Manifest]) -> None:
    """It manages no jobs that scale themselves, and starts those that begin suspended."""
    for manifest in customs(manifests):
        if "kueue.x-k8s.io/queue-name" in manifest["metadata"]["labels"]:
            assert manifest["spec"]["suspend"] is True
            assert "enableInTreeAutoscaling" not in cluster_of(manifest)


def test_every_retry_finds_the_same_experiment(manifests: list[Manifest]) -> None:
    """A new cluster, the same entrypoint, the same id in the same config."""
    for manifest in customs(manifests):
        if manifest["kind"] != "RayJob":
            continue
        assert manifest["spec"]["backoffLimit"] > 0
        path = re.search(r"/etc/retro-ml/\S+", manifest["spec"]["entrypoint"])
        (mapping,) = [other for other in manifests if other["kind"] == "ConfigMap"]
        assert path is not None
        fields = yaml.safe_load(mapping["data"][Path(path[0]).name])
        assert fields.get("experiment_id") or fields.get("name")
        head = cluster_of(manifest)["headGroupSpec"]["template"]["spec"]
        volumes = {volume["name"]: volume for volume in head["volumes"]}
        assert volumes["config"]["configMap"]["name"] == mapping["metadata"]["name"]
        mounts = {mount["name"]: mount for mount in head["containers"][0]["volumeMounts"]}
        assert mounts["config"]["mountPath"] == "/etc/retro-ml"


def test_a_gone_cluster_is_noticed_before_the_operator_gives_up(manifests: list[Manifest]) -> None:
    """KubeRay 1.7 makes no further attempt where it could not ask a head for 300 s."""
    program = (ROOT / "docker/bin/submit-job").read_text(encoding="utf-8")
    patience = re.search(r"^PATIENCE_S = ([0-9.]+)$", program, flags=re.MULTILINE)
    assert patience is not None
    for manifest in customs(manifests):
        if manifest["kind"] == "RayJob":
            spec = manifest["spec"]
            (container,) = spec["submitterPodTemplate"]["spec"]["containers"]
            assert container["command"] == ["tini", "--", "submit-job"]
            assert container["args"] == [spec["entrypoint"]]
            pods = spec["submitterConfig"]["backoffLimit"] + 1
            # Each: its patience, two requests that hang for 30 s, the start of its pod.
            assert pods * (float(patience[1]) + 2 * 30 + 20) < 300


def test_nothing_is_moved_merely_to_save_a_machine(pods: list[Manifest]) -> None:
    for pod in pods:
        assert pod["metadata"]["annotations"] == {
            "cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
            "karpenter.sh/do-not-disrupt": "true",
        }


def test_runs_are_kept_where_head_and_workers_see_them(manifests: list[Manifest]) -> None:
    claims = [m["metadata"]["name"] for m in manifests if m["kind"] == "PersistentVolumeClaim"]
    for manifest in customs(manifests):
        cluster = cluster_of(manifest)
        for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
            pod = group["template"]["spec"]
            container = pod["containers"][0]
            mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
            if claims:
                volumes = {volume["name"]: volume for volume in pod["volumes"]}
                claimed = volumes[mounts["/runs"]]["persistentVolumeClaim"]["claimName"]
                assert claimed == claims[0]
            elif "envFrom" in container:
                assert container["envFrom"] == [{"secretRef": {"name": "retro-ml-s3"}}]
            else:  # by the service account's role
                (account,) = [
                    m
                    for m in manifests
                    if m["kind"] == "ServiceAccount"
                    and m["metadata"]["name"] == pod["serviceAccountName"]
                ]
                assert "eks.amazonaws.com/role-arn" in account["metadata"]["annotations"]


def test_the_quota_has_room_for_what_is_asked(
    manifests: list[Manifest], pods: list[Manifest]
) -> None:
    (quota,) = [m["spec"]["hard"] for m in manifests if m["kind"] == "ResourceQuota"]
    requests = [
        container["resources"]["requests"]
        for pod in pods
        for container in pod["spec"]["containers"]
    ]
    gpus = sum(int(request.get("nvidia.com/gpu", 0)) for request in requests)
    assert gpus <= int(quota["requests.nvidia.com/gpu"])
    cpus = [request["cpu"] for request in requests]
    total = sum(int(cpu[:-1]) / 1000 if cpu.endswith("m") else int(cpu) for cpu in cpus)
    assert total <= int(quota["requests.cpu"])


def test_nothing_is_secret_in_them(manifests: list[Manifest]) -> None:
    assert not [manifest for manifest in manifests if manifest["kind"] == "Secret"]
    assert "AKIA" not in str(manifests)
