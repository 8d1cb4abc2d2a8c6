"""The two terms of the ELBO, measured while any objective runs the programs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from pyro_vae.inference.importance import Program, Site, is_random, log_prob


class Meter:
    """Running sums of log p(x | z) and of log q(z | x) - log p(z), without beta, over all runs of two programs.

    The sums are updated in place, so that they can be part of a graph and nothing waits for them.

    Attributes:
        sums: The reconstruction and the KL in nats, summed over rows and runs, shape `(2,)`, float64.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def model(self, program: Program) -> Program:
        """The model, measured."""
        return _AtSite(self._add_model)(program)

    def guide(self, program: Program) -> Program:
        """The guide, measured."""
        return _AtSite(lambda site: self.sums[1].add_(log_prob(site).sum()))(program)

    def _add_model(self, site: Site) -> None:
        if site["is_observed"]:
            self.sums[0].add_(log_prob(site).sum())
        else:
            self.sums[1].sub_(log_prob(site).sum())


class _AtSite(Messenger):
    def __init__(self, function: Callable[[Site], object]) -> None:
        super().__init__()
        self.function = function

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Any) -> None:
        if is_random(msg):
            self.function(msg)
