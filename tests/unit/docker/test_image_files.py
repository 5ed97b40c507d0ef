"""docker/: what the Dockerfile, the locked requirements and compose.yaml promise, as far as it can
be seen without building."""

import fnmatch
import importlib.machinery
import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import entry_points
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
import yaml
from imaging import lock
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from ray.train._internal.worker_group import create_executable_class

from retro_ml.cluster.trial_actor import TrialActor
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.rllib.env_runner import AtariEnvRunner
from retro_ml.rllib.learner import AtariLearner

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
BUILD, FINAL = re.split(r"^FROM .* AS build$", DOCKERFILE, flags=re.MULTILINE)[1].split(
    "FROM ${BASE_IMAGE}\n"
)
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
COMPOSE_GPU = yaml.safe_load((DOCKER / "compose.gpu.yaml").read_text(encoding="utf-8"))
LINE = re.compile(r"(?P<name>[a-z0-9-]+)==(?P<version>[^ ]+) --hash=sha256:[0-9a-f]{64}")
RELOCK = "run scripts/lock_requirements"


def locked(name: str) -> dict[str, Version]:
    path = DOCKER / "requirements" / f"{name}.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    matches = [LINE.fullmatch(line) for line in lines]
    assert all(matches), f"{path.name} has lines without a version or hash -> {RELOCK}"
    return {match["name"]: Version(match["version"]) for match in matches if match}


def wanted() -> list[Requirement]:
    lines = (DOCKER / "requirements/image.in").read_text().splitlines()
    extra = [text for line in lines if (text := line.partition("#")[0].strip())]
    return [Requirement(text) for text in [*PROJECT["project"]["dependencies"], *extra]]


@pytest.mark.parametrize("torch", ["torch-cpu", "torch-cuda"])
def test_the_locked_requirements_fit_the_project(torch: str) -> None:
    both = {**locked("runtime"), **locked(torch)}
    for requirement in wanted():
        name = canonicalize_name(requirement.name)
        assert name in both, f"{name} is not locked -> {RELOCK}"
        assert both[name] in requirement.specifier, f"{requirement} -> {RELOCK}"


def test_both_builds_of_pytorch_are_one_release() -> None:
    cpu, cuda = locked("torch-cpu")["torch"], locked("torch-cuda")["torch"]
    assert (cpu.local, cuda.local) == ("cpu", None)
    assert cpu.public == cuda.public
    assert not [name for name in locked("torch-cpu") if name.startswith(("nvidia", "cuda"))]


def test_the_wheel_is_made_by_the_build_system_of_the_project() -> None:
    build = locked("build")
    for requirement in map(Requirement, PROJECT["build-system"]["requires"]):
        assert build[canonicalize_name(requirement.name)] in requirement.specifier, RELOCK


def test_pytorch_with_cuda_is_looked_for_where_no_other_build_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But a mirror of PyPI is asked in its place."""
    asked: list[dict[str, str]] = []

    def pip(command: list[str], *, env: dict[str, str], **more: Any) -> Any:
        asked.append(env)
        return SimpleNamespace(stdout='{"install": []}')

    monkeypatch.setattr(lock.subprocess, "run", pip)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.setenv(name, "https://example.invalid")
    lock._resolve(["pip"], ["torch"], only_pypi=True)
    lock._resolve(["pip"], ["torch"])
    named = [{name for name in env if name.startswith("PIP_")} for env in asked]
    assert "PIP_INDEX_URL" in named[0]
    assert not named[0] & {"PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"}
    assert {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"} <= named[1]


def test_hadolint_has_nothing_to_say() -> None:
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin"
    hadolint = shutil.which("hadolint", path=path)
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    command = [hadolint, "--failure-threshold", "style", str(DOCKER / "Dockerfile")]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_runs_as_a_number_behind_an_init() -> None:
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", FINAL, flags=re.MULTILINE)
    assert 'ENTRYPOINT ["tini", "--"]' in FINAL
    assert "HEALTHCHECK" in FINAL
    assert FINAL.index("USER ") > FINAL.index("RUN ")


def test_a_job_that_is_stopped_has_time_for_a_checkpoint() -> None:
    waits = re.search(r"RAY_JOB_STOP_WAIT_TIME_S=(\d+)", FINAL)
    assert waits is not None
    assert int(waits[1]) >= 60


def test_what_goes_to_a_bucket_is_staged_where_there_is_room() -> None:
    """Not in the home folder: 64 MiB in pods, whose owner is evicted beyond that."""
    staging = re.search(r"RETRO_ML_STAGING=(\S+)", FINAL)
    assert staging is not None
    assert staging[1].startswith("/tmp/")
    pod = yaml.safe_load((ROOT / "k8s/cluster/raycluster.yaml").read_text())["spec"]
    groups = [pod["headGroupSpec"], *pod["workerGroupSpecs"]]
    for group in groups:
        volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
        assert volumes["tmp"]["emptyDir"] == {}


def test_the_image_asks_for_no_gpu_by_itself() -> None:
    """Who asks for one names it; where NVIDIA's runtime is the default one, `all` gives all."""
    assert "NVIDIA_VISIBLE_DEVICES" not in DOCKERFILE


