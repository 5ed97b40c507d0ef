"""`retro-ml sweep`, and the sweeps of `retro-ml run`, up to the launch."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from retro_ml import cli, run, sweep
from retro_ml.cluster.job_entry import NOTE_VARIABLE
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.sweep_config import SweepConfig

pytestmark = pytest.mark.unit

SPEC = """\
base: {total_timesteps: 1_000}
grid:
  game_id: [pong, breakout]
distributions:
  ppo.learning_rate: {log_uniform: [1e-5, 1e-3]}
samples: 2
"""


@pytest.fixture(autouse=True)
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rates.yaml"
    path.write_text(SPEC)
    return path


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every call of run_sweep, which is replaced."""
    calls: list[Any] = []

    def run_sweep(config: SweepConfig, *, options: RunOptions) -> SimpleNamespace:
        calls.append((config, options))
        failed = [SimpleNamespace(experiment_id="pong-ppo-s0", error="no luck")]
        return SimpleNamespace(
            exit_code=1,
            error=None,
            failed=failed,
            storage=None,
            as_dict=lambda: {"success": False},
        )

    api = ModuleType("retro_ml.api")
    api.run_sweep = run_sweep  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "retro_ml.api", api)
    return calls


def resolve(capsys: pytest.CaptureFixture[str], main: Any, *argv: str) -> dict[str, Any]:
    assert main([*argv, "--print-config"]) == 0
    fields: dict[str, Any] = json.loads(capsys.readouterr().out)
    return fields


def refuse(capsys: pytest.CaptureFixture[str], main: Any, *argv: str) -> list[str]:
    exit_code = main(argv)
    output = capsys.readouterr()
    assert (exit_code, output.out) == (2, "")
    *lines, hint = output.err.splitlines()
    assert hint.startswith("hint: ")
    assert all(line.startswith("error: ") for line in lines)
    return [line.removeprefix("error: ") for line in lines]


def test_a_spec_becomes_a_sweep_named_after_its_file(
    capsys: pytest.CaptureFixture[str], launched: list[Any]
) -> None:
    assert sweep.main(["rates.yaml", "--quiet", "--json"]) == 1
    ((config, options),) = launched
    assert (config.name, len(config.trials), options.progress) == ("rates", 4, "quiet")
    output = capsys.readouterr()
    assert json.loads(output.out) == {"success": False}
    assert output.err == "error: pong-ppo-s0: no luck\n"


def test_the_command_line_wins_over_the_spec(capsys: pytest.CaptureFixture[str]) -> None:
    fields = resolve(
        capsys,
        sweep.main,
        "rates.yaml",
        "--name=x",
        "--output-dir=out",
        "--set=base.total_timesteps=2_000",
        "--set=grid.ppo.clip=[0.1, 0.2]",
        "--set=distributions.ppo.gamma={uniform: [0.9, 0.99]}",
        "--set=max_concurrent=3",
    )
    assert (fields["name"], fields["output_dir"], fields["max_concurrent"]) == ("x", "out", 3)
    assert fields["base"] == {"total_timesteps": 2_000}
    assert fields["grid"] == {"game_id": ["pong", "breakout"], "ppo.clip": [0.1, 0.2]}
    assert fields["distributions"] == {
        "ppo.learning_rate": {"log_uniform": ["1e-5", "1e-3"]},
        "ppo.gamma": {"uniform": [0.9, 0.99]},
    }


