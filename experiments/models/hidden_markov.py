"""A hidden Markov model of several sequences: the states are summed out along the chain."""

from typing import Any

import torch
from pyro import distributions as dist
from pyro import markov, plate, sample
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta
from pyro.poutine import block
from torch import Tensor

SEQUENCES, STEPS, STATES, KEYS = 20, 12, 6, 10


@config_enumerate
def model(x: Tensor) -> None:
    rows = 0.9 * torch.eye(STATES) + 0.1
    transition = sample("transition", dist.Dirichlet(rows).to_event(1))
    emission = sample("emission", dist.Beta(torch.full((STATES, KEYS), 0.5), 1.0).to_event(2))
    keys = plate("keys", KEYS, dim=-1)
    with plate("sequences", len(x), dim=-2):
        state: Any = 0
        for t in markov(range(STEPS)):
            state = sample(f"state_{t}", dist.Categorical(transition[state]))
            with keys:
                probs = emission[state.squeeze(-1)]
                sample(f"x_{t}", dist.Bernoulli(probs), obs=x[:, t])


def problem() -> tuple[Any, ...]:
    x = torch.bernoulli(torch.full((SEQUENCES, STEPS, KEYS), 0.3))
    guide = AutoDelta(block(model, expose=["transition", "emission"]))
    return model, guide, TraceEnum_ELBO(max_plate_nesting=2), (x,)
