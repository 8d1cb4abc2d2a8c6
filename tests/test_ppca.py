"""Training against the closed form of probabilistic PCA."""

import numpy as np
import pytest
import torch
from pyro.infer import TraceMeanField_ELBO
from torch.optim import Adam

import pyro_vae as pv
from pyro_vae.networks import Linear
from pyro_vae.testing import probabilistic_pca


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_a_linear_vae_reaches_probabilistic_pca(digits, latent_dim):
    """Dequantized pixels; their covariance includes the noise, 1 / 12 of a level squared.

    The closed form bounds the ELBO from above. Training comes within 0.5 nats of it, and within 2 %
    of its noise scale.
    """
    encoder, decoder = (
        Linear(digits.shape, (2, latent_dim)),
        Linear((latent_dim,), (1, *digits.shape)),
    )
    likelihood = pv.likelihoods.Normal(0.3, learned="scalar")
    vae = pv.VAE(pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, likelihood)
    data = pv.Data("digits", digits.train, digits.validation[:10], digits.test)
    options = {
        "epochs": 300,
        "batch_size": len(digits.train),
        "engine": "traced",
        "objective": TraceMeanField_ELBO(),
    }
    *_, last = pv.fit(vae, data, optimizer=lambda params: Adam(params, lr=0.05), **options)
    pixels = digits.train.x.flatten(1).double() / 256
    covariance = torch.cov(pixels.T, correction=0) + torch.eye(64) / 12 / 256**2
    exact = probabilistic_pca(covariance, latent_dim)
    assert exact.log_likelihood - 0.5 < -last["loss"] < exact.log_likelihood + 0.1
    assert 0.3 * vae.likelihood.log_factor.exp().item() == pytest.approx(exact.scale, rel=0.02)


def test_probabilistic_pca_against_its_own_density():
    """The closed form is the density's value at its own maximum, and no worse than near it."""
    generator = np.random.default_rng(0)
    x = torch.from_numpy(generator.normal(size=(500, 6)) @ generator.normal(size=(6, 6)))
    covariance = torch.cov(x.T, correction=0)
    found = probabilistic_pca(covariance, 2)
    values, vectors = torch.linalg.eigh(covariance)
    weight = vectors[:, -2:] * (values[-2:] - found.scale**2).sqrt()

    def mean_density(factor, scale):
        c = factor**2 * weight @ weight.T + scale**2 * torch.eye(6)
        return torch.distributions.MultivariateNormal(x.mean(0), c).log_prob(x).mean().item()

    assert mean_density(1.0, found.scale) == pytest.approx(found.log_likelihood)
    assert all(
        mean_density(*at) < found.log_likelihood
        for at in [(1.02, found.scale), (1.0, 1.02 * found.scale)]
    )
