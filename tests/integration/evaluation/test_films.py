"""Films of whole games, made for real and looked into."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import safetensors.numpy
import torch

from retro_ml.core.artifacts.checkpoint_files import save_checkpoint_folder
from retro_ml.core.artifacts.model_archive import save_model_archive
from retro_ml.core.artifacts.storage import ArtifactError
from retro_ml.core.engine.launcher import Trial, TrialEnd
from retro_ml.core.engine.training_engine import TrainingEngine
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent
from retro_ml.evaluation import film_worker
from retro_ml.evaluation.agent import Agent
from retro_ml.evaluation.episodes import play_episodes
from retro_ml.evaluation.film_options import FilmOptions
from retro_ml.evaluation.films import record_film
from retro_ml.evaluation.playback import watch_games
from retro_ml.evaluation.protocols import EvaluationOptions, build_protocol
from retro_ml.evaluation.video_file import VideoFile, join_videos, temporary_path
from retro_ml.networks.nature_cnn import ActorCriticNetwork, QNetwork
from retro_ml.watch import main

pytestmark = pytest.mark.integration

BREAKOUT_WALL = (142, 142, 142)


def build_weights(algorithm: str = "PPO", *, seed: int = 0) -> dict[str, np.ndarray]:
    torch.manual_seed(seed)
    network = QNetwork(4) if algorithm == "DQN" else ActorCriticNetwork(4)
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model.zip that has learned nothing, in a run's folder."""
    path = tmp_path / "runs" / "run" / "model.zip"
    path.parent.mkdir(parents=True)
    config = ExperimentConfig(game_id="ALE/Breakout-v5")
    save_model_archive(
        path,
        weights=build_weights(),
        config_json=config.model_dump_json(),
        metadata={"agent_steps": 123},
    )
    return path


