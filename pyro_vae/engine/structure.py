"""The plates of two programs: whether their rows are independent, and what is summed out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace

from pyro_vae.engine.programs import Program, Site, has_rows, latent_sites, sample_sites
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError


@dataclass(frozen=True)
class Structure:
    """What one run of two programs shows about all their runs.

    Attributes:
        rows: The name of the plate over the rows of the first argument, if every site is inside it:
            the rows are independent, and each has a weight. None: the whole program has one weight.
        enumerated: The discrete latent sites of the model that the guide lacks; they are summed
            out.
        nesting: The number of dimensions that plates take.
        dims: The number of dimensions of each value that the guide draws.
        subsampled: The name of a plate that holds a part of its rows, or None.
    """

    rows: str | None
    enumerated: frozenset[str]
    nesting: int
    dims: Mapping[str, int]
    subsampled: str | None

    def check_complete(self) -> None:
        """Raise `RequestError` if a part of the rows would stand for all in a single weight.

        The logarithm of a weight can be estimated from a part, but not the weight.
        """
        if self.rows is None and self.subsampled is not None:
            raise RequestError(
                f"plate {self.subsampled} holds a part of its rows, but latents outside it give the"
                " whole program one weight; run the programs on all rows, without subsampling"
            )


def find_structure(model: Program, guide: Program | None, args: tuple[Any, ...]) -> Structure:
    """The structure of a model and a guide, from one run without gradients.

    The random state stays as it was.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program with the same arguments, or None: the model draws its latent sites
            itself, and all that are discrete are summed out.
        args: Their arguments.

    Raises:
        RequestError: If a latent site is neither drawn by both nor summed out.
    """
    with forked_rng(), torch.no_grad():
        if guide is None:
            q = Trace()
            p = poutine.trace(model).get_trace(*args)
        else:
            q = poutine.trace(guide).get_trace(*args)
            p = poutine.trace(poutine.replay(model, trace=q)).get_trace(*args)
    drawn = sample_sites(q)
    latent = latent_sites(p)
    enumerated = frozenset(_enumerated(latent, drawn))
    if guide is not None:
        _check_latents(latent.keys() - enumerated, drawn)
    sites = [*sample_sites(p).values(), *drawn.values()]
    rows = _row_plate(sites, args)
    subsampled = None
    nesting = 0
    for site in sites:
        for frame in site["cond_indep_stack"]:
            if frame.vectorized:
                nesting = max(nesting, -frame.dim)
            if frame.full_size is not None and frame.full_size != frame.size:
                subsampled = frame.name
    return Structure(
        rows=rows,
        enumerated=enumerated,
        nesting=nesting,
        dims={name: site["value"].ndim for name, site in drawn.items() if not is_fixed(site)},
        subsampled=subsampled,
    )


def is_fixed(site: Site) -> bool:
    """Whether a site is a function of others: a `Delta`, as in automatic guides."""
    fn = site["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return isinstance(fn, Delta)


def row_dim(site: Site, rows: str) -> int:
    """The dim of the plate over rows at a site."""
    return next(frame.dim for frame in site["cond_indep_stack"] if frame.name == rows)


def _enumerated(latent: Mapping[str, Site], drawn: Mapping[str, Site]) -> list[str]:
    """The names of the model's discrete sites that can be summed out and that the guide lacks."""
    names = []
    for name, site in latent.items():
        if name not in drawn and site["fn"].has_enumerate_support:
            names.append(name)
    return names


def _check_latents(latent: Iterable[str], drawn: Mapping[str, Site]) -> None:
    """Raise `RequestError` unless a guide draws these sites, and no others."""
    guided = {name for name, site in drawn.items() if not site["infer"].get("is_auxiliary")}
    different = set(latent) ^ guided
    if different:
        raise RequestError(
            "model and guide need the same latent sites, but only one of them has"
            f" {', '.join(sorted(different))}"
        )


def _row_plate(sites: list[Site], args: tuple[Any, ...]) -> str | None:
    """The name of the only plate of `len(args[0])` rows that all sites are in."""
    if not has_rows(args):
        return None
    names = None
    for site in sites:
        own = set()
        for frame in site["cond_indep_stack"]:
            if frame.vectorized and frame.size == len(args[0]):
                own.add(frame.name)
        names = own if names is None else names & own
    if names is None or len(names) != 1:
        return None
    return names.pop()
