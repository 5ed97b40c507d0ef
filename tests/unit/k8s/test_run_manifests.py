"""What a run's config becomes in its manifests."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from retro_ml import k8s
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.differences import describe_differences
from retro_ml.deploy.run_manifests import (
    OVERLAYS,
    WITH_GPU,
    CannotRender,
    job_name,
    render_run,
)

pytestmark = pytest.mark.unit

Manifest = dict[str, Any]


def run_of(
    overlay: str,
    *,
    image: str | None = None,
    memory_bytes: int = 2**30,
    disk_bytes: int = 0,
    **fields: Any,
) -> list[Manifest]:
    fields = {"game_id": "pong", "experiment_id": "pong-1", **fields}
    return render_run(
        ExperimentConfig(**fields),
        overlay=overlay,
        image=image,
        memory_bytes=memory_bytes,
        disk_bytes=disk_bytes,
    )


def job_of(manifests: list[Manifest]) -> Manifest:
    (job,) = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    return job


def config_of(manifests: list[Manifest]) -> ExperimentConfig:
    (mapping,) = [manifest for manifest in manifests if manifest["kind"] == "ConfigMap"]
    return ExperimentConfig.model_validate(yaml.safe_load(mapping["data"]["config.yaml"]))


def sizes(manifests: list[Manifest]) -> dict[str, tuple[int, dict[str, str]]]:
    """Group -> how many pods, and each one's limits."""
    return {
        group["groupName"]: (
            group["replicas"],
            group["template"]["spec"]["containers"][0]["resources"]["limits"],
        )
        for group in job_of(manifests)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    }


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_run_is_a_job_of_its_name_with_its_config(overlay: str) -> None:
    config = ExperimentConfig(game_id="pong", experiment_id="pong-1", seed=7)
    manifests = render_run(
        config, overlay=overlay, image=None, memory_bytes=2**30, disk_bytes=2**30
    )
    stored = config_of(manifests)

    assert job_of(manifests)["metadata"]["name"] == "pong-1"
    assert stored.experiment_id == "pong-1"
    assert stored.output_dir == "/runs"
    assert stored.resources.num_gpus == (1 if overlay in WITH_GPU else 0)
    changed = {line.split(":")[0] for line in describe_differences(config, stored)}
    assert changed == {"resources.num_cpus", "resources.num_gpus"}


def test_the_trial_finds_room_for_each_of_its_bundles() -> None:
    resources = {"num_cpus": 6, "num_env_runners": 20, "games_per_env_runner": 2}
    resources |= {"num_learners": 2, "num_gpus": 2}
    made = sizes(run_of("gpu", resources=resources))

    assert made["trainer"][0] == 1
    assert made["trainer"][1]["cpu"] == "6"
    assert "nvidia.com/gpu" not in made["trainer"][1]
    assert made["learners"][0] == 2
    assert made["learners"][1]["nvidia.com/gpu"] == "1"
    pods, limits = made["env-runners"]
    assert pods * int(limits["cpu"]) >= 20
    assert (pods, limits["cpu"]) == (3, "7")


