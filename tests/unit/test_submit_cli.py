"""`retro-ml submit` and `retro-ml doctor` before any cluster is asked."""

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from retro_ml import doctor, submit
from retro_ml.cluster import access, cluster_checks, job_entry, jobs
from retro_ml.cluster.job_package import build_entrypoint, pack, take_files
from retro_ml.cluster.jobs import JobStatus, LaunchError, describe_outcome

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ([], "--: missing"),
        (["--", "evaluate", "x"], "evaluate: no job -> one of run, sweep"),
        (["--adress", "x", "--", "run"], "--adress: unknown -> did you mean --address?"),
        (["run", "--", "run"], "run: unexpected"),
        (["--", "run", "--game-id", "pong"], "output_dir: runs -> the whole name of a folder"),
        (["--", "run", "--game-id", "pongg", "--output-dir", "/tmp"], "did you mean pong"),
        (["--", "run", "--game-id", "pong", "--ray-address", "x"], "--ray-address: unexpected"),
        (["--", "sweep", "none.yaml", "--output-dir", "/tmp"], "none.yaml: no such file"),
        (["--", "sweep", "atari-5", "--sett", "x"], "--sett: unknown -> did you mean --set?"),
        (["--", "sweep", "atari-5"], "output_dir: runs -> the whole name of a folder"),
        (["--", "sweep", "atari-5", "--output-dir", "x"], "output_dir: x -> the whole name"),
        (["--", "run", "--game-id", "pong", "pongg", "--output-dir", "/x"], "did you mean pong"),
        (["--job-id", "../x"], "--job-id: ../x"),
        (["--job-id", "x", "--stop", "--", "run"], "--stop: unexpected"),
        (["--address", "ray://x:1", "--job-id", "x"], None),
    ],
)
def test_a_wrong_call_is_refused(
    argv: list[str], said: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = submit.main(argv)
    error = capsys.readouterr().err
    assert "Traceback" not in error
    if said is None:
        assert (code, "is no address of a jobs API" in error) == (3, True)
    else:
        assert (code, said in error) == (2, True), error


@pytest.mark.parametrize("command", [submit.main, doctor.main])
def test_nobody_there_is_said_at_once(command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--", "run", "--game-id", "pong"] if command is submit.main else []
    assert command(["--address", "http://127.0.0.1:1", *words, "--output-dir", "/tmp"]) == 3
    assert "nothing answers at http://127.0.0.1:1" in capsys.readouterr().err


def test_files_are_shipped_under_names_of_their_contents(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    for name, text in (("run.yaml", "seed: 1"), ("one/run.yaml", "seed: 2"), ("pong", "")):
        (tmp_path / name).write_text(text)
    words = ["run", "--game-id", "pong", "--config", "run.yaml", "one/run.yaml", "no.yaml"]
    changed, files = take_files([*words, "--config=run.yaml"])
    first, second = files
    assert changed == [*words[:4], first, second, "no.yaml", f"--config={first}"]
    assert [path.read_text() for path in files.values()] == ["seed: 1", "seed: 2"]
    assert take_files(words)[0] == changed[:-1]


@pytest.mark.parametrize("ship", [False, True])
def test_nothing_else_is_shipped(tmp_path: Path, ship: bool) -> None:
    for name in ("runs", ".git", "job"):
        (tmp_path / name).mkdir()
    (tmp_path / "run.yaml").write_text("seed: 1")
    env = pack(tmp_path / "job", {"a-run.yaml": tmp_path / "run.yaml"}, ship=ship)
    assert sorted(os.listdir(env["working_dir"])) == ["a-run.yaml", "job_entry.py"]
    modules = [Path(module) for module in env.get("py_modules", ())]
    assert [module.name for module in modules] == ["retro_ml"] * ship
    assert not [path for module in modules for path in module.rglob("__pycache__")]


def run_entry(tmp_path: Path, words: list[str], **versions: str) -> tuple[int, str]:
    found = {"Python": f"{sys.version_info[0]}.{sys.version_info[1]}", **versions}
    done = subprocess.run(
        [sys.executable, job_entry.__file__, json.dumps(found), *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    return done.returncode, done.stdout


def test_a_job_ends_with_its_commands_exit_code(tmp_path: Path) -> None:
    assert run_entry(tmp_path, ["run", "--game-id", "pong", "--print-config"])[0] == 0
    assert run_entry(tmp_path, ["run", "--game-id", "pongg"])[0] == 2


@pytest.mark.parametrize("code", ["job_entry.note_work_left()", "pass"])
def test_a_job_says_whether_its_command_left_work(tmp_path: Path, code: str) -> None:
    package = tmp_path / "retro_ml"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "run.py").write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(job_entry.__file__).parent)!r})\n"
        "import job_entry\n"
        "print('the hours are over', flush=True)\n"
        f"{code}\n"
    )
    done = subprocess.run(
        [sys.executable, job_entry.__file__, "{}", "run"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        cwd=tmp_path,
        check=True,
    )
    one = jobs.Jobs.__new__(jobs.Jobs)
    one._client = SimpleNamespace(get_job_logs=lambda job_id: done.stdout)  # type: ignore[assignment]
    assert done.stdout.startswith("the hours are over\n")
    assert one.has_work_left("x") is (code != "pass")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["retro_ml"]


def test_a_job_says_what_differs_on_the_cluster(tmp_path: Path) -> None:
    code, output = run_entry(tmp_path, ["run"], ray="1.0.0", Python="2.7")
    assert code == 3
    assert output.count("error: ") == output.count("make them equal") == 2
    assert "ray is 2.60" in output


def test_a_job_outlives_the_signal_and_tells_the_exit_code(tmp_path: Path) -> None:
    """As Ray stops a job: SIGTERM to the shell's and to each other process."""
    package = tmp_path / "retro_ml"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "run.py").write_text(
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, job_entry.__file__, "{}", "run"],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.killpg(process.pid, signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "retro_ml: exit code 143\n"
    assert process.returncode == 143


def test_a_job_that_is_stopped_before_its_command_begins_stops_it(tmp_path: Path) -> None:
    package = tmp_path / "retro_ml"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "run.py").write_text("import time\ntime.sleep(5)\n")
    (tmp_path / "run.yaml").touch()
    code = (
        "import os, shutil, signal, sys, job_entry\n"
        "shutil.copy = lambda *_: os.kill(os.getpid(), signal.SIGTERM)\n"
        "sys.exit(job_entry.main({}, ['run']))\n"
    )
    folders = [str(tmp_path), str(Path(job_entry.__file__).parent)]
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(folders)},
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stdout) == (143, "retro_ml: exit code 143\n"), done.stderr


