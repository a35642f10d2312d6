"""Muon: momentum whose matrices are made orthogonal before they are applied.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A convolution's weight counts as a matrix
of outputs and inputs. Step sizes are scaled as by Liu et al. 2025 (arXiv 2502.16982), so that AdamW's learning rates
and decay serve. `torch.optim.Muon` takes matrices alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Of the quintic iteration that takes singular values to about 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
SCALE = 0.2  # the root mean square of AdamW's updates
BETAS = (0.9, 0.999)
EPS = 1e-8


def orthogonalised(matrix: Tensor) -> Tensor:
    """`matrix` (R, C) with singular values of about 1, by Newton-Schulz iteration."""
    x = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    x = x / (x.norm() + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.T if matrix.shape[0] > matrix.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Muon for convolutions' and linear layers' weights of several outputs, AdamW for all else.

    Args:
        parameters: to optimise.
        lr, weight_decay: as of AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        groups: list[dict[str, Any]] = [{"params": [], "muon": True}, {"params": [], "muon": False}]
        for parameter in parameters:
            groups[0 if parameter.dim() > 1 and parameter.shape[0] > 1 else 1]["params"].append(parameter)
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; `closure` is not called."""
        del closure
        for group in self.param_groups:
            update = self._muon if group["muon"] else self._adamw
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    update(parameter, parameter.grad, group["lr"])

    def _muon(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        matrix = gradient.lerp(momentum, MOMENTUM).flatten(1)  # Nesterov's
        change = orthogonalised(matrix).view_as(parameter)
        parameter.add_(change, alpha=-rate * SCALE * max(matrix.shape) ** 0.5)

    def _adamw(self, parameter: Tensor, gradient: Tensor, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        mean = state["mean"].lerp_(gradient, 1 - BETAS[0])
        square = state["square"].mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        corrected = (square / (1 - BETAS[1] ** state["step"])).sqrt_().add_(EPS)
        parameter.addcdiv_(mean, corrected, value=-rate / (1 - BETAS[0] ** state["step"]))
