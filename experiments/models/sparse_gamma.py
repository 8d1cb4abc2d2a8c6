"""A sparse gamma deep exponential family: two layers of gamma variables above Poisson counts."""

from typing import Any

import pyro
import torch
from pyro import distributions as dist
from pyro import plate, sample
from pyro.infer import TraceMeanField_ELBO
from torch import Tensor
from torch.nn.functional import softplus

ROWS, PIXELS, WIDTHS = 64, 256, (20, 10)
SIZES = {"w_top": (WIDTHS[1], WIDTHS[0]), "w_bottom": (WIDTHS[0], PIXELS)}


def model(x: Tensor) -> None:
    w_top, w_bottom = (
        sample(name, dist.Gamma(0.1, 0.3).expand(size).to_event(2)) for name, size in SIZES.items()
    )
    with plate("rows", len(x)):
        z_top = sample("z_top", dist.Gamma(0.1, 0.1).expand((WIDTHS[1],)).to_event(1))
        z_bottom = sample("z_bottom", dist.Gamma(0.1, 0.1 / (z_top @ w_top)).to_event(1))
        sample("x", dist.Poisson(z_bottom @ w_bottom).to_event(1), obs=x)


def gamma(name: str, size: tuple[int, ...]) -> Any:
    """A learned gamma distribution, by its shape and mean."""
    alpha = softplus(pyro.param(f"{name}_alpha", lambda: 0.5 + 0.1 * torch.randn(size)))
    mean = softplus(pyro.param(f"{name}_mean", lambda: 0.1 * torch.randn(size)))
    return dist.Gamma(alpha.clamp(min=0.1), alpha.clamp(min=0.1) / mean.clamp(min=1e-3))


def guide(x: Tensor) -> None:
    for name, size in SIZES.items():
        sample(name, gamma(name, size).to_event(2))
    with plate("rows", len(x)):
        for name, width in zip(("z_top", "z_bottom"), reversed(WIDTHS), strict=True):
            sample(name, gamma(name, (len(x), width)).to_event(1))


def problem() -> tuple[Any, ...]:
    return model, guide, TraceMeanField_ELBO(), (torch.poisson(torch.full((ROWS, PIXELS), 3.0)),)
