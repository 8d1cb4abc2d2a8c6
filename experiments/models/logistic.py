"""Logistic regression on 50,000 rows, of which each step sees a subsample."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

ROWS, FEATURES, BATCH = 50_000, 54, 256


def model(x: Tensor, y: Tensor) -> None:
    weight = sample("weight", dist.Normal(torch.zeros(FEATURES), 1.0).to_event(1))
    bias = sample("bias", dist.Normal(0.0, 5.0))
    with plate("data", len(x), subsample_size=BATCH) as rows:
        sample("y", dist.Bernoulli(logits=x[rows] @ weight + bias), obs=y[rows])


def problem() -> tuple[Any, ...]:
    x = torch.randn(ROWS, FEATURES)
    y = torch.bernoulli((x @ torch.randn(FEATURES)).sigmoid())
    return model, AutoNormal(model), Trace_ELBO(), (x, y)