def test_nothing_is_installed_in_the_final_stage() -> None:
    assert "apt-get" not in FINAL
    assert " install --require" not in FINAL
    for command in re.findall(r"^RUN (.*(?:\\\n.*)*)", FINAL, flags=re.MULTILINE):
        assert "pip" not in command


def test_packages_come_by_their_hash_or_from_here() -> None:
    for call in re.findall(r"pip[^\n]* install [^&]*", BUILD.replace("\\\n", " ")):
        assert "--require-hashes" in call or "--no-index" in call


def test_no_index_is_named_by_default() -> None:
    assert "ARG TORCH_INDEX=\n" in DOCKERFILE
    files = [*DOCKER.rglob("*"), *(ROOT / "k8s").rglob("*")]
    texts = [path.read_text(encoding="utf-8") for path in files if path.is_file()]
    for text in texts:
        assert not re.search(r"https?://(?!head:|127\.0\.0\.1)", text)


def test_only_what_is_copied_leaves_the_checkout() -> None:
    rules = [
        line
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    assert rules[0] == "*"
    allowed = {rule[1:] for rule in rules if rule.startswith("!")}
    sources = set()
    for line in re.findall(r"^COPY (?!--from)(.*)$", DOCKERFILE, flags=re.MULTILINE):
        sources.update(line.split()[:-1])
    assert sources == allowed
    for source in sources:
        assert (ROOT / source).exists()
    for name in (".env", "docker/.env", ".git", "runs", ".venv"):
        assert not any(fnmatch.fnmatch(name, pattern) for pattern in allowed)


def test_the_version_is_the_projects() -> None:
    version = PROJECT["project"]["version"]
    assert f"ARG VERSION={version}\n" in FINAL
    for name in ("head", "worker", "train"):
        assert COMPOSE["services"][name]["image"] == f"retro-ml:{version}"


# compose.yaml: there is no Docker engine among the tests' needs, so nothing of it runs.


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_a_service_may_do_nothing_that_it_need_not(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["user"] == re.search(r"^USER (.*)$", FINAL, flags=re.MULTILINE)[1]  # type: ignore[index]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service
    assert service["environment"]["RAY_AUTH_MODE"] == "token"
    assert service["environment"]["RAY_AUTH_TOKEN"].startswith("${RAY_AUTH_TOKEN:?")
    assert {path.split(":")[0] for path in service["tmpfs"]} == {"/tmp", "/home/retro"}
    assert service["mem_limit"]


def test_nothing_is_published_beyond_loopback() -> None:
    ports = [port for service in COMPOSE["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)
    assert not [service for service in COMPOSE["services"].values() if "network_mode" in service]


def test_every_service_runs_a_command_that_the_image_has() -> None:
    scripts = {script.name for script in entry_points(group="console_scripts")}
    there = scripts | {path.name for path in (DOCKER / "bin").iterdir()} | {"tini"}
    for service in COMPOSE["services"].values():
        words = [*service.get("entrypoint", []), *service["command"]]
        commands = [words[0], *(after for word, after in pairwise(words) if word == "--")]
        for command in commands:
            assert command in there or command.startswith("--")
    assert {"ray", "retro-ml"} <= scripts


@pytest.mark.parametrize("name", ["head", "worker"])
def test_the_object_store_has_room_in_shared_memory(name: str) -> None:
    """Ray takes a third of the memory and, where that is too much for it, a slow place."""
    service = COMPOSE["services"][name]
    (store,) = [word.partition("=")[2] for word in service["command"] if "object-store" in word]
    units = {"mb": 2**20, "gb": 2**30}
    shared = service["shm_size"]
    assert int(store) < int(shared[:-2]) * units[shared[-2:]]


def test_training_waits_for_a_cluster_and_stops_in_time() -> None:
    services = COMPOSE["services"]
    for name in ("head", "worker"):
        assert services["train"]["depends_on"][name] == {"condition": "service_healthy"}
        assert services[name]["stop_grace_period"] == "120s"
        assert services[name]["volumes"] == ["runs:/runs"]
    assert services["train"]["profiles"]


def test_the_workers_are_as_many_whatever_compose_is_asked_for() -> None:
    assert COMPOSE["services"]["worker"]["scale"] == "${WORKERS:-1}"


def test_one_worker_has_all_gpus_and_ray_counts_them() -> None:
    """Docker gives a count's GPUs from the first on, so that two workers would share one."""
    assert COMPOSE_GPU["services"].keys() == {"worker"}
    worker = COMPOSE_GPU["services"]["worker"]
    assert worker["scale"] == 1
    (device,) = worker["deploy"]["resources"]["reservations"]["devices"]
    assert (device["driver"], device["count"], device["capabilities"]) == ("nvidia", "all", ["gpu"])
    command = worker.get("command", COMPOSE["services"]["worker"]["command"])
    assert not [word for word in command if word.startswith("--num-gpus")]


# docker/bin/.


def load(name: str) -> ModuleType:
    loader = importlib.machinery.SourceFileLoader(
        name.replace("-", "_"), str(DOCKER / "bin" / name)
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("command", "trains"),
    [
        ("/opt/retro-ml/bin/python /opt/retro-ml/bin/retro-ml run --config x", True),
        ("python -m retro_ml.run --game-id pong", True),
        ("/opt/retro-ml/bin/python -P -m retro_ml.run --game-id pong", True),
        ("retro-ml sweep spec.yaml", True),
        ("retro-ml evaluate runs/x", False),
        ("bash -c retro-ml run --config x", False),
        ("ray job submit -- retro-ml run", False),
        ("python -m retro_ml.evaluate retro_ml.run", False),
        ("tail -f retro-ml run", False),
    ],
)
def test_runs_are_told_from_other_processes(command: str, trains: bool) -> None:
    assert load("end-node").is_driver(command.split()) is trains


def test_the_parts_of_a_trial_are_told_from_other_processes() -> None:
    """Ray's titles: the actor's class, and the method that it is at (2.60)."""
    parts = [TrialActor, AtariEnvRunner, create_executable_class(AtariLearner)]
    titles = [f"ray::{part.__name__}{at}" for part in parts for at in ("", ".__init__", ".apply")]
    titles.append("ray::_RayTrainWorker__execute._setup_torch_process_group")
    end_node = load("end-node")
    others = ["ray::IDLE", "ray::JobSupervisor.ping", "ray::DashboardAgent", "raylet"]
    end_node.read_processes = lambda: enumerate([title] for title in [*titles, *others])
    assert end_node.find_parts() == [*range(len(titles))]


RUN = """
import sys, time
from retro_ml.core.engine.stop_signals import StopSignals

asked = []
with StopSignals(on_first=lambda: asked.append(True), before_exit=lambda: None):
    print("on", flush=True)
    while not asked:
        time.sleep(0.05)
    print("asked", flush=True)
    time.sleep(1.0)
    with open({order!r}, "a") as done:
        print("run", file=done)
sys.exit(143)
"""


@pytest.mark.parametrize("is_stopping", [False, True])
def test_a_node_ends_after_its_runs_and_asks_none_twice(tmp_path: Path, is_stopping: bool) -> None:
    """A stand-in for a run, with its real signals; `ray stop` comes after its end."""
    script = tmp_path / "retro-ml"
    script.write_text(RUN.format(order=str(tmp_path / "order")))
    ray = tmp_path / "ray"
    ray.write_text(f"#!/bin/sh\necho ray $1 >> {tmp_path / 'order'}\n")
    ray.chmod(0o755)
    run = subprocess.Popen([sys.executable, str(script), "run"], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "on\n"
    if is_stopping:  # by Ray's jobs API, in truth
        run.terminate()
        assert run.stdout.readline() == "asked\n"
    only_ours = (
        f"import runpy, sys\nsys.argv = ['end-node', '30']\n"
        f"module = runpy.run_path({str(DOCKER / 'bin/end-node')!r})\n"
        f"module['main'].__globals__['read_processes'] = lambda: [\n"
        f"    ({run.pid}, ['python', {str(script)!r}, 'run'])\n"
        f"    for _ in [0] if open('/proc/{run.pid}/stat').read().split()[2] != 'Z']\n"
        f"sys.exit(module['main']())\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", only_ours],
        env={"PATH": f"{tmp_path}:/usr/bin:/bin"},
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0
    assert run.wait(timeout=30) == 143
    assert (tmp_path / "order").read_text() == "run\nray stop\n"


class FakeJobs:
    """Stands for a cluster's jobs API, whose follower has tests of its own."""

    there = False
    ends: int | None = 0
    started: ClassVar[list[str]] = []

    def __init__(self, address: str) -> None:
        if address == "nowhere":
            raise LaunchError("nothing answers")

    def find(self, job_id: str) -> object:
        return "details" if self.there else None

    def start(self, job_id: str, *, entrypoint: str, runtime_env: dict[str, Any]) -> None:
        self.started.append(f"{job_id}: {entrypoint}")

    def follow(self, job_id: str, show: Any, *, notice: Any, patience_s: float) -> Any:
        if self.ends is None:
            raise LaunchError(f"has not answered for {patience_s:g} s")
        return SimpleNamespace(exit_code=self.ends)


@pytest.mark.parametrize(
    ("address", "there", "ends", "code", "started"),
    [
        ("head:8265", False, 0, 0, ["id: retro-ml run"]),
        ("head:8265", True, 0, 0, []),  # a submitter that comes again
        ("head:8265", False, 2, 0, ["id: retro-ml run"]),  # the operator asks how it ended
        ("head:8265", True, None, 1, []),
        ("nowhere", False, 0, 1, []),
    ],
)
def test_a_submitter_fails_where_its_cluster_is_gone_and_only_there(
    address: str,
    there: bool,
    ends: int | None,
    code: int,
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = load("submit-job")
    for name, value in {"there": there, "ends": ends, "started": []}.items():
        monkeypatch.setattr(FakeJobs, name, value)
    for name, value in {"Jobs": FakeJobs, "PATIENCE_S": 0.0}.items():
        monkeypatch.setattr(program, name, value)
    monkeypatch.setattr(program.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", address)
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "id")
    monkeypatch.setattr(sys, "argv", ["submit-job", "retro-ml run"])
    assert program.main() == code
    assert FakeJobs.started == started


def test_a_container_without_a_node_is_healthy_as_long_as_it_lives() -> None:
    healthcheck = load("healthcheck")
    healthcheck.is_node = lambda: False
    assert healthcheck.main() == 0


def test_a_node_that_does_not_answer_is_not_healthy() -> None:
    healthcheck = load("healthcheck")
    healthcheck.is_node = lambda: True
    healthcheck.NODE = "http://127.0.0.1:9/api/local_raylet_healthz"
    assert healthcheck.main() == 1


@pytest.mark.parametrize("name", ["ray-node"])
def test_scripts_are_valid_bash(name: str) -> None:
    subprocess.run(["bash", "-n", str(DOCKER / "bin" / name)], check=True)


def test_scripts_may_be_executed() -> None:
    for path in (DOCKER / "bin").iterdir():
        assert path.stat().st_mode & 0o111 == 0o111


def test_services_are_known_to_compose() -> None:
    """Keys that a service of the Compose specification has; a mistyped one would be refused."""
    known = {"image", "user", "read_only", "cap_drop", "security_opt", "tmpfs", "environment",
             "networks", "build", "command", "ports", "volumes", "shm_size", "stop_grace_period",
             "mem_limit", "depends_on", "cpus", "profiles", "entrypoint", "scale"}  # fmt: skip
    services: dict[str, Any] = COMPOSE["services"]
    for service in services.values():
        assert service.keys() <= known


def test_every_package_in_the_image_is_in_the_list_of_licences() -> None:
    text = (ROOT / "docs/third-party-licences.md").read_text(encoding="utf-8")
    rows = [line.split("|")[2] for line in text.splitlines() if line.startswith("| ")]
    listed = {name.strip() for row in rows for name in row.split(",")} - {"Packages"}
    there = {**locked("runtime"), **locked("torch-cpu"), **locked("torch-cuda")}
    assert there.keys() == listed
