"""Chains between Gaussians, whose normalizers are known."""

from __future__ import annotations

import math

import torch

from pyro_vae.engine.importance import log_likelihood
from pyro_vae.evaluation.chains import Chains, Schedule, State, evened, slopes

SCALE = torch.tensor([0.1, 3.0], dtype=torch.float64)


def at(position):
    """From a standard normal to one with other scales in each dimension, not normalized."""
    with torch.enable_grad():
        position = position.requires_grad_()
        start = -0.5 * position.square().sum(-1) - math.log(2 * math.pi)
        ratio = -0.5 * (position / SCALE).square().sum(-1) - start
        return State(position.detach(), *slopes(start, ratio, position))


def chains():
    return Chains(
        lambda number: torch.randn(number, 1, 2, dtype=torch.float64), at, 40, lambda: None
    )


def test_weights_average_to_the_ratio_of_the_normalizers():
    """Forward to Z = 2 pi prod(scales), backward from exact draws to 1 / Z."""
    exact = math.log(2 * math.pi) + SCALE.log().sum().item()
    between = chains()
    schedule = evened(*between.adapt(50))
    forward = between.forward(2000, schedule)
    backward = between.backward(SCALE * torch.randn(2000, 1, 2, dtype=torch.float64), schedule)
    for weights, expected in ((forward, exact), (-backward, -exact)):
        error = (weights - weights.max()).exp()
        error = (error.std(0) / error.mean(0) / 2000**0.5).item()
        assert error < 0.1
        assert abs(log_likelihood(weights).item() - expected) < 4 * error


def test_the_temperatures_adapt():
    """Where the log-weights spread most, steps are small: early for the prior, in each row."""
    betas = torch.linspace(0, 1, 101)[:, None].expand(-1, 2)
    spreads = torch.stack([100 * torch.exp(-20 * betas[:, 0]), torch.ones(101)], 1)
    strides = (0.1 + betas[1:])[..., None]
    found = evened(Schedule(betas, strides), spreads)
    assert found.betas.shape == (101, 2)
    assert found.strides.shape == (100, 2, 1)
    assert (found.betas.diff(dim=0) > 0).all()
    assert found.betas[50, 0] < 0.1
    torch.testing.assert_close(found.betas[:, 1], betas[:, 1], atol=1e-5, rtol=0)
    above = found.strides[..., 0] - (0.1 + found.betas[1:])
    assert (above > -1e-5).all()
    assert (above < 0.011).all()
