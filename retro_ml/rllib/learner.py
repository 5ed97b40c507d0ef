"""What the three Learners share: the learning rate, statistics, minibatches, their state.

RLlib's TorchLearner computes and applies gradients. Changed here, and why:

- *Learning rate.* Set before each update from the run's own step counter, so that it goes on after
  a resume and is the one that a scheduler has just perturbed (ray issues 57791 and 62173).
- *Minibatches.* Every epoch is shuffled, the first one too; ragged ends are never dropped silently.
- *Statistics.* Collected as tensors over all minibatches, averaged and handed to RLlib's
  MetricsLogger once per `update()`.
- *Gradients that are not finite* end the trial: a network with NaN in it trains on for hours and
  learns nothing. They are looked for in the global norm, which clipping needs anyway.
"""

from __future__ import annotations

import inspect
import math
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.learner.torch.torch_learner import TorchLearner
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.policy.sample_batch import MultiAgentBatch, SampleBatch
from ray.rllib.utils.metrics import NUM_ENV_STEPS_SAMPLED_LIFETIME
from torch import Tensor

from retro_ml.core.experiments.seeds import derive_seed
from retro_ml.rllib.machine import keep_freed_memory, leave_compiler_out
from retro_ml.rllib.module import precision_of

SHUFFLE_SEEDS = 3
"""First word of the key from which the generators of minibatches are derived."""


class AtariLearner(TorchLearner):
    """Base of the Learners; subclasses give the optimizer and the loss."""

    def build(self) -> None:
        """Builds module and optimizer, and the generator that shuffles minibatches.

        PyTorch's own generator decides the module's first weights and nothing after them.
        """
        leave_compiler_out()
        torch.manual_seed(self.config.run_seed)
        super().build()
        keep_freed_memory()
        self._shuffles = torch.Generator()
        self._shuffles.manual_seed(
            derive_seed(self.config.run_seed, SHUFFLE_SEEDS, self._learner_index)
        )
        self._statistics: dict[str, list[Tensor]] = defaultdict(list)

    def before_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Sets the learning rate for the agent steps taken when this update's data began."""
        super().before_gradient_based_update(timesteps=timesteps)
        agent_steps = int(timesteps[NUM_ENV_STEPS_SAMPLED_LIFETIME])
        for optimizer, schedule in self._optimizer_lr_schedules.items():
            self._set_optimizer_lr(optimizer, float(schedule.update(timestep=agent_steps)))

    def after_gradient_based_update(self, *, timesteps: dict[str, Any]) -> None:
        """Hands the statistics' means over the minibatches to RLlib."""
        means = {name: torch.stack(values).mean() for name, values in self._statistics.items()}
        self._statistics.clear()
        self.metrics.log_dict(means, key=DEFAULT_MODULE_ID, window=1)

    @property
    def learning_rate(self) -> float:
        """The optimizer's step size."""
        return float(self._get_optimizer_lr(self.get_optimizer(DEFAULT_MODULE_ID)))

    def record(self, **statistics: Tensor) -> None:
        """Notes scalars of one minibatch."""
        for name, value in statistics.items():
            self._statistics[name].append(value.detach())

    def postprocess_gradients(self, gradients_dict: dict[Any, Tensor]) -> dict[Any, Tensor]:
        """Clips the gradients by their global norm.

        Raises:
            FloatingPointError: a gradient is not finite.
        """
        gradients = list(gradients_dict.values())
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            raise FloatingPointError(
                "a gradient is not finite; lower the learning rate or use precision fp32"
            )
        if self.config.grad_clip is not None and norm > self.config.grad_clip:
            torch._foreach_mul_(gradients, self.config.grad_clip / norm)
        return gradients_dict

    def apply_gradients(self, gradients_dict: dict[Any, Tensor]) -> None:
        """Steps the optimizer."""
        for parameter, gradient in gradients_dict.items():
            parameter.grad = gradient
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        # Without the wrappers that PyTorch puts around it, the outermost of which imports the
        # compiler; the others call hooks, of which there are none, and turn gradients off.
        with torch.no_grad():
            inspect.unwrap(type(optimizer).step)(optimizer)

    def get_state(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """RLlib's state and the generator's, `[1, bytes] uint8`."""
        state: dict[str, Any] = super().get_state(*args, **kwargs)
        return {**state, "shuffles": self.get_shuffles()[None]}

    def set_state(self, state: dict[str, Any]) -> None:
        """RLlib's state and the generator's, which is one of `[learners, bytes] uint8`."""
        self._weights_seq_no = 0  # otherwise weights older than its own would be left out
        super().set_state(state)
        if "shuffles" in state:
            self._shuffles.set_state(torch.as_tensor(np.atleast_2d(state["shuffles"])[self.index]))

    def get_shuffles(self) -> NDArray[np.uint8]:
        """The state of the generator that shuffles minibatches."""
        return self._shuffles.get_state().numpy()

    @property
    def index(self) -> int:
        """Among the trial's learners."""
        return int(self._learner_index)

    @property
    def precision(self) -> str:
        """What the network's body computes in: fp32 or bf16."""
        return precision_of(self.module[DEFAULT_MODULE_ID].unwrapped().network)

    def _create_iterator_if_necessary(
        self,
        *,
        training_data: TrainingData,
        num_total_minibatches: int = 0,
        num_epochs: int = 1,
        minibatch_size: int | None = None,
        shuffle_batch_per_epoch: bool = False,
        **kwargs: Any,
    ) -> Iterator[MultiAgentBatch]:
        batch = self._make_batch_if_necessary(training_data=training_data)
        columns = dict(batch.policy_batches[DEFAULT_MODULE_ID])
        size = minibatch_size or batch.count
        if batch.count % size:
            raise ValueError(f"a batch of {batch.count} cannot be split into minibatches of {size}")
        return self._minibatches(columns, batch.count, size, num_epochs, shuffle_batch_per_epoch)

    def _minibatches(
        self, columns: dict[str, Tensor], count: int, size: int, epochs: int, shuffle: bool
    ) -> Iterator[MultiAgentBatch]:
        for _ in range(epochs):
            order = torch.randperm(count, generator=self._shuffles) if shuffle else None
            for start in range(0, count, size):
                part = slice(start, start + size)
                if order is None:
                    chosen = {name: column[part] for name, column in columns.items()}
                else:
                    rows = order[part].to(next(iter(columns.values())).device)
                    # Whole rows at once: column[rows] takes an update's twentieth.
                    chosen = {
                        name: column.index_select(0, rows) for name, column in columns.items()
                    }
                yield MultiAgentBatch({DEFAULT_MODULE_ID: SampleBatch(chosen)}, size)
