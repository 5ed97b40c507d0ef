"""Weights & Biases and MLflow, through Ray Tune's own callbacks.

Those callbacks are handed what is worth a chart: the numbers of the iteration under the names that
TensorBoard has, and the experiment's config without the sections it does not use. Keys are taken
from where both services look for them (WANDB_API_KEY, `wandb login`, MLFLOW_TRACKING_URI and the
like) and stand in no file of the run. A service that fails is left alone from then on; training
goes on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from statistics import fmean
from typing import Any

import ray
from ray.tune import Callback
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from retro_ml.cluster.bus_bridge import experiment_id
from retro_ml.cluster.driver_process import first_line
from retro_ml.cluster.trial_actor import EXPERIMENT
from retro_ml.core.engine.launcher import LaunchError
from retro_ml.core.experiments.locations import hide_credentials_in, local_dir
from retro_ml.core.experiments.options import RunOptions
from retro_ml.core.experiments.run_paths import RunPaths
from retro_ml.core.metrics.event_bus import EventType
from retro_ml.core.metrics.scalar_names import name_scalars
from retro_ml.rllib.names import AGENT_STEPS, RECORDS

logger = logging.getLogger("retro_ml.cluster")

PROJECT = "retro_ml"
"""Of W&B, and the experiment of MLflow, where WANDB_PROJECT and MLFLOW_EXPERIMENT_NAME say none."""
UPLOAD_TIMEOUT_S = 60
"""How long a run's end waits for what W&B has not yet sent."""
_SECTIONS = frozenset({"ppo", "a2c", "dqn"})
_NOT_TRACKED = frozenset({"output_dir", "created_at"})


def build_trackers(options: RunOptions, output_dir: str) -> list[Callback]:
    """A callback for each service that `options.track` names.

    Raises:
        LaunchError: a service cannot be used as it is set up.
    """
    builders = {"wandb": _build_wandb, "mlflow": _build_mlflow}
    return [Tracker(name, builders[name](output_dir)) for name in options.track]


