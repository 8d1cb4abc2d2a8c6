"""A Bayesian neural network: priors on all weights of an existing module."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal
from pyro.nn import PyroModule, PyroSample
from pyro.nn.module import to_pyro_module_
from torch import Tensor, nn

ROWS, HIDDEN = 200, 20


class Network(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(1, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, HIDDEN),
            nn.Tanh(),
            nn.Linear(HIDDEN, 1),
        )
        to_pyro_module_(self.layers)
        for module in self.layers.modules():
            for name, value in list(module.named_parameters(recurse=False)):
                setattr(
                    module,
                    name,
                    PyroSample(dist.Normal(0.0, 1.0).expand(value.shape).to_event(value.dim())),
                )

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        sigma = sample("sigma", dist.Gamma(0.5, 1.0))
        mean = self.layers(x).squeeze(-1)
        with plate("data", len(x)):
            sample("y", dist.Normal(mean, 0.1 + sigma), obs=y)
        return mean


def problem() -> tuple[Any, ...]:
    model = Network()
    x = torch.linspace(-3, 3, ROWS).unsqueeze(-1)
    return (
        model,
        AutoDiagonalNormal(model),
        Trace_ELBO(),
        (x, x[:, 0].sin() + 0.1 * torch.randn(ROWS)),
    )
