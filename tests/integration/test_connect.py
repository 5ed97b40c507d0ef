"""An embedded Ray: one after the other in one process, nothing left behind."""

import os
from pathlib import Path

import pytest
import ray

from retro_ml.cluster.connect import connect

pytestmark = pytest.mark.integration


def test_a_process_may_start_one_ray_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    environment = dict(os.environ)
    for _ in range(2):
        with connect(None) as cluster:
            assert cluster.embedded
            assert cluster.cpus >= 1
            assert cluster.scratch_dir is not None
            assert cluster.scratch_dir.is_dir()
            assert ray.get(ray.remote(_pid).remote()) != os.getpid()
        assert not ray.is_initialized()
        assert not cluster.scratch_dir.exists()
        assert dict(os.environ) == environment
    assert list(tmp_path.iterdir()) == []


def _pid() -> int:
    return os.getpid()


def test_a_ray_that_is_there_is_used_and_left_alone() -> None:
    with connect(None), connect(None) as inner:
        assert not inner.embedded
        assert ray.is_initialized()
