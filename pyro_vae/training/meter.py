"""The two terms of the ELBO, measured while any objective runs the programs."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.engine.programs import is_random, log_prob


class Meter(Messenger):
    """Adds up the log-probabilities of a program, without beta.

    Those of the observed sites are added to `sums[0]`, and those of the latent sites, times `sign`,
    to `sums[1]`. With sign -1 for the model and 1 for the guide the sums are those of log p(x | z)
    and of log q(z | x) - log p(z). They are updated in place, so that they can be part of a graph
    and nothing waits for them.

    Arguments:
        sums: The reconstruction and the KL in nats, summed over rows and runs, shape `(2,)`,
            float64.
        sign: The sign of the latent sites.
    """

    def __init__(self, sums: Tensor, sign: int) -> None:
        super().__init__()
        self.sums = sums
        self.sign = sign

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_random(msg):
            return
        score = log_prob(msg).sum()
        if msg["is_observed"]:
            self.sums[0].add_(score)
        else:
            self.sums[1].add_(score, alpha=self.sign)