@pytest.mark.parametrize(
    ("status", "driver_exit_code", "output", "exit_code"),
    [
        ("SUCCEEDED", 0, "", 0),
        ("FAILED", 3, "", 3),
        ("FAILED", -9, "", 137),
        ("FAILED", None, "", 3),
        ("STOPPED", None, "saved\nretro_ml: exit code 143\n", 143),
        ("STOPPED", None, "saved\nretro_ml: exit code 0\n", 0),
        ("STOPPED", None, "retro_ml: exit code 143\nand then\n", 137),
        ("STOPPED", None, "", 137),
    ],
)
def test_the_exit_code_is_the_commands_own(
    status: str, driver_exit_code: int | None, output: str, exit_code: int
) -> None:
    details: Any = SimpleNamespace(
        status=JobStatus(status), driver_exit_code=driver_exit_code, message="gone\nfor good"
    )
    outcome = describe_outcome(details, output)
    assert outcome.exit_code == exit_code
    assert "\n" not in (outcome.error or "")


class FakeJobs:
    """Jobs by name, as `Jobs` knows them."""

    address = "http://head:8265"

    def __init__(self, *, work_left: str = "", **known: tuple[str, str]) -> None:
        self.work_left = work_left
        self.known = {
            name: SimpleNamespace(status=JobStatus(status), entrypoint=entrypoint)
            for name, (status, entrypoint) in known.items()
        }
        self.started: list[str] = []

    def find(self, job_id: str) -> Any:
        return self.known.get(job_id)

    def start(self, job_id: str, **how: Any) -> None:
        self.started.append(job_id)

    def has_work_left(self, job_id: str) -> bool:
        assert self.known[job_id].status == JobStatus.SUCCEEDED
        return job_id in self.work_left.split()


WORDS = ["run", "--game-id", "pong"]


@pytest.mark.parametrize(
    ("status", "started"),
    [("RUNNING", []), ("SUCCEEDED", []), ("FAILED", ["x-2"]), ("STOPPED", ["x-2"])],
)
def test_the_same_command_again_is_the_same_job(status: str, started: list[str]) -> None:
    fake = FakeJobs(x=(status, build_entrypoint(WORDS, ship=False)))
    job_id = submit._submit(fake, "x", WORDS, ship=False)  # type: ignore[arg-type]
    assert fake.started == started
    assert job_id == (started or ["x"])[0]


