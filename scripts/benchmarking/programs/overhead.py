"""What Tune, bus and writers cost a run: `python -m benchmarking.programs.overhead ARGUMENTS`.

The arguments are those of `retro_ml.run`, and so is everything that runs. The trial also notes when
it enters and leaves `Algorithm.train()`; the bare Algorithm would go from one to the next at once.
The cost is the time between them, plus the processor time that all other processes (driver, writers
and Ray's daemons) took meanwhile, as a share of all that the cores had to give. The second part is
an upper bound: a core may have been idle.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from benchmarking.processes import MARKER, ProcessFamily
from benchmarking.programs.report_file import ReportFile
from retro_ml.cluster import trials
from retro_ml.cluster.bus_bridge import BusBridge
from retro_ml.cluster.trial_actor import TrialActor
from retro_ml.core.machine import count_cpus
from retro_ml.run import main as run

TIMED = "timed"
WARMUP_ITERATIONS = 1


class TimedTrial(TrialActor):
    """A trial that tells how long each of its iterations took."""

    def step(self) -> dict[str, Any]:
        """Adds when it began and ended, seconds of the machine's clock."""
        began_s = time.monotonic()
        result = super().step()
        return {**result, TIMED: (began_s, time.monotonic())}


class TimedBridge(BusBridge):
    """Reads the processors' clocks at the first iteration that counts and at every later one."""

    steps: list[tuple[float, float]] = []  # noqa: RUF012
    cpu_s: list[float] = []  # noqa: RUF012

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Publishes as ever, then looks."""
        super().on_trial_result(iteration, trials, trial, result, **info)
        self.steps.append(result[TIMED])
        self.cpu_s.append(read_other_cpu_s(result["pid"]))


def main() -> int:
    """Run, and report."""
    report = ReportFile()
    trials.TrialActor = TimedTrial  # type: ignore[misc]
    trials.BusBridge = TimedBridge  # type: ignore[misc]
    exit_code = run(sys.argv[1:])
    steps, cpu_s = (
        kept[WARMUP_ITERATIONS - 1 :] for kept in (TimedBridge.steps, TimedBridge.cpu_s)
    )
    if len(steps) > 1:
        whole_s = steps[-1][1] - steps[0][1]
        trained_s = sum(ended - began for began, ended in steps[1:])
        other_cpu_s = cpu_s[-1] - cpu_s[0]
        report.facts(
            iterations=len(steps) - 1,
            whole_s=whole_s,
            between_share=1 - trained_s / whole_s,
            other_cpu_share=other_cpu_s / (whole_s * count_cpus()),
        )
    return exit_code


def read_other_cpu_s(trial_pid: int) -> float:
    """Processor seconds so far of this program's processes but the trial's."""
    family = ProcessFamily(os.environ[MARKER])
    ticks = sum(_read_ticks(pid) for pid in family.find() if pid != trial_pid)
    return ticks / os.sysconf("SC_CLK_TCK")


def _read_ticks(pid: int) -> int:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone meanwhile
        return 0
    # The name, in parentheses, may hold anything; 14 and 15 are user and system time.
    user, system = text.rpartition(")")[2].split()[11:13]
    return int(user) + int(system)


if __name__ == "__main__":
    sys.exit(main())
