"""Claims in storage, here a folder: when another machine's has run out."""

import dataclasses
from pathlib import Path

import pytest

from retro_ml.core.artifacts.remote_folder import RemoteFolder
from retro_ml.core.engine import run_claim, sightings
from retro_ml.core.engine.processes import describe_machine
from retro_ml.core.engine.run_claim import Claim, look_at, outlive, read_claim
from retro_ml.core.experiments.run_paths import CLAIM_NAME

pytestmark = pytest.mark.unit

CLAIM = Claim(7, "n", "far", "another machine", 1, 1)


@pytest.fixture
def folder(tmp_path: Path) -> RemoteFolder:
    return RemoteFolder(f"file://{tmp_path}/x")


def test_the_time_to_move_passes_from_the_first_look(
    folder: RemoteFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[object, float]] = {}
    monkeypatch.setattr(sightings, "_seen", seen)
    folder.put(CLAIM_NAME, CLAIM.write())
    assert look_at(folder) is not None
    seen[folder.uri] = (CLAIM, seen[folder.uri][1] - 60)
    said: list[str] = []
    outlive(read_claim(folder), folder, notice=said.append)
    assert said == []

    folder.put(CLAIM_NAME, dataclasses.replace(CLAIM, renewals=1).write())
    monkeypatch.setattr(run_claim, "LEASE_S", 0.1)
    monkeypatch.setattr(run_claim, "_POLL_S", 0.02)
    outlive(read_claim(folder), folder, notice=said.append)
    assert said == ["waiting for process 1 on far, which may be alive, 0.1 s at most"]


def test_nobody_waits_for_what_no_other_machine_holds(folder: RemoteFolder) -> None:
    assert look_at(folder) is None
    for free in (
        dataclasses.replace(CLAIM, released=True),
        dataclasses.replace(CLAIM, machine=describe_machine()),
    ):
        folder.put(CLAIM_NAME, free.write())
        assert look_at(folder) is None
