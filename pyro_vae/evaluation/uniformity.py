"""A test of uniform levels, and how large an error of a posterior it finds."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

# Components of the test: they answer a shift, a scale, a skew and two modes.
ORDER = 4
# Probability that exact guides fail the test, and that those of the detectable size do.
SIZE = 0.05
POWER = 0.9


def uniformity(levels: Tensor) -> Tensor:
    r"""p-values of Neyman's smooth test of uniform levels.

    The statistic :math:`\sum_{k=1}^{4} N \bar P_k^2` has the means of four orthonormal Legendre
    polynomials of the levels. It is chi-squared with four degrees of freedom for large N, and much
    more sensitive to a wrong mean or scale than a test with bins or the largest difference of
    distribution functions.

    References:
        | "Smooth test" for goodness of fit (Neyman, 1937)
        | https://doi.org/10.1080/03461238.1937.10404821

    Arguments:
        levels: Independent values in [0, 1], shape `(N, Q)`.

    Returns:
        One p-value for each column, shape `(Q,)`.
    """
    statistic = len(levels) * _components(levels.double()).mean(0).square().sum(-1)
    return (-statistic / 2).exp() * (1 + statistic / 2)  # of four degrees of freedom


def _components(levels: Tensor) -> Tensor:
    """The orthonormal polynomials on [0, 1], shape `(..., 4)`."""
    x = 2 * levels - 1
    legendre = [torch.ones_like(x), x]
    for k in range(1, ORDER):
        legendre.append(((2 * k + 1) * x * legendre[k] - k * legendre[k - 1]) / (k + 1))
    norms = (2 * torch.arange(ORDER + 1).to(x) + 1).sqrt()
    return (torch.stack(legendre, -1) * norms)[..., 1:]


def power(num_images: int, num_quantities: int, shift: float = 0.0, scale: float = 1.0) -> float:
    """The probability that the test rejects a Gaussian guide that is wrong in one dimension.

    The test rejects if the smallest of the p-values, times their number, is below 0.05. The other
    quantities are taken as exact.

    Arguments:
        num_images: Number of simulated images.
        num_quantities: Number of p-values.
        shift: The guide's mean minus that of the posterior, in posterior standard deviations.
        scale: The guide's standard deviation in such units.
    """
    from scipy.special import chdtri, chndtr

    level = (torch.arange(10_000, dtype=torch.float64) + 0.5) / 10_000
    wrong = torch.special.ndtr((torch.special.ndtri(level) - shift) / scale)
    noncentrality = num_images * _components(wrong).mean(0).square().sum().item()
    return float(1 - chndtr(chdtri(ORDER, SIZE / num_quantities), ORDER, noncentrality))


def detectable_shift(num_images: int, num_quantities: int) -> float:
    """The shift that is found with a power of 90 %; infinite if there are too few images."""
    return _detectable(lambda size: power(num_images, num_quantities, shift=size), 10.0)


def detectable_scale(num_images: int, num_quantities: int) -> float:
    """The factor under 1 that is found with a power of 90 %; 0 if there are too few images."""
    found = _detectable(lambda size: power(num_images, num_quantities, scale=2**-size), 10.0)
    return float(2**-found)


def _detectable(power_at: Callable[[float], float], largest: float) -> float:
    """The size at which the power is 90 %, by bisection."""
    low = 0.0
    high = largest
    if power_at(high) < POWER:
        return float("inf")
    for _ in range(20):
        middle = (low + high) / 2
        if power_at(middle) < POWER:
            low = middle
        else:
            high = middle
    return high
