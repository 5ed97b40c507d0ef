"""The lock of a run: one holder, and who may take over when."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from retro_ml.core.engine import lock_renewal, run_lock, sightings
from retro_ml.core.engine.processes import Process, describe_machine, read_started_ticks
from retro_ml.core.engine.run_lock import Lease, RunLock, RunLocked, find_holder, look_at

pytestmark = pytest.mark.unit

HOLD = """
import sys, time
from pathlib import Path
from retro_ml.core.engine.run_lock import RunLock
lock = RunLock(Path(sys.argv[1]))
lock.acquire(notice=print)
if len(sys.argv) > 2:
    lock.note_trainer(int(sys.argv[2]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_POLL_S", 0.02)


def acquire(path: Path, *, lease_s: float = 0.3) -> tuple[RunLock, list[str]]:
    said: list[str] = []
    lock = RunLock(path)
    lock.acquire(lease_s=lease_s, notice=said.append)
    return lock, said


def hold(path: Path, *arguments: str) -> subprocess.Popen[str]:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(path), *arguments], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def kill(process: subprocess.Popen[Any]) -> None:
    process.kill()
    process.wait()


def write_lease(path: Path, **fields: Any) -> None:
    values = {"host": "far", "machine": "another", "nonce": "n", "driver": Process(1, 1)}
    path.write_text(json.dumps(asdict(Lease(**{**values, **fields}))).ljust(1023) + "\n")


def test_nothing_remains_after_a_release(tmp_path: Path) -> None:
    lock, _ = acquire(tmp_path / "run.lock")
    lock.release()
    lock.release()
    assert list(tmp_path.iterdir()) == []


def test_a_living_holder_is_named_and_a_killed_one_taken_over_from_at_once(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    holder = hold(path)
    with pytest.raises(RunLocked, match=f"process {holder.pid} on "):
        acquire(path)
    kill(holder)

    lock, said = acquire(path, lease_s=60)
    assert said == []
    lock.release()


def test_a_release_after_the_folder_was_moved_leaves_anothers_lock(tmp_path: Path) -> None:
    """A restart renames the folder; another driver may have made a new one meanwhile."""
    folder = tmp_path / "x"
    folder.mkdir()
    lock, _ = acquire(folder / "run.lock")
    folder.rename(tmp_path / "aside")
    folder.mkdir()
    other, _ = acquire(folder / "run.lock")
    lock.release()
    with pytest.raises(RunLocked, match=f"process {os.getpid()}"):
        acquire(folder / "run.lock")
    other.release()


def test_a_dead_drivers_trainer_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    with subprocess.Popen(["sleep", "60"]) as trainer:
        kill(hold(path, str(trainer.pid)))
        with pytest.raises(RunLocked, match=f"process {trainer.pid} on .*trains on"):
            acquire(path)
        threading.Timer(0.5, trainer.kill).start()
        began_s = time.monotonic()
        lock, said = acquire(path, lease_s=60)
        assert time.monotonic() - began_s < 30
        assert "waiting for the trainer" in said[0]
        lock.release()


def test_another_machines_holder_is_dead_when_its_counter_stands_still(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    write_lease(path)
    lock, said = acquire(path)
    assert said == ["waiting for process 1 on far, which may be alive, 0.3 s at most"]
    lock.release()


def test_another_machines_holder_is_alive_when_its_counter_moves(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    write_lease(path)
    threading.Timer(0.5, lambda: write_lease(path, renewals=1)).start()
    with pytest.raises(RunLocked, match="process 1 on far"):
        acquire(path, lease_s=60)


def test_the_time_to_move_passes_from_the_first_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, tuple[object, float]] = {}
    monkeypatch.setattr(sightings, "_seen", seen)
    paths = [tmp_path / f"{number}.lock" for number in range(3)]
    for path in paths:
        write_lease(path)
        assert look_at(path) is not None
    for where, (lease, since_s) in list(seen.items()):
        seen[where] = (lease, since_s - 60)

    lock, said = acquire(paths[0], lease_s=60)
    assert said == []
    lock.release()

    write_lease(paths[1], renewals=1)  # it has moved since, and stands still now
    lock, said = acquire(paths[1])
    assert said == ["waiting for process 1 on far, which may be alive, 0.3 s at most"]
    lock.release()


def test_nobody_waits_for_this_machines_own_locks(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    assert look_at(path) is None
    lock, _ = acquire(path)
    assert look_at(path) is None
    lock.release()


def test_of_two_machines_that_take_over_the_last_one_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.lock"
    write_lease(path)
    write = RunLock._write

    def write_and_lose(lock: RunLock) -> None:
        write(lock)
        write_lease(path, host="faster", nonce="m")

    monkeypatch.setattr(RunLock, "_write", write_and_lose)
    with pytest.raises(RunLocked, match="on faster"):
        acquire(path)


def test_the_counter_moves_while_the_lock_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock_renewal, "RENEWAL_S", 0.01)
    lock, _ = acquire(tmp_path / "run.lock")
    end_s = time.monotonic() + 30
    while json.loads((tmp_path / "run.lock").read_text())["renewals"] < 3:
        assert time.monotonic() < end_s
    lock.release()


@pytest.mark.parametrize("content", ["", "\n", "{}", "[1]", "null", "x" * 5000])
def test_a_torn_file_is_nobodys(tmp_path: Path, content: str) -> None:
    (tmp_path / "run.lock").write_text(content)
    lock, said = acquire(tmp_path / "run.lock", lease_s=60)
    assert said == []
    lock.release()


@pytest.fixture
def without_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(descriptor: int, operation: int) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(fcntl, "flock", unsupported)


@pytest.mark.usefixtures("without_flock")
def test_without_flock_the_process_itself_is_looked_for(tmp_path: Path) -> None:
    lock, _ = acquire(tmp_path / "run.lock")
    with pytest.raises(RunLocked, match=f"process {os.getpid()} on "):
        acquire(tmp_path / "run.lock")
    lock.release()

    write_lease(tmp_path / "run.lock", machine=describe_machine(), driver=Process(os.getpid(), 1))
    lock, said = acquire(tmp_path / "run.lock", lease_s=60)  # the number is another process's now
    assert said == []
    lock.release()


@pytest.mark.usefixtures("without_flock")
def test_without_flock_another_containers_holder_is_watched(tmp_path: Path) -> None:
    """Its process ids mean nothing here."""
    boot = describe_machine().partition("/")[0]
    path = tmp_path / "run.lock"
    write_lease(path, machine=f"{boot}/1")
    threading.Timer(0.1, lambda: write_lease(path, machine=f"{boot}/1", renewals=1)).start()
    with pytest.raises(RunLocked, match="process 1 on far"):
        acquire(path, lease_s=60)
    assert find_holder(path) == "process 1 on far"


def test_a_killed_container_is_taken_over_from_at_once_where_there_is_flock(tmp_path: Path) -> None:
    write_lease(tmp_path / "run.lock", machine=describe_machine().partition("/")[0] + "/1")
    lock, said = acquire(tmp_path / "run.lock", lease_s=60)
    assert said == []
    lock.release()


def test_the_lease_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.lock"
    fields = asdict(Lease("far", "another", "n", Process(1, 1)))
    fields["boot_id"] = fields.pop("machine")
    path.write_text(json.dumps(fields).ljust(1023) + "\n")
    lock, said = acquire(path)
    assert said == ["waiting for process 1 on far, which may be alive, 0.3 s at most"]
    lock.release()


def test_who_was_taken_over_from_leaves_the_others_lease_alone(tmp_path: Path) -> None:
    """A holder that hung; the other's machine does not see our flock."""
    path = tmp_path / "run.lock"
    lock, _ = acquire(path)
    lock.renew()
    assert lock.error is None
    write_lease(path, nonce="the other's")
    taken = path.read_text()
    lock.renew()
    lock.note_trainer(os.getpid())
    assert str(lock.error) == (
        f"process 1 on far has taken over {tmp_path}, as if this process were dead; "
        "nothing more is written there"
    )
    lock.release()
    assert path.read_text() == taken


def test_one_thread_renews_all_locks_and_ends_with_the_last(tmp_path: Path) -> None:
    before = threading.active_count()
    locks = [acquire(tmp_path / f"{number}.lock")[0] for number in range(5)]
    assert threading.active_count() == before + 1
    for lock in locks:
        lock.release()
    assert threading.active_count() == before
    lock, _ = acquire(tmp_path / "0.lock")
    assert threading.active_count() == before + 1
    lock.release()
    assert threading.active_count() == before


def test_a_lock_that_cannot_be_renewed_is_not_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as limited:
        limited.setattr(threading.Thread, "start", refuse)
        with pytest.raises(OSError, match="can't start new thread"):
            acquire(tmp_path / "run.lock")
    assert list(tmp_path.iterdir()) == []
    acquire(tmp_path / "run.lock")[0].release()


def test_a_forked_child_renews_its_own_locks_alone(tmp_path: Path) -> None:
    lock, _ = acquire(tmp_path / "run.lock")
    pid = os.fork()
    if pid == 0:
        as_it_should = False
        try:
            own, _ = acquire(tmp_path / "own.lock")
            as_it_should = lock_renewal.renewer._held == {own} and threading.active_count() == 2
            own.release()
        finally:
            os._exit(0 if as_it_should else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    lock.release()


def test_a_process_is_known_by_its_start(tmp_path: Path) -> None:
    assert read_started_ticks(os.getpid()) == read_started_ticks(os.getpid())
    process = subprocess.Popen(["sleep", "60"])
    assert read_started_ticks(process.pid) is not None
    process.send_signal(signal.SIGKILL)
    end_s = time.monotonic() + 30
    while read_started_ticks(process.pid) is not None:  # a zombie is no process any more
        assert time.monotonic() < end_s
    process.wait()
