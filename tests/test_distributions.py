"""Distributions that torch and Pyro lack, in float32 against float64."""

import math

import pyro.distributions as dist
import pytest
import torch

import pyro_vae as pv
from pyro_vae.distributions import NEAREST, LogitBernoulli, UniformMixture


def exact_log_prob(loc, log_scale, z):
    parts = dist.Normal(loc.double(), log_scale.exp().double()).to_event(1)
    return parts.log_prob(z.double().unsqueeze(-2)).logsumexp(-1) - math.log(len(loc))


@pytest.mark.parametrize("size", [1.0, 300.0])
@pytest.mark.parametrize("lowest", [0.0, -6.0, -10.0, -12.0, -15.0])
def test_a_mixture_of_narrow_gaussians_is_precise(size, lowest):
    """Matrix products in place of a broadcast lose no digits where their terms cancel."""
    loc = size * torch.randn(50, 20)
    log_scale = lowest + 2 * torch.rand(50, 20)
    params = torch.stack([loc, log_scale], 1).requires_grad_()
    mixture = UniformMixture(pv.DiagonalNormal(), params)
    near = loc + 2 * log_scale.exp() * torch.randn(50, 20)
    for z in (mixture.sample((100,)), near):
        value = mixture.log_prob(z)
        exact = exact_log_prob(*params.unbind(1), z)
        torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=2e-4)
        (grad,) = torch.autograd.grad(value.sum(), params, retain_graph=True)
        (exact_grad,) = torch.autograd.grad(exact.sum(), params)
        assert (grad - exact_grad).norm() < 1e-3 * exact_grad.norm()


def test_equal_components_of_a_narrow_mixture():
    """Pseudo-inputs that have become the same give the density of one of them."""
    loc, log_scale = torch.full((NEAREST, 20), 300.0), torch.full((NEAREST, 20), -13.0)
    mixture = UniformMixture(pv.DiagonalNormal(), torch.stack([loc, log_scale], 1))
    z = mixture.sample((100,))
    exact = exact_log_prob(loc, log_scale, z)
    torch.testing.assert_close(mixture.log_prob(z).double(), exact, rtol=1e-6, atol=1e-4)


def test_one_component_is_a_gaussian():
    loc, log_scale = 300 * torch.randn(1, 20), torch.full((1, 20), -12.0)
    mixture = UniformMixture(pv.DiagonalNormal(), torch.stack([loc, log_scale], 1))
    z = mixture.sample((100,))
    torch.testing.assert_close(
        mixture.log_prob(z).double(), exact_log_prob(loc, log_scale, z), rtol=1e-6, atol=1e-4
    )


def test_a_bernoulli_by_its_logits_is_precise():
    """Also where the density is close to 1, and the gradient at a logit of 0."""
    logits = torch.cat([torch.linspace(-80, 80, 401), torch.randn(200)]).requires_grad_()
    value = (torch.arange(601) % 2).float()
    score = LogitBernoulli(logits=logits).log_prob(value)
    (grad,) = torch.autograd.grad(score.sum(), logits)
    sign = 1 - 2 * value.double()
    shifted = sign * logits.detach().double()
    exact = -torch.special.log1p(shifted.exp()).where(shifted < 50, shifted)
    torch.testing.assert_close(score.double(), exact, rtol=3e-7, atol=0)
    torch.testing.assert_close(grad.double(), -sign * shifted.sigmoid(), rtol=0, atol=2e-7)
