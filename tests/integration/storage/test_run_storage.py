"""Runs whose files go to storage, with a scripted launcher and a real S3 server on loopback."""

import dataclasses
import json
import math
import os
import shutil
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from retro_ml.core.artifacts import mirror as mirror_module
from retro_ml.core.artifacts import status as status_module
from retro_ml.core.artifacts.checkpoint_files import prune_checkpoints, save_checkpoint_folder
from retro_ml.core.artifacts.checkpoint_mirror import CheckpointMirror
from retro_ml.core.artifacts.metrics_file import read_rows
from retro_ml.core.artifacts.model_archive import load_model_archive
from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.engine import run_claim, storage_opening
from retro_ml.core.engine.launcher import Trial, TrialEnd
from retro_ml.core.engine.result import ExperimentResult
from retro_ml.core.engine.run_claim import Claim
from retro_ml.core.engine.run_faults import BadRunFolder, BadStorage
from retro_ml.core.engine.training_engine import TrainingEngine
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import EventType, MetricEvent

pytestmark = pytest.mark.integration
Script = Callable[["ScriptedTrial"], str | None]
URI = "s3://runs/of/mine"


class ScriptedTrial:
    """A launcher that is its own trial: `script(self)` returns how it ends."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.restore_from: Path | None = None

    def launch(
        self, trials: Sequence[Trial], publish: Callable[[MetricEvent], None], options: RunOptions
    ) -> list[TrialEnd]:
        self.config, self._publish = trials[0].config, publish
        self.restore_from = trials[0].restore_from
        self.mirror = CheckpointMirror(
            self.config.checkpoints_dir,
            RemoteFolder(f"{URI}/x", patience_s=1),
            keep=2,
            interval_s=0.1,
        )
        self.mirror.start()
        start = 0 if self.restore_from is None else int(self.restore_from.name[5:])
        self.tell(EventType.RUN_STARTED, from_step=start)
        try:
            state = self.script(self) or "completed"
        finally:
            self.mirror.close()
        return [TrialEnd(self.config.experiment_id, state, exit_code=0)]  # type: ignore[arg-type]

    def request_stop(self) -> None:
        pass

    def tell(self, kind: EventType, **data: Any) -> None:
        self._publish(MetricEvent.now(kind, self.config.experiment_id, data))

    def train(
        self, first: int, last: int, *, checkpoint: bool = True, evaluation: float | None = None
    ) -> None:
        """Steps `first` to `last` by tens, each with a checkpoint, and an evaluation if asked."""
        for step in range(first, last + 1, 10):
            self.tell(EventType.TRAINING_STEP, step=step, reward=float(step), games=1)
            if evaluation is not None:
                self.tell(EventType.EVALUATION_FINISHED, step=step, reward=evaluation, games=2)
            if not checkpoint:
                continue
            folder = self.config.paths.checkpoint_dir(step)
            facts = {"action_meanings": ["NOOP"], "score": 100.0 - step, "evaluation": evaluation}
            save_checkpoint_folder(folder, lambda into, s=step: save(into, s), facts=facts)
            prune_checkpoints(folder.parent, keep=2)
            self.mirror.wake()
            self.tell(EventType.CHECKPOINT_SAVED, step=step, path=str(folder))


def save(into: Path, step: int) -> list[Path]:
    safetensors.numpy.save_file({"w": np.full(2, step)}, into / "module.safetensors")
    shared = into.parent / "replay" / f"rows-{step}"
    shared.parent.mkdir(exist_ok=True)
    shared.write_bytes(b"r" * step)
    return [path for path in shared.parent.iterdir() if int(path.name[5:]) > step - 30]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    monkeypatch.setattr(storage_opening, "BACKGROUND_PATIENCE_S", 1.0)
    monkeypatch.setattr(mirror_module, "FIRST_PAUSE_S", 0.2)
    # Which checkpoints storage keeps follows from how far the status there says that rows are.
    monkeypatch.setattr(status_module, "_INTERVAL_S", math.inf)


def make_config(**fields: Any) -> ExperimentConfig:
    fields = {"total_timesteps": 40, "experiment_id": "x", "output_dir": URI, **fields}
    return ExperimentConfig(game_id="breakout", checkpointing={"keep": 2}, **fields)


def run(
    script: Script, config: ExperimentConfig | None = None, **options: Any
) -> tuple[ExperimentResult, ScriptedTrial]:
    trial = ScriptedTrial(script)
    options = {"progress": "quiet", **options}
    engine = TrainingEngine(config or make_config(), launcher=trial, options=RunOptions(**options))
    return engine.run(), trial


def train_all(trial: ScriptedTrial) -> None:
    start = 0 if trial.restore_from is None else int(trial.restore_from.name[5:])
    trial.train(start + 10, 40)


def local_files(config: ExperimentConfig) -> dict[str, bytes]:
    root = config.experiment_dir
    return {
        f"of/mine/x/{path.relative_to(root)}": path.read_bytes()
        for path in root.rglob("*")
        if path.is_file()
    }


def mirrors_at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mirror")]


def test_all_that_a_run_leaves_is_in_storage_and_no_key_is_in_it(
    s3: Any, eventually: Callable[..., None]
) -> None:
    result, _ = run(train_all)

    config = make_config()
    assert (result.success, result.exit_code) == (True, 0)
    assert result.storage is not None
    assert result.storage.complete
    there, here = s3.objects("runs"), local_files(config)
    # The best is step-10, the newest two are kept; each names the segments of up to three steps.
    folders = {key.split("/")[4] for key in here if "/checkpoints/step-" in key}
    assert folders == {"step-10", "step-30", "step-40"}
    assert there == here
    status = json.loads(there["of/mine/x/status.json"])
    assert status["state"] == "completed"
    assert status["storage"]["state"] == "complete"
    assert json.loads(there["of/mine/x/config.json"])["output_dir"] == URI
    for content in there.values():
        for secret in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            assert os.environ[secret].encode() not in content
    eventually(lambda: not mirrors_at_work())


def test_shared_files_are_sent_once_and_manifests_last(
    s3: Any, eventually: Callable[..., None]
) -> None:
    def train(trial: ScriptedTrial) -> None:
        for step in (10, 20, 30, 40):
            trial.train(step, step)
            eventually(lambda: not trial.mirror.list_missing())

    run(train)
    puts = [path for method, path in s3.requests if method == "PUT" and not path.endswith("/")]
    segments = [path for path in puts if "/replay/" in path]
    assert len(segments) == len(set(segments))
    for step in (10, 20, 30, 40):
        of_step = [path for path in puts if f"/step-{step}/" in path]
        assert of_step[-1].endswith("manifest.json")


def test_an_endpoint_that_goes_away_ends_nothing_and_the_same_command_sends_the_rest(
    s3: Any, eventually: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mirror_module, "GIVE_UP_S", 2.0)

    def lose_it(trial: ScriptedTrial) -> None:
        trial.train(10, 20)
        eventually(lambda: "of/mine/x/checkpoints/step-20/manifest.json" in s3.objects("runs"))
        eventually(lambda: b",20," in s3.objects("runs")["of/mine/x/metrics.csv"])
        s3.stop()
        trial.train(30, 40)

    try:
        result, _ = run(lose_it)
    finally:
        s3.start()
    config = make_config()
    assert (result.success, result.exit_code) == (True, 3)
    assert result.storage is not None
    assert {"metrics.csv", "status.json", "checkpoints/step-40"} <= set(result.storage.missing)
    assert "does not answer" in str(result.storage.error)
    status = json.loads(config.status_path.read_text())
    assert (status["state"], status["storage"]["state"]) == ("completed", "behind")
    assert status["storage"]["missing"] == list(result.storage.missing)
    steps = [r["step"] for r in read_rows(config.paths.metrics_csv_path)]
    assert steps == [10, 20, 30, 40, 40]

    again, trial = run(train_all)
    assert not hasattr(trial, "config")  # nothing was trained
    assert (again.success, again.exit_code) == (True, 0)
    assert s3.objects("runs") == local_files(config)


def test_models_that_a_lost_node_left_behind_are_made_again_from_storage(s3: Any) -> None:
    """The run was told as complete before its last checkpoint had come from another node."""
    config = make_config(evaluation={"every_steps": 10})

    def train(trial: ScriptedTrial) -> None:
        for step, score in ((10, 2.0), (20, 9.0), (30, 5.0), (40, 4.0)):
            trial.train(step, step, evaluation=score)

    run(train, config)
    best, last = (path.read_bytes() for path in (config.paths.best_model_path, config.model_path))
    assert load_model_archive(config.paths.best_model_path).metadata["agent_steps"] == 20
    config.model_path.write_bytes(best)
    config.paths.best_model_path.unlink()
    shutil.rmtree(config.checkpoints_dir)

    again, trial = run(train, config)
    assert not hasattr(trial, "config")  # nothing was trained
    assert (again.success, again.exit_code) == (True, 0)
    there = s3.objects("runs")
    for path, before in ((config.paths.best_model_path, best), (config.model_path, last)):
        assert load_model_archive(path).weights["w"][0] == (20 if before is best else 40)
        assert there[f"of/mine/x/{path.name}"] == path.read_bytes()


def test_answers_of_503_are_outlived(s3: Any) -> None:
    seen = set()

    def at_first(method: str, path: str) -> int | None:
        if (method, path) in seen:
            return None
        seen.add((method, path))
        return 503

    s3.fault = at_first
    result, _ = run(train_all)
    s3.fault = None
    assert result.exit_code == 0
    assert s3.objects("runs") == local_files(make_config())


def test_a_slow_endpoint_is_waited_for_at_the_end_not_before(s3: Any) -> None:
    trained = threading.Event()

    def slow(method: str, path: str) -> None:
        if method == "PUT" and "/checkpoints/step-40/" in path:
            trained.wait()

    s3.fault = slow
    told = []

    def train(trial: ScriptedTrial) -> None:
        train_all(trial)
        told.append("of/mine/x/checkpoints/step-40/manifest.json" in s3.objects("runs"))
        threading.Timer(1.0, trained.set).start()

    result, _ = run(train)
    assert result.exit_code == 0
    assert told == [False]
    assert s3.objects("runs") == local_files(make_config())


def test_where_only_the_storage_survives_the_same_command_goes_on(
    s3: Any, tmp_path: Path, eventually: Callable[..., None]
) -> None:
    def interrupted(trial: ScriptedTrial) -> str:
        trial.train(10, 20)
        trial.train(30, 30, checkpoint=False)
        return "interrupted"

    first, _ = run(interrupted)
    assert first.storage is not None
    assert first.storage.complete
    shutil.rmtree(tmp_path / "staging")
    result, trial = run(train_all)

    assert (result.success, result.exit_code) == (True, 0), result.storage
    assert trial.restore_from == make_config().paths.checkpoint_dir(20)
    rows = list(read_rows(make_config().paths.metrics_csv_path))
    assert [row["step"] for row in rows] == [10, 20, 30, 40, 40]
    there = s3.objects("runs")
    assert there["of/mine/x/metrics.csv"] == make_config().paths.metrics_csv_path.read_bytes()
    # The best one was not fetched, and is kept in storage; so may be the newest whose rows were
    # there when the last checkpoint was sent, because another thread sends the rows.
    kept = {key.split("/")[4] for key in there if "/checkpoints/step-" in key}
    assert kept - {"step-20"} == {"step-10", "step-30", "step-40"}

    shutil.rmtree(tmp_path / "staging")
    finished, trial = run(train_all)
    assert not hasattr(trial, "config")
    assert (finished.success, finished.agent_steps) == (True, 40)
    assert finished.model_path.exists()


def test_a_damaged_checkpoint_in_storage_is_left_for_the_one_before(
    s3: Any, tmp_path: Path
) -> None:
    def interrupted(trial: ScriptedTrial) -> str:
        trial.train(10, 30)
        return "interrupted"

    run(interrupted)
    shutil.rmtree(tmp_path / "staging")
    key = "of/mine/x/checkpoints/step-30/module.safetensors"
    flipped = bytes([*s3.objects("runs")[key][:-1], 255])
    s3.client().put_object(Bucket="runs", Key=key, Body=flipped)
    _, trial = run(train_all)
    assert trial.restore_from == make_config().paths.checkpoint_dir(20)
    # Trained again, it is sent again.
    here = make_config().paths.checkpoint_dir(30) / "module.safetensors"
    assert s3.objects("runs")[key] == here.read_bytes()


def test_newer_work_of_another_machine_takes_the_place_of_what_is_here(
    s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def some(last: int) -> Script:
        def script(trial: ScriptedTrial) -> str:
            start = 0 if trial.restore_from is None else int(trial.restore_from.name[5:])
            trial.train(start + 10, last)
            return "interrupted"

        return script

    run(some(10))
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "elsewhere"))
    run(some(30))
    monkeypatch.setenv("RETRO_ML_STAGING", str(tmp_path / "staging"))
    _, trial = run(train_all)
    assert trial.restore_from == make_config().paths.checkpoint_dir(30)
    steps = [row["step"] for row in read_rows(make_config().paths.metrics_csv_path)]
    assert steps == [10, 20, 30, 40, 40]


def claim(**fields: Any) -> Claim:
    return dataclasses.replace(Claim(7, "other", "elsewhere", "another machine", 1, 1), **fields)


def test_a_second_driver_is_refused_while_the_first_renews_its_claim(
    s3: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = RemoteFolder(f"{URI}/x")
    folder.put("claim.json", claim().write())
    monkeypatch.setattr(run_claim, "_POLL_S", 0.05)
    refused = threading.Event()

    def renew() -> None:
        renewals = 0
        while not refused.wait(0.1):
            renewals += 1
            folder.put("claim.json", claim(renewals=renewals).write())

    other = threading.Thread(target=renew)
    other.start()
    try:
        with pytest.raises(BadRunFolder, match="being trained by process 1 on elsewhere"):
            run(train_all)
    finally:
        refused.set()
        other.join()


def test_a_claim_that_nobody_renews_is_taken_over(s3: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    RemoteFolder(f"{URI}/x").put("claim.json", claim().write())
    monkeypatch.setattr(run_claim, "LEASE_S", 0.2)
    monkeypatch.setattr(run_claim, "_POLL_S", 0.05)
    assert run(train_all)[0].success
    mine = Claim.read(s3.objects("runs")["of/mine/x/claim.json"])
    assert mine is not None
    assert (mine.generation, mine.released, mine.complete) == (8, True, True)


def test_a_driver_that_lost_its_claim_sends_nothing_more(
    s3: Any, monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., None]
) -> None:
    monkeypatch.setattr(run_claim, "RENEWAL_S", 0.1)
    monkeypatch.setattr(mirror_module, "GIVE_UP_S", 2.0)

    def lose_it(trial: ScriptedTrial) -> None:
        trial.train(10, 10)
        eventually(lambda: b",10," in s3.objects("runs").get("of/mine/x/metrics.csv", b""))
        for _ in range(20):  # a renewal under way may write over the first
            RemoteFolder(f"{URI}/x").put("claim.json", claim().write())
            time.sleep(0.1)
        trial.train(20, 40)

    result, _ = run(lose_it)
    assert (result.success, result.exit_code) == (True, 3)
    assert result.storage is not None
    assert "process 1 on elsewhere has taken over" in str(result.storage.error)
    there = s3.objects("runs")
    assert b",20," not in there["of/mine/x/metrics.csv"]
    assert Claim.read(there["of/mine/x/claim.json"]) == claim()


def test_storage_that_cannot_be_written_is_said_before_the_start(s3: Any, tmp_path: Path) -> None:
    config = make_config(output_dir="s3://no-such-bucket/x")
    engine = TrainingEngine(
        config, launcher=ScriptedTrial(train_all), options=RunOptions(progress="quiet")
    )
    with pytest.raises(BadStorage, match="there is no such bucket; make it") as error:
        engine.run()
    assert error.value.exit_code == 3
    assert list((tmp_path / "staging").glob("*/*")) == []


def test_restart_keeps_the_old_run_aside_in_storage_and_fail_refuses(
    s3: Any, tmp_path: Path
) -> None:
    run(train_all)
    shutil.rmtree(tmp_path / "staging")
    with pytest.raises(BadRunFolder, match="s3://runs/of/mine/x exists already"):
        run(train_all, restart_behavior="fail")
    result, trial = run(train_all, restart_behavior="restart")
    assert result.success
    assert trial.restore_from is None
    names = {key.split("/")[2] for key in s3.objects("runs")}
    assert len(names) == 2
    aside = next(name for name in names if name.startswith("x.before-"))
    assert f"of/mine/{aside}/model.zip" in s3.objects("runs")


def test_a_thousand_mirrors_share_a_few_threads(s3: Any, tmp_path: Path) -> None:
    before = threading.active_count()
    mirrors = []
    for number in range(1000):
        folder = tmp_path / str(number)
        folder.mkdir()
        mirrors.append(
            mirror_module_folder(folder, RemoteFolder(f"file://{tmp_path}/storage/{number}"))
        )
    for one in mirrors:
        one.start()
    assert threading.active_count() <= before + mirror_module.THREADS
    for one in mirrors:
        one.close()
    assert threading.active_count() <= before


def mirror_module_folder(folder: Path, remote: RemoteFolder) -> Any:
    from retro_ml.core.artifacts.folder_mirror import FolderMirror

    (folder / "a").write_bytes(b"1")
    return FolderMirror(folder, remote, ["a"])