@pytest.mark.parametrize(
    ("known", "work_left", "named", "started"),
    [
        ({"x": "SUCCEEDED"}, "x", "x-2", True),
        ({"x": "SUCCEEDED", "x-2": "SUCCEEDED"}, "x x-2", "x-3", True),
        ({"x": "SUCCEEDED", "x-2": "SUCCEEDED"}, "x", "x-2", False),
        ({"x": "SUCCEEDED", "x-2": "FAILED"}, "x", "x-3", True),
        ({"x": "SUCCEEDED", "x-2": "RUNNING"}, "x", "x-2", False),
    ],
)
def test_the_same_command_goes_on_where_the_hours_were_over(
    known: dict[str, str], work_left: str, named: str, started: bool
) -> None:
    entrypoint = build_entrypoint(WORDS, ship=False)
    fake = FakeJobs(work_left=work_left, **{name: (how, entrypoint) for name, how in known.items()})
    assert submit._submit(fake, "x", WORDS, ship=False) == named  # type: ignore[arg-type]
    assert fake.started == [named] * started


@pytest.mark.parametrize(
    ("words", "name", "added"),
    [
        (["sweep", "rates.yaml"], "rates", ["--name", "rates"]),
        (["sweep", "rates.yaml", "--name", "mine"], "mine", []),
        (["sweep", "atari-5", "--set=output_dir=/mnt/runs"], "atari-5", ["--name", "atari-5"]),
        (["run", "--game-id", "pong", "qbert", "--experiment-id", "two"], "two", []),
        (["run", "--game-id", "pong", "--experiment-id", "one"], "one", []),
    ],
)
def test_a_job_and_what_it_leaves_have_one_name(
    tmp_path: Path, words: list[str], name: str, added: list[str]
) -> None:
    (tmp_path / "rates.yaml").write_text("output_dir: /mnt/runs\nbase: {game_id: pong}\n")
    if words[0] == "run":
        words = [*words, "--output-dir", "/mnt/runs"]
    flags = argparse.Namespace(job_id=None, allow_open_cluster=False)
    assert submit._prepare(flags, words) == (name, [*words, *added])


def test_a_running_job_of_other_words_is_left_alone() -> None:
    fake = FakeJobs(x=("RUNNING", "other"))
    with pytest.raises(LaunchError, match="running with other words"):
        submit._submit(fake, "x", WORDS, ship=False)  # type: ignore[arg-type]
    assert fake.started == []


def test_a_token_that_others_can_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "token"
    path.write_text("secret")
    path.chmod(0o644)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    assert access.describe_token_fault() == (
        f"the token in {path} can be read by others (mode 0644); chmod 600 {path}"
    )
    path.chmod(0o600)
    assert access.describe_token_fault() is None


def test_a_cluster_that_lets_everybody_in_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_ask_mode", lambda address: "disabled")
    with pytest.raises(LaunchError, match="no token authentication"):
        jobs.Jobs("http://head:8265")


def test_the_doctor_looks_at_this_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--output-dir", "runs"]) == 0
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {
        "versions", "game", "storage", "disk", "memory", "GPUs", "precision", "placement",
    }  # fmt: skip
    huge = ["--algorithm", "DQN", "--set", "dqn.replay_size=100_000_000", "--json"]
    assert doctor.main([*huge, "--set", "resources.num_cpus=9999"]) == 3
    captured = capsys.readouterr()
    faults = [check["name"] for check in json.loads(captured.out)["checks"] if check["fault"]]
    assert faults == ["memory", "placement"]
    assert captured.err.count("error: ") == 2


def test_the_doctor_tries_the_storage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    assert doctor.main(["--output-dir", f"file://{tmp_path}/storage"]) == 0
    assert f"file://{tmp_path}/storage: written and read" in capsys.readouterr().out
    assert list((tmp_path / "storage").iterdir()) == []
    assert doctor.main(["--output-dir", "file:///proc/nowhere"]) == 3
    assert "error: storage: cannot write" in capsys.readouterr().err


