"""What is seen of two programs while an objective runs them: their log-probabilities, never annealed."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, NamedTuple

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.importance import Program, Site, is_random, log_prob, sample_sites


class Reading(NamedTuple):
    """What a tally came to, in nats, summed over the rows and the runs that it counted."""

    runs: int
    """Runs of the programs, up to and with the first that is not finite."""
    reconstruction: float
    """Of the observed sites, log p(x | z)."""
    kl: float
    """Of the latent sites, log q(z | x) - log p(z)."""
    not_finite: list[str]
    """The sites whose log-probability was NaN or infinite in that run, in words."""


class Tally:
    """Running sums of the log-probability of each site of a guide and a model, in that order, until one is not finite.

    The sums are tensors that are added to in place, so that nothing waits for them and they may be part of a graph.

    Arguments:
        model: A trace of the model.
        guide: A trace of the guide.
        device: Where the sums are kept.
    """

    def __init__(self, model: Trace, guide: Trace, device: torch.device | str = "cpu") -> None:
        self.observed = {name for name, site in sample_sites(model).items() if site["is_observed"]}
        self.sites = [("guide", name) for name in sample_sites(guide)] + [("model", name) for name in sample_sites(model)]
        self.sums = torch.zeros(1 + len(self.sites), dtype=torch.float64, device=device)
        self._run: dict[tuple[str, str], Tensor] = {}

    def guide(self, program: Program) -> Program:
        """The program, watched."""
        return _Watch(lambda site: self._add("guide", site), lambda: None)(program)

    def model(self, program: Program) -> Program:
        """The program, watched; its end is the end of a run of both."""
        return _Watch(lambda site: self._add("model", site), self._end_run)(program)

    def read(self) -> Reading:
        """The sums since they were last read."""
        runs, *sums = self.sums.tolist()
        self.sums.zero_()
        sites = dict(zip(self.sites, sums, strict=True))
        reconstruction = sum(value for (_, name), value in sites.items() if name in self.observed)
        rates = [value if role == "guide" else -value for (role, name), value in sites.items() if name not in self.observed]
        bad = [f"{name} of the {role}" for (role, name), value in sites.items() if not isfinite(value)]
        return Reading(round(runs), reconstruction, sum(rates), bad)

    def _add(self, role: str, site: Site) -> None:
        self._run[role, site["name"]] = log_prob(site).sum()

    def _end_run(self) -> None:
        """Add this run's log-probabilities, unless an earlier run's were not finite."""
        one = torch.ones_like(self.sums[0])
        added = torch.stack([one, *(self._run[site].to(one) for site in self.sites)])
        self.sums += torch.where(self.sums.isfinite().all(), added, 0.0)
        self._run = {}


class _Watch(Messenger):
    def __init__(self, at_site: Callable[[Site], None], at_end: Callable[[], None]) -> None:
        super().__init__()
        self.at_site, self.at_end = at_site, at_end

    @torch.no_grad()
    def _pyro_post_sample(self, msg: Site) -> None:
        if is_random(msg):
            self.at_site(msg)

    @torch.no_grad()
    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        if error[0] is None:
            self.at_end()