def test_requests_are_limits() -> None:
    for group in job_of(run_of("gpu"))["spec"]["rayClusterSpec"]["workerGroupSpecs"]:
        resources = group["template"]["spec"]["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]


@pytest.mark.parametrize(("gpus", "limit"), [(0.25, "1"), (1, "1"), (4, "4")])
def test_a_part_of_a_gpu_takes_a_whole_one_of_kubernetes(gpus: float, limit: str) -> None:
    made = sizes(run_of("gpu", resources={"num_gpus": gpus}))
    assert made["trainer"][1]["nvidia.com/gpu"] == limit


def test_only_pods_with_a_gpu_may_go_where_machines_are_kept_for_gpus() -> None:
    resources = {"num_env_runners": 4}
    manifests = run_of("gpu-spot", resources=resources)
    trainer, players = job_of(manifests)["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    assert "nvidia.com/gpu" in {
        toleration["key"] for toleration in trainer["template"]["spec"]["tolerations"]
    }
    pod = players["template"]["spec"]
    assert "nvidia.com/gpu" not in str(pod)
    assert pod["priorityClassName"] == "retro-ml-spot"


def test_memory_grows_with_the_replay_and_never_shrinks() -> None:
    small = sizes(run_of("cpu"))["trainer"][1]["memory"]
    large = sizes(run_of("cpu", memory_bytes=20 * 2**30))["trainer"][1]["memory"]
    assert (small, large) == ("8Gi", "25Gi")


@pytest.mark.parametrize(
    ("output_dir", "there", "mount"),
    [
        ("runs", "/runs", "/runs"),
        ("runs/atari", "/runs/atari", "/runs"),
        ("atari", "/runs/atari", "/runs"),
        ("/runs/atari", "/runs/atari", "/runs"),
        ("/data/atari", "/data/atari", "/data/atari"),
    ],
)
def test_a_folder_is_on_the_volume(output_dir: str, there: str, mount: str) -> None:
    manifests = run_of("cpu", output_dir=output_dir)
    cluster = job_of(manifests)["spec"]["rayClusterSpec"]
    assert config_of(manifests).output_dir == there
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        mounts = group["template"]["spec"]["containers"][0]["volumeMounts"]
        assert [one["mountPath"] for one in mounts if one["name"] == "runs"] == [mount]


def test_a_bucket_takes_a_secret_and_no_volume() -> None:
    manifests = run_of("cpu", output_dir="s3://bucket/runs")
    assert config_of(manifests).output_dir == "s3://bucket/runs"
    assert "PersistentVolumeClaim" not in {manifest["kind"] for manifest in manifests}
    cluster = job_of(manifests)["spec"]["rayClusterSpec"]
    for group in [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]:
        container = group["template"]["spec"]["containers"][0]
        assert container["envFrom"] == [{"secretRef": {"name": "retro-ml-s3"}}]


def test_what_is_staged_for_a_bucket_has_room_on_disk() -> None:
    """Driver and trial keep the run's files; env runners do not."""

    def disks(output_dir: str) -> list[str]:
        resources = {"num_env_runners": 2}
        manifests = run_of("cpu", output_dir=output_dir, disk_bytes=2**33, resources=resources)
        cluster = job_of(manifests)["spec"]["rayClusterSpec"]
        groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
        containers = [group["template"]["spec"]["containers"][0] for group in groups]
        return [container["resources"]["limits"]["ephemeral-storage"] for container in containers]

    assert disks("/runs") == ["4Gi", "16Gi", "16Gi"]
    assert disks("s3://bucket/runs") == ["14Gi", "26Gi", "16Gi"]


def test_weights_to_begin_with_may_lie_on_the_volume() -> None:
    manifests = run_of("cpu", output_dir="atari", init_from="/runs/pong-0/model.zip")
    assert config_of(manifests).init_from == "/runs/pong-0/model.zip"


@pytest.mark.parametrize(
    ("overlay", "fields", "fault"),
    [
        ("cpu", {"init_from": "/x/model.zip"}, "init_from: /x/model.zip -> a file on the"),
        ("cpu", {"init_from": "/runs/../x.zip"}, "init_from: /x.zip -> a file on the volume"),
        (
            "cpu",
            {"init_from": "/runs/x/model.zip", "output_dir": "s3://bucket/runs"},
            "init_from: /runs/x/model.zip -> a file on the volume",
        ),
        ("cpu", {"output_dir": "/data:x"}, "output_dir: /data:x -> a folder below /runs"),
        ("cpu", {"image": ""}, "--image:  -> a name as REGISTRY"),
        ("cpu", {"image": "a b"}, "--image: a b -> a name as REGISTRY"),
        (
            "cpu",
            {"resources": {"num_cpus": 200}},
            "resources: requests.cpu of 201.2 in all -> at most 128, by the namespace's quota",
        ),
        (
            "cpu",
            {"memory_bytes": 2**40},
            "resources: requests.memory of 1284.5Gi in all -> at most 512Gi",
        ),
        (
            "gpu",
            {"resources": {"num_learners": 32}},
            "resources: requests.nvidia.com/gpu of 32 in all -> at most 16",
        ),
        (
            "gpu",
            {"resources": {"num_learners": 32, "num_gpus": 32}},
            "resources: requests.nvidia.com/gpu of 32 in all -> at most 16",
        ),
        ("cpu", {"resources": {"num_gpus": 2}}, "resources.num_gpus: 2 -> 0, or an overlay"),
        ("gpu", {"use_gpu": False}, "use_gpu: false -> leave it out"),
        ("gpu", {"resources": {"num_gpus": 0}}, "resources.num_gpus: 0 -> leave it out"),
        (
            "cpu",
            {"output_dir": "gs://bucket"},
            "output_dir: gs://bucket -> a folder or s3://BUCKET",
        ),
        ("cpu", {"output_dir": "../x"}, "output_dir: ../x -> a folder below /runs"),
        ("cpu", {"output_dir": "/"}, "output_dir: / -> a folder that a volume"),
        ("cpu", {"output_dir": "/etc/x"}, "output_dir: /etc/x -> a folder that a volume"),
    ],
)
def test_what_does_not_go_together_is_refused(
    overlay: str, fields: dict[str, Any], fault: str
) -> None:
    with pytest.raises(CannotRender) as refused:
        run_of(overlay, **fields)
    assert [line for line in refused.value.faults if line.startswith(fault)]


@pytest.mark.parametrize("experiment_id", ["pong-1", "a" * 47])
def test_an_id_that_may_be_a_name_is_the_name(experiment_id: str) -> None:
    assert job_name(experiment_id) == experiment_id


def test_other_ids_become_names_that_stay_apart() -> None:
    ids = ["Pong_1", "pong.1", "Pong-1", "1-pong", "a" * 48, "a" * 49, "a" * 46 + "-b"]
    names = [job_name(experiment_id) for experiment_id in ids]
    assert len(set(names)) == len(ids)
    for name in names:
        assert len(name) <= 47
        assert name[0].isalpha()
        assert all(sign.isalnum() or sign == "-" for sign in name)
        assert name == name.lower().strip("-")


def test_the_command_writes_one_file_to_apply(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("game_id: pong\nexperiment_id: Pong_1\n")
    out = tmp_path / "manifests"
    call = ["render", "--config", str(file), "--overlay", "gpu", "--image", "r/retro-ml@sha256:1"]
    assert k8s.main([*call, "--out", str(out)]) == 0
    (written,) = out.iterdir()
    text = written.read_text()
    assert written.name == f"{job_name('Pong_1')}.yaml"
    assert f"kubectl apply -f {written}" in capsys.readouterr().err
    assert k8s.main(call) == 0
    assert "&id" not in text
    assert next(yaml.safe_load_all(text))["kind"] == "Namespace"
    images = {line.split(": ")[1] for line in text.splitlines() if " image: " in line}
    assert images == {"r/retro-ml@sha256:1"}
    assert "config.yaml: |" in text


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (["rendr"], "rendr: unknown -> did you mean render?"),
        (["render", "--overlay", "gpux", "--env", "pong"], "--overlay: gpux -> did you mean gpu?"),
        (["render", "--env", "pongg"], "game_id: pongg"),
        (["render", "--env", "pong", "--dry-run"], "options of one call"),
        (["render", "--env", "pong", "--seeds", "3"], "several runs -> one at a time, or a sweep"),
        (["render", "--env", "pong", "breakout"], "several runs -> one at a time, or a sweep"),
        (["render", "--env", "pong", "--init-from", "/x.zip"], "init_from: /x.zip -> a file on"),
        (["render", "--env", "pong", "--image", ""], "--image:  -> a name as REGISTRY"),
        (["render", "--env", "pong", "--ray-address", "auto"], "options of one call"),
        (["render", "--env", "pong", "--output-dir", "/etc"], "output_dir: /etc"),
        (["render", "--overlay"], "--overlay: a value is missing"),
    ],
)
def test_bad_input_is_told_in_one_line(
    call: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert k8s.main(call) == 2
    out, errors = capsys.readouterr()
    assert out == ""
    assert f"error: {message}" in errors


def test_a_folder_that_cannot_be_made_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert k8s.main(["render", "--env", "pong", "--out", str(tmp_path / "file/x")]) == 1
    line = f"error: --out: {tmp_path}/file/x: Not a directory -> another folder"
    assert line in capsys.readouterr().err
