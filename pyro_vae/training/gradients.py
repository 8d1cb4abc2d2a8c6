"""What training changes in an optimizer: gradients before its steps, and negligible state."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

# Steps between flushes of the optimizer's state. Averages of gradients that are exactly zero (dead
# units, constant pixels) decay into denormal floats, which are slow on CPUs; in so many steps of
# Adam 1e-30 decays to 1e-35, which is still normal.
FLUSH_STEPS = 100
SMALLEST_STATE = 1e-30


def change_gradients(optimizer: Optimizer, clip_grad_norm: float | None, normalize: bool) -> None:
    """Clip and normalize the gradients before each step of an optimizer, if asked."""
    if clip_grad_norm:
        optimizer.register_step_pre_hook(partial(_clip, norm=clip_grad_norm))
    if normalize:
        optimizer.register_step_pre_hook(_normalize)


@torch.no_grad()
def flush(optimizer: Optimizer) -> None:
    """Set to zero what is negligible in an optimizer's state."""
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor) and value.is_floating_point():
                value.masked_fill_(value.abs() < SMALLEST_STATE, 0)


def _clip(optimizer: Optimizer, *_: Any, norm: float) -> None:
    clip_grad_norm_(list(_parameters(optimizer)), norm)


def _normalize(optimizer: Optimizer, *_: Any) -> None:
    for param in _parameters(optimizer):
        if param.grad is not None:
            # A gradient may be zero.
            param.grad /= param.grad.norm().clamp(min=1e-12)


def _parameters(optimizer: Optimizer) -> Iterator[Tensor]:
    for group in optimizer.param_groups:
        yield from group["params"]
