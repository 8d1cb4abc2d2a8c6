"""Diagnostics, each against an exact value."""

import math

import numpy as np
import pyro
import pytest
import torch
from families import make_conditional_oracle, make_hierarchical, make_oracle, make_vae
from pyro.infer import TraceMeanField_ELBO
from pyro_vae.evaluation.diagnostics import inference_gap, information, linear_probe
from statistics_ import assert_likely
from torch import nn
from torch.distributions import Normal
from torch.optim import Adam

import pyro_vae as pv
from pyro_vae.networks import Linear
from pyro_vae.testing import probabilistic_pca


class Fixed(nn.Module):
    """An encoder that looks up the parameters of an image; its first pixel is the index."""

    def __init__(self, params):
        super().__init__()
        self.params = nn.Parameter(params)

    def forward(self, x):
        return self.params[x.flatten(1)[:, 0].long()]


def known_posteriors():
    """A VAE with three one-dimensional posteriors that overlap, and their parameters."""
    params = torch.tensor([[[-1.0], [-0.5]], [[0.5], [-1.0]], [[0.8], [0.0]]])
    return fixed(params), params


def fixed(params):
    decoder, likelihood = Linear((1,), (1, 1, 1, 2)), pv.likelihoods.Normal()
    return pv.VAE(pv.StandardNormal(1), Fixed(params), pv.DiagonalNormal(), decoder, likelihood)


def test_information_by_quadrature():
    """Three posteriors, each seen a thousand times, so that the error is small."""
    vae, params = known_posteriors()
    z = torch.linspace(-12, 12, 20_001).double()
    width = z[1] - z[0]
    densities = torch.stack(
        [Normal(m.double(), s.double().exp()).log_prob(z) for m, s in params.squeeze(-1)]
    )
    aggregate = densities.logsumexp(0) - math.log(3)
    shared = (densities.exp() * (densities - aggregate)).sum(1).mul(width).mean()
    marginal = (aggregate.exp() * (aggregate - Normal(0.0, 1.0).log_prob(z))).sum() * width
    x = torch.zeros(3000, 1, 1, 2)
    x[:, 0, 0, 0] = torch.arange(3000) % 3
    found = information(vae, x, num_images=3000)
    assert found.num_images == 3000
    assert_likely(
        (torch.tensor(found.mutual_information) - shared) / found.mutual_information_error
    )
    assert_likely((torch.tensor(found.marginal_kl) - marginal) / found.marginal_kl_error)
    assert found.mutual_information_error < 0.02
    assert found.mutual_information < math.log(3)


def test_the_ceiling_of_mutual_information():
    """It is log N for N posteriors that do not overlap."""
    params = torch.stack([100.0 * torch.arange(8.0), torch.full((8,), -3.0)], 1)[..., None]
    vae = fixed(params)
    x = torch.zeros(8, 1, 1, 2)
    x[:, 0, 0, 0] = torch.arange(8)
    assert information(vae, x).mutual_information == pytest.approx(math.log(8), abs=1e-4)


@pytest.mark.parametrize("posterior", ["FlowPosterior", "FullRankNormal"])
def test_information_of_any_posterior(digits, posterior):
    found = information(
        make_vae(posterior=posterior, shape=digits.shape),
        digits.test.scored("binary"),
        num_images=50,
    )
    assert -0.5 < found.mutual_information <= math.log(50)


def probed(noise):
    """Codes that are a one-hot of the label, with noise."""
    labels = torch.arange(200) % 4
    images = torch.zeros(200, 1, 2, 2)
    images.flatten(1)[torch.arange(200), labels] = 1.0

    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.param = nn.Parameter(torch.zeros(()))

        def forward(self, x):
            loc = x.flatten(1) + noise * torch.randn(len(x), 4)
            return torch.stack([loc, torch.zeros_like(loc)], 1)

    vae = pv.VAE(
        pv.StandardNormal(4),
        Encoder(),
        pv.DiagonalNormal(),
        pv.MLP((4,), (1, 1, 2, 2)),
        pv.Bernoulli(relaxed=True),
    )
    return linear_probe(vae, pv.Split(images, labels), pv.Split(images, labels))


def test_a_linear_probe():
    assert probed(0.0).accuracy == 1.0
    lost = probed(50.0)
    assert 0.1 < lost.accuracy < 0.5
    assert lost.standard_error == pytest.approx((lost.accuracy * (1 - lost.accuracy) / 200) ** 0.5)


def test_a_probe_without_labels(vae, x):
    with pytest.raises(pv.RequestError, match="needs labels"):
        linear_probe(vae, pv.Split(x), pv.Split(x))