def test_a_dry_run_lists_the_trials(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert sweep.main(["rates.yaml", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "sweep rates: 4 trials"
    assert "  breakout-ppo-s0-t0001" in lines
    assert [path.name for path in tmp_path.iterdir()] == ["rates.yaml"]


@pytest.mark.parametrize(
    ("argv", "starts"),
    [
        ([], ["SPEC: missing -> a YAML or JSON file, or one of atari-5, atari-57"]),
        (["none.yaml"], ["none.yaml: no such file -> "]),
        (["atari5"], ["atari5: no such file -> ", "SPEC: atari5 -> did you mean atari-5"]),
        (["rates.yaml", "more"], ["more: unexpected -> one spec at a time"]),
        (["rates.yaml", "--sett=1"], ["--sett: unknown -> did you mean --set?"]),
        (["rates.yaml", "--set", "base"], ["--set base -> field=value"]),
        (["rates.yaml", "--set=base.ppo.clip=7"], ["base.ppo.clip: 7 -> a number above 0"]),
        (["rates.yaml", "--restart-behavior=x"], ["restart_behavior: x -> one of resume"]),
    ],
)
def test_bad_input_is_told_in_a_line_each(
    capsys: pytest.CaptureFixture[str], argv: list[str], starts: list[str]
) -> None:
    lines = refuse(capsys, sweep.main, *argv)
    assert len(lines) == len(starts)
    for line, start in zip(lines, starts, strict=True):
        assert line.startswith(start)


def test_several_games_algorithms_and_seeds_make_a_sweep(
    capsys: pytest.CaptureFixture[str],
) -> None:
    fields = resolve(
        capsys,
        run.main,
        *[
            "--game-id",
            "breakout",
            "pong",
            "--algorithm",
            "PPO",
            "DQN",
            "--seeds",
            "3",
            "--seed",
            "4",
            "-n",
            "500",
        ],
        *["--output-dir", "out", "--set", "ppo.clip=0.2"],
    )
    assert fields["grid"] == {
        "game_id": ["breakout", "pong"],
        "algorithm": ["PPO", "DQN"],
        "seed": [4, 5, 6],
    }
    assert fields["base"] == {"total_timesteps": "500", "ppo": {"clip": 0.2}}
    assert (fields["name"], fields["output_dir"]) == (None, "out")


def test_the_same_call_means_the_same_folder(launched: list[Any]) -> None:
    call = ["--game-id", "breakout", "pong", "--algo", "ppo", "a2c", "--seeds", "5"]
    for more in ([], ["--quiet"], ["-n", "7"], ["--experiment-id", "mine"]):
        run.main([*call, *more])
    names = [config.sweep_id for config, _ in launched]
    assert names[0] == names[1] != names[2]
    assert names[0].startswith("breakout-pong-ppo-a2c-5-seeds-")
    assert names[3] == "mine"


@pytest.mark.parametrize(
    ("argv", "start"),
    [
        ("--env pong --seeds x", "--seeds: x -> how many seeds, from 1 up to"),
        ("--env pong --seeds 0", "--seeds: 0 -> how many seeds, from 1 up to"),
        ("--env pong --seeds 2 --seed y", "seed: y -> a whole number, the first of --seeds"),
        ("--env pong brakout", "grid.game_id: brakout -> no such game; did you mean breakout?"),
        ("--env pong breakout --max-hours 0", "max_hours: 0 -> a number above 0"),
        ("--env pong --algorithm PPO SAC", "grid.algorithm: SAC -> one of PPO, A2C, DQN"),
    ],
)
def test_bad_sweeps_of_run_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], argv: str, start: str
) -> None:
    (line,) = refuse(capsys, run.main, *argv.split())
    assert line.startswith(start)


@pytest.mark.parametrize(
    ("state", "options", "noted"),
    [
        ("interrupted", (), True),
        ("completed", (), False),
        ("interrupted", ("--set", "max_agent_steps=1500"), False),
        ("interrupted", ("--set", "max_agent_steps=1501"), True),
        ("interrupted", ("--restart-behavior", "restart"), False),
    ],
)
def test_a_job_is_told_of_work_that_the_hours_left(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    state: str,
    options: tuple[str, ...],
    noted: bool,
) -> None:
    standings = [SimpleNamespace(agent_steps=steps) for steps in (1_000, 500, 0, 0)]
    result = SimpleNamespace(exit_code=0, state=state, error=None, standings=standings)
    api = ModuleType("retro_ml.api")
    api.run_sweep = lambda config, *, options: result  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "retro_ml.api", api)
    monkeypatch.setenv(NOTE_VARIABLE, str(tmp_path / "note"))
    assert sweep.main(["rates.yaml", "--set", "max_hours=8", *options]) == 0
    assert (tmp_path / "note").exists() is noted


def test_one_value_is_no_sweep(capsys: pytest.CaptureFixture[str]) -> None:
    fields = resolve(capsys, run.main, "--game-id", "pong", "--algorithm", "DQN")
    assert (fields["game_id"], fields["algorithm"]) == ("pong", "DQN")


def test_help_imports_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from retro_ml import cli\n"
        "try: cli.main(['sweep', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'ray', 'torch', 'optuna'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "atari-5, atari-57" in done.stdout


def test_retro_ml_knows_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sweep"]) == 2
    assert "SPEC: missing" in capsys.readouterr().err
