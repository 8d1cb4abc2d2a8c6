"""Quadrature against exact values."""

import math

import pytest
import torch
from families import SHAPE, make_conditional, make_oracle
from folded import SCALE, X, folded
from scipy.integrate import quad
from torch.distributions import Normal

import pyro_vae as pv
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.check import check_log_likelihood
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.evaluation.quadrature import exact_draws, quadrature_log_likelihood


def exact(x):
    """The dimensions are independent: one integral each."""

    def density(value):
        return quad(
            lambda z: math.exp(
                Normal(0.0, 1.0).log_prob(torch.tensor(z)) + Normal(z * z, SCALE).log_prob(value)
            ),
            0,
            8,
        )

    return torch.tensor(
        [sum(math.log(2 * density(value)[0]) for value in row) for row in x.flatten(1)]
    )


@pytest.mark.parametrize(
    ("scale", "dtype"), [(0.5, torch.float64), (0.02, torch.float64), (0.5, torch.float32)]
)
def test_quadrature_of_a_linear_gaussian(scale, dtype):
    """With wide and narrow posteriors; the guide is random."""
    vae = make_oracle(shape=(1, 2, 3), scale=scale).to(dtype).eval()
    x = vae.sample(4)
    found = quadrature_log_likelihood(vae, x)
    torch.testing.assert_close(found, vae.log_p(x).double().detach(), atol=2e-3, rtol=0)


def test_quadrature_of_an_outlier():
    """Its posterior lies where the prior has no draws."""
    vae = make_oracle(shape=(1, 2, 3)).eval()
    z = torch.tensor([[7.0, -8.0]]).double()
    x = vae.decode(z).mean
    torch.testing.assert_close(
        quadrature_log_likelihood(vae, x), vae.log_p(x).detach(), atol=2e-3, rtol=0
    )


def test_quadrature_of_four_modes():
    vae = folded(2)
    torch.testing.assert_close(
        quadrature_log_likelihood(vae, X), exact(X).double(), atol=2e-3, rtol=0
    )


@pytest.mark.parametrize(
    "prior", [pv.StudentT, pv.GaussianMixture, lambda dim: pv.FlowPrior(dim, transforms=1)]
)
def test_quadrature_with_any_prior(prior):
    vae, x = make_oracle(shape=(1, 2, 3), exact=True).float().eval(), torch.randn(3, 1, 2, 3)
    vae.prior = prior(2)
    vae.encoder.layers[1].bias.data[[2, 5]] += 0.3
    with torch.no_grad():
        expected = pv.log_likelihood(
            pv.log_weights(vae.model, vae.guide, x, num_samples=50_000).double()
        )
    torch.testing.assert_close(quadrature_log_likelihood(vae, x), expected, atol=0.05, rtol=0)


def test_quadrature_that_does_not_converge_is_nan():
    """The posterior is the prior, with tails too heavy for any box; the check uses annealing."""
    vae, x = make_oracle(shape=(1, 1, 2)).float().eval(), torch.zeros(2, 1, 1, 2)
    vae.prior = pv.StudentT(2, df=0.3)
    vae.decoder.layers[1].weight.data.zero_()
    assert quadrature_log_likelihood(vae, x).isnan().all()
    assert (
        check_log_likelihood(vae, x, score_images(vae, x, 30), num_temperatures=5)["method"]
        == "ais"
    )


def test_quadrature_leaves_the_random_state_alone():
    before = torch.random.get_rng_state()
    quadrature_log_likelihood(folded(2), X[:1])
    assert torch.equal(before, torch.random.get_rng_state())


def test_quadrature_is_for_two_dimensions(vae, x):
    with pytest.raises(pv.RequestError, match="latent_dim=2"):
        quadrature_log_likelihood(vae, x)


def test_quadrature_and_importance_sampling_given_labels():
    """Both against a sum over a dense grid of codes."""
    vae, y = make_conditional(), torch.tensor([0, 1, 2, 2, 1, 0, 1])
    x = torch.rand(7, *SHAPE).round()
    side = torch.linspace(-6, 6, 150)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        joint = torch.stack(
            [
                vae.decode(z, label.expand(len(z))).log_prob(image)
                for image, label in zip(x, y, strict=True)
            ]
        )
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    exact = (joint + prior).double().logsumexp(1) + 2 * (side[1] - side[0]).log()
    assert pv.quadrature_log_likelihood(vae, Batch(x, y)) == pytest.approx(exact, abs=0.002)
    scores = score_images(vae, pv.Split(x, y), num_samples=4000)
    assert ((scores.log_likelihood - exact).abs() < 5 * scores.monte_carlo_error + 1e-3).all()


def test_draws_of_the_exact_posterior_have_its_moments():
    vae = make_oracle(shape=(1, 2, 3)).float()
    x = torch.randn(2, 1, 2, 3)
    drawn = exact_draws(vae, x, 2000)
    posterior = vae.exact_posterior(x)
    assert drawn.shape == (2000, 2, 2)
    torch.testing.assert_close(drawn.mean(0), posterior.mean.detach(), atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.var(0), posterior.variance.detach(), atol=0.1, rtol=0.2)
