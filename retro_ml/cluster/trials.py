"""The Launcher on Ray Tune: one trial or a thousand, on this machine or on a cluster."""

from __future__ import annotations

import logging
import math
import re
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback, CheckpointConfig, Experiment, Stopper
from ray.tune.experiment import Trial as TuneTrial

from retro_ml.cluster.bus_bridge import BusBridge, experiment_id
from retro_ml.cluster.connect import Cluster, connect
from retro_ml.cluster.driver_process import environment
from retro_ml.cluster.end_notice import EndNotice
from retro_ml.cluster.head_watch import HeadLost, HeadWatch
from retro_ml.cluster.node_checks import prove_nodes
from retro_ml.cluster.node_watch import NodeWatch
from retro_ml.cluster.placement import choose_memory, choose_resources, find_nodes_to_spare
from retro_ml.cluster.plan import count_memory, plan_run
from retro_ml.cluster.tracking import build_trackers
from retro_ml.cluster.trial_actor import EXPERIMENT, TrialActor, trial_config
from retro_ml.cluster.worker_output import log_worker_output
from retro_ml.core.engine.launcher import LaunchError, Trial, TrialEnd
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.metrics.event_bus import MetricEvent
from retro_ml.rllib.names import AGENT_STEPS, SCORE

logger = logging.getLogger("retro_ml.cluster")

TUNE_ENVIRONMENT = {
    # Our writers leave the artifacts; Tune's own loggers would double them.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # The engine handles signals, for SIGTERM too.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "RAY_AIR_NEW_OUTPUT": "0",
}

_FAILURE = re.compile(r"^Failure # \d+ \(occurred at .*\)$", re.MULTILINE)
_NAME = re.compile(r"^[\w.<>]+: ")

RAY_IS_GONE = (
    "Ray is gone (its head or its node died); what was saved is whole, and the same command goes "
    "on from the last checkpoint"
)


class TuneLauncher:
    """Executes trials as Ray Tune trials."""

    def __init__(self) -> None:
        # No Event, whose lock a signal's handler would wait for in the thread that holds it.
        self._stop_requested = False

    def request_stop(self) -> None:
        """Every trial ends after its current iteration, with a checkpoint."""
        self._stop_requested = True

    def launch(
        self,
        trials: Sequence[Trial],
        publish: Callable[[MetricEvent], None],
        options: RunOptions,
    ) -> list[TrialEnd]:
        """Runs all trials to their ends.

        Raises:
            LaunchError: no Ray, or a trial that can never be placed on it.
        """
        with (
            environment(TUNE_ENVIRONMENT),
            connect(options.ray_address, allow_open=options.allow_open_cluster) as cluster,
            log_worker_output(cluster.logs_dir),
            HeadWatch(embedded=cluster.embedded) as head,
        ):
            stopper = RunStopper(trials, options, lambda: self._stop_requested, head=head)
            experiments = [build_experiment(trial, cluster, stopper, options) for trial in trials]
            prove_nodes([trial.config for trial in trials], embedded=cluster.embedded)
            trackers = build_trackers(options, trials[0].config.output_dir)
            try:
                analysis = tune.run(
                    experiments,
                    callbacks=[
                        BusBridge(publish),
                        EndNotice(),
                        *trackers,
                        TrialView(stopper),
                        NodeWatch(head.read_nodes),
                    ],
                    raise_on_failed_trial=False,
                    verbose=0,
                )
            except HeadLost:
                raise LaunchError(RAY_IS_GONE) from None
            finally:
                for trial in trials:
                    # What Tune keeps points to our checkpoints, and a resume reads those.
                    shutil.rmtree(trial.config.paths.tune_dir, ignore_errors=True)
            return [describe_end(trial, stopper) for trial in analysis.trials]


class RunStopper(Stopper):
    """Ends a trial at its last agent step, or earlier on request.

    Args:
        trials: their configs say how long.
        options: `stop_score`, `max_hours`.
        stop_requested: true when the user wants all trials to end.
        head: of the Ray that they run on.
    """

    def __init__(
        self,
        trials: Sequence[Trial],
        options: RunOptions,
        stop_requested: Callable[[], bool],
        *,
        head: HeadWatch,
    ) -> None:
        self._totals = {t.config.experiment_id: t.config.total_timesteps for t in trials}
        self._stop_score = options.stop_score
        self._deadline = time.monotonic() + (options.max_hours or math.inf) * 3600
        self._stop_requested = stop_requested
        self._head = head
        self._heard = False
        self.trials: list[TuneTrial] = []
        self.interrupted: set[str] = set()

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """True ends the trial that has just reported `result`."""
        self._heard = True
        name = result["config"][EXPERIMENT]["experiment_id"]
        score = result[SCORE]
        if result[AGENT_STEPS] >= self._totals[name]:
            return True
        if self._stop_score is not None and score is not None and score >= self._stop_score:
            return True
        if time.monotonic() >= self._deadline:
            return True
        if self._stop_requested():
            self.interrupted.add(name)
            return True
        return False

    def __getstate__(self) -> dict[str, Any]:
        """Tune saves its experiments with their stopper; none of these can be saved."""
        return {**self.__dict__, "_stop_requested": None, "_head": None, "trials": []}

    def stop_all(self) -> bool:
        """Each trial that runs ends by itself, so that each leaves a checkpoint.

        But for those that have done nothing yet, or wait for a node, when all are to end.

        Raises:
            HeadLost: nothing can be asked of the trials any more.
        """
        if self._head.lost:
            raise HeadLost
        running = any(trial.status == TuneTrial.RUNNING for trial in self.trials)
        if self._stop_requested() and not (self._heard and running):
            waiting = (trial for trial in self.trials if not trial.is_finished())
            self.interrupted.update(experiment_id(trial) for trial in waiting)
            return True
        return self._heard and not running and time.monotonic() >= self._deadline


