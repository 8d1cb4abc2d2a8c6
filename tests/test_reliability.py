"""Required samples, and k-hat over the number of samples of weights with a known tail."""

from __future__ import annotations

import pytest
import torch
from families import make_conditional, make_oracle

import pyro_vae as pv
from pyro_vae.evaluation.reliability import k_hat_curve, required_samples


def test_required_samples_by_hand():
    k_hat = torch.tensor([-torch.inf, 0.0, 0.5, 0.75, 1.0, torch.inf, torch.nan]).double()
    found = required_samples(k_hat)
    expected = [10, 10, 100, 10_000, torch.inf, torch.inf, torch.nan]
    torch.testing.assert_close(found, torch.tensor(expected).double(), equal_nan=True)


@pytest.mark.parametrize(("ratio", "k"), [(0.8, 0.36), (0.5, 0.75)])
def test_a_gaussian_guide_that_is_too_narrow(ratio, k):
    """Its weights have the tail index 1 - ratio^2, whatever the number of samples."""
    vae = make_oracle(1, exact=True, shape=(1, 1, 3))
    vae.encoder.layers[1].bias.data[1] += torch.tensor(ratio).log()
    curve = k_hat_curve(vae, torch.randn(25, 1, 1, 3).double(), 20_000, batch_size=5000)
    assert next(iter(curve)) == 32
    assert list(curve)[-1] == 20_000
    assert curve[20_000].shape == (25,)
    assert curve[20_000].mean().item() == pytest.approx(k, abs=0.15)


def test_labels_reach_the_programs():
    data = pv.Split(torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    curve = k_hat_curve(make_conditional(), data, 64)
    assert all(k_hat.isfinite().all() for k_hat in curve.values())


def test_equal_weights_need_few_samples():
    vae = make_oracle(2, exact=True)
    curve = k_hat_curve(vae, torch.randn(3, 1, 1, 3).double(), 100)
    assert required_samples(curve[100]).max() < 100
