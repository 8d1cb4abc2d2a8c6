"""Sampling tests, of any size.

Each fails with a probability of `testing.FAILURE_RATE` although nothing is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from scipy import stats
from torch import Tensor

from pyro_vae.testing import FAILURE_RATE


def assert_mean(samples: Tensor, exact: Tensor | float, slack: float = 0.0) -> None:
    """Assert that independent samples, shape `(n, ...)`, have the mean `exact` (Student's t-test).

    `slack` is for rounding errors, in the units of the samples.
    """
    samples = samples.double()
    error = samples.std(0) / len(samples) ** 0.5
    distance = (samples.mean(0) - exact).abs() - slack
    assert_likely((distance / error.clamp(min=1e-300)).clamp(min=0), len(samples) - 1)


def assert_likely(z_scores: Tensor, degrees_of_freedom: float = math.inf) -> None:
    """Assert that standard normal variables, or Student's t, are likely, by Bonferroni's bound."""
    largest = z_scores.abs().max().item()
    p_value = 2 * z_scores.numel() * stats.t.sf(largest, degrees_of_freedom)
    assert p_value > FAILURE_RATE, (
        f"{largest:.3g} standard errors off, of {z_scores.numel()} values"
    )


def repeated(function: Callable[[], list[Tensor]], count: int) -> list[Tensor]:
    """What a random function gives at each of many calls, stacked."""
    return [torch.stack(values) for values in zip(*(function() for _ in range(count)), strict=True)]
