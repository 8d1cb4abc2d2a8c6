"""The two terms of the ELBO, measured while any objective runs the programs."""

from __future__ import annotations

from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.engine.importance import is_random, log_prob


class Meter(Messenger):
    """Adds the observed sites of a program to `sums[0]`, and its latent sites, times `sign`, to `sums[1]`, all without beta.

    With sign -1 for the model and 1 for the guide the sums are those of log p(x | z) and of log q(z | x) - log p(z). They are
    updated in place, so that they can be part of a graph and nothing waits for them.

    Arguments:
        sums: The reconstruction and the KL in nats, summed over rows and runs, shape `(2,)`, float64.
        sign: The sign of the latent sites.
    """

    def __init__(self, sums: Tensor, sign: int) -> None:
        super().__init__()
        self.sums, self.sign = sums, sign

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        if is_random(msg):
            term, sign = (0, 1) if msg["is_observed"] else (1, self.sign)
            self.sums[term].add_(log_prob(msg).sum(), alpha=sign)
