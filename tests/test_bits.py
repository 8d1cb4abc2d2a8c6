"""Bits per dimension: one scale for distributions of bytes and densities of dequantized bytes."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from families import LIKELIHOODS
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.data.split import to_pixels
from pyro_vae.evaluation.bits import bits_per_dimension, scale_of

SCORED = [name for name in LIKELIHOODS if scale_of(LIKELIHOODS[name]())]


class Steps(dist.TorchDistribution):
    """A density on [0, 1] that is constant in each of 256 bins."""

    support = dist.constraints.unit_interval
    arg_constraints = {}  # noqa: RUF012

    def __init__(self, log_p):
        self.log_p = log_p
        super().__init__(torch.Size([]), torch.Size([]))

    def log_prob(self, value):
        return self.log_p[(256 * value).long()] + math.log(256)


def test_a_density_of_steps_takes_the_bits_of_its_bytes():
    """The same distribution as one of bytes, and as a density of dequantized bytes."""
    logits = torch.randn(256)
    x = torch.randint(0, 256, (5, 1, 3, 4), dtype=torch.uint8)
    of_bytes = pv.Categorical()(logits[:, None, None, None].expand(5, 256, 1, 3, 4))
    expected = -(logits.log_softmax(0)[x.long()]).flatten(1).mean(1) / math.log(2)
    found = bits_per_dimension(of_bytes.log_prob(x.float()), pv.Categorical(), 12)
    torch.testing.assert_close(found, expected)
    density = Steps(logits.log_softmax(0))
    log_f = density.log_prob(to_pixels(x, "dequantized")).flatten(1).sum(1)
    torch.testing.assert_close(bits_per_dimension(log_f, pv.Beta(), 12), expected)


def test_a_uniform_density_takes_8_bits():
    params = torch.zeros(1, 2, 1, 2, 2)
    params[:, 1] = math.log(2)  # Beta(1, 1)
    v = to_pixels(torch.randint(0, 256, (1, 1, 2, 2), dtype=torch.uint8), "dequantized")
    found = bits_per_dimension(pv.Beta()(params).log_prob(v), pv.Beta(), 4)
    assert found.item() == pytest.approx(8, abs=1e-4)


def test_a_dequantized_density_is_a_bound_on_its_bytes():
    """By Jensen's inequality, with the probability of a byte by integration."""
    p = dist.Normal(0.3, 0.004)
    x = torch.full((1, 1, 1, 1), 77, dtype=torch.uint8)
    low, high = p.cdf(torch.tensor([77 / 256, 78 / 256]))
    exact = -math.log2(high - low)
    u = torch.rand(20_000, 1, 1, 1)
    bits = bits_per_dimension(p.log_prob(to_pixels(x, "dequantized", u)), pv.Beta(), 1)
    error = bits.std().item() / len(bits) ** 0.5
    assert bits.mean().item() > exact + 5 * error


@pytest.mark.parametrize("name", SCORED)
def test_a_constant_image_takes_at_least_0_bits(name):
    """The best of many parameters for a black and a white image, over evenly spaced noise."""
    likelihood = LIKELIHOODS[name]()
    pixels = 200
    generator = torch.Generator().manual_seed(0)
    params = 20 * torch.randn(60, likelihood.num_params, 1, 1, 1, generator=generator)
    noise = ((torch.arange(pixels) + 0.5) / pixels).reshape(1, 1, 1, pixels)
    for level in (0, 255):
        image = torch.full((1, 1, 1, pixels), level, dtype=torch.uint8)
        x = to_pixels(image, likelihood.pixels, noise)
        log_p = likelihood(params.expand(-1, -1, 1, 1, pixels)).log_prob(x)
        bits = bits_per_dimension(log_p, likelihood, pixels).detach()
        assert bits.min() > -0.02


def test_the_best_gaussian_of_a_constant_image():
    """Its variance is that of the noise, 1 / 12 of a bin: log2 sqrt(2 pi e / 12) bits."""
    p = dist.Normal(0.5 / 256, 12**-0.5 / 256)
    x = torch.zeros(5000, 1, 1, 1, dtype=torch.uint8)
    log_f = p.log_prob(to_pixels(x, "dequantized")).flatten()
    bits = bits_per_dimension(log_f, pv.likelihoods.Normal(0.1, learned="scalar"), 1)
    assert_mean(bits, 0.5 * math.log2(2 * math.pi * math.e / 12))


def test_what_has_no_scale():
    """Densities of values without noise are unbounded, and a cross-entropy is no density."""
    for likelihood in (
        pv.ContinuousBernoulli(),
        pv.likelihoods.Normal(0.1),
        pv.Bernoulli(relaxed=True),
    ):
        assert bits_per_dimension(-1.0, likelihood, 4) is None
    assert bits_per_dimension(-4 * math.log(2), pv.Bernoulli(), 4) == 1