def test_the_doctor_looks_by_a_job_that_ships_this_retro_ml(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: dict[str, Any] = {}

    class FakeCluster(FakeJobs):
        def __init__(self, address: str, *, allow_open: bool) -> None:
            super().__init__()

        def start(self, job_id: str, **how: Any) -> None:
            started.update(how)

        def follow(self, job_id: str, show: Any, *, notice: Any) -> jobs.Outcome:
            checks = [
                {"name": "nodes", "found": "3 of 3 answered", "fault": None},
                {"name": "versions", "found": "", "fault": "node a: torch 1.0 -> install"},
                {"name": "versions", "found": "", "fault": "node b: torch 2.0 -> install"},
            ]
            show(json.dumps({"checks": checks}) + "\n")
            return jobs.Outcome(3)

    monkeypatch.setattr(cluster_checks, "Jobs", FakeCluster)
    call = ["--address", "http://head:8265", "--output-dir", "/mnt/runs"]
    assert doctor.main([*call, "--ship"]) == 3
    assert Path(started["runtime_env"]["py_modules"][0]).name == "retro_ml"
    assert "--ship" not in started["entrypoint"]
    assert '"retro_ml"' not in started["entrypoint"]  # its version there is not asked for
    assert capsys.readouterr().err.splitlines() == [
        "error: versions: node a: torch 1.0 -> install",
        "error: versions: node b: torch 2.0 -> install",
    ]
    assert doctor.main(call) == 3
    assert "py_modules" not in started["runtime_env"]
    assert '"retro_ml"' in started["entrypoint"]


@pytest.mark.parametrize("argv", [(), ("--address", "auto"), ("--ray-address", "head:6379")])
def test_the_doctor_ships_by_a_job_alone(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main(["--ship", *argv]) == 2
    assert "--ship: unexpected -> with the head's dashboard" in capsys.readouterr().err


def test_the_doctor_takes_one_experiment(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--game-id", "pong", "qbert"]) == 2
    assert "a sweep -> one of its experiments" in capsys.readouterr().err


OUTPUT = "one\ntwo\nthree\nfour\n"


class BrokenClient:
    """Ray's client where the connection breaks again and again while the job goes on."""

    def __init__(self, *cuts: int | None) -> None:
        self.cuts = list(cuts)
        self.tries = 0

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        self.tries += 1
        cut = self.cuts.pop(0) if self.cuts else len(OUTPUT)
        for line in OUTPUT[:cut].splitlines(keepends=True):
            yield line
        if cut is None or cut < len(OUTPUT):
            raise RuntimeError("WebSocket connection closed unexpectedly")

    def get_job_info(self, job_id: str) -> Any:
        if self.cuts and self.cuts[0] is None:
            self.cuts.pop(0)
            raise ConnectionError("Failed to connect")
        ended = not self.cuts
        return SimpleNamespace(
            status=JobStatus.SUCCEEDED if ended else JobStatus.RUNNING, driver_exit_code=0
        )

    def get_job_logs(self, job_id: str) -> str:
        return OUTPUT


@pytest.mark.parametrize("cuts", [(), (4, 8), (0, None, None, 8), (6, 8, 18)])
def test_a_lost_connection_is_taken_up_where_it_was(
    cuts: tuple[int | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.0)
    one = jobs.Jobs.__new__(jobs.Jobs)
    one._client, one._followers = BrokenClient(*cuts), {}  # type: ignore[assignment]
    one.address = "http://head:8265"
    shown: list[str] = []
    told: list[str] = []
    assert one.follow("x", shown.append, notice=told.append).exit_code == 0
    assert "".join(shown) == OUTPUT
    assert bool(told) == bool(cuts)
    assert all("the job goes on" in line for line in told)


def test_a_job_that_a_new_head_does_not_know_is_not_waited_for() -> None:
    one = jobs.Jobs.__new__(jobs.Jobs)
    client = BrokenClient(0)
    client.get_job_info = fail_with_404  # type: ignore[method-assign]
    one._client, one._followers, one.address = client, {}, "http://head:8265"  # type: ignore[assignment]
    with pytest.raises(LaunchError, match="knows no job x any more"):
        one.follow("x", print, notice=print)


def test_a_cluster_that_does_not_answer_is_given_up_where_that_is_wanted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jobs, "RETRY_S", 0.01)
    one = jobs.Jobs.__new__(jobs.Jobs)
    client = BrokenClient(*[0] * 10_000)
    client.get_job_info = refuse_to_connect  # type: ignore[method-assign]
    one._client, one._followers, one.address = client, {}, "http://head:8265"  # type: ignore[assignment]
    with pytest.raises(
        LaunchError, match=r"head:8265 has not answered for 0\.1 s: Failed to connect"
    ):
        one.follow("x", print, notice=print, patience_s=0.1)


def refuse_to_connect(job_id: str) -> Any:
    raise ConnectionError("Failed to connect")


def fail_with_404(job_id: str) -> Any:
    raise RuntimeError("Request failed with status code 404: Job x does not exist.")


def test_ctrl_c_leaves_the_job_and_twice_stops_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupts = iter([True, True, False])

    def follow(job_id: str, show: Any, *, notice: Any) -> jobs.Outcome:
        if next(interrupts):
            raise KeyboardInterrupt
        return jobs.Outcome(143)

    def sleep(seconds: float) -> None:
        if twice:
            raise KeyboardInterrupt

    stopped: list[str] = []
    fake: Any = SimpleNamespace(address="http://head:8265", follow=follow, stop=stopped.append)
    flags = argparse.Namespace(stop=False, no_wait=False)
    monkeypatch.setattr(submit.time, "sleep", sleep)
    twice = False
    assert (submit._attend(fake, "x", flags), stopped) == (130, [])
    assert "the job goes on; follow it: retro-ml submit" in capsys.readouterr().err
    interrupts, twice = iter([True, False]), True
    assert (submit._attend(fake, "x", flags), stopped) == (143, ["x"])
