"""The test of uniform levels against its null distribution, and its power against simulation."""

from math import inf

import pytest
import torch
from scipy import stats

from pyro_vae.evaluation.uniformity import (
    SIZE,
    _components,
    detectable_scale,
    detectable_shift,
    power,
    uniformity,
)


@pytest.mark.parametrize("n", [100, 1000])
def test_p_values_of_uniform_levels_are_uniform(n):
    p_values = uniformity(torch.rand(n, 3000).double())
    assert stats.kstest(p_values.numpy(), "uniform").pvalue > 1e-4
    for size in (0.05, 0.001):
        rejected = int((p_values < size).sum())
        assert stats.binomtest(rejected, 3000, size).pvalue > 1e-4


def test_the_components_are_orthonormal():
    """Over all levels each has the mean 0 and the variance 1, by quadrature."""
    level = (torch.arange(10_000).double()[:, None] + 0.5) / 10_000
    found = _components(level[:, 0])
    torch.testing.assert_close(found.mean(0), torch.zeros(4).double(), atol=1e-6, rtol=0)
    products = found.T @ found / len(found)
    torch.testing.assert_close(products, torch.eye(4).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("shift", "scale"), [(0.15, 1.0), (0.0, 0.9), (0.0, 1.1), (0.1, 0.95)])
def test_the_power_is_as_stated(shift, scale):
    """Gaussian guides, one of five quantities wrong."""
    z = torch.randn(1000, 400).double()
    levels = torch.special.ndtr((z - shift) / scale)
    found = (uniformity(levels) < SIZE / 5).double().mean().item()
    assert found == pytest.approx(power(1000, 5, shift, scale), abs=0.1)


def test_detectable_sizes_have_a_power_of_90_percent():
    assert power(1000, 22, shift=detectable_shift(1000, 22)) == pytest.approx(0.9, abs=1e-3)
    assert power(1000, 22, scale=detectable_scale(1000, 22)) == pytest.approx(0.9, abs=1e-3)
    assert detectable_shift(4000, 22) == pytest.approx(detectable_shift(1000, 22) / 2, rel=0.05)
    assert detectable_shift(1, 22) == inf
    assert detectable_scale(1, 22) == 0


def test_without_an_error_the_power_is_the_size():
    assert power(1000, 1) == pytest.approx(SIZE, abs=1e-4)
