"""The density of two moons by a normalizing flow: there are no latent variables."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import module, plate, sample
from pyro.distributions.transforms import affine_coupling, permute
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

ROWS, LAYERS = 200, 4


class Density:
    def __init__(self) -> None:
        self.couplings = nn.ModuleList(affine_coupling(2, hidden_dims=[16]) for _ in range(LAYERS))

    def __call__(self, x: Tensor) -> None:
        module("couplings", self.couplings)
        swap = permute(2, torch.tensor([1, 0]))
        steps = []
        for coupling in self.couplings:
            steps += [coupling, swap]
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        density = dist.TransformedDistribution(base, steps)
        density.clear_cache()
        with plate("data", len(x)):
            sample("x", density, obs=x)


def guide(x: Tensor) -> None:
    """Nothing is latent."""


def problem() -> tuple[Any, ...]:
    angle = torch.pi * torch.rand(ROWS)
    side = (torch.rand(ROWS) < 0.5).to(angle.dtype)
    moons = torch.stack((angle.cos() + side - 0.5, (1 - 2 * side) * angle.sin() + side / 2 - 0.25))
    return Density(), guide, Trace_ELBO(), ((moons + 0.1 * torch.randn(2, ROWS)).T,)
