"""Annealed importance sampling against exact values."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import make_hierarchical, make_oracle
from folded import folded
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.evaluation.ais import annealed_log_weights, bidirectional_bounds


def oracle():
    return make_oracle(shape=(1, 2, 3)).float().eval()


def assert_unbiased(log_weights, exact):
    """The mean of the weights is p(x) for each row."""
    ratios = (log_weights - exact.detach()).exp()
    assert_mean(ratios, 1.0)
    assert (ratios.std(0) / len(ratios) ** 0.5).max() < 0.2


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_against_the_exact_log_likelihood(engine):
    vae, x = oracle(), torch.randn(5, 1, 2, 3)
    weights = annealed_log_weights(vae.model, x, num_chains=500, num_temperatures=25, engine=engine)
    assert weights.shape == (500, 5)
    assert_unbiased(weights, vae.log_p(x))


def test_one_temperature_is_importance_sampling_from_the_prior():
    vae, x = oracle(), 0.3 * torch.randn(3, 1, 2, 3)
    weights = annealed_log_weights(vae.model, x, num_chains=5000, num_temperatures=1)
    assert_mean((weights - vae.log_p(x).detach()).exp(), 1.0)


def test_batches_give_the_same_estimate():
    vae, x = oracle(), torch.randn(5, 1, 2, 3)
    rows = []
    vae.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    options = {"num_chains": 100, "num_temperatures": 15, "engine": "eager"}
    assert_unbiased(annealed_log_weights(vae.model, x, batch_size=300, **options), vae.log_p(x))
    assert max(rows) == 300


def test_from_a_guide_the_weights_are_unbiased():
    """Far from exact, and in any number of sites; one temperature is importance sampling."""
    vae, x = oracle(), torch.randn(5, 1, 2, 3)
    for num_chains, num_temperatures in ((200, 10), (5000, 1)):
        weights = annealed_log_weights(
            vae.model,
            0.5 * x,
            guide=vae.guide,
            num_chains=num_chains,
            num_temperatures=num_temperatures,
        )
        assert_mean((weights - vae.log_p(0.5 * x).detach()).exp(), 1.0)


def test_from_an_exact_guide_there_is_less_variance():
    """The weights are at most those of the exact guide alone, divided by its share of 0.9."""
    vae, x = make_oracle(8, exact=True, shape=(1, 3, 4)).float().eval(), torch.randn(4, 1, 3, 4)
    options = {"num_chains": 40, "num_temperatures": 5}
    prior = annealed_log_weights(vae.model, x, **options)
    guide = annealed_log_weights(vae.model, x, guide=vae.guide, **options)
    errors = pv.monte_carlo_error(guide), pv.monte_carlo_error(prior)
    assert errors[0].max() < 0.1 < errors[1].min()
    assert (guide.exp() / vae.log_p(x).exp()).max() < 1 / 0.9 + 0.01


def test_a_mode_that_the_guide_misses_is_reached():
    """The guide knows one of two modes; from it alone log p(x) would be too low by log 2."""
    vae, x = folded(1), torch.tensor([0.5, 2.0, 1.5]).reshape(3, 1, 1, 1)
    z = torch.linspace(-6, 6, 20_001)[:, None]
    joint = vae.prior().log_prob(z)[:, None] + vae.decode(z[:, None]).log_prob(x)
    exact = joint.logsumexp(0).detach() + math.log(12 / 20_000)
    weights = annealed_log_weights(
        vae.model, x, guide=vae.guide, num_chains=2000, num_temperatures=20
    )
    torch.testing.assert_close(pv.log_likelihood(weights).float(), exact, atol=0.15, rtol=0)


def test_labels_reach_the_model():
    """The label is the mean of the image."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + y, 1.0), obs=x)

    x, y = torch.tensor([0.3, 2.0, -1.0]), torch.tensor([0.0, 2.0, 1.0])
    weights = annealed_log_weights(model, x, y, num_chains=300, num_temperatures=10, batch_size=600)
    assert_unbiased(weights, dist.Normal(y, 2**0.5).log_prob(x))
    simulated, bounds = bidirectional_bounds(
        model, x, y, num_chains=200, num_temperatures=20, batch_size=400
    )
    exact = dist.Normal(y, 2**0.5).log_prob(simulated)
    torch.testing.assert_close(bounds.lower.float(), exact, atol=0.3, rtol=0)
    torch.testing.assert_close(bounds.upper.float(), exact, atol=0.3, rtol=0)


