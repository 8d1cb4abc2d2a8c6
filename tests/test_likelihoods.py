import itertools

import pytest
import torch
from scipy import integrate, stats

from pyro_vae import likelihoods
from pyro_vae.likelihoods import Bernoulli, Normal

LIKELIHOODS = {"Bernoulli": Bernoulli, "RelaxedBernoulli": lambda: Bernoulli(relaxed=True), "Normal": lambda: Normal(0.3)}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_shapes(name):
    likelihood = LIKELIHOODS[name]()
    p = likelihood(torch.randn(7, 5, likelihood.num_params, 2, 3, 4))
    assert (p.batch_shape, p.event_shape) == ((7, 5), (2, 3, 4))
    assert p.sample().shape == p.mean.shape == (7, 5, 2, 3, 4)


def test_bernoulli_against_scipy():
    params = torch.randn(1, 1, 2, 3).double()
    x = torch.bernoulli(torch.full((1, 2, 3), 0.5)).double()
    expected = stats.bernoulli.logpmf(x.numpy(), params[0].sigmoid().numpy()).sum()
    assert Bernoulli()(params).log_prob(x).item() == pytest.approx(expected, rel=1e-12)


def test_bernoulli_sums_to_one_over_all_images():
    p = Bernoulli()(torch.randn(1, 1, 2, 3).double())
    everything = torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double().reshape(-1, 1, 2, 3)
    assert p.log_prob(everything).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_is_finite_at_extreme_logits():
    params = torch.tensor([-1e4, 1e4, -1e4, 1e4]).reshape(1, 1, 2, 2).requires_grad_()
    log_prob = Bernoulli()(params).log_prob(torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 2, 2))
    log_prob.backward()
    assert log_prob.item() == pytest.approx(-2e4)
    assert params.grad.isfinite().all()


def test_bernoulli_refuses_grey_pixels():
    with pytest.raises(ValueError, match="within the support"):
        Bernoulli()(torch.zeros(1, 1, 2, 2)).log_prob(torch.full((1, 2, 2), 0.5))


def test_relaxed_bernoulli_is_the_cross_entropy_and_no_density():
    logit, x = torch.tensor(0.7), torch.rand(1, 2, 2)
    p = Bernoulli(relaxed=True)(logit.expand(1, 1, 2, 2))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(logit.expand(1, 2, 2), x, reduction="sum")
    torch.testing.assert_close(p.log_prob(x), -cross_entropy)
    pixel = Bernoulli(relaxed=True)(logit.double().expand(1, 1, 1, 1))
    total, _ = integrate.quad(lambda v: pixel.log_prob(torch.tensor(v).double().expand(1, 1, 1)).exp().item(), 0, 1)
    assert abs(total - 1) > 0.1


def test_relaxed_bernoulli_refuses_pixels_outside_the_unit_interval():
    with pytest.raises(ValueError, match="within the support"):
        Bernoulli(relaxed=True)(torch.zeros(1, 1, 2, 2)).log_prob(torch.full((1, 2, 2), 1.5))


def test_normal_against_scipy():
    params, x = torch.randn(1, 1, 2, 3).double(), torch.rand(1, 2, 3).double()
    expected = stats.norm.logpdf(x.numpy(), params[0].numpy(), 0.3).sum()
    assert Normal(0.3)(params).log_prob(x).item() == pytest.approx(expected, rel=1e-12)


def test_normal_of_variance_one_half_is_the_sum_of_squares():
    a, b, x = torch.randn(3, 1, 2, 3).double()
    score = [Normal(0.5**0.5)(params[None]).log_prob(x) for params in (a, b)]
    torch.testing.assert_close(score[0] - score[1], (x - b).square().sum() - (x - a).square().sum())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_params_at_the_mean(name):
    likelihood = LIKELIHOODS[name]()
    mean = torch.rand(1, 3, 4).clamp(0.01, 0.99)
    torch.testing.assert_close(likelihood(likelihood.params_at(mean)).mean, mean)


def test_params_at_an_extreme_mean_are_finite():
    assert Bernoulli().params_at(torch.tensor([[[0.0, 1.0]]])).isfinite().all()


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_normal_refuses_a_scale(scale):
    with pytest.raises(ValueError, match="scale must be positive"):
        Normal(scale)


def test_pixels():
    assert (Bernoulli().pixels, Bernoulli(relaxed=True).pixels, Normal().pixels) == ("binary", "unit", "unit")


def test_every_likelihood_is_tested():
    concrete = {cls.__name__ for cls in likelihoods.Likelihood.__subclasses__() if cls.__module__ == likelihoods.__name__}
    assert concrete <= set(LIKELIHOODS)
