"""Which checkpoints are ordered to be filmed, and that nothing of it harms a run.

The process that films is a stand-in (a real process that notes its orders and makes empty films):
the real one plays games, and is tested in tests/integration.
"""

import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.engine import milestone_films
from retro_ml.core.engine.milestone_films import build_milestone_films
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.metrics.event_bus import EventType, MetricEvent, MetricEventBus

pytestmark = pytest.mark.unit

STAND_IN = """
import os
import sys
from pathlib import Path
videos = Path(sys.argv[1]) / "videos"
def note(text):
    with open(videos / "orders.txt", "a") as file:
        file.write(text + "\\n")
(videos / "ids.txt").write_text(f"{{os.getsid(0)}} {{os.getpgrp()}} {{os.getpid()}}")
for line in sys.stdin:
    order = line.strip()
    note(order)
    if order == "join":
        (videos / "learning.mp4").touch()
        sys.exit(0)
    if {dies}:
        print("out of order")
        sys.exit(7)
    if {films}:
        (videos / f"step-{{order}}.mp4").touch()
        (videos / f".step-{{order}}.safetensors").unlink()
note("end")
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_stand_in(tmp_path, monkeypatch)
    yield
    sys.modules.pop("film_stand_in", None)


def use_stand_in(
    folder: Path, monkeypatch: pytest.MonkeyPatch, *, films: bool = True, dies: bool = False
) -> None:
    (folder / "film_stand_in.py").write_text(STAND_IN.format(films=films, dies=dies))
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setattr(milestone_films, "WORKER", "film_stand_in")
    monkeypatch.setattr(milestone_films, "START_AFTER_S", 0.0)


def build_config(tmp_path: Path, *, every: float | None = 0.25, **fields: Any) -> ExperimentConfig:
    """1,000 agent steps, a checkpoint after every 20."""
    given: dict[str, Any] = {"checkpointing": {"every_steps": 20}, **fields}
    return ExperimentConfig(
        game_id="breakout",
        total_timesteps=1000,
        output_dir=str(tmp_path),
        experiment_id="run",
        video_every=every,
        ppo={"rollout_length": 10, "minibatch_size": 20},
        resources={"games_per_env_runner": 2},
        **given,
    )


def train(config: ExperimentConfig, *steps: int, finish: bool = True) -> list[str]:
    """Tells of checkpoints after these agent steps; returns the notices."""
    notices: list[str] = []
    bus = MetricEventBus()
    films = build_milestone_films(config, notice=notices.append)
    with films.attached(bus):
        bus.emit(MetricEvent.now(EventType.RUN_STARTED, "run", {"from_step": 0}))
        for step in steps:
            folder = config.paths.checkpoint_dir(step)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "module.safetensors").write_text(f"weights {step}")
            data = {"step": step, "path": str(folder)}
            bus.emit(MetricEvent.now(EventType.CHECKPOINT_SAVED, "other", data))
            bus.emit(MetricEvent.now(EventType.CHECKPOINT_SAVED, "run", data))
        if finish:
            films.finish(stopped=lambda: False)
    return notices


def orders(config: ExperimentConfig) -> list[str]:
    return (config.paths.videos_dir / "orders.txt").read_text().split()


@pytest.mark.usefixtures("stand_in")
def test_the_checkpoint_nearest_to_each_milestone_is_filmed(tmp_path: Path) -> None:
    config = build_config(tmp_path, checkpointing={"every_steps": 60})

    notices = train(config, 180, 240, 300, 420, 480, 540, 660, 720, 780, 960, 1000)

    # Milestones at 250, 500, 750 and the end, each nearer to these than to the next ones.
    assert orders(config) == ["240", "480", "720", "1000", "join"]
    assert config.paths.learning_film_path.exists()
    assert notices[-1].startswith("film: ")


@pytest.mark.usefixtures("stand_in")
def test_an_evaluations_checkpoint_is_nearer_than_the_next_periodic_one(tmp_path: Path) -> None:
    config = build_config(
        tmp_path, checkpointing={"every_steps": 200}, evaluation={"every_steps": 90}
    )

    train(config, 180, 200, 280, 360, 400, 460, 540, 600, 640, 720, 800, 820, 900, 1000)

    # Without evaluations 200 and 400 would be the nearest to the first two.
    assert orders(config) == ["280", "460", "720", "1000", "join"]


@pytest.mark.usefixtures("stand_in")
def test_the_process_starts_when_training_has_lasted_or_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its start is a burst of CPU time, which a short run would notice."""
    use_stand_in(tmp_path, monkeypatch)
    monkeypatch.setattr(milestone_films, "START_AFTER_S", 3600.0)
    config = build_config(tmp_path)

    train(config, 260, 510, finish=False)

    assert {path.name for path in config.paths.videos_dir.iterdir()} == {
        ".step-260.safetensors",
        ".step-510.safetensors",
    }

    train(config, 760)

    assert orders(config) == ["260", "510", "760", "join"]


