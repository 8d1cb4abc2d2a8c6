"""A constructor for every public concrete class, by name, and small models.

A class without an entry fails `test_families`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from inspect import isabstract
from typing import Any

import numpy as np
import pyro
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae import likelihoods, networks, priors, schedules, testing
from pyro_vae.testing import LinearGaussianVAE

SHAPE = (1, 4, 4)


def encoder(posterior: pv.Posterior, latent_dim: int, shape: networks.Shape = SHAPE) -> pv.MLP:
    return pv.MLP(shape, (posterior.num_params, latent_dim), hidden=(8,))


POSTERIORS: dict[str, Callable[[int], pv.Posterior]] = {
    "DiagonalNormal": lambda dim: pv.DiagonalNormal(),
    "LowRankNormal": lambda dim: pv.LowRankNormal(dim),
    "LowRankNormal, full": lambda dim: pv.LowRankNormal(dim, rank=dim),
    "FullRankNormal": lambda dim: pv.FullRankNormal(dim),
    "FlowPosterior": lambda dim: pv.FlowPosterior(dim, hidden=(16,)),
    "FlowPosterior, coupling": lambda dim: pv.FlowPosterior(
        dim, transforms=1, hidden=(16,), flow="coupling"
    ),
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
    "VampPrior": lambda dim: make_vamp_prior("DiagonalNormal", dim),
    "VampPrior, flow": lambda dim: make_vamp_prior("FlowPosterior", dim),
}

LIKELIHOODS: dict[str, Callable[[], pv.Likelihood]] = {
    "Bernoulli": pv.Bernoulli,
    "ContinuousBernoulli": pv.ContinuousBernoulli,
    "Normal": lambda: likelihoods.Normal(0.3),
    "Normal, scalar": lambda: likelihoods.Normal(0.3, learned="scalar"),
    "Normal, pixel": lambda: likelihoods.Normal(0.3, learned="pixel"),
    "Laplace": lambda: likelihoods.Laplace(0.3),
    "Laplace, pixel": lambda: likelihoods.Laplace(0.3, learned="pixel"),
    "Normal, column": lambda: likelihoods.Normal(0.3, learned="column", kind="real"),
    "StudentT": likelihoods.StudentT,
    "Beta": pv.Beta,
    "Binomial": pv.Binomial,
    "Poisson": pv.Poisson,
    "NegativeBinomial": pv.NegativeBinomial,
    "NegativeBinomial, decoder": lambda: pv.NegativeBinomial("decoder", given_total=True),
    "ZeroInflatedNegativeBinomial": pv.ZeroInflatedNegativeBinomial,
    "Categorical": pv.Categorical,
    "DiscretizedLogistic": pv.DiscretizedLogistic,
    "DiscretizedLogistic, 3": lambda: pv.DiscretizedLogistic(components=3),
}

NETWORKS: dict[str, Callable[[networks.Shape, networks.Shape], pv.Network]] = {
    "MLP": pv.MLP,
    "Linear": networks.Linear,
    "Gated": pv.Gated,
    "Conv": pv.Conv,
}

SCHEDULES: dict[str, Callable[[], pv.Schedule]] = {
    "Constant": pv.Constant,
    "Linear": schedules.Linear,
    "Cosine": pv.Cosine,
    "Sigmoid": pv.Sigmoid,
    "Cyclical": pv.Cyclical,
}

OBJECTIVES: dict[str, Callable[..., pv.TensorELBO]] = {
    "ImportanceWeightedELBO": pv.ImportanceWeightedELBO,
    "DReGELBO": pv.DReGELBO,
    "StickingTheLandingELBO": pv.StickingTheLandingELBO,
    "FreeBitsELBO": pv.FreeBitsELBO,
    "CapacityELBO": lambda **options: pv.CapacityELBO(capacity=pv.Constant(3.0), **options),
}

FAMILIES = {
    pv.Prior: PRIORS,
    pv.Posterior: POSTERIORS,
    pv.Likelihood: LIKELIHOODS,
    pv.Network: NETWORKS,
    pv.Schedule: SCHEDULES,
    pv.TensorELBO: OBJECTIVES,
}


def make_vamp_prior(posterior: str, latent_dim: int, **options: Any) -> pv.VampPrior:
    q = POSTERIORS[posterior](latent_dim)
    return pv.VampPrior(encoder(q, latent_dim), q, SHAPE, **{"components": 4, **options})


def make_vae(
    prior: str = "StandardNormal",
    posterior: str = "DiagonalNormal",
    likelihood: str = "Bernoulli",
    latent_dim: int = 2,
    shape: networks.Shape = SHAPE,
) -> pv.VAE:
    """A small VAE of the named parts; a VampPrior shares the encoder and the posterior."""
    q, p_x = POSTERIORS[posterior](latent_dim), LIKELIHOODS[likelihood]()
    down, up = (
        encoder(q, latent_dim, shape),
        pv.MLP((latent_dim,), (p_x.num_params, *shape), hidden=(8,)),
    )
    shared = prior.startswith("VampPrior")
    p_z = pv.VampPrior(down, q, shape, components=3) if shared else PRIORS[prior](latent_dim)
    return pv.VAE(p_z, down, q, up, p_x)


def make_hierarchical(
    latent_dim: int = 3, prior_dim: int = 2, shape: networks.Shape = SHAPE
) -> pv.HierarchicalVAE:
    return pv.HierarchicalVAE(
        pv.StandardNormal(prior_dim),
        pv.MLP(shape, (2, latent_dim), hidden=(8,)),
        pv.DiagonalNormal(),
        pv.MLP((latent_dim,), (1, *shape), hidden=(8,)),
        pv.Bernoulli(),
        latent_dim=latent_dim,
        prior_dim=prior_dim,
        hidden=(4,),
    )


def make_oracle(
    latent_dim: int = 2, exact: bool = False, shape: networks.Shape = (1, 1, 3), scale: float = 0.5
) -> LinearGaussianVAE:
    """A linear-Gaussian VAE in float64, always the same; its guide is random or exact."""
    pyro.set_rng_seed(1)
    vae = LinearGaussianVAE(shape, latent_dim, scale).double()
    if exact:
        vae.make_guide_exact()
    return vae


def make_conditional(
    label_dim: int = 3,
    prior: str = "StandardNormal",
    posterior: str = "DiagonalNormal",
    likelihood: str = "Bernoulli",
    network: str = "MLP",
    latent_dim: int = 2,
) -> pv.ConditionalVAE:
    """A small conditional VAE of the named parts whose labels matter."""
    q, p_x, make = POSTERIORS[posterior](latent_dim), LIKELIHOODS[likelihood](), NETWORKS[network]
    down = make(SHAPE, (q.num_params, latent_dim))
    up = make((latent_dim + label_dim,), (p_x.num_params, *SHAPE))
    p_z = PRIORS[prior](latent_dim)
    vae = pv.ConditionalVAE(p_z, down, q, up, p_x, data_shape=SHAPE, label_dim=label_dim)
    torch.nn.init.normal_(vae.embedding)
    return vae


def make_conditional_oracle(label_dim: int) -> tuple[pv.ConditionalVAE, LinearGaussianVAE]:
    """A linear-Gaussian conditional VAE with the exact guide, and that without labels, float64."""
    plain = LinearGaussianVAE(SHAPE, 2).double()
    plain.make_guide_exact()
    decoder = networks.Linear((2 + label_dim,), (1, *SHAPE)).double()
    weight, bias = decoder.parameters()
    weight.data[:, :2], bias.data = (param.data for param in plain.decoder.parameters())
    vae = pv.ConditionalVAE(
        plain.prior, plain.encoder, plain.posterior, decoder, plain.likelihood, SHAPE, label_dim
    ).double()
    vae.embedding.data = -weight.data[:, 2:].T.unflatten(1, SHAPE)
    return vae, plain


def make_semi_supervised(
    label_dim: int = 3,
    prior: str = "StandardNormal",
    posterior: str = "DiagonalNormal",
    likelihood: str = "Bernoulli",
    network: str = "MLP",
    alpha: float = 0.1,
) -> pv.SemiSupervisedVAE:
    """A small model that infers labels, of the named parts; labels matter."""
    vae = make_conditional(label_dim, prior, posterior, likelihood, network)
    parts = vae.prior, vae.encoder, vae.posterior, vae.decoder, vae.likelihood
    classifier = NETWORKS[network](SHAPE, (label_dim,))
    inferring = pv.SemiSupervisedVAE(*parts, classifier, SHAPE, label_dim, alpha)
    inferring.embedding = vae.embedding
    return inferring


def make_semi_supervised_oracle(
    label_dim: int, alpha: float = 0.1
) -> tuple[pv.SemiSupervisedVAE, Callable[[torch.Tensor], torch.Tensor]]:
    """A linear-Gaussian model that infers labels, with the exact q(z | x, y), and log p(x, y).

    The classifier is random; log p(x, y) has the shape `(label_dim, N)`.
    """
    given, plain = make_conditional_oracle(label_dim)
    parts = given.prior, given.encoder, given.posterior, given.decoder, given.likelihood
    classifier = networks.Linear(SHAPE, (label_dim,))
    vae = pv.SemiSupervisedVAE(*parts, classifier, SHAPE, label_dim, alpha).double()
    vae.embedding = given.embedding
    vae.log_p_y.copy_(torch.randn(label_dim).double().log_softmax(0))

    def log_joint(x: torch.Tensor) -> torch.Tensor:
        return (
            torch.stack([plain.log_p(x + shift) for shift in vae.embedding]) + vae.log_p_y[:, None]
        )

    return vae, log_joint


def own(base: type) -> set[str]:
    """Names of the package's own concrete subclasses, at any depth, without those of tests."""
    return {cls.__name__ for cls in subclasses(base) if is_public(cls) and not isabstract(cls)}


def subclasses(base: type) -> list[type]:
    children: list[type] = base.__subclasses__()
    return [cls for child in children for cls in (child, *subclasses(child))]


def is_public(cls: type) -> bool:
    """Whether a class is an attribute of one of the package's modules."""
    home = cls.__module__
    return (
        home.startswith("pyro_vae.")
        and home != testing.__name__
        and vars(sys.modules[home]).get(cls.__name__) is cls
    )


def build(data, seed=0, **parts):
    """A small VAE, always with the same parameters, with some of its parts replaced."""
    pyro.set_rng_seed(seed)
    vae = make_vae(latent_dim=3, shape=data.shape)
    for name, part in parts.items():
        setattr(vae, name, part)
    return vae


class Normalized(nn.Module):
    """Flat features with batch normalization and dropout, from one shape to another."""

    def __init__(self, shape, outputs):
        super().__init__()
        sizes = int(np.prod(shape)), int(np.prod(outputs))
        norm = nn.BatchNorm1d(sizes[0])
        self.layers = nn.Sequential(
            nn.Flatten(), norm, nn.Dropout(0.2), nn.Linear(*sizes), nn.Unflatten(1, outputs)
        )

    def forward(self, x):
        return self.layers(x)
