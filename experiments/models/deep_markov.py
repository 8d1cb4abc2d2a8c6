"""A deep Markov model of sequences of different lengths, with a recurrent network in the guide."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import markov, plate, poutine, sample
from pyro.infer import Trace_ELBO
from torch import Tensor, nn

BATCH, STEPS, KEYS, LATENT, HIDDEN = 20, 10, 88, 20, 64


class DeepMarkov(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.transition = nn.Sequential(
            nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 2 * LATENT)
        )
        self.emission = nn.Sequential(nn.Linear(LATENT, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, KEYS))
        self.rnn = nn.RNN(KEYS, HIDDEN, batch_first=True)
        self.combine = nn.Linear(LATENT + HIDDEN, 2 * LATENT)

    def model(self, x: Tensor, lengths: Any) -> None:
        pyro.module("networks", self)
        z = x.new_zeros(len(x), LATENT)
        with plate("sequences", len(x)):
            for t in markov(range(STEPS)):
                with poutine.mask(mask=t < lengths):
                    loc, log_scale = self.transition(z).chunk(2, -1)
                    z = sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))
                    sample(
                        f"x_{t}", dist.Bernoulli(logits=self.emission(z)).to_event(1), obs=x[:, t]
                    )

    def guide(self, x: Tensor, lengths: Any) -> None:
        pyro.module("networks", self)
        features = self.rnn(x.flip(1))[0].flip(1)
        z = x.new_zeros(len(x), LATENT)
        with plate("sequences", len(x)):
            for t in markov(range(STEPS)):
                with poutine.mask(mask=t < lengths):
                    loc, log_scale = self.combine(torch.cat((z, features[:, t]), 1)).chunk(2, -1)
                    z = sample(f"z_{t}", dist.Normal(loc, log_scale.exp()).to_event(1))


def problem() -> tuple[Any, ...]:
    networks = DeepMarkov()
    x = torch.bernoulli(torch.full((BATCH, STEPS, KEYS), 0.1))
    return networks.model, networks.guide, Trace_ELBO(), (x, torch.randint(4, STEPS + 1, (BATCH,)))
