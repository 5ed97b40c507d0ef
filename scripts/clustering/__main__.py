"""`scripts/cluster_drill`: a head and two workers, a sweep, a node that dies, a new one.

Token authentication is on, the storage is a folder that all nodes share, and all is done by the
commands that a user has: `retro-ml doctor`, `retro-ml submit -- sweep`. With `--docs` what was seen
is put into docs/cluster.md.

Exit codes: 0 every trial was completed and left the rows of an undisturbed one, 1 not so.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from clustering.jobs import (
    Nodes,
    Submitted,
    Trials,
    choose_victim,
    read_events,
    read_rows,
    read_scores,
    run_undisturbed,
    write_spec,
)
from clustering.nodes import build_nodes

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs/cluster.md"
BEGIN, END = "<!-- drill -->", "<!-- end of drill -->"
WORKERS, CPUS = 2, 2
"""Nodes besides the head, and the trials that each has room for."""
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
    spec = folder / "drill.json"
    write_spec(spec, agent_steps=call.agent_steps)
    told = _Told()
    with build_nodes(cpus=CPUS) as nodes:
        for _ in range(WORKERS):
            nodes.add_worker()
        told(f"a head and two workers are up, {nodes.described}")
        print(_ask_doctor(nodes, shared), flush=True)
        trials = Trials(shared / spec.stem, nodes)
        with Submitted(
            spec,
            shared,
            address=nodes.address,
            environment=nodes.environment,
            log=folder / "submit.txt",
        ) as job:
            at_once = WORKERS * CPUS
            at_work = trials.wait_for_saved(at_once, job=job, timeout_s=START_TIMEOUT_S)
            told(f"{at_once} trials train on both workers, and each has saved a checkpoint")
            victim = choose_victim(at_work)
            hit = sorted(name for name, home in at_work.items() if home == victim)
            nodes.kill(victim)
            told(f"{_shown(victim)} is killed with SIGKILL, and with it {' and '.join(hit)}")
            told(f"{_shown(nodes.add_worker())} has joined")
            code = trials.wait_for_end(job, timeout_s=END_TIMEOUT_S)
            told(f"the sweep has ended, with exit code {code}")
    run_undisturbed(spec, undisturbed)
    lines, clean = _compare(trials, shared / spec.stem, undisturbed / spec.stem, hit=hit)
    table = "\n".join(lines)
    print(f"\n{table}")
    if call.docs:
        told_text = "\n".join(told.lines)
        _write_docs(f"```\n{told_text}\n```\n\n{table}")
    return 0 if clean and code == 0 else 1


def parse() -> argparse.Namespace:
    """The arguments."""
    parser = argparse.ArgumentParser(prog="scripts/cluster_drill", description=__doc__)
    parser.add_argument("--agent-steps", type=int, default=3_120, help="of a trial (3,120)")
    parser.add_argument("--out", metavar="DIR", default="runs/cluster-drill")
    parser.add_argument("--docs", action="store_true", help="rewrite the drill's part of the docs")
    return parser.parse_args()


class _Told:
    """Prints what happens, with the seconds since the beginning, and keeps it."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self._began_s = time.monotonic()

    def __call__(self, text: str) -> None:
        line = f"{time.monotonic() - self._began_s:4.0f} s  {text}"
        print(line, flush=True)
        self.lines.append(line)


def _ask_doctor(nodes: Nodes, shared: Path) -> str:
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


def _compare(
    trials: Trials, sweep: Path, undisturbed: Path, *, hit: list[str]
) -> tuple[list[str], bool]:
    """A Markdown table, a line for each trial; whether all is as without the disturbance."""
    head = ["Trial", "On", "Began at agent step", "Agent steps", "Rows", "Rows lost",
            "Rows doubled", "Same as undisturbed"]  # fmt: skip
    table = [head, ["---"] * len(head)]
    # The same trials, states and scores, and those that were hit have begun again.
    clean = read_scores(sweep) == read_scores(undisturbed)
    for name in sorted(path.parent.name for path in undisturbed.glob("*/metrics.csv")):
        starts = [f"{event['from_step']:,}" for event in read_events(sweep / name, "run_started")]
        rows, wanted = read_rows(sweep / name), read_rows(undisturbed / name)
        lost = len([row for row in wanted if row not in rows])
        doubled = len(rows) - len({tuple(row.items()) for row in rows})
        same = rows == wanted
        clean = clean and same and (len(starts) > 1) == (name in hit)
        homes = ", then ".join(map(_shown, trials.homes_of(name)))
        counts = [f"{int(rows[-1]['step']):,}", f"{len(rows):,}", f"{lost:,}", f"{doubled:,}"]
        table.append([name, homes, ", then ".join(starts), *counts, "yes" if same else "NO"])
    return ["| " + " | ".join(line) + " |" for line in table], clean


def _shown(node: str) -> str:
    """`node 2`: the head is 1."""
    return f"node {node.rpartition('n')[2]}"


def _write_docs(text: str) -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise SystemExit(f"{BEGIN} and {END} have to stand in {DOCUMENT}, in this order")
    DOCUMENT.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
