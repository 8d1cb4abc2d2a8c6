"""Eight schools, non-centred: the effects of coaching on test scores."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import Tensor

EFFECTS = [28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0]
ERRORS = [15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0]


def model(effect: Tensor, error: Tensor) -> None:
    mu, tau = sample("mu", dist.Normal(0.0, 5.0)), sample("tau", dist.HalfCauchy(5.0))
    with plate("schools", len(effect)):
        eta = sample("eta", dist.Normal(0.0, 1.0))
        sample("effect", dist.Normal(mu + tau * eta, error), obs=effect)


def problem() -> tuple[Any, ...]:
    return model, AutoNormal(model), Trace_ELBO(), (torch.tensor(EFFECTS), torch.tensor(ERRORS))
