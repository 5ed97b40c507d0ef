"""When a run's trials end; Tune's trials are faked."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from retro_ml.cluster.trial_actor import EXPERIMENT
from retro_ml.cluster.trials import RunStopper, TrialView, TuneLauncher
from retro_ml.core.engine.launcher import Trial
from retro_ml.core.experiments.config import ExperimentConfig
from retro_ml.core.experiments.options import RunOptions
from retro_ml.rllib.names import AGENT_STEPS, SCORE

pytestmark = pytest.mark.unit


class Stopped:
    """A stopper with one trial."""

    def __init__(self, **options: Any) -> None:
        config = ExperimentConfig(game_id="pong", experiment_id="one", total_timesteps=100)
        self.requested = False
        self.stopper = RunStopper(
            [Trial(config)],
            RunOptions(**options),
            lambda: self.requested,
            head=SimpleNamespace(lost=False),  # type: ignore[arg-type]
        )
        self.trial = SimpleNamespace(
            status="PENDING", config={EXPERIMENT: config.model_dump(mode="json")}
        )
        self.trial.is_finished = lambda: self.trial.status in ("TERMINATED", "ERROR")
        TrialView(self.stopper).on_step_begin(0, [self.trial])

    def report(self, agent_steps: int = 10) -> bool:
        self.trial.status = "RUNNING"
        result = {"config": self.trial.config, SCORE: None, AGENT_STEPS: agent_steps}
        return self.stopper("id", result)


def test_a_trial_that_has_done_nothing_ends_when_it_is_asked_to() -> None:
    for status in ("PENDING", "RUNNING"):
        stopped = Stopped()
        stopped.trial.status = status
        assert not stopped.stopper.stop_all()
        stopped.requested = True
        assert stopped.stopper.stop_all()
        assert stopped.stopper.interrupted == {"one"}


def test_a_trial_that_runs_ends_by_itself_with_a_checkpoint() -> None:
    stopped = Stopped()
    assert not stopped.report()
    stopped.requested = True
    assert not stopped.stopper.stop_all()
    assert stopped.report()
    assert stopped.stopper.interrupted == {"one"}


def test_a_trial_whose_node_has_died_ends_when_it_is_asked_to() -> None:
    stopped = Stopped()
    assert not stopped.report()
    stopped.trial.status = "PENDING"
    assert not stopped.stopper.stop_all()
    stopped.requested = True
    assert stopped.stopper.stop_all()
    assert stopped.stopper.interrupted == {"one"}


def test_a_trial_whose_node_has_died_ends_when_the_hours_are_over() -> None:
    stopped = Stopped(max_hours=1e-9)
    assert not stopped.stopper.stop_all()  # it is about to begin
    assert stopped.report()
    assert not stopped.stopper.stop_all()  # it saves a checkpoint
    stopped.trial.status = "PENDING"
    assert stopped.stopper.stop_all()
    assert stopped.stopper.interrupted == set()


def test_a_trial_at_its_end_is_not_interrupted_by_what_comes_later() -> None:
    stopped = Stopped()
    assert stopped.report(agent_steps=100)
    stopped.trial.status = "TERMINATED"
    stopped.requested = True
    stopped.stopper.stop_all()
    assert stopped.stopper.interrupted == set()


def test_a_signal_may_ask_to_stop_while_its_thread_is_asking() -> None:
    """Asking calls nothing, and so waits for no lock that its own thread may hold."""
    launcher, calls = TuneLauncher(), []
    sys.setprofile(lambda frame, event, what: calls.append(event))
    launcher.request_stop()
    sys.setprofile(None)
    assert calls == ["call", "return", "c_call"]  # its own, and that of sys.setprofile
