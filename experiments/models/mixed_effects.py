"""A regression with an effect of each group; every step draws some of the rows."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

ROWS, BATCH, GROUPS, FEATURES = 2000, 100, 30, 4


def model(x: Tensor, group: Tensor, y: Tensor) -> None:
    slope = sample("slope", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
    spread = sample("spread", dist.HalfNormal(1.0))
    noise = sample("noise", dist.HalfNormal(1.0))
    with plate("groups", GROUPS):
        effect = sample("effect", dist.Normal(0.0, spread))
    with plate("rows", ROWS, subsample_size=BATCH) as rows:
        mean = x[rows] @ slope + effect[group[rows]]
        sample("y", dist.Normal(mean, noise), obs=y[rows])


def problem() -> tuple[Any, ...]:
    x = torch.randn(ROWS, FEATURES)
    group = torch.randint(GROUPS, (ROWS,))
    y = x.sum(1) + torch.randn(GROUPS)[group] + 0.5 * torch.randn(ROWS)
    return model, AutoNormal(model), Trace_ELBO(), (x, group, y)
