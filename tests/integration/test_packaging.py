"""The package as others get it: its metadata, its console script, the set-up scripts."""

import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from importlib.metadata import entry_points, requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# Stands where a real one would make an environment: the tests need no network.
FAKE_PYTHON = f"""\
#!/bin/sh
echo "$*" >>"$CALLS"
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" ;;
    *"-m pip install"*) sleep "${{PIP_TAKES_S:-0}}"; exit "${{PIP_EXITS:-0}}" ;;
    "-m retro_ml.run"*) echo "trained: $*" ;;
    "-P -m benchmarking"*) echo "measured in $PYTHONPATH: $*" ;;
    *) exec "{sys.executable}" "$@" ;;
esac
"""


class Checkout:
    """A copy of what set-up reads, and a PATH on which the fake Python is the only one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "check out"
        self.calls_file = folder / "calls"
        self.venv = self.folder / ".venv"
        self.bin = folder / "bin"
        shutil.copytree(ROOT / "scripts", self.folder / "scripts")
        shutil.copy(ROOT / "pyproject.toml", self.folder)
        self.bin.mkdir()
        for tool in ("bash", "cat", "dirname", "grep", "head", "mkdir", "mv", "rm", "touch"):
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        for tool in ("sh", "cp", "sleep"):  # the fake Python's own
            (self.bin / tool).symlink_to(str(shutil.which(tool)))
        self.add_python("python3.11", FAKE_PYTHON)

    def add_python(self, name: str, program: str) -> None:
        (self.bin / name).write_text(program)
        (self.bin / name).chmod(0o755)

    def start(self, script: str, *arguments: str, **env: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.bin / "bash"), str(self.folder / "scripts" / script), *arguments],
            env={"PATH": str(self.bin), "CALLS": str(self.calls_file), **env},
            cwd=self.folder.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, script: str, *arguments: str, **env: str) -> tuple[int, str, str]:
        process = self.start(script, *arguments, **env)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def installs(self) -> list[str]:
        """The extras of each call of pip install, in order; resets the list."""
        calls = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return [call.partition("check out")[2] for call in calls if "pip install" in call]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_set_up_is_done_once_and_says_so(checkout: Checkout) -> None:
    first = checkout.run("train", "--seed", "7")
    installs = checkout.installs()
    second = checkout.run("train", "--seed", "7")

    assert first[:2] == second[:2] == (0, "trained: -m retro_ml.run --seed 7\n")
    assert [line.split()[1] for line in first[2].splitlines()] == ["making", "installing"]
    assert installs == [""]
    assert second[2] == ""
    assert checkout.installs() == []


def test_without_arguments_the_main_job_is_run(checkout: Checkout) -> None:
    _, out, _ = checkout.run("train")

    assert out.endswith(
        " --game-id BreakoutNoFrameskip-v4 --algorithm PPO --run-type QUICK --seed 42\n"
    )


def test_arguments_arrive_as_they_are(checkout: Checkout) -> None:
    _, out, _ = checkout.run("train", "--output-dir", "a  b", "*")

    assert out == "trained: -m retro_ml.run --output-dir a  b *\n"


def test_the_tests_need_more_than_training_and_training_keeps_it(checkout: Checkout) -> None:
    extras = []
    for script in ("train", "test", "train", "test"):
        checkout.run(script, "--version")
        extras.append(checkout.installs())

    assert extras == [[""], ["[test]"], [], []]


def test_the_benchmark_finds_its_modules_wherever_it_is_called(checkout: Checkout) -> None:
    _, out, _ = checkout.run("benchmark", "--out", "a  b")

    assert out == f"measured in {checkout.folder}/scripts: -P -m benchmarking --out a  b\n"
    assert checkout.installs() == ["[bench]"]


@pytest.mark.parametrize(
    ("scripts", "expected"),
    [
        (("test", "benchmark"), [["[test]"], ["[test,bench]"]]),
        (("benchmark", "test"), [["[bench]"], ["[bench,test]"]]),
    ],
)
def test_tests_and_benchmark_do_not_undo_one_another(
    checkout: Checkout, scripts: tuple[str, str], expected: list[list[str]]
) -> None:
    extras = []
    for script in scripts:
        checkout.run(script, "--version")
        extras.append(checkout.installs())
    for script in ("train", *scripts):
        checkout.run(script, "--version")

    assert extras == expected
    assert checkout.installs() == []
    with open(checkout.folder / "pyproject.toml", "a") as file:
        file.write("# changed\n")
    checkout.run("train")
    assert checkout.installs() == expected[1]


def test_a_failed_extra_leaves_the_other_one(checkout: Checkout) -> None:
    checkout.run("test", "--version")

    failed = checkout.run("benchmark", PIP_EXITS="1")
    checkout.installs()
    checkout.run("test", "--version")

    assert failed[0] == 3
    assert checkout.installs() == []


def test_a_change_of_pyproject_installs_again_with_the_same_extra(checkout: Checkout) -> None:
    checkout.run("test", "--version")
    checkout.installs()
    with open(checkout.folder / "pyproject.toml", "a") as file:
        file.write("# changed\n")

    _, _, err = checkout.run("train")

    assert checkout.installs() == ["[test]"]
    assert "making" not in err


def test_pip_failing_the_first_time_leaves_nothing_that_passes_for_set_up(
    checkout: Checkout,
) -> None:
    code, out, err = checkout.run("train", PIP_EXITS="1")
    again = checkout.run("train")

    assert (code, out) == (3, "")
    assert "pip could not install retro_ml" in err
    assert again[0] == 0
    assert "making" in again[2]


def test_pip_failing_later_leaves_what_worked(checkout: Checkout) -> None:
    checkout.run("train")

    failed = checkout.run("test", "--version", PIP_EXITS="1")
    checkout.installs()
    again = checkout.run("train")

    assert failed[0] == 3
    assert again[0] == 0
    assert checkout.installs() == []


def test_a_killed_set_up_is_begun_anew(checkout: Checkout) -> None:
    process = checkout.start("train", PIP_TAKES_S="5")
    while "pip install" not in (
        checkout.calls_file.read_text() if checkout.calls_file.exists() else ""
    ):
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    (checkout.venv / "rest").touch()

    code, _, err = checkout.run("train")

    assert code == 0
    assert "making" in err
    assert not (checkout.venv / "rest").exists()


@pytest.mark.parametrize("damage", ["empty", "dangling", "copied"])
def test_an_environment_that_cannot_work_is_made_anew(checkout: Checkout, damage: str) -> None:
    checkout.run("train")
    if damage == "empty":
        shutil.rmtree(checkout.venv)
        checkout.venv.mkdir()
    elif damage == "dangling":
        (checkout.venv / "bin/python").unlink()
        (checkout.venv / "bin/python").symlink_to(checkout.folder / "gone")
    else:
        checkout.folder = checkout.folder.rename(checkout.folder.with_name("new check out"))

    code, _, err = checkout.run("train")

    assert code == 0
    assert "making" in err


def test_an_environment_of_the_users_own_is_kept(checkout: Checkout) -> None:
    (checkout.venv / "bin").mkdir(parents=True)
    shutil.copy(checkout.bin / "python3.11", checkout.venv / "bin/python")
    (checkout.venv / "mine").touch()

    code, _, _ = checkout.run("train")

    assert code == 0
    assert (checkout.venv / "mine").exists()


def test_two_at_the_same_time_install_once(checkout: Checkout) -> None:
    processes = [checkout.start("train", PIP_TAKES_S="1") for _ in range(2)]
    results = [process.communicate(timeout=60) for process in processes]

    assert [process.returncode for process in processes] == [0, 0]
    assert [out.startswith("trained") for out, _ in results] == [True, True]
    assert checkout.installs() == [""]


def test_no_python_3_11_is_one_clear_message(checkout: Checkout) -> None:
    (checkout.bin / "python3.11").unlink()
    checkout.add_python("python3", "#!/bin/sh\nexit 1\n")

    code, out, err = checkout.run("train")

    assert (code, out) == (3, "")
    assert err.count("\n") == 1
    assert "install Python 3.11" in err
    assert not checkout.venv.exists()


def test_python3_serves_when_it_is_3_11(checkout: Checkout) -> None:
    (checkout.bin / "python3.11").rename(checkout.bin / "python3")
    checkout.add_python("python3.11", "#!/bin/sh\necho 'no such version' >&2\nexit 127\n")

    assert checkout.run("train")[0] == 0


def test_every_dependency_is_bounded_above_and_below_and_present() -> None:
    extras = PROJECT["optional-dependencies"]
    present = [*PROJECT["dependencies"], *extras["test"]]
    # The tests do without what only the benchmark needs.
    for line in {*present, *extras["bench"]}:
        requirement = Requirement(line)
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({">=", "<"}, {"=="}), requirement
        if line in present:
            assert requirement.specifier.contains(version(requirement.name)), requirement


def test_what_is_installed_is_this_checkout() -> None:
    installed = {Requirement(line) for line in requires("retro_ml") or []}
    (script,) = entry_points(group="console_scripts", name="retro-ml")

    assert version("retro_ml") == PROJECT["version"]
    assert {Requirement(line) for line in PROJECT["dependencies"]} <= installed
    assert script.value == "retro_ml.cli:main"


def test_the_console_script_answers(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("retro-ml")
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    answer = subprocess.run(
        [program, "run", "--game-id", "nonsense"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=env,
        check=False,
    )

    assert answer.returncode == 2
    assert answer.stderr.startswith("error: ")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [["-c", "import retro_ml"], ["-m", "retro_ml.run", "--help"]])
def test_neither_ray_nor_torch_is_imported_early(arguments: list[str]) -> None:
    answer = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    imported = {line.rpartition("|")[2].strip() for line in answer.stderr.splitlines()}

    assert "retro_ml" in imported
    assert imported.isdisjoint({"ray", "torch"})
