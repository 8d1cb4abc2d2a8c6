"""Stochastic volatility: the log-variance of daily returns is a random walk."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoLowRankMultivariateNormal
from torch import Tensor

DAYS = 500


def model(returns: Tensor) -> None:
    step = sample("step", dist.LogNormal(-2.0, 1.0))
    start = sample("start", dist.Normal(-4.0, 2.0))
    nu = sample("nu", dist.Gamma(4.0, 0.5))
    shocks = sample("shocks", dist.Normal(torch.zeros(DAYS), 1.0).to_event(1))
    log_scale = (start + step * shocks.cumsum(-1)) / 2
    sample("returns", dist.StudentT(2 + nu, 0.0, log_scale.exp()).to_event(1), obs=returns)


def problem() -> tuple[Any, ...]:
    returns = (-2 + 0.05 * torch.randn(DAYS).cumsum(0)).exp() * torch.randn(DAYS)
    return model, AutoLowRankMultivariateNormal(model, rank=10), Trace_ELBO(), (returns,)