@pytest.mark.usefixtures("stand_in")
def test_the_process_is_of_this_session_and_gets_no_ctrl_c(tmp_path: Path) -> None:
    config = build_config(tmp_path)

    train(config, 1000)

    session, group, process = (config.paths.videos_dir / "ids.txt").read_text().split()
    # Another session would have a share of the CPUs of its own, whatever its niceness.
    assert int(session) == os.getsid(0)
    assert group == process != str(os.getpgrp())


@pytest.mark.usefixtures("stand_in")
def test_the_end_is_filmed_where_no_milestone_falls_on_it(tmp_path: Path) -> None:
    config = build_config(tmp_path, every=0.4)

    train(config, 400, 800, 1000)

    assert orders(config) == ["400", "800", "1000", "join"]


@pytest.mark.usefixtures("stand_in")
def test_a_resumed_run_films_no_milestone_twice(tmp_path: Path) -> None:
    config = build_config(tmp_path)

    train(config, 260, 510, finish=False)
    train(config, 510, 600, 760, 1000)

    # Filmed or still to be filmed when the first attempt ended: ordered once more if the latter.
    assert orders(config)[-3:] == ["760", "1000", "join"]
    films = {path.name for path in config.paths.videos_dir.glob("step-*.mp4")}
    assert films == {"step-260.mp4", "step-510.mp4", "step-760.mp4", "step-1000.mp4"}


def test_weights_outlive_their_checkpoint_and_the_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = build_config(tmp_path)
    use_stand_in(tmp_path, monkeypatch, films=False)

    train(config, 260, finish=False)
    (config.paths.checkpoint_dir(260) / "module.safetensors").unlink()

    assert config.paths.milestone_weights_path(260).read_text() == "weights 260"

    use_stand_in(tmp_path, monkeypatch)
    train(config, 510)

    assert orders(config)[-3:] == ["260", "510", "join"]


def test_a_film_that_cannot_be_made_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path)
    use_stand_in(tmp_path, monkeypatch, films=False)

    train(config, 260)

    assert "no film of the agent after 260 agent steps" in caplog.text
    assert not config.paths.milestone_weights_path(260).exists()


def test_a_process_that_dies_ends_the_films_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = build_config(tmp_path)
    use_stand_in(tmp_path, monkeypatch, dies=True)

    train(config, 260, 510, 760)

    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    expected = "the filming process ended with exit code 7: out of order"
    assert warnings[0] == f"no more films in this run: {expected}"


def test_nothing_can_be_written(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = build_config(tmp_path)
    config.paths.experiment_dir.mkdir()
    config.paths.videos_dir.write_text("in the way")

    train(config, 260, 510)

    assert caplog.text.count("no more films in this run") == 1


def test_checkpoints_on_the_disk_of_another_machine_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage = (tmp_path / "bucket").as_uri()
    config = build_config(tmp_path).model_copy(update={"output_dir": storage})
    bus = MetricEventBus()
    films = build_milestone_films(config, notice=lambda text: None)

    with films.attached(bus):
        for step in (100, 260, 510):
            data = {"step": step, "path": str(tmp_path / "elsewhere" / f"step-{step}")}
            bus.emit(MetricEvent.now(EventType.CHECKPOINT_SAVED, "run", data))
        films.finish(stopped=lambda: False)

    assert caplog.messages == [
        "no more films in this run: the checkpoints are on the disk of another machine; films need "
        "an output_dir on a disk that this machine and the nodes share"
    ]


def test_a_missing_extra_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(milestone_films, "_NEEDED", ("no_such_module",))
    config = build_config(tmp_path)

    train(config, 260)

    assert caplog.messages == [
        "nothing is filmed: no_such_module is not installed -> pip install 'retro_ml[video]'"
    ]
    assert not config.paths.videos_dir.exists()


def test_nothing_is_filmed_unasked(tmp_path: Path) -> None:
    config = build_config(tmp_path, every=None)

    train(config, 500, 1000)

    assert not config.paths.videos_dir.exists()
    assert ExperimentConfig(game_id="breakout").video_every is None


@pytest.mark.parametrize(
    ("total", "every", "iterations"),
    # PPO's iteration is 1,024 agent steps, a checkpoint comes every 50,000, which are 49 of them.
    [(1_000_000, None, 49), (1_000_000, 0.1, 49), (100_000, 0.1, 9), (5_000, 0.1, 1)],
)
def test_checkpoints_are_no_rarer_than_films(
    total: int, every: float | None, iterations: int
) -> None:
    config = ExperimentConfig(game_id="breakout", total_timesteps=total, video_every=every)

    assert config.checkpoint_iterations == iterations
