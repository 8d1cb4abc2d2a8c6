"""What Pyro's SVI accepts as a loss: objects and functions, with one loss or several."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import infer
from torch import Tensor

from pyro_vae.engine.patches import tensor_losses

PYROS = [
    cls for cls in vars(infer).values() if isinstance(cls, type) and issubclass(cls, infer.ELBO)
]


class FunctionLoss:
    """A loss function as an objective.

    Arguments:
        function: Computes the loss of model, guide and their arguments.
        loss_and_grads: Computes the loss and its gradients.
        differentiable: Whether the gradients are those of `function`.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        loss_and_grads: Callable[..., Any],
        differentiable: bool,
    ) -> None:
        self.loss = function
        self.loss_and_grads = loss_and_grads
        if differentiable:
            # It may call any objective of Pyro.
            self.differentiable_loss = tensor_losses(*PYROS)(function)


def has_tensor_loss(objective: Any) -> bool:
    """Whether the gradient of the objective is that of a tensor loss of its own.

    Not if a subclass writes `loss_and_grads` alone, so that it inherits a tensor loss of another
    objective.
    """
    if getattr(objective, "differentiable_loss", None) is None:
        return False
    for cls in type(objective).__mro__:
        if "differentiable_loss" in vars(cls):
            return True
        if "loss_and_grads" in vars(cls):
            return False
    return True


def as_tensor(loss: Any) -> Tensor:
    """A loss of shape `()`, or several in one tensor, without gradients.

    Example:
        >>> as_tensor((1.0, torch.tensor(2.0)))
        tensor([1., 2.], dtype=torch.float64)
    """
    if isinstance(loss, tuple):
        return torch.stack([as_tensor(one).double() for one in loss])
    if isinstance(loss, Tensor):
        return loss.detach()
    return torch.tensor(loss, dtype=torch.float64)


def as_numbers(loss: Tensor) -> float | tuple[float, ...]:
    """A number, or a tuple of several, as Pyro's SVI returns them."""
    if loss.ndim == 0:
        return float(loss)
    return tuple(loss.tolist())
