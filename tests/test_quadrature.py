"""Quadrature against exact values, and the check of importance sampling by a second method."""

import math

import pytest
import torch
from families import SHAPE, make_conditional, make_oracle
from pyro_vae.evaluation.diagnostics import check_log_likelihood
from scipy.integrate import quad
from torch import nn
from torch.distributions import Normal

import pyro_vae as pv
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood

SCALE = 0.2


class Square(nn.Module):
    """A decoder that ignores the sign of the code: with d dimensions the posterior has 2^d modes."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.ones(()))

    def forward(self, z):
        return (self.factor * z.square()).reshape(len(z), 1, 1, 1, -1)


class Root(nn.Module):
    """An encoder that finds the mode where all codes are positive, with the right width."""

    def forward(self, x):
        loc = x.flatten(1).clamp(min=0.1).sqrt()
        return torch.stack([loc, (1.2 * SCALE / (2 * loc)).log()], 1)


def folded(dim):
    return pv.VAE(
        pv.StandardNormal(dim), Root(), pv.DiagonalNormal(), Square(), pv.likelihoods.Normal(SCALE)
    ).eval()


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


X = torch.tensor([[0.5, 1.0], [2.0, 0.7], [1.5, 4.0]]).reshape(3, 1, 1, 2)


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
    """The posterior is the prior, whose tails are too heavy for any box; the check uses annealing."""
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


@pytest.mark.parametrize(("dim", "method"), [(2, "quadrature"), (3, "ais")])
def test_a_missed_mode_is_found(dim, method):
    """Importance sampling misses all but one of the modes, with a small error and a small k-hat."""
    vae = folded(dim)
    x = 1 + 2 * torch.rand(12, 1, 1, dim)
    scores = score_images(vae, x, 2000)
    assert (scores.pareto_k < 0.7).all()
    assert scores.monte_carlo_error.max() < 0.1
    found = check_log_likelihood(vae, x, scores, num_images=8)
    assert found["method"] == method
    assert found["num_images"] == 8
    assert found["disagree"]
    assert found["difference"] == pytest.approx(dim * math.log(2), abs=0.02 if dim == 2 else 0.6)
    assert found["max_difference"] >= found["difference"]


@pytest.mark.parametrize("dim", [2, 3])
def test_a_good_guide_passes(dim):
    vae, x = make_oracle(dim, exact=True, shape=(1, 1, 4)).float().eval(), torch.randn(9, 1, 1, 4)
    vae.encoder.layers[1].bias.data[dim :: dim + 1] += 0.2
    found = check_log_likelihood(vae, x, score_images(vae, x, 2000), num_temperatures=50)
    assert not found["disagree"]
    assert abs(found["difference"]) < 0.2
    assert found["num_images"] == 9


@pytest.mark.parametrize(
    ("missing", "error", "disagree"),
    [
        (
            [0.0, 0.0, 1.0],
            [0.5, 0.5, 0.01],
            True,
        ),  # one image, although it adds less to the mean than the mean's error
        ([0.3, 0.3, 0.3], [0.1, 0.1, 0.1], True),  # only the mean is significant
        ([0.0, 0.0, -1.0], [0.5, 0.5, 0.01], False),  # a lower second estimate tells nothing
        ([0.05, 0.05, 0.05], [1e-4, 1e-4, 1e-4], False),  # significant, but of no consequence
        ([0.3, 0.3, 0.3], [0.5, 0.5, 0.5], False),
    ],
)
def test_what_counts_as_disagreement(missing, error, disagree):
    vae = folded(2)
    scores = score_images(vae, X, 30)._replace(monte_carlo_error=torch.tensor(error).double())
    scores = scores._replace(
        log_likelihood=quadrature_log_likelihood(vae, X) - torch.tensor(missing)
    )
    found = check_log_likelihood(vae, X, scores)
    assert found["disagree"] == disagree
    assert found["difference"] == pytest.approx(sum(missing) / 3, abs=1e-5)
    assert found["standard_error"] == pytest.approx(math.hypot(*error) / 3)


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