def read_film(path: Path) -> tuple[list[int], np.ndarray, tuple[str, int, int, float]]:
    """The numbers of its frames, the last one as RGB, and what kind of film it is."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        numbers = []
        for frame in container.decode(stream):
            numbers.append(round(frame.time * 60))
            picture = frame.to_ndarray(format="rgb24")
        kind = (stream.codec_context.name, stream.width, stream.height, float(stream.average_rate))
    return numbers, picture, kind


@pytest.mark.parametrize("algorithm", ["PPO", "DQN"])
def test_the_games_are_those_of_the_evaluation(algorithm: str) -> None:
    config = ExperimentConfig(game_id="breakout", algorithm=algorithm)
    agent = Agent.from_weights(build_weights(algorithm), config=config)
    protocol = build_protocol(config, EvaluationOptions())
    protocol = replace(protocol, max_frames=800)

    shown = [moment for _, moment in watch_games(agent, protocol=protocol, episodes=2, seed=7)]
    played = play_episodes(agent, protocol=protocol, episodes=2, seed=7, num_games=2)

    assert [moment.ended for moment in shown if moment.ended] == played
    for number, episode in enumerate(played):
        game = [moment for moment in shown if moment.game == number]
        assert game[-1].score == episode.score
        assert game[-1].agent_steps == episode.agent_steps
        assert game[0].opinion is None
        screens = sum(len(moment.screens) for moment in game[1:])
        # Every frame of the game but those of its start, where nobody acts.
        assert 0 < episode.frames - screens <= 31
    opinion = shown[1].opinion
    assert opinion is not None
    assert opinion.are_probabilities == (algorithm == "PPO")
    if algorithm == "PPO":
        assert opinion.scores.sum() == pytest.approx(1.0)
    else:
        assert opinion.value == opinion.scores.max()


def test_a_film_has_every_frame_in_the_games_colours(model: Path, tmp_path: Path) -> None:
    agent = Agent.load(model)
    path = tmp_path / "film.mp4"

    film = record_film(agent, path, FilmOptions(scale=2), max_frames=100)

    assert film is not None
    # The first screen, then 4 to an agent step.
    assert film.frames == 101
    numbers, picture, kind = read_film(path)
    assert numbers == list(range(101))
    assert kind == ("h264", film.width, film.height, 60.0)
    assert (film.height, film.width) == (420, 640 + 214)
    wall = picture[40:60, 100:500].reshape(-1, 3).astype(int)
    assert np.abs(wall - BREAKOUT_WALL).max() <= 4
    assert list(tmp_path.glob(".*")) == []


def test_without_a_strip(model: Path, tmp_path: Path) -> None:
    options = FilmOptions(scale=1, strip=False)

    film = record_film(Agent.load(model), tmp_path / "film.mp4", options, max_frames=8)

    assert film is not None
    assert read_film(film.path)[2] == ("h264", 320, 210, 60.0)


def test_stopped_at_once_nothing_remains(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"

    assert record_film(Agent.load(model), path, FilmOptions(), stopped=lambda: True) is None

    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]


def test_a_fault_in_the_middle_leaves_nothing(model: Path, tmp_path: Path) -> None:
    def fail(moment: object) -> None:
        raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        record_film(Agent.load(model), tmp_path / "film.mp4", FilmOptions(), on_moment=fail)

    assert [entry.name for entry in tmp_path.iterdir()] == ["runs"]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_leaves_nothing(model: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        with pytest.raises(ArtifactError, match="No space left on device"):
            record_film(Agent.load(model), disk / "film.mp4", FilmOptions(), max_frames=900)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_films_are_on_the_disk_before_they_have_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights that a film is made from are removed once it is there."""
    synced: dict[str, int] = {}
    renamed: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced[str(path)] = path.stat().st_size
        fsync(descriptor)

    def check_replace(source: Path, target: Path) -> None:
        assert synced[str(source)] == source.stat().st_size > 0
        renamed.append(target.name)
        replace(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", check_replace)
    video = VideoFile(tmp_path / "a.mp4", width=32, height=32)
    grey = np.full((16, 16), 128, np.uint8)
    video.write((np.full((32, 32), 50, np.uint8), grey, grey))
    video.finish()
    join_videos([tmp_path / "a.mp4"], tmp_path / "all.mp4")

    assert renamed == ["a.mp4", "all.mp4"]
    assert str(tmp_path) in synced


def test_two_films_of_one_path_grow_apart(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    planes = tuple(np.zeros(shape, np.uint8) for shape in ((64, 64), (32, 32), (32, 32)))
    films = [VideoFile(path, width=64, height=64, temporary=tmp_path / f".{name}") for name in "ab"]
    for count, film in enumerate(films, start=1):
        for _ in range(count):
            film.write(planes)  # type: ignore[arg-type]
    for film in films:
        film.finish()
    assert len(read_film(path)[0]) == 2
    assert list(tmp_path.iterdir()) == [path]


def test_joined_films_follow_each_other(tmp_path: Path) -> None:
    def film(name: str, *, side: int, frames: int, luma: int) -> Path:
        path = tmp_path / name
        video = VideoFile(path, width=side, height=side)
        for _ in range(frames):
            grey = np.full((side // 2, side // 2), 128, np.uint8)
            video.write((np.full((side, side), luma, np.uint8), grey, grey))
        video.finish()
        return path

    first = film("a.mp4", side=64, frames=70, luma=50)
    second = film("b.mp4", side=64, frames=30, luma=200)
    other_size = film("c.mp4", side=32, frames=30, luma=200)
    damaged = tmp_path / "d.mp4"
    damaged.write_bytes(b"no film")

    left_out = join_videos([first, other_size, damaged, second], tmp_path / "all.mp4")

    assert left_out == [other_size, damaged]
    numbers, picture, _ = read_film(tmp_path / "all.mp4")
    assert numbers == list(range(100))
    assert picture.mean() > 200


def test_the_command(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(model.parent), "--scale", "1", "--quiet"]) == 0

    path = model.parent / "videos" / "agent.mp4"
    told = capsys.readouterr()
    assert told.err == ""
    assert told.out.startswith(f"film: {path} (score ")
    numbers, _, kind = read_film(path)
    assert kind[1:3] == (320 + 106, 210)
    assert f"0:{len(numbers) // 60:02}, 426x210, " in told.out


def test_ctrl_c_leaves_a_film_of_what_was_played(model: Path, tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    command = [sys.executable, "-m", "retro_ml.watch", str(model), "--video", str(path)]
    with subprocess.Popen(
        [*command, "--episodes", "100"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        growing = f".{path.name}.*.tmp"
        wait_for(lambda: any(size_of(p) > 100_000 for p in tmp_path.glob(growing)), process)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)

    assert process.returncode == 130
    assert "Traceback" not in err
    assert out.startswith(f"film: {path} (")
    assert len(read_film(path)[0]) > 60
    assert list(tmp_path.glob(".*")) == []


class Checkpoints:
    """Stands in for Ray (the trial's network learns nothing): checkpoints after these steps."""

    def __init__(self, *steps: int) -> None:
        self._steps = steps

    def launch(
        self,
        trials: Sequence[Trial],
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> list[TrialEnd]:
        config = trials[0].config

        def tell(kind: EventType, **data: object) -> None:
            publish(MetricEvent.now(kind, config.experiment_id, dict(data)))

        def save(folder: Path) -> list[Path]:
            weights = build_weights(seed=step)
            safetensors.numpy.save_file(weights, folder / "module.safetensors")
            return []

        tell(EventType.RUN_STARTED, from_step=0, device="cpu", precision="fp32")
        for step in self._steps:
            tell(EventType.TRAINING_STEP, step=step, reward=0.0, games=1, iteration=1)
            folder = config.paths.checkpoint_dir(step)
            save_checkpoint_folder(folder, save, facts={"action_meanings": ["NOOP"] * 4})
            tell(EventType.CHECKPOINT_SAVED, step=step, path=str(folder))
        return [TrialEnd(config.experiment_id, "completed")]

    def request_stop(self) -> None:
        """Nothing takes long."""


def test_a_run_leaves_films_of_its_milestones_and_one_of_all(tmp_path: Path) -> None:
    config = ExperimentConfig(
        game_id="ALE/Breakout-v5",
        total_timesteps=100,
        output_dir=str(tmp_path),
        experiment_id="run",
        video_every=0.5,
    )

    result = TrainingEngine(config, launcher=Checkpoints(50, 70, 100)).run()

    assert result.success
    paths = config.paths
    names = sorted(path.name for path in paths.videos_dir.iterdir())
    assert names == ["learning.mp4", "step-100.mp4", "step-50.mp4"]
    parts = [len(read_film(paths.milestone_film_path(step))[0]) for step in (50, 100)]
    numbers, _, kind = read_film(paths.learning_film_path)
    assert numbers == list(range(sum(parts)))
    assert kind == ("h264", 1120, 630, 60.0)
    log = paths.log_path.read_text()
    assert log.count("film of the agent after") == 2
    assert "warning" not in log.lower()


def test_agents_that_cannot_play_are_a_warning_and_the_others_are_filmed(tmp_path: Path) -> None:
    config = ExperimentConfig(game_id="breakout", output_dir=str(tmp_path), experiment_id="run")
    config.paths.videos_dir.mkdir(parents=True)
    config.config_path.write_text(config.model_dump_json())
    pong = ActorCriticNetwork(6).state_dict()
    weights = {
        10: build_weights("DQN"),
        20: {name: tensor.numpy() for name, tensor in pong.items()},
        30: build_weights(),
    }
    for step, arrays in weights.items():
        safetensors.numpy.save_file(arrays, config.paths.milestone_weights_path(step))

    with start_worker(config, "worker.LONGEST_FRAMES = 8") as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("10\n20\n30\njoin\n")
        process.stdin.flush()
        out = process.stdout.read()

    assert process.returncode == 0
    lines = out.splitlines()
    assert lines[0].startswith(
        "warning: no film of the agent after 10 agent steps: not the weights"
    )
    assert lines[1].startswith(
        "warning: no film of the agent after 20 agent steps: the model knows 6 actions"
    )
    names = {path.name for path in config.paths.videos_dir.iterdir()}
    assert names == {"step-30.mp4", "learning.mp4"}


def test_the_filming_process_ends_with_whoever_ordered_it(tmp_path: Path) -> None:
    config = ExperimentConfig(game_id="breakout", output_dir=str(tmp_path), experiment_id="run")
    config.paths.videos_dir.mkdir(parents=True)
    config.config_path.write_text(config.model_dump_json())
    path = config.paths.milestone_weights_path(10)
    safetensors.numpy.save_file(build_weights(), path)
    unfinished = temporary_path(config.paths.milestone_film_path(10))

    with start_worker(config) as process:
        assert process.stdin is not None
        process.stdin.write("10\n")
        process.stdin.flush()
        wait_for(unfinished.exists, process)
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == 19
        if hasattr(os, "SCHED_IDLE"):
            assert os.sched_getscheduler(process.pid) == os.SCHED_IDLE
        process.stdin.close()
        process.wait(timeout=300)

    # The weights wait for whoever takes the run up again.
    assert list(config.paths.videos_dir.iterdir()) == [path]


def start_worker(config: ExperimentConfig, change: str = "") -> "subprocess.Popen[str]":
    """The process as it is, but for its rests: the first one, after the start, takes minutes."""
    name = film_worker.__name__
    code = f"import sys, {name} as worker; worker.SHARE = 1.0; {change}\n"
    code += "sys.exit(worker.main(sys.argv[1]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(config.experiment_dir)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    deadline_s = time.monotonic() + 300  # it gets the CPU only while nobody else wants it
    while not condition():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
