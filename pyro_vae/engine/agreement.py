"""Whether a graph still computes what the programs compute: their results are compared."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import torch
from torch import Tensor

# The graph runs the operations of the programs, so that only those that are not deterministic, on
# CUDA, make a difference. In units of the rounding error of the loss.
ROUNDING = 100


def difference(names: Sequence[str], expected: Sequence[Any], found: Sequence[Any]) -> str | None:
    """What differs between the results of the programs and of their graph; None if nothing does.

    Arguments:
        names: The name of each parameter.
        expected: The loss of the programs, and for each parameter its gradient, or None.
        found: Those of the graph, which may lack the last parameters.

    Example:
        >>> expected = [torch.tensor(2.0), torch.ones(3)]
        >>> difference(["loc"], expected, [torch.tensor(2.0), torch.zeros(3)])
        'the gradient of loc has a norm of 1.73205, and 0 in the graph'
    """
    loss = float(expected[0])
    graphs_loss = float(found[0])
    scale = _finite(loss) + sum(_finite(_norm(grad)) for grad in expected[1:])
    limit = ROUNDING * torch.finfo(expected[0].dtype).eps * scale
    if isfinite(loss) and not abs(loss - graphs_loss) <= limit:
        return f"the loss is {loss:g}, and {graphs_loss:g} in the graph"
    missing = [None] * (len(expected) - len(found))
    for name, grad, graphs in zip(names, expected[1:], [*found[1:], *missing], strict=True):
        size = _norm(grad)
        if isfinite(size) and not _norm(_minus(grad, graphs)) <= limit:
            return (
                f"the gradient of {name} has a norm of {size:g}, and {_norm(graphs):g} in the graph"
            )
    return None


def _finite(value: float) -> float:
    """The absolute value, or 0 if it is not finite: such results are not compared."""
    if isfinite(value):
        return abs(value)
    return 0.0


def _norm(grad: Tensor | None) -> float:
    if grad is None:
        return 0.0
    return float(grad.norm())


def _minus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or b is None:
        return a if b is None else b
    return a - b
