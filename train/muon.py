"""Muon: SGD with momentum whose update matrices are orthogonalized.

Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks". A convolution's weight counts as a matrix
(outputs, inputs x taps). Updates are scaled as in Liu et al. 2025 (arXiv 2502.16982), so that learning rates and decay
of AdamW apply. `torch.optim.Muon` only takes matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

# Coefficients of the quintic Newton-Schulz iteration, which maps singular values close to 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95
SCALE = 0.2  # typical root mean square of AdamW's updates
BETAS = (0.9, 0.999)
EPS = 1e-8


def orthogonalized(matrices: Tensor) -> Tensor:
    """Replaces the singular values of `matrices` (..., R, C) with about 1, by Newton-Schulz iteration."""
    tall = matrices.shape[-2] > matrices.shape[-1]
    x = matrices.mT if tall else matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    first, second, third = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = first * x + (second * gram + third * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for weights of convolutions and linear layers with several outputs, AdamW for all other parameters.

    A step updates all parameters together, and matrices of equal shape as a batch: a network has hundreds of them, and
    with separate launches a GPU would be idle most of the time.

    Args:
        parameters: the parameters to optimize.
        lr, weight_decay: as for AdamW.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> None:
        groups: list[dict[str, Any]] = [{"params": [], "muon": True}, {"params": [], "muon": False}]
        for parameter in parameters:
            groups[0 if parameter.dim() > 1 and parameter.shape[0] > 1 else 1]["params"].append(parameter)
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Updates all parameters that have a gradient; `closure` is not called."""
        del closure
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
                update = self._muon if group["muon"] else self._adamw
                update(parameters, [parameter.grad for parameter in parameters], group["lr"])

    def _muon(self, parameters: list[Tensor], gradients: list[Tensor], rate: float) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta = [self.state[parameter]["momentum"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
        by_shape: dict[torch.Size, tuple[list[Tensor], list[Tensor]]] = {}
        for parameter, nesterov in zip(parameters, torch._foreach_lerp(gradients, momenta, MOMENTUM), strict=True):
            matrix = nesterov.flatten(1)
            same_shape, matrices = by_shape.setdefault(matrix.shape, ([], []))
            same_shape.append(parameter)
            matrices.append(matrix)
        for shape, (same_shape, matrices) in by_shape.items():
            changes = orthogonalized(torch.stack(matrices))
            updates = [change.view_as(parameter) for change, parameter in zip(changes, same_shape, strict=True)]
            torch._foreach_add_(same_shape, updates, alpha=-rate * SCALE * max(shape) ** 0.5)

    def _adamw(self, parameters: list[Tensor], gradients: list[Tensor], rate: float) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                zeros = torch.zeros_like(parameter)
                self.state[parameter].update(step=0, mean=zeros, square=zeros.clone())
            self.state[parameter]["step"] += 1
        states = [self.state[parameter] for parameter in parameters]
        means, squares = ([state[name] for state in states] for name in ("mean", "square"))
        torch._foreach_lerp_(means, gradients, 1 - BETAS[0])
        torch._foreach_mul_(squares, BETAS[1])
        torch._foreach_addcmul_(squares, gradients, gradients, value=1 - BETAS[1])
        roots = torch._foreach_div(squares, [1 - BETAS[1] ** state["step"] for state in states])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, EPS)
        torch._foreach_addcdiv_(parameters, means, roots, [-rate / (1 - BETAS[0] ** state["step"]) for state in states])
