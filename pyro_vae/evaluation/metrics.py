"""Figures of each image, streamed over images and samples within a bound on memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import pyro
import torch
from torch import Tensor

from pyro_vae.errors import NotFiniteError, check_positive
from pyro_vae.inference.graphs import Engine, Graph
from pyro_vae.inference.importance import (
    Program,
    Terms,
    effective_sample_size,
    k_curve,
    log_likelihood,
    monte_carlo_error,
    pareto_k,
    terms,
)
from pyro_vae.memory import Counter
from pyro_vae.inference.precision import products

PROBE = 32
"""Samples of the first image, from which it is seen what one takes."""


@dataclass(frozen=True)
class Scores:
    """Figures of each image, in nats, on the CPU; each of shape `(N,)`, but for the curve.

    Attributes:
        reconstruction: The mean of log p(x | z).
        kl: The mean of log q(z | x) - log p(z).
        log_likelihood: The importance-weighted bound of all samples.
        monte_carlo_error: Its standard error over the draws, by the delta method; it holds only where `pareto_k` is small.
        effective_sample_size: Of the importance weights, from 1 to the number of samples.
        pareto_k: k-hat of the weights: above 0.7 the estimate is not to be trusted, but as a lower bound.
        curve: The bound of 1, 2, 4, ... samples, shape `(N, lengths)`.
    """

    reconstruction: Tensor
    kl: Tensor
    log_likelihood: Tensor
    monte_carlo_error: Tensor
    effective_sample_size: Tensor
    pareto_k: Tensor
    curve: Tensor

    @property
    def elbo(self) -> Tensor:
        """The ELBO of each image."""
        return self.reconstruction - self.kl

    def map(self, function: Callable[[Tensor], Tensor]) -> Scores:
        """The scores with each figure changed by a function."""
        return Scores(*(function(getattr(self, field.name)) for field in fields(self)))

    @classmethod
    def joined(cls, parts: Sequence[Scores]) -> Scores:
        """The scores of all images of several parts."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def score(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    memory_mb: float | None = None,
    engine: Engine = "eager",
    on_images: Callable[[int], object] = lambda images: None,
) -> Scores:
    """Score every row of `x` with `num_samples` importance samples; the programs are as for `log_weights`.

    Arguments:
        model: A Pyro program.
        guide: A Pyro program.
        x: The data.
        num_samples: Importance samples for each row.
        memory_mb: What one pass may take, in MiB; None takes what is fast.
        engine: What runs the passes: see `Graph`.
        on_images: Called with the number of rows done, after each chunk.

    Raises:
        RequestError: If `num_samples` is not positive, or the memory is too little for one row.
        NotFiniteError: If a row has no weight that is finite, or one that is NaN.
    """
    parts, done = [], 0
    with products("float32"):
        for chunk in in_chunks(model, guide, x, num_samples, memory_mb, engine):
            parts.append(_scores(chunk, done))
            done += chunk.kl.shape[1]
            on_images(chunk.kl.shape[1])
    return Scores.joined(parts)


def _scores(chunk: Terms, done: int) -> Scores:
    weights = chunk.log_weights.double().cpu()
    _check_weights(weights, done)
    reconstruction, kl = (part.double().mean(0).cpu() for part in chunk)
    return Scores(
        reconstruction,
        kl,
        log_likelihood(weights),
        monte_carlo_error(weights),
        effective_sample_size(weights),
        pareto_k(weights),
        torch.stack(list(k_curve(weights).values()), 1),
    )


def _check_weights(weights: Tensor, done: int) -> None:
    bad = weights.isnan().any(0) | (weights == -torch.inf).all(0)
    if bad.any():
        index = done + int(bad.nonzero()[0])
        raise NotFiniteError(f"image {index} has no finite importance weight: the guide draws no code that the model allows")


def in_chunks(
    model: Program,
    guide: Program,
    x: Tensor,
    num_samples: int,
    memory_mb: float | None = None,
    engine: Engine = "eager",
) -> Iterator[Terms]:
    """The terms of `num_samples` samples for every row of `x`, a few rows at a time, each `(num_samples, rows)`.

    Memory stays bounded however large `num_samples` and `x` are. No gradients.
    """
    check_positive(num_samples=num_samples)
    probe = min(num_samples, PROBE)
    with torch.no_grad(), Counter() as counter:
        first = terms(model, guide, x[:1], num_samples=probe)
    at_once = counter.rows_at_once(probe, memory_mb)
    graphs = _Graphs(model, guide, engine)
    yield _joined([first, *graphs.passes(x[:1], num_samples - probe, at_once)])
    for rows in x[1:].split(max(1, at_once // num_samples)) if len(x) > 1 else ():
        yield _joined(graphs.passes(rows, num_samples, at_once))


class _Graphs:
    """The terms as a graph for each number of samples."""

    def __init__(self, model: Program, guide: Program, engine: Engine) -> None:
        self.model, self.guide, self.engine = model, guide, engine
        self.graphs: dict[int, Graph] = {}

    @torch.no_grad()
    @pyro.validation_enabled(False)
    def passes(self, x: Tensor, num_samples: int, at_once: int) -> list[Terms]:
        """The terms in as few passes as can be, as even as can be; not validated, for a graph cannot look at values."""
        passes = -(-num_samples // at_once)
        counts = [num_samples * (i + 1) // passes - num_samples * i // passes for i in range(passes)]
        return [Terms(*self._graph(count)(x)) for count in counts]

    def _graph(self, count: int) -> Graph:
        if count not in self.graphs:
            self.graphs[count] = Graph(lambda x: list(terms(self.model, self.guide, x, num_samples=count)), self.engine)
        return self.graphs[count]


def _joined(parts: Sequence[Terms]) -> Terms:
    return Terms(*(torch.cat(part) for part in zip(*parts, strict=True)))
