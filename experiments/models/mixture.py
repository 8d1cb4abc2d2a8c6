"""A Gaussian mixture whose assignments are summed out by enumeration."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.poutine import block
from torch import Tensor

ROWS, COMPONENTS, DIM = 500, 6, 2


@config_enumerate
def model(x: Tensor) -> None:
    weights = sample("weights", dist.Dirichlet(torch.full((COMPONENTS,), 0.5)))
    with plate("components", COMPONENTS):
        loc = sample("loc", dist.Normal(torch.zeros(DIM), 5.0).to_event(1))
        scale = sample("scale", dist.LogNormal(0.0, 1.0))
    with plate("data", len(x)):
        z = sample("z", dist.Categorical(weights))
        sample("x", dist.Normal(loc[z], scale[z].unsqueeze(-1)).to_event(1), obs=x)


def problem() -> tuple[Any, ...]:
    centres = 4 * torch.randn(COMPONENTS, DIM)
    x = centres[torch.randint(COMPONENTS, (ROWS,))] + torch.randn(ROWS, DIM)
    guide = AutoNormal(block(model, hide=["z"]))
    return model, guide, TraceEnum_ELBO(max_plate_nesting=1), (x,)
