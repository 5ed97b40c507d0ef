"""An evaluation in words."""

import io
from dataclasses import replace
from types import SimpleNamespace

import pytest

from retro_ml.evaluation import report
from retro_ml.evaluation.episodes import Episode, Standing
from retro_ml.evaluation.evaluate import Estimate, Evaluation
from retro_ml.evaluation.protocols import Protocol
from retro_ml.evaluation.report import EvaluationProgress, evaluation_lines
from retro_ml.evaluation.statistics import Interval

pytestmark = pytest.mark.unit

PROTOCOL = Protocol(
    name="machado",
    sticky_actions=0.25,
    noop_max=0,
    max_frames=108_000,
    auto_fire=True,
    full_action_space=False,
    actions="sampled",
    epsilon=0.0,
)
ESTIMATE = Estimate(
    value=1234.5,
    interval=Interval(low=1000.0, high=1500.25),
    human_normalised=0.5,
    human_normalised_interval=Interval(low=0.25, high=0.75),
)
EVALUATION = Evaluation(
    model="model.zip",
    model_sha256="ab" * 32,
    algorithm="PPO",
    game="breakout",
    trained_agent_steps=300_032,
    protocol=PROTOCOL,
    seed=7,
    mean=ESTIMATE,
    median=ESTIMATE,
    iqm=ESTIMATE,
    standard_error=12.345,
    human_scale={"random": 1.7, "human": 30.5, "source": "x"},
    capped=0,
    episodes=tuple(
        Episode(score=1.0, agent_steps=steps, frames=4 * steps, capped=False)
        for steps in (1000, 2000)
    ),
    versions={},
)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table() -> None:
    assert evaluation_lines(EVALUATION) == [
        "PPO on breakout, trained for 300,032 agent steps",
        "protocol: machado: sticky actions 0.25, no no-ops, whole games of 108,000 frames at most, "
        "the game's own actions, FIRE pressed at starts",
        "actions: drawn from the policy; seed 7",
        "games: 2, 1,500 agent steps on average, none cut off",
        "",
        "           score         95 % interval  human = 1   95 % interval",
        "mean    1,234.50  1,000.00 to 1,500.25      0.500  0.250 to 0.750",
        "median  1,234.50  1,000.00 to 1,500.25      0.500  0.250 to 0.750",
        "IQM     1,234.50  1,000.00 to 1,500.25      0.500  0.250 to 0.750",
        "",
        "standard error of the mean: 12.35",
        "human-normalised: random 1.7 is 0, human 30.5 is 1",
        "intervals: over the games of this one model, not over training seeds",
        f"model: sha256 {'ab' * 32}",
    ]


def test_what_is_unknown_or_cut_off_is_said() -> None:
    bare = replace(ESTIMATE, human_normalised=None, human_normalised_interval=None)
    lines = evaluation_lines(
        replace(
            EVALUATION,
            mean=bare,
            median=bare,
            iqm=bare,
            human_scale=None,
            capped=2,
            standard_error=None,
            trained_agent_steps=None,
        )
    )

    assert lines[0] == "PPO on breakout"
    assert lines[3].endswith("2 cut off after 108,000 frames (stalled, or too good to end)")
    assert lines[6].split()[-2:] == ["-", "-"]
    assert "standard error of the mean: unknown from a single game" in lines
    assert "human-normalised: no figures are known for breakout" in lines


def test_progress_is_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 10.0, 12.0, 20.0])
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stream = io.StringIO()

    with EvaluationProgress(stream) as progress:
        progress(Standing(0, 100, 50, None))
        progress(Standing(0, 100, 500, None))
        progress(Standing(10, 100, 600, 4.0))
        progress(Standing(25, 100, 1000, 3.25))

    assert stream.getvalue().splitlines() == [
        "0 / 100 games, 50 steps/s",
        "25 / 100 games, 50 steps/s, mean score 3.2, about 1 min 00 s left",
    ]


def test_a_terminal_is_left_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 1.0, 2.0])
    monkeypatch.setattr(report, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    terminal = Terminal()

    with EvaluationProgress(terminal) as progress:
        progress(Standing(10, 100, 600, 4.0))
        progress(Standing(0, 100, 500, None))

    shown = terminal.getvalue()
    assert "\n" not in shown
    assert shown.endswith("\r" + " " * 50 + "\r") or shown.endswith(" \r")


def test_without_a_stream_nothing_is_shown() -> None:
    with EvaluationProgress(None) as progress:
        progress(Standing(1, 2, 3, 4.0))
