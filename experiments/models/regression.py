"""Bayesian linear regression: a PyroModule with priors on its weights, a mean-field guide."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from torch import Tensor

ROWS, FEATURES = 170, 3


class Regression(PyroModule):
    weight: Any
    bias: Any

    def __init__(self) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0).expand([FEATURES]).to_event(1))
        self.bias = PyroSample(dist.Normal(0.0, 10.0))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = sample("sigma", dist.Uniform(0.0, 10.0))
        mean = x @ self.weight + self.bias
        with plate("data", len(x)):
            sample("y", dist.Normal(mean, sigma), obs=y)
        return mean


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, FEATURES)
    return x, x @ torch.tensor([1.0, -2.0, 0.5]) + 3 + 0.3 * torch.randn(ROWS)


def problem() -> tuple[Any, ...]:
    model = Regression()
    return model, AutoNormal(model), Trace_ELBO(), data()
