"""What the tests of the writers share."""

import pytest

from retro_ml.core.artifacts import status, writers
from retro_ml.core.artifacts.disk_pace import DiskPace


@pytest.fixture(autouse=True)
def _disk_time_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test does not wait for what an earlier one has spent on a busy disk."""
    pace = DiskPace()
    for module in (writers, status):
        monkeypatch.setattr(module, "PACE", pace)
