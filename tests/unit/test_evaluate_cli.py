"""`retro-ml evaluate` around the games, as a user calls it."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import retro_ml
from retro_ml import cli, evaluate
from retro_ml.core.artifacts.model_archive import ArchiveError
from retro_ml.evaluation import evaluate as evaluation
from retro_ml.evaluation.episodes import Episode
from retro_ml.evaluation.evaluate import Estimate, Evaluation
from retro_ml.evaluation.protocols import Protocol
from retro_ml.evaluation.statistics import Interval

pytestmark = pytest.mark.unit

ESTIMATE = Estimate(
    value=2.0, interval=Interval(1.0, 3.0), human_normalised=None, human_normalised_interval=None
)


@pytest.fixture(autouse=True)
def _a_run_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "one"
    run.mkdir(parents=True)
    (run / "model.zip").write_bytes(b"not looked at")
    (tmp_path / "runs" / "unfinished").mkdir()


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Every call of evaluate_model, which is replaced."""
    calls: list[dict[str, Any]] = []

    def evaluate_model(model: Path, **options: Any) -> Evaluation:
        calls.append({"model": model, **options})
        return build_evaluation(str(model))

    monkeypatch.setattr(evaluation, "evaluate_model", evaluate_model)
    return calls


def build_evaluation(model: str) -> Evaluation:
    return Evaluation(
        model=model,
        model_sha256="00",
        algorithm="PPO",
        game="adventure",
        trained_agent_steps=10,
        protocol=Protocol(
            name="noop",
            sticky_actions=0.0,
            noop_max=30,
            max_frames=108_000,
            auto_fire=True,
            full_action_space=False,
            actions="sampled",
            epsilon=0.0,
        ),
        seed=0,
        mean=ESTIMATE,
        median=ESTIMATE,
        iqm=ESTIMATE,
        standard_error=0.5,
        human_scale=None,
        capped=0,
        episodes=(Episode(score=2.0, agent_steps=5, frames=20, capped=False),),
        versions={},
    )


def files() -> set[str]:
    return {str(path) for path in Path("runs").rglob("*") if path.is_file()}


def refuse(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    before = files()
    assert evaluate.main(argv) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert files() == before
    *lines, hint = output.err.splitlines()
    assert hint.startswith("hint: ")
    return [line.removeprefix("error: ") for line in lines]


def test_a_runs_folder(capsys: pytest.CaptureFixture[str], played: list[dict[str, Any]]) -> None:
    argv = "runs/one --episodes 7 --protocol noop --seed 3 --deterministic --num-games 2"
    assert evaluate.main(shlex.split(argv)) == 0

    (call,) = played
    call.pop("on_step")
    assert call == {
        "model": Path("runs/one/model.zip"),
        "episodes": 7,
        "protocol": "noop",
        "seed": 3,
        "deterministic": True,
        "num_games": 2,
    }
    output = capsys.readouterr()
    assert output.out.startswith("PPO on adventure, trained for 10 agent steps\n")
    saved = json.loads(Path("runs/one/evaluation-noop.json").read_text())
    assert saved == json.loads(json.dumps(build_evaluation("runs/one/model.zip").as_dict()))
    assert "evaluation-noop.json" in output.err


def test_a_models_file_and_json(
    capsys: pytest.CaptureFixture[str], played: list[dict[str, Any]]
) -> None:
    assert cli.main(["evaluate", "runs/one/model.zip", "--json", "--quiet"]) == 0

    output = capsys.readouterr()
    assert json.loads(output.out)["mean"]["value"] == 2.0
    assert output.err == ""
    assert files() == {"runs/one/model.zip"}
    assert (played[0]["episodes"], played[0]["protocol"], played[0]["seed"]) == (100, None, 0)


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        ("", "MODEL: missing -> a model.zip, or the folder"),
        ("nowhere", "MODEL: nowhere -> no such file or folder"),
        ("runs/unfinished", "MODEL: runs/unfinished -> this folder has no model.zip"),
        ("runs/one --episodes 0", "episodes: 0 -> a whole number from 1 up to"),
        ("runs/one --protocol x", "protocol: x -> one of machado, noop"),
        ("runs/one --seed -1", "seed: -1 -> a whole number from 0 up to"),
        ("runs/one --num-games none", "num_games: none -> a whole number"),
        ("runs/one --episode 3", "--episode: unknown -> did you mean --episodes?"),
        ("runs/one runs/two", "runs/two: unexpected -> one model at a time"),
        ("runs/one --seed", "--seed: a value is missing"),
    ],
)
def test_one_clear_message(capsys: pytest.CaptureFixture[str], argv: str, line: str) -> None:
    (only,) = refuse(capsys, *argv.split())

    assert only.startswith(line)


def test_all_faults_in_one_message(capsys: pytest.CaptureFixture[str]) -> None:
    lines = refuse(capsys, *shlex.split("--sed=3 --episodes x --protocol y"))

    assert [line.split(" ->")[0] for line in lines] == [
        "--sed: unknown",
        "MODEL: missing",
        "episodes: x",
        "protocol: y",
    ]


def test_a_file_that_is_no_model(capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = refuse(capsys, "runs/one")

    assert line.startswith("runs/one/model.zip is no usable model.zip: ")


@pytest.mark.parametrize(
    ("fault", "exit_code"), [(KeyboardInterrupt(), 130), (ArchiveError("x is broken"), 2)]
)
def test_a_stop_leaves_nothing(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: BaseException,
    exit_code: int,
) -> None:
    def evaluate_model(model: Path, **options: Any) -> Evaluation:
        raise fault

    monkeypatch.setattr(evaluation, "evaluate_model", evaluate_model)

    assert evaluate.main(["runs/one"]) == exit_code
    assert capsys.readouterr().out == ""
    assert files() == {"runs/one/model.zip"}


def test_a_result_that_cannot_be_written_is_shown_all_the_same(
    capsys: pytest.CaptureFixture[str], played: list[dict[str, Any]]
) -> None:
    Path("runs/one/evaluation-noop.json").mkdir()

    assert evaluate.main(["runs/one"]) == 1
    output = capsys.readouterr()
    assert output.out.startswith("PPO on adventure")
    assert output.err.startswith("error: cannot write ")


def test_help_and_import_are_quick() -> None:
    program = (
        "import sys, retro_ml.evaluate\n"
        "try: retro_ml.evaluate.main(['--help'])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('torch', 'ray', 'ale_py') if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout.splitlines()[-1] == "[]"
    assert "--episodes" in done.stdout


def test_the_face_has_the_function() -> None:
    assert retro_ml.evaluate_model.__module__ == "retro_ml.evaluation.evaluate"
    assert retro_ml.Evaluation is Evaluation