def test_the_gap_of_amortization_alone():
    """The family contains the exact posterior, so the whole gap is the encoder's."""
    vae, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(6, 1, 2, 3)
    gap = inference_gap(vae, x, num_samples=4000, steps=800)
    assert gap.approximation.abs().max() < 0.05
    exact = (vae.log_p(x) - vae.elbo(x)).detach().double()
    torch.testing.assert_close(gap.amortization, exact, rtol=0.1, atol=0.1)
    torch.testing.assert_close(
        gap.log_likelihood, vae.log_p(x).detach().double(), atol=0.05, rtol=0
    )


def test_the_gap_of_approximation_in_closed_form():
    """The best diagonal Gaussian for a Gaussian posterior of precision L is off by (sum log L_ii - log det L) / 2.

    As a proposal it has weights of finite variance as long as the correlation in L is below 1 / 2.
    """
    exact, x = make_oracle(shape=(1, 2, 3)).float(), torch.randn(6, 1, 2, 3)
    exact.decoder.layers[1].weight.data = torch.eye(6, 2) @ torch.tensor([[1.0, 0.5], [0.0, 0.8]])
    vae = pv.VAE(
        exact.prior, Linear((1, 2, 3), (2, 2)), pv.DiagonalNormal(), exact.decoder, exact.likelihood
    )
    precision = exact.exact_posterior(x).precision_matrix[0]
    expected = 0.5 * (precision.diagonal().log().sum() - precision.logdet()).item()
    gap = inference_gap(vae, x, num_samples=4000, steps=1500, learning_rate=0.01)
    assert expected > 0.05
    assert gap.approximation.mean().item() == pytest.approx(expected, abs=0.03)
    assert (gap.amortization > 0).all()


def test_the_gap_does_not_change_the_model(vae, x):
    before = {name: value.clone() for name, value in vae.state_dict().items()}
    q = vae.eval().encode(x).mean
    inference_gap(vae, x, num_samples=10, steps=5)
    assert torch.equal(vae.encode(x).mean, q)
    assert all(torch.equal(before[name], value) for name, value in vae.state_dict().items())
    assert all(param.grad is None for param in vae.parameters())


def test_the_gap_where_the_prior_shares_the_encoder(x):
    """The prior keeps its encoder while the guide's posterior is optimized."""
    gap = inference_gap(make_vae("VampPrior"), x, num_samples=500, steps=200)
    assert gap.amortization.mean() > -0.05
    assert gap.log_likelihood.isfinite().all()


def test_the_gap_of_a_hierarchical_vae(x):
    """The parameters of q(z | x) are optimized; the guide's second layer is not, and is still used."""
    vae = make_hierarchical()
    gap = inference_gap(vae, x, num_samples=10_000)
    assert gap.amortization.mean() > 0
    with torch.no_grad():
        expected = pv.log_likelihood(pv.log_weights(vae.model, vae.guide, x, num_samples=20_000))
    assert gap.log_likelihood.mean().item() == pytest.approx(expected.mean().item(), abs=0.15)


def test_the_gap_needs_reparameterized_draws(x):
    class Poisson(pv.Posterior):
        num_params = 1

        def forward(self, params):
            return pyro.distributions.Poisson(params[..., 0, :].exp()).to_event(1)

    encoder, decoder = pv.MLP((1, 4, 4), (1, 2)), pv.MLP((2,), (1, 1, 4, 4))
    vae = pv.VAE(pv.StandardNormal(2), encoder, Poisson(), decoder, pv.Bernoulli())
    with pytest.raises(pv.RequestError, match="reparameterized"):
        inference_gap(vae, x)


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_a_linear_vae_reaches_probabilistic_pca(digits, latent_dim):
    """Dequantized pixels; the covariance has the variance of their noise, 1 / 12 of a level squared.

    The closed form bounds the ELBO from above. Training comes within 0.5 nats of it, and within 2 % of its noise scale.
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


def test_the_errors_of_one_image_are_none(vae, x):
    found = information(vae, x[:1])
    assert found.mutual_information_error is found.marginal_kl_error is None


def test_the_gap_does_not_depend_on_the_batch_size(vae, x):
    """Up to Monte Carlo noise."""
    whole, parts = (
        inference_gap(vae, x, num_samples=300, steps=100, batch_size=size) for size in (None, 30)
    )
    assert whole.elbo.shape == parts.elbo.shape == (len(x),)
    torch.testing.assert_close(whole.local_elbo, parts.local_elbo, atol=0.3, rtol=0)


def test_the_bayes_classifier_finds_the_label_of_the_largest_density():
    """Against the exact densities of a linear-Gaussian model."""
    vae, plain = make_conditional_oracle(3)
    y = torch.randint(3, (500,))
    x = vae.sample(len(y), y)
    with torch.no_grad():
        exact = torch.stack([plain.log_p(x + shift) for shift in vae.embedding]).argmax(0)
    split = pv.Split(torch.zeros(x.shape), y).with_x(x)  # real numbers, not pixels
    found = pv.bayes_classifier(vae, split, 3, num_samples=1)
    assert found.accuracy == pytest.approx((exact == y).double().mean().item())
    assert 0.4 < found.accuracy < 1