class Tracker(Callback):
    """Hands a trial's numbers to one of Tune's logger callbacks.

    Args:
        name: of the service, for messages.
        inner: the callback.
    """

    def __init__(self, name: str, inner: Any) -> None:
        self._name = name
        self._inner = inner
        self._failed = False

    def setup(self, **info: Any) -> None:
        """See Tune's Callback, as for the methods below."""
        self._try(self._inner.setup)

    def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """A run there begins."""
        self._try(self._inner.log_trial_start, trial)

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """One point of each chart."""
        self._try(self._inner.log_trial_result, iteration, trial, describe_result(result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """The run there ends well."""
        self._try(self._inner.log_trial_end, trial, failed=False)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """It ends badly."""
        self._try(self._inner.log_trial_end, trial, failed=True)

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        """What is on its way is waited for."""
        self._try(self._inner.on_experiment_end, trials)

    def _try(self, call: Callable[..., Any], *arguments: Any, **words: Any) -> None:
        if self._failed:
            return
        try:
            call(*arguments, **words)
        except Exception as error:
            # Whatever a service of somebody else's may raise, the training is worth more.
            # A traceback would show the URIs in the errors that led to this one.
            self._failed = True
            reason = f"{type(error).__name__}: {hide_credentials_in(str(error))}"
            logger.warning("%s gets nothing more of this run: %s", self._name, reason)


def describe_result(result: dict[str, Any]) -> dict[str, Any]:
    """A trial's result as numbers by name; scores and lengths are means over its new games."""
    described: dict[str, Any] = {"timesteps_total": result[AGENT_STEPS]}
    games: dict[str, list[float]] = {}
    for record in result.get(RECORDS, ()):
        event_type = EventType(record["type"])
        scalars = name_scalars(event_type, record["data"])
        if event_type is EventType.EPISODE_FINISHED:
            for name, value in scalars.items():
                games.setdefault(name, []).append(value)
        else:
            described |= scalars
    described |= {name: fmean(values) for name, values in games.items()}
    # W&B orders by this one; the run's own count goes on after a resume.
    described["training_iteration"] = int(
        described.get("time/iterations", result.get("training_iteration", 0))
    )
    return described


def describe_config(trial: Any) -> dict[str, Any]:
    """The experiment, without other algorithms' settings and where its files are."""
    experiment = trial.config[EXPERIMENT]
    unused = _SECTIONS - {experiment["algorithm"].lower()} | _NOT_TRACKED
    return {name: value for name, value in experiment.items() if name not in unused}


def tell_of_end(future: ray.ObjectRef) -> None:
    """Warns where the process that talks to W&B was too slow, or has died."""
    done, _ = ray.wait([future], timeout=0)
    if not done:
        logger.warning("W&B did not get all of this run within %d s", UPLOAD_TIMEOUT_S)
        return
    try:
        ray.get(future)
    except ray.exceptions.RayError as error:
        cause = getattr(error, "cause", None) or error
        reason = hide_credentials_in(first_line(cause))
        logger.warning("W&B did not get all of this run: %s", reason)


def _build_wandb(output_dir: str) -> Any:
    from ray.air.integrations.wandb import WandbLoggerCallback, _WandbLoggingActor

    class WandbActor(_WandbLoggingActor):
        def __init__(self, *args: Any, variables: dict[str, str], **words: Any) -> None:
            os.environ.update(variables)
            super().__init__(*args, **words)

    class WandbCallback(WandbLoggerCallback):
        def log_trial_start(self, trial: Any) -> None:
            name = experiment_id(trial)
            folder = RunPaths(output_dir=output_dir, experiment_id=name).experiment_dir
            # In the run's folder: what W&B keeps offline must outlive Ray's own.
            self.kwargs = {"name": name, "config": describe_config(trial), "dir": str(folder)}
            self.kwargs["variables"] = _wandb_variables()
            # Ray (2.60) hands the key on in a runtime environment, which an embedded Ray has no
            # agent to make, so that the actor never began; and it hands on nothing but the key.
            here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), False)
            # No restarts: what fails is told and left alone.
            self._remote_logger_class = ray.remote(num_cpus=0, scheduling_strategy=here)(WandbActor)
            super().log_trial_start(trial)

        def _cleanup_logging_actor(self, trial: Any) -> None:
            # Ray asks the actor for nothing when it is done: what it died of would not be told.
            tell_of_end(self._trial_logging_futures[trial])
            super()._cleanup_logging_actor(trial)

    callback = WandbCallback(
        project=os.environ.get("WANDB_PROJECT", PROJECT), upload_timeout=UPLOAD_TIMEOUT_S
    )
    try:
        callback.setup()
    except ValueError:
        raise LaunchError(
            "W&B has no key to send with; set WANDB_API_KEY, run `wandb login`, or set "
            "WANDB_MODE=offline to keep its files in the run's folder"
        ) from None
    return callback


def _wandb_variables() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith("WANDB_")}


def _build_mlflow(output_dir: str) -> Any:
    from ray.air.integrations.mlflow import MLflowLoggerCallback

    class MLflowCallback(MLflowLoggerCallback):
        def log_trial_start(self, trial: Any) -> None:
            if trial in self._trial_runs:  # it is tried again
                return
            run = self.mlflow_util.start_run(tags=dict(self.tags), run_name=experiment_id(trial))
            self._trial_runs[trial] = run.info.run_id
            self.mlflow_util.log_params(
                run_id=run.info.run_id, params_to_log=describe_config(trial)
            )

    callback = MLflowCallback(
        tracking_uri=os.environ.get("MLFLOW_TRACKING_URI")
        or f"sqlite:///{local_dir(output_dir)}/mlflow.db",
        experiment_name=os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT),
    )
    try:
        callback.setup()
    except Exception as error:
        raise LaunchError(
            f"MLflow cannot be used: {hide_credentials_in(str(error))}; "
            "set MLFLOW_TRACKING_URI to a server or a store"
        ) from None
    return callback
