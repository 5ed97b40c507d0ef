"""`retro-ml run` up to the launch, as a user calls it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from retro_ml import cli, run
from retro_ml.cluster.job_entry import NOTE_VARIABLE
from retro_ml.core.engine.run_faults import BadMachine, BadRunFolder
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def resolve(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    exit_code = run.main([*argv, "--print-config"])
    output = capsys.readouterr()
    assert (exit_code, output.err) == (0, "")
    config: dict[str, Any] = json.loads(output.out)
    return config


def refuse(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    exit_code = run.main(argv)
    output = capsys.readouterr()
    assert (exit_code, output.out) == (2, "")
    assert list(Path.cwd().iterdir()) == [] or "--config" in argv
    *lines, hint = output.err.splitlines()
    assert hint.startswith("hint: ")
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every call of run_experiment, which is replaced."""
    calls: list[Any] = []

    def run_experiment(config: ExperimentConfig, *, options: RunOptions) -> SimpleNamespace:
        calls.append((config, options))
        return SimpleNamespace(
            exit_code=1, error="no luck", storage=None, as_dict=lambda: {"success": False}
        )

    api = ModuleType("retro_ml.api")
    api.run_experiment = run_experiment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "retro_ml.api", api)
    return calls


# What the flags mean.


def test_the_documented_call(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(
        capsys,
        *shlex.split("--game-id BreakoutNoFrameskip-v4 --algorithm PPO --run-type QUICK --seed 42"),
        *shlex.split("--output-dir out"),
    )

    assert config["game_id"] == "BreakoutNoFrameskip-v4"
    assert (config["algorithm"], config["run_type"]) == ("PPO", "QUICK")
    assert (config["seed"], config["output_dir"]) == (42, "out")
    assert not Path("out").exists()


@pytest.mark.parametrize("game", ["--game-id", "--game_id", "--env", "--env-id", "--env_id"])
@pytest.mark.parametrize("algorithm", ["--algorithm", "--algo"])
@pytest.mark.parametrize("steps", ["--total-timesteps", "--timesteps", "-n", "--total_timesteps"])
def test_names_known_from_other_trainers(
    capsys: pytest.CaptureFixture[str], game: str, algorithm: str, steps: str
) -> None:
    config = resolve(capsys, game, "pong", algorithm, "dqn", steps, "1e5")

    assert (config["game_id"], config["algorithm"]) == ("pong", "DQN")
    assert (config["run_type"], config["total_timesteps"]) == ("CUSTOM", 100_000)


def test_every_field_has_a_flag(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run.main(["--help"])

    assert stop.value.code == 0
    text = capsys.readouterr().out
    flags = {word.strip(",") for word in text.split() if word.startswith("--")}
    for name, field in ExperimentConfig.model_fields.items():
        section = getattr(field.annotation, "model_fields", None)
        names = [f"{name}.{inner}" for inner in section] if section else [name]
        assert {f"--{field_name.replace('_', '-')}" for field_name in names} <= flags
    for leak in ("None", "null)", "<lambda>", "True", "PydanticUndefined", "%%"):
        assert leak not in text


def test_sections_switches_and_null(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolve(
        capsys,
        *shlex.split("--env pong --no-use-gpu --ppo.learning-rate 1e-3 --ppo.max-grad-norm null"),
        *shlex.split("--no-ppo.normalize-advantages --environment.terminal-on-life-loss"),
    )

    assert config["use_gpu"] is False
    assert config["ppo"]["learning_rate"] == 1e-3
    assert config["ppo"]["max_grad_norm"] is None
    assert config["ppo"]["normalize_advantages"] is False
    assert config["environment"]["terminal_on_life_loss"] is True


def test_flags_beat_set_beats_file_beats_preset_beats_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("c.yaml").write_text(
        "game_id: pong\nalgorithm: a2c\npreset: sb3\n"
        "a2c: {gamma: 0.1, gae_lambda: 0.1, learning_rate: 1e-3, rmsprop_eps_inside_root: false}\n"
    )
    config = resolve(
        capsys,
        *shlex.split(
            "--config c.yaml --set a2c.gamma=0.2 --set a2c.gae_lambda=0.2 --a2c.gamma 0.3"
        ),
    )["a2c"]

    assert config["gamma"] == 0.3  # flag
    assert config["gae_lambda"] == 0.2  # --set
    assert config["learning_rate"] == 1e-3  # file
    assert config["rmsprop_eps_inside_root"] is False  # file over preset
    assert config["value_loss_coefficient"] == 0.25  # preset
    assert config["entropy_coefficient"] == 0.01  # default


def test_a_saved_config_reads_back(capsys: pytest.CaptureFixture[str]) -> None:
    saved = ExperimentConfig(game_id="ALE/Pong-v5", algorithm="DQN", preset="dopamine")
    Path("config.json").write_text(saved.model_dump_json(indent=2))

    again = resolve(capsys, "--config", "config.json")
    assert ExperimentConfig.model_validate(again) == saved

    longer = resolve(capsys, "--config", "config.json", "-n", "20000")
    assert (longer["run_type"], longer["total_timesteps"]) == ("CUSTOM", 20_000)
    assert longer["dqn"] == again["dqn"]


# What is refused.


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("", "game_id: missing -> "),
        ("--env Brekout", "game_id: Brekout -> no such game; did you mean breakout?"),
        ("--env pong --algo TRPO", "algorithm: TRPO -> one of PPO, A2C, DQN"),
        ("--env pong --run-type fast", "run_type: FAST -> one of QUICK"),
        ("--env pong -n -5", "total_timesteps: -5 -> a whole number from 1 up to"),
        ("--env pong --run-type SHORT -n 7", "total_timesteps: 7 -> run_type SHORT means 500,000"),
        ("--env pong --experiment-id ../x", "experiment_id: ../x -> a plain name"),
        ("--env pong --set seed=x", "seed: x -> a whole number from 0 up to"),
        ("--env pong --max-hours 0", "max_hours: 0 -> a number above 0"),
        ("--env pong --stop-score nan", "stop_score: nan -> a finite number"),
        ("--env pong --sed 3", "--sed: unknown -> did you mean --seed"),
        ("--env pong --sed=3", "--sed: unknown -> did you mean --seed"),
        ("--env pong --ppo.epoch 3", "--ppo.epoch: unknown -> did you mean --ppo.epochs?"),
        ("--env pong --gamma 1", "--gamma: unknown -> did you mean --ppo.gamma, --a2c.gamma or"),
        ("--env pong --ppo {}", "--ppo: unknown -> "),
        ("--env pong --seed 1 stray", "stray: unexpected -> options begin with --"),
        ("--env pong --seed", "--seed: a value is missing -> "),
        ("--env pong --use-gpu=no", "--use-gpu/--no-use-gpu: takes no value -> leave out 'no'"),
        ("-- --env pong", "--: unexpected -> leave it out"),
        ("--env pong --set seed", "--set seed -> field=value, e.g. --set ppo.clip=0.2"),
        ("--env pong --set env=3", "env: unknown field -> "),
        ("--env pong --config none.yaml", "--config none.yaml: no such file -> "),
        ("--config none.yaml", "--config none.yaml: no such file -> "),
    ],
)
def test_one_clear_message(capsys: pytest.CaptureFixture[str], argv: str, line: str) -> None:
    (only,) = refuse(capsys, *argv.split())

    assert only.startswith(line)


def test_a_missing_game_is_told_beside_other_faults(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refuse(capsys, "--max-hours", "0")

    assert [line.split(" ->")[0] for line in lines] == ["max_hours: 0", "game_id: missing"]


def test_all_faults_of_a_call_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refuse(
        capsys,
        *shlex.split(
            "--config none.json --set x --set ppo.clip=9 --max-hours -1 --seed -1 --algo b"
        ),
    )

    assert [line.split(" ->")[0] for line in lines] == [
        "--config none.json: no such file",
        "--set x",
        "max_hours: -1",
        "algorithm: B",
        "seed: -1",
        "ppo.clip: 9",
    ]


# The launch.


def test_config_and_options_reach_the_launch(
    capsys: pytest.CaptureFixture[str], launched: list[Any]
) -> None:
    exit_code = run.main(
        shlex.split("--env pong --quiet --stop-score 20 --max-hours 1.5 --ray-address auto")
    )

    ((config, options),) = launched
    assert config.game_id == "pong"
    assert options == RunOptions(stop_score=20, max_hours=1.5, ray_address="auto", progress="quiet")
    assert exit_code == 1  # the result's
    output = capsys.readouterr()
    assert (output.out, output.err) == ("", "error: no luck\n")  # quiet, but not silent


def test_the_result_as_json(capsys: pytest.CaptureFixture[str], launched: list[Any]) -> None:
    run.main(["--env", "pong", "--json"])

    output = capsys.readouterr()
    assert json.loads(output.out) == {"success": False}
    assert output.err == ""  # the progress has shown it
    assert launched[0][1] == RunOptions()


def test_a_bad_folder_is_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_experiment(config: ExperimentConfig, *, options: RunOptions) -> None:
        raise BadRunFolder("output_dir: x -> y")

    api = ModuleType("retro_ml.api")
    api.run_experiment = run_experiment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "retro_ml.api", api)

    assert refuse(capsys, "--env", "pong") == ["output_dir: x -> y"]


def test_a_machine_that_cannot_read_its_files_is_no_bad_input(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_experiment(config: ExperimentConfig, *, options: RunOptions) -> None:
        raise BadMachine("experiment_id: x -> y")

    api = ModuleType("retro_ml.api")
    api.run_experiment = run_experiment  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "retro_ml.api", api)

    assert run.main(["--env", "pong"]) == 3
    assert capsys.readouterr().err == "error: experiment_id: x -> y\n"


@pytest.mark.parametrize(
    ("ended", "options", "noted"),
    [
        ({"agent_steps": 900}, (), True),
        ({"agent_steps": 1_000}, (), False),
        ({"agent_steps": 900, "final_reward": 21.0}, ("--stop-score", "20"), False),
        ({"agent_steps": 900}, ("--restart-behavior", "restart"), False),
        ({"agent_steps": 900, "state": "interrupted", "exit_code": 143}, (), False),
    ],
)
def test_a_job_is_told_of_work_that_the_hours_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ended: dict[str, Any],
    options: tuple[str, ...],
    noted: bool,
) -> None:
    reached = {"exit_code": 0, "state": "completed", "final_reward": 1.0, "error": None}
    result = SimpleNamespace(**reached | ended, storage=None)
    api = ModuleType("retro_ml.api")
    api.run_experiment = lambda config, *, options: result  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "retro_ml.api", api)
    call = ["--env", "pong", "-n", "1000", "--max-hours", "8", *options]
    assert run.main(call) == result.exit_code  # no job: nobody to tell
    monkeypatch.setenv(NOTE_VARIABLE, str(tmp_path / "note"))
    run.main(call)
    assert (tmp_path / "note").exists() is noted


# The console script, and speed.


def test_the_console_script_hands_on(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--env", "pong", "--print-config"]) == 0
    assert json.loads(capsys.readouterr().out)["game_id"] == "pong"
    assert cli.main(["--help"]) == 0
    assert "run" in capsys.readouterr().out
    assert cli.main([]) == 2
    assert cli.main(["rum"]) == 2
    assert "did you mean run?" in capsys.readouterr().err


def test_help_imports_neither_ray_nor_torch() -> None:
    program = (
        "import sys\n"
        "from retro_ml import run\n"
        "try:\n"
        "    run.main(['--help'])\n"
        "finally:\n"
        "    heavy = {'ray', 'torch', 'ale_py', 'numpy', 'gymnasium'} & set(sys.modules)\n"
        "    assert not heavy, heavy\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_reader_that_has_seen_enough_is_no_fault() -> None:
    command = f"{sys.executable} -m retro_ml.run --env pong --print-config | head -n 1"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "{\n", "")
