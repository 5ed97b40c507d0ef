"""`scripts/cluster_drill`: a cluster of a head and two workers, jobs, a node that dies, a new one.

Token authentication is on, the storage is a folder that all nodes share, and all is done by the
commands that a user has: `retro-ml doctor`, `retro-ml submit`. With `--docs` what was seen is put
into docs/cluster.md.

Exit codes: 0 every job ended with 0 and left the rows of an undisturbed run, 1 not so.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from clustering.jobs import (
    Submitted,
    read_events,
    read_rows,
    run_jobs,
    run_undisturbed,
    wait_for_trainers,
)
from clustering.nodes import LocalNodes, NamespaceNodes, build_nodes

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/cluster.md"
BEGIN, END = "<!-- drill -->", "<!-- end of drill -->"
START_TIMEOUT_S, END_TIMEOUT_S = 240.0, 600.0


def main() -> int:
    """The drill; the process's exit code."""
    # So that the nodes are ended then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    call = parse()
    folder = Path(call.out).resolve()
    shutil.rmtree(folder, ignore_errors=True)
    shared, undisturbed = folder / "shared", folder / "undisturbed"
    shared.mkdir(parents=True)
    told = _Told()
    jobs = run_jobs(shared, agent_steps=call.agent_steps)
    with build_nodes(cpus=2) as nodes, ExitStack() as followed:
        nodes.add_worker()
        nodes.add_worker()
        told(f"a head and two workers are up, {nodes.described}")
        told(_ask_doctor(nodes, shared), clock=False)
        submitted = []
        for number, job in enumerate(jobs):
            one = Submitted(
                job,
                address=nodes.address,
                environment=nodes.environment,
                log=folder / f"submit-{number}.txt",
            )
            submitted.append(followed.enter_context(one))
        names = [name for job in jobs for name in job.experiments]
        folders = [shared / name for name in names]
        victim = _choose_victim(nodes, wait_for_trainers(folders, START_TIMEOUT_S))
        told(f"{len(folders)} trials train, and each has saved a checkpoint")
        nodes.kill(victim)
        told("one worker's processes are killed with SIGKILL")
        nodes.add_worker()
        told("another worker has joined")
        codes = [one.wait(END_TIMEOUT_S) for one in submitted]
        told(f"all jobs have ended, with exit codes {', '.join(map(str, codes))}")
    for job in jobs:
        run_undisturbed(job, undisturbed)
    lines, clean = _compare(names, shared, undisturbed)
    table = "\n".join(lines)
    print(f"\n{table}")
    if call.docs:
        told_text = "\n".join(told.lines)
        _write_docs(f"```\n{told_text}\n```\n\n{table}")
    return 0 if clean and not any(codes) else 1


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="scripts/cluster_drill", description=__doc__)
    parser.add_argument("--agent-steps", type=int, default=10_400, help="of a trial (10,400)")
    parser.add_argument("--out", metavar="DIR", default="runs/cluster-drill")
    parser.add_argument("--docs", action="store_true", help="rewrite the drill's part of the docs")
    return parser.parse_args()


class _Told:
    """Prints what happens, with the seconds since the beginning, and keeps it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._began_s = time.monotonic()

    def __call__(self, text: str, *, clock: bool = True) -> None:
        line = f"{time.monotonic() - self._began_s:4.0f} s  {text}" if clock else text
        print(line, flush=True)
        self.lines.append(line)


def _ask_doctor(nodes: NamespaceNodes | LocalNodes, shared: Path) -> str:
    words = ["--address", nodes.address, "--output-dir", str(shared), "--set", "use_gpu=false"]
    words += ["--set", "resources.num_cpus=1"]
    done = subprocess.run(
        [sys.executable, "-P", "-m", "retro_ml.doctor", *words],
        env=nodes.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the doctor finds faults:\n{done.stdout}{done.stderr}")
    return done.stdout.rstrip()


def _choose_victim(nodes: NamespaceNodes | LocalNodes, trainers: dict[Path, int]) -> str:
    """A worker that trains. Raises SystemExit where none is found."""
    for pid in trainers.values():
        name = nodes.find_node(pid)
        if name is not None:
            return name
    raise SystemExit(f"no worker has any of the training processes {sorted(trainers.values())}")


def _compare(names: Sequence[str], shared: Path, undisturbed: Path) -> tuple[list[str], bool]:
    """A Markdown table, a line for each trial; whether nothing differs."""
    head = ["Trial", "Began at agent step", "Agent steps", "Rows", "Rows lost", "Rows doubled",
            "Same as undisturbed"]  # fmt: skip
    table, clean = [head, ["---"] * len(head)], True
    for name in names:
        starts = [
            f"{event['data']['from_step']:,}"
            for event in read_events(shared / name)
            if event["event_type"] == "run_started"
        ]
        rows, wanted = read_rows(shared / name), read_rows(undisturbed / name)
        lost = len([row for row in wanted if row not in rows])
        doubled = len(rows) - len({tuple(row.items()) for row in rows})
        same = rows == wanted
        clean = clean and same
        counts = [f"{int(rows[-1]['step']):,}", f"{len(rows):,}", f"{lost:,}", f"{doubled:,}"]
        table.append([name, ", then ".join(starts), *counts, "yes" if same else "NO"])
    return ["| " + " | ".join(line) + " |" for line in table], clean


def _write_docs(text: str) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{BEGIN} and {END} have to stand in {DOCUMENT}, in this order")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