class TrialView(Callback):
    """Shows a stopper Tune's trials."""

    def __init__(self, stopper: RunStopper) -> None:
        self._stopper = stopper

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        """Tune's own list, which grows."""
        self._stopper.trials = trials


def build_experiment(
    trial: Trial, cluster: Cluster, stopper: RunStopper, options: RunOptions
) -> Experiment:
    """One Tune experiment of one trial.

    Raises:
        LaunchError: the cluster is too small for it.
    """
    config = trial.config
    cpus, gpus = place(config, cluster, options)
    if cluster.embedded:
        check_memory(config)
    restore_from = None if trial.restore_from is None else str(trial.restore_from)
    spared = find_nodes_to_spare(config, cluster.nodes, num_cpus=cpus, num_gpus=gpus)
    memory_bytes = place_memory(config, cluster, num_cpus=cpus, num_gpus=gpus)
    return Experiment(
        config.experiment_id,
        run=TrialActor,
        config=trial_config(
            config,
            num_cpus=cpus,
            num_gpus=gpus,
            restore_from=restore_from,
            spared_nodes=spared,
            memory_bytes=memory_bytes,
        ),
        stop=stopper,
        storage_path=str(cluster.scratch_dir or config.paths.tune_dir),
        checkpoint_config=CheckpointConfig(
            checkpoint_frequency=config.checkpoint_iterations, checkpoint_at_end=True
        ),
        max_failures=config.resources.max_failures,
    )


def place(
    config: ExperimentConfig,
    cluster: Cluster,
    options: RunOptions | None = None,
    *,
    concurrent: int = 1,
) -> tuple[int, float]:
    """CPUs of the trial's main process and GPUs of the trial.

    Args:
        config: says what it takes, or leaves it open.
        cluster: what there is.
        options: `wait_for_nodes`.
        concurrent: trials that share it, where the config leaves it open.

    Raises:
        LaunchError: what the config asks for can never be had.
    """
    wait_for_nodes = None
    if options is not None and not cluster.embedded:
        wait_for_nodes = options.wait_for_nodes
    return choose_resources(
        config, cluster.all_nodes, concurrent=concurrent, wait_for_nodes=wait_for_nodes
    )


def place_memory(
    config: ExperimentConfig, cluster: Cluster, *, num_cpus: int, num_gpus: float
) -> float:
    """Bytes of memory that a trial asks Ray for; 0 on an embedded Ray.

    Of this machine's memory Ray knows less than there is to take, and `check_memory` knows all.
    """
    if cluster.embedded:
        return 0.0
    needed_bytes = count_memory(config)
    memory_bytes = choose_memory(
        config.resources,
        cluster.all_nodes,
        num_cpus=num_cpus,
        num_gpus=num_gpus,
        needed_bytes=needed_bytes,
    )
    if 0 < memory_bytes < needed_bytes:
        logger.warning(
            "a trial may take %.1f GB of memory, and Ray hands out %.1f GB of a node with room for "
            "it: there it is the only one; if it is killed for it, lower dqn.replay_size",
            needed_bytes / 1e9,
            memory_bytes / 1e9,
        )
    return memory_bytes


def check_memory(config: ExperimentConfig) -> None:
    """Proves that DQN's replay fits in this machine's memory before a run of hours begins.

    Raises:
        LaunchError: it does not.
    """
    if config.algorithm != "DQN":
        return
    plan = plan_run(config)
    needed, free = plan.memory_bytes, plan.free_memory_bytes
    if needed > free:
        raise LaunchError(
            f"a replay of {config.dqn.replay_size:,} transitions and the rest of the trial need "
            f"{needed / 1e9:.1f} GB of memory, but {free / 1e9:.1f} GB are free; "
            "lower dqn.replay_size"
        )


def describe_end(trial: TuneTrial, stopper: RunStopper) -> TrialEnd:
    """How a Tune trial ended."""
    name = experiment_id(trial)
    if trial.status == TuneTrial.TERMINATED:
        state = "interrupted" if name in stopper.interrupted else "completed"
        return TrialEnd(name, state)  # type: ignore[arg-type]
    return TrialEnd(name, "failed", explain(trial), exit_code=1)


def explain(trial: TuneTrial) -> str:
    """The last line of what the trial died of last; all of it goes to the log."""
    failure = _read_failure(trial)
    if not failure:
        return f"the trial ended as {trial.status}"
    logger.info("%s: %s", trial.trial_id, failure)
    *before, last = failure.splitlines()
    # Below the lines of a traceback an exception's name comes before what it says.
    return _NAME.sub("", last) if before and before[-1].startswith("  ") else last


def _read_failure(trial: TuneTrial) -> str:
    """As this process has just written it; Tune brings it to its storage only later (2.60).

    The same exception lies beside it as a pickle, which is left alone.
    """
    path = trial.error_file
    if path is None or not Path(path).exists():
        return ""
    return _FAILURE.split(Path(path).read_text(errors="replace"))[-1].strip()


__all__ = ["LaunchError", "TuneLauncher"]
