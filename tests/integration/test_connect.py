"""An embedded Ray: what it consists of, one after the other in one process, nothing left behind."""

import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from retro_ml.cluster.access import is_open
from retro_ml.cluster.connect import connect
from retro_ml.cluster.worker_output import log_worker_output
from retro_ml.core.engine.launcher import LaunchError

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


def test_it_is_a_head_a_node_and_workers() -> None:
    with connect(None):
        ray.get(ray.remote(_pid).remote())
        children = psutil.Process().children(recursive=True)
        names = sorted(child.name() for child in children)
        assert [name for name in names if not name.startswith("ray::")] == [
            "cat",
            "cat",
            "gcs_server",
            "python",  # the sweeper
            "raylet",
        ]
        assert not [name for name in names if "Agent" in name]
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == []


def test_nothing_outlives_its_node() -> None:
    # In a process of its own: Ray may end a driver whose node is gone.
    script = (
        "import sys\nfrom retro_ml.cluster.connect import connect\n"
        "with connect(None):\n    print('there', flush=True)\n    sys.stdin.read()"
    )
    driver = subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert driver.stdout is not None
    assert driver.stdin is not None
    try:
        assert driver.stdout.readline() == "there\n"
        node = next(p for p in psutil.Process(driver.pid).children() if p.name() == "raylet")
        helpers = [child for child in node.children() if child.name() == "cat"]
        assert len(helpers) == 2
        os.kill(node.pid, signal.SIGKILL)
        _, alive = psutil.wait_procs(helpers, timeout=120)
        assert alive == []
    finally:
        driver.kill()
        driver.wait()
        driver.stdin.close()
        driver.stdout.close()


def test_a_job_s_runtime_environment_is_not_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would take an agent, which is not there: workers would be waited for in vain."""
    job = '{"runtime_env": {"env_vars": {"A_JOBS_OWN": "1"}}}'
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", job)
    monkeypatch.setenv("RAY_RUNTIME_ENV_HOOK", "no_such_module.hook")
    with connect("local"):
        assert ray.get(ray.remote(_get_variable).remote("A_JOBS_OWN"), timeout=240) is None
    assert os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] == job


def test_a_cluster_that_lets_everybody_in_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Workers import this module, without the folder that the scripts' modules are in.
    from clustering.nodes import change_environment

    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    before = dict(os.environ)
    change_environment({**before, "RAY_AUTH_MODE": "disabled"})
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "dashboard_agent_listen_port": 0}
    )
    try:
        with pytest.raises(LaunchError, match="no token authentication"), connect(cluster.address):
            pass
        assert not ray.is_initialized()
        with connect(cluster.address, allow_open=True) as open_cluster:
            assert open_cluster.cpus == 1
    finally:
        cluster.shutdown()
        change_environment(before)


def test_a_ray_of_our_own_lets_nobody_in_without_its_token() -> None:
    with connect(None):
        assert not is_open(ray.get_runtime_context().gcs_address)


def test_what_workers_print_is_logged(
    caplog: pytest.LogCaptureFixture, eventually: Callable[..., None]
) -> None:
    caplog.set_level(logging.INFO, logger="retro_ml.workers")
    with connect(None) as cluster, log_worker_output(cluster.logs_dir):
        ray.get(ray.remote(_say).remote("said by a worker"))
        files = Path(cluster.logs_dir)  # a worker's lines reach its file a moment later
        eventually(lambda: any("said by" in f.read_text() for f in files.glob("worker-*.out")))
    assert [line for line in caplog.messages if line.endswith(") said by a worker")]


def _say(words: str) -> None:
    print(words)


def _get_variable(name: str) -> str | None:
    return os.environ.get(name)


STOPPED = """
import os, signal, time
signal.signal(signal.SIGTERM, lambda *_: print("stopping", flush=True))
from retro_ml.cluster.embedded import start_ray
with start_ray():
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(0.1)
    print("aborted in", signal.getitimer(signal.ITIMER_REAL)[0])
"""


def test_nothing_below_python_aborts_a_driver_that_stops() -> None:
    """Ray's own handler gives it three seconds, and a checkpoint may take more."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", STOPPED],
        env=env,
        check=False,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout) == (0, "stopping\naborted in 0.0\n"), done.stderr
    assert "SIGTERM received" not in done.stderr


@pytest.mark.nightly
def test_a_node_that_does_not_answer_for_a_while_is_not_given_up() -> None:
    with connect(None):
        ray.get(ray.remote(_pid).remote())
        (raylet,) = [one for one in psutil.Process().children() if one.name() == "raylet"]
        raylet.suspend()
        time.sleep(75)  # Ray's own patience is at most five checks of 10 s, one every 3 s
        raylet.resume()
        assert ray.get(ray.remote(_pid).remote(), timeout=60) != os.getpid()
