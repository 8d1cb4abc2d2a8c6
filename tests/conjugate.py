"""Models with global latents whose marginal likelihood is known, and guides for them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from math import lgamma
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor


class Case(NamedTuple):
    """Programs, and log p(x) of their data."""

    model: Callable[..., Any]
    exact: Callable[..., Any]
    """The posterior."""
    wide: Callable[..., Any]
    """A guide with heavier tails."""
    args: tuple[Tensor, ...]
    log_p: float


REAL = torch.tensor([0.3, -1.2, 2.0, 0.4], dtype=torch.float64)
COUNTS = torch.tensor([2.0, 0.0, 3.0, 1.0], dtype=torch.float64)
CLASSES = torch.tensor([0, 1, 1, 2, 2, 2])
SUCCESSES = torch.tensor([3.0, 7.0, 4.0], dtype=torch.float64)
FEATURES = torch.tensor(
    [[1.0, 0.5], [1.0, -1.0], [1.0, 2.0], [1.0, 0.0], [1.0, -0.3]], dtype=torch.float64
)
TARGETS = torch.tensor([1.5, -0.5, 3.0, 0.2, 0.1], dtype=torch.float64)


def one(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def normal_normal() -> Case:
    def model(x):
        z = pyro.sample("z", dist.Normal(one(0.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(width):
        def program(x):
            precision = 1 + len(x)
            pyro.sample("z", dist.Normal(x.sum() / precision, width / precision**0.5))

        return program

    n = len(REAL)
    covariance = torch.eye(n, dtype=torch.float64) + 1
    log_p = dist.MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance).log_prob(REAL)
    return Case(model, guide(1.0), guide(1.3), (REAL,), log_p.item())


def gamma_poisson() -> Case:
    def model(x):
        rate = pyro.sample("rate", dist.Gamma(one(2.0), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Poisson(rate), obs=x)

    def guide(share):
        def program(x):
            pyro.sample("rate", dist.Gamma(share * (2 + x.sum()), share * (1 + len(x))))

        return program

    total, n = COUNTS.sum().item(), len(COUNTS)
    log_p = lgamma(2 + total) - lgamma(2) - (2 + total) * torch.tensor(1.0 + n).log().item()
    log_p -= COUNTS.add(1).lgamma().sum().item()
    return Case(model, guide(1.0), guide(0.7), (COUNTS,), log_p)


def dirichlet_categorical() -> Case:
    def model(x):
        p = pyro.sample("p", dist.Dirichlet(torch.ones(3, dtype=torch.float64)))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Categorical(p), obs=x)

    def guide(share):
        def program(x):
            pyro.sample("p", dist.Dirichlet(1 + share * torch.bincount(x, minlength=3).double()))

        return program

    counts = torch.bincount(CLASSES, minlength=3)
    log_p = lgamma(3) - lgamma(3 + len(CLASSES)) + sum(lgamma(1 + int(c)) for c in counts)
    return Case(model, guide(1.0), guide(0.7), (CLASSES,), log_p)


def beta_binomial() -> Case:
    def model(x):
        p = pyro.sample("p", dist.Beta(one(2.0), 3.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Binomial(10, p), obs=x)

    def guide(share):
        def program(x):
            wins = x.sum()
            losses = 10 * len(x) - wins
            pyro.sample("p", dist.Beta(2 + share * wins, 3 + share * losses))

        return program

    wins, losses = SUCCESSES.sum().item(), 10 * len(SUCCESSES) - SUCCESSES.sum().item()
    log_p = lgamma(2 + wins) + lgamma(3 + losses) - lgamma(5 + wins + losses)
    log_p -= lgamma(2) + lgamma(3) - lgamma(5)
    for k in SUCCESSES.tolist():
        log_p += lgamma(11) - lgamma(k + 1) - lgamma(11 - k)
    return Case(model, guide(1.0), guide(0.7), (SUCCESSES,), log_p)


def linear_regression() -> Case:
    """Its model multiplies by a matrix, and does not broadcast over samples of the weights."""

    def model(x, y):
        w = pyro.sample("w", dist.Normal(torch.zeros(2, dtype=torch.float64), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    def guide(width):
        def program(x, y):
            precision = torch.eye(2, dtype=torch.float64) + x.T @ x / 0.25
            mean = torch.linalg.solve(precision, x.T @ y / 0.25)
            q = dist.MultivariateNormal(mean, precision_matrix=precision / width**2)
            pyro.sample("w", q)

        return program

    n = len(TARGETS)
    covariance = 0.25 * torch.eye(n, dtype=torch.float64) + FEATURES @ FEATURES.T
    q = dist.MultivariateNormal(torch.zeros(n, dtype=torch.float64), covariance)
    return Case(model, guide(1.0), guide(1.3), (FEATURES, TARGETS), q.log_prob(TARGETS).item())


CONJUGATE = {
    make.__name__: make
    for make in (
        normal_normal,
        gamma_poisson,
        dirichlet_categorical,
        beta_binomial,
        linear_regression,
    )
}

CENTRES = torch.tensor([-1.0, 2.0], dtype=torch.float64)


def mixture(x):
    """A mixture of two components; the assignments are summed out."""
    share = pyro.sample("share", dist.Beta(one(1.0), 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(share))
        pyro.sample("x", dist.Normal(CENTRES[z.long()], 1.0), obs=x)


def mixture_guide(x):
    pyro.sample("share", dist.Beta(one(1.5), 1.5))


def mixture_log_p(x: Tensor) -> float:
    """By the sum over all assignments, given which the share has a conjugate posterior."""
    terms = []
    for assignment in product((0, 1), repeat=len(x)):
        wins = sum(assignment)
        share = lgamma(1 + wins) + lgamma(1 + len(x) - wins) - lgamma(2 + len(x))
        likelihood = dist.Normal(CENTRES[torch.tensor(assignment)], 1.0).log_prob(x).sum()
        terms.append(share + likelihood)
    return torch.stack(terms).logsumexp(0).item()
