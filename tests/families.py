"""A constructor for every public family, by name: a class that is missing here fails `test_every_family_is_here`."""

from __future__ import annotations

from collections.abc import Callable

import pyro_vae as pv
from pyro_vae import likelihoods, networks, priors


SHAPE = (1, 4, 4)


def encoder(num_params: int, latent_dim: int) -> networks.Network:
    return pv.MLP(SHAPE, (num_params, latent_dim), hidden=(8,))


def vamp(posterior: pv.Posterior, dim: int) -> pv.VampPrior:
    return pv.VampPrior(encoder(posterior.num_params, dim), posterior, SHAPE, components=4)


POSTERIORS: dict[str, Callable[[int], pv.Posterior]] = {
    "DiagonalNormal": lambda dim: pv.DiagonalNormal(),
    "LowRankNormal": lambda dim: pv.LowRankNormal(dim),
    "LowRankNormal, full": lambda dim: pv.LowRankNormal(dim, rank=dim),
    "FullRankNormal": lambda dim: pv.FullRankNormal(dim),
    "FlowPosterior": lambda dim: pv.FlowPosterior(dim, hidden=(16,)),
}

PRIORS: dict[str, Callable[[int], pv.Prior]] = {
    "StandardNormal": pv.StandardNormal,
    "Normal": priors.Normal,
    "Laplace": priors.Laplace,
    "StudentT": lambda dim: pv.StudentT(dim, df=4.0),
    "GaussianMixture": lambda dim: pv.GaussianMixture(dim, components=3),
    "FlowPrior": lambda dim: pv.FlowPrior(dim, transforms=2, hidden=(16,)),
    "FlowPrior, NSF": lambda dim: pv.FlowPrior(dim, flow="NSF", transforms=1, hidden=(16,)),
    "FlowPrior, coupling": lambda dim: pv.FlowPrior(max(dim, 2), flow="coupling", hidden=(16,)),
    "VampPrior": lambda dim: vamp(POSTERIORS["DiagonalNormal"](dim), dim),
    "VampPrior, flow": lambda dim: vamp(POSTERIORS["FlowPosterior"](dim), dim),
}

LIKELIHOODS: dict[str, Callable[[], pv.Likelihood]] = {
    "Bernoulli": pv.Bernoulli,
    "ContinuousBernoulli": pv.ContinuousBernoulli,
    "Normal": lambda: likelihoods.Normal(0.3),
    "Normal, scalar": lambda: likelihoods.Normal(0.3, learned="scalar"),
    "Normal, pixel": lambda: likelihoods.Normal(0.3, learned="pixel"),
    "Laplace": lambda: likelihoods.Laplace(0.3),
    "Laplace, pixel": lambda: likelihoods.Laplace(0.3, learned="pixel"),
    "Beta": pv.Beta,
    "Binomial": pv.Binomial,
    "Categorical": pv.Categorical,
    "DiscretizedLogistic": pv.DiscretizedLogistic,
    "DiscretizedLogistic, 3": lambda: pv.DiscretizedLogistic(components=3),
}

FAMILIES = {pv.Prior: PRIORS, pv.Posterior: POSTERIORS, pv.Likelihood: LIKELIHOODS}


def own(base: type) -> set[str]:
    """Names of the package's own concrete subclasses, at any depth."""
    modules = {cls.__name__: cls.__module__ for cls in concrete(base)}
    return {name for name, home in modules.items() if home.startswith("pyro_vae.") and home != "pyro_vae.testing"}


def concrete(base: type) -> list[type]:
    """The subclasses of a class, at any depth, that can be instantiated."""
    children: list[type] = base.__subclasses__()
    found = [cls for child in children for cls in (child, *concrete(child))]
    return [cls for cls in found if not getattr(cls, "__abstractmethods__", ())]