def test_more_temperatures_give_less_variance():
    vae, x = oracle(), torch.randn(4, 1, 2, 3)
    spread = [
        annealed_log_weights(vae.model, x, num_chains=50, num_temperatures=t).std(0).mean()
        for t in (4, 40)
    ]
    assert spread[1] < 0.5 * spread[0]


@pytest.mark.parametrize("start", ["prior", "guide"])
def test_bidirectional_bounds(start):
    """On simulated data, exp of the lower bound and of minus the upper bound are unbiased."""
    vae = oracle()
    guide = None
    if start == "guide":
        guide = vae.guide
    x, bounds = bidirectional_bounds(
        vae.model, torch.zeros(200, 1, 2, 3), guide=guide, num_chains=4, num_temperatures=20
    )
    exact = vae.log_p(x).detach()
    assert x.shape == (200, 1, 2, 3)
    for bound, sign in ((bounds.lower, 1), (bounds.upper, -1)):
        assert_mean((sign * (bound - exact)).exp(), 1.0)
    assert (bounds.lower - exact).mean() < 0 < (bounds.upper - exact).mean()
    assert (bounds.upper - bounds.lower).mean() < 1


def test_simulated_data_have_the_models_covariance():
    vae = oracle()
    x, _ = bidirectional_bounds(
        vae.model, torch.zeros(3000, 1, 2, 3), num_chains=1, num_temperatures=1
    )
    covariance = torch.cov(x.flatten(1).T)
    weight, _ = vae.decoder.parameters()
    expected = weight @ weight.T + 0.25 * torch.eye(6)
    torch.testing.assert_close(covariance, expected, atol=0.25 * expected.max().item(), rtol=0)


def test_two_latent_sites():
    """One drawn from the other; neither has an event dimension."""

    def hierarchy(x):
        with pyro.plate("data", len(x)):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(torch.stack([b, a], -1), 1.0).to_event(1), obs=x)

    x = torch.tensor([[0.3, -1.0], [2.0, 0.5], [-1.0, 3.0]])
    exact = dist.MultivariateNormal(
        torch.zeros(2), torch.tensor([[3.0, 1.0], [1.0, 2.0]])
    ).log_prob(x)
    assert_unbiased(annealed_log_weights(hierarchy, x, num_chains=500, num_temperatures=30), exact)


@pytest.mark.parametrize(
    "prior", [pv.GaussianMixture, pv.StudentT, lambda dim: pv.FlowPrior(dim, transforms=1)]
)
def test_any_real_prior(prior):
    """Annealing and importance sampling with a wide guide agree."""
    vae, x = make_oracle(shape=(1, 2, 3), exact=True).float().eval(), torch.randn(3, 1, 2, 3)
    vae.prior = prior(2)
    vae.encoder.layers[1].bias.data[[2, 5]] += 0.3
    with torch.no_grad():
        exact = pv.log_likelihood(pv.log_weights(vae.model, vae.guide, x, num_samples=20_000))
    weights = annealed_log_weights(vae.model, x, num_chains=500, num_temperatures=25)
    torch.testing.assert_close(pv.log_likelihood(weights).float(), exact, atol=0.3, rtol=0)


def test_a_hierarchical_vae():
    vae, x = make_hierarchical().eval(), torch.bernoulli(torch.full((3, 1, 4, 4), 0.4))
    with torch.no_grad():
        expected = pv.log_likelihood(pv.log_weights(vae.model, vae.guide, x, num_samples=20_000))
    weights = annealed_log_weights(vae.model, x, num_chains=200, num_temperatures=20)
    torch.testing.assert_close(pv.log_likelihood(weights).float(), expected, atol=0.3, rtol=0)


@pytest.mark.parametrize("options", [{"num_chains": 0}, {"num_temperatures": 0}])
def test_numbers_must_be_positive(options):
    with pytest.raises(pv.RequestError, match="must be positive"):
        annealed_log_weights(oracle().model, torch.zeros(2, 1, 2, 3), **options)


def without_codes(x):
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)


def two_observed(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Normal(z, 1.0), obs=x)


def test_a_model_without_latents_is_refused():
    with pytest.raises(pv.RequestError, match="no latent site"):
        annealed_log_weights(without_codes, torch.zeros(3))


def test_bidirectional_bounds_require_one_observed_site():
    with pytest.raises(pv.RequestError, match="one observed site"):
        bidirectional_bounds(two_observed, torch.zeros(3))
