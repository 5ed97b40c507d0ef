"""RMSprop as TensorFlow 1 had it, for the preset that follows Stable-Baselines3's A2C.

Two differences from PyTorch's: epsilon is added to the mean square before the root is taken, and
the mean square starts at 1 instead of 0 (tensorflow/python/training/rmsprop.py, v1.15).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class TensorFlowRMSprop(torch.optim.Optimizer):
    """x -= lr * g / sqrt(s + eps), where s <- alpha * s + (1 - alpha) * g^2 and s = 1 at first.

    Args:
        params: the parameters.
        lr: step size.
        alpha: decay of the mean square.
        eps: inside of the root.
    """

    def __init__(self, params: Iterable[Tensor], *, lr: float, alpha: float, eps: float) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step on the gradients that are there; a closure is not supported."""
        if closure is not None:
            raise ValueError("TensorFlowRMSprop takes no closure")
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state: dict[str, Any] = self.state[parameter]
                if not state:
                    state["square_avg"] = torch.ones_like(parameter)
                square_avg = state["square_avg"]
                square_avg.mul_(group["alpha"]).addcmul_(
                    parameter.grad, parameter.grad, value=1.0 - group["alpha"]
                )
                root = (square_avg + group["eps"]).sqrt_()
                parameter.addcdiv_(parameter.grad, root, value=-group["lr"])
