"""The two terms of the ELBO, measured while any objective runs the programs."""

from __future__ import annotations

from typing import Any, Self

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from pyro_vae.engine.programs import is_random, log_prob


class Meter(Messenger):
    """Adds up the log-probabilities of a program, without beta.

    Those of the observed sites are added to `sums[0]`, and those of the latent sites, times `sign`,
    to `sums[1]`. With sign -1 for the model and 1 for the guide the sums are those of log p(x | z)
    and of log q(z | x) - log p(z). They are updated in place, so that they can be part of a graph
    and nothing waits for them. Where the objective enumerates a site of the guide, they are
    expectations. Factors of a guide are terms of the objective alone and do not count.

    Arguments:
        sums: The reconstruction and the KL in nats, summed over rows and runs, shape `(2,)`,
            float64.
        sign: The sign of the latent sites.
        guide: For a model, the meter of its guide.
    """

    def __init__(self, sums: Tensor, sign: int, guide: Meter | None = None) -> None:
        super().__init__()
        self.sums = sums
        self.sign = sign
        self.guide = guide
        # The probability of the values of enumerated sites.
        self.probability: Tensor | None = None

    def __enter__(self) -> Self:
        self.probability = None
        if self.guide is not None:
            self.probability = self.guide.probability
        return super().__enter__()

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        is_of_guide = self.sign > 0
        if not is_random(msg) or (is_of_guide and msg["is_observed"]):
            return
        score = log_prob(msg)
        if is_of_guide and msg["infer"].get("_enumerate_dim") is not None:
            probability = score.exp()
            if self.probability is not None:
                probability = self.probability * probability
            self.probability = probability
        if self.probability is not None:
            score = self.probability * score.masked_fill(self.probability == 0, 0.0)
        if msg["is_observed"]:
            self.sums[0].add_(score.sum())
        else:
            self.sums[1].add_(score.sum(), alpha=self.sign)
