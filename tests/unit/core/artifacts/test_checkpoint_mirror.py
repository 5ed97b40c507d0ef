"""Checkpoints in storage follow those of the folder, also where another run's takes their place."""

from pathlib import Path

import pytest

from retro_ml.core.artifacts.checkpoint_files import adopt_checkpoint, save_checkpoint_folder
from retro_ml.core.artifacts.checkpoint_mirror import CheckpointMirror, list_checkpoints
from retro_ml.core.artifacts.remote_folder import RemoteFolder

pytestmark = pytest.mark.unit


def save(root: Path, agent_steps: int) -> Path:
    def write(into: Path) -> list[Path]:
        (into / "weights").write_bytes(b"%d of %s" % (agent_steps, root.parent.name.encode()))
        return []

    target = root / f"step-{agent_steps}"
    save_checkpoint_folder(target, write, facts={"score": float(agent_steps)})
    return target


@pytest.mark.parametrize("theirs", [15, 90])
def test_an_adopted_checkpoint_takes_the_place_of_those_in_storage(
    tmp_path: Path, theirs: int
) -> None:
    run = RemoteFolder(f"file://{tmp_path}/storage/own")
    own, donor = tmp_path / "own" / "checkpoints", tmp_path / "donor" / "checkpoints"
    mirror = CheckpointMirror(own, run, keep=2)

    def send() -> list[int]:
        mirror.ask()
        assert mirror.wait()
        assert mirror.list_missing() == []
        return list_checkpoints(run.child("checkpoints"))

    for agent_steps in (10, 20, 30):
        save(own, agent_steps)
    mirror.start()
    try:
        assert send() == [20, 30]
        adopt_checkpoint(save(donor, theirs), own)
        assert send() == [theirs]
        save(own, theirs + 10)
        assert send() == [theirs, theirs + 10]
    finally:
        mirror.close()
