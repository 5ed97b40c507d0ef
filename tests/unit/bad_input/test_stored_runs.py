"""Whatever a run's folder holds, the same command goes on with it or says one thing."""

import json
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retro_ml.core.artifacts.checkpoint_files import save_checkpoint_folder
from retro_ml.core.artifacts.metrics_file import build_header, build_row
from retro_ml.core.engine.run_faults import BadRunFolder
from retro_ml.core.engine.run_folder import open_run
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.unit

Bounded = Callable[[], AbstractContextManager[None]]
Tree = Callable[[Path], dict[str, Any]]
MakeRun = Callable[[Path], ExperimentConfig]

STEPS = (1_000, 2_000)


def make_config(home: Path) -> ExperimentConfig:
    return ExperimentConfig(
        game_id="pong", experiment_id="x", total_timesteps=5_000, output_dir=str(home / "runs")
    )


@pytest.fixture(scope="module")
def make_run(tmp_path_factory: pytest.TempPathFactory) -> MakeRun:
    """Makes the folder of an interrupted run below a home."""
    model = tmp_path_factory.mktemp("model")
    build_run(model)

    def make(home: Path) -> ExperimentConfig:
        shutil.copytree(model, home, dirs_exist_ok=True)  # quicker than to save it
        return make_config(home)

    return make


def build_run(home: Path) -> None:
    config = make_config(home)
    open_run(config, RunOptions(), notice=lambda text: None).lock.release()
    for steps in STEPS:

        def write(into: Path) -> list[Path]:
            (into / "weights").write_bytes(b"w" * 50)
            return []

        target = config.paths.checkpoint_dir(steps)
        save_checkpoint_folder(target, write, facts={"agent_steps": steps, "score": 1.0})
    status = {"state": "interrupted", "step": 2_000, "reward": 1.0, "games": 3}
    config.status_path.write_text(json.dumps(status))
    rows = [
        MetricEvent.now(EventType.TRAINING_STEP, "x", {"step": n, "reward": 1.5}) for n in STEPS
    ]
    config.paths.metrics_csv_path.write_bytes(build_header() + b"".join(map(build_row, rows)))
    config.events_path.write_text("some\nlines\n")


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=5,
)
documents = st.one_of(
    json_values,
    st.dictionaries(st.sampled_from([*ExperimentConfig.model_fields]), json_values, max_size=3),
)
files = st.sampled_from(
    ["config.json", "config.json", "status.json", "events.log", "metrics.json", "metrics.csv"]
) | st.sampled_from(
    ["checkpoints/step-2000/weights", "checkpoints/step-2000/manifest.json", "model.zip"]
)
config_fields = st.tuples(st.sampled_from([*ExperimentConfig.model_fields]), json_values)


@given(
    changes=st.lists(
        st.one_of(
            st.tuples(files, st.binary(max_size=60)),
            st.tuples(files, documents.map(lambda value: json.dumps(value).encode())),
            st.tuples(files, st.integers(0, 4_000)),
            st.tuples(files, st.none()),
            st.tuples(st.just("config.json"), st.just(b"[" * 100_000)),
            st.tuples(st.just("config.json"), config_fields),
        ),
        min_size=1,
        max_size=4,
    ),
    behavior=st.sampled_from(["resume", "resume", "restart", "fail"]),
)
def test_any_damage(
    changes: list[tuple[str, Any]],
    behavior: Any,
    fresh_folder: Callable[[], Path],
    bounded: Bounded,
    read_tree: Tree,
    make_run: MakeRun,
) -> None:
    home = fresh_folder()
    config = make_run(home)
    (home / "thesis").write_text("mine")
    for name, how in changes:
        damage(config.experiment_dir / name, how)
    before = read_tree(config.experiment_dir)
    opened, fault = None, ""
    with bounded():
        try:
            options = RunOptions(restart_behavior=behavior)
            opened = open_run(config, options, notice=lambda text: None)
        except BadRunFolder as error:
            fault = str(error)
    if opened is None:
        assert "\n" not in fault
        assert 1 < len(fault) < 5_000
        assert read_tree(config.experiment_dir) == before  # with everything as it was
    else:
        opened.lock.release()
        assert opened.config.output_dir == config.output_dir
        assert opened.config.experiment_id == "x"
        assert all("\n" not in notice for notice in opened.notices)
        chosen = opened.restore_from
        assert chosen is None or chosen.path.parent == config.checkpoints_dir
    assert (home / "thesis").read_text() == "mine"
    assert sorted(path.name for path in home.iterdir()) == ["runs", "thesis"]
    assert all(path.name.startswith("x") for path in (home / "runs").iterdir())


def damage(path: Path, how: Any) -> None:
    match how:
        case None:
            path.unlink(missing_ok=True)
        case int() if path.is_file():
            content = bytearray(path.read_bytes())
            if how % 2 and content:
                content[how % len(content)] ^= 1 << how % 8
            path.write_bytes(content if how % 2 else content[:how])
        case bytes():
            path.write_bytes(how)
        case (name, value) if path.is_file():
            try:
                fields = json.loads(path.read_bytes())
                path.write_text(json.dumps({**fields, name: value}))
            except (ValueError, TypeError, RecursionError):
                return  # an earlier damage was worse


def test_no_pickle_is_loaded(
    tmp_path: Path, bounded: Bounded, make_run: MakeRun, pickle_trap: Callable[[Path], bytes]
) -> None:
    config = make_run(tmp_path)
    trap = pickle_trap(tmp_path / "planted")
    for name in ("status.json", "events.log", "checkpoints/step-2000/manifest.json"):
        (config.experiment_dir / name).write_bytes(trap)
    with bounded():
        opened = open_run(config, RunOptions(), notice=lambda text: None)
        opened.lock.release()
    assert opened.restore_from is not None
    assert opened.restore_from.path == config.paths.checkpoint_dir(1_000)

    config.config_path.write_bytes(trap)
    with bounded(), pytest.raises(BadRunFolder, match=r"config\.json cannot be read"):
        open_run(config, RunOptions(), notice=lambda text: None)
    assert not (tmp_path / "planted").exists()


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"\x80\n", "line 1 is damaged"),
        (b"\x80", "ends at 0 agent steps"),
        (b"type,step\ntraining_step,\n", "ends at 0 agent steps"),
        (b"", "ends at 0 agent steps"),
    ],
)
def test_metrics_of_any_bytes_leave_the_checkpoints_as_they_are(
    content: bytes, fault: str, tmp_path: Path, bounded: Bounded, make_run: MakeRun
) -> None:
    config = make_run(tmp_path)
    config.paths.metrics_csv_path.write_bytes(content)
    before = sorted(config.checkpoints_dir.iterdir())
    with bounded(), pytest.raises(BadRunFolder, match=rf"metrics\.csv {fault}.*put that file back"):
        open_run(config, RunOptions(), notice=lambda text: None)
    assert sorted(config.checkpoints_dir.iterdir()) == before


@pytest.mark.parametrize(
    "content",
    [b"[" * 100_000, b'{"state": "completed", "step": 9, "reward": "high"}'],
    ids=["deep", "text"],
)
def test_a_status_of_any_bytes(
    content: bytes, tmp_path: Path, bounded: Bounded, make_run: MakeRun
) -> None:
    config = make_run(tmp_path)
    config.status_path.write_bytes(content)
    with bounded():
        open_run(config, RunOptions(stop_score=1.0), notice=lambda text: None).lock.release()


def test_a_lease_of_any_bytes(tmp_path: Path, bounded: Bounded, make_run: MakeRun) -> None:
    config = make_run(tmp_path)
    config.paths.lock_path.write_bytes(b"[" * 1_024)
    with bounded():
        open_run(config, RunOptions(), notice=lambda text: None).lock.release()
