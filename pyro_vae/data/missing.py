"""Missing values: NaN in floats, or an array that says which values are observed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.values import Array, as_tensor, with_channels
from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import IMAGE_DIMS

# Added to seeds, so that no gap depends on the noise of a split, whose seeds are small.
GAPS = 1_000_000


def split_missing(values: Array, observed: Array | None, name: str) -> tuple[Any, Tensor | None]:
    """Values with zeros in place of those that are missing, and which of them are observed.

    Arguments:
        values: The data, of any dtype; NaN is missing.
        observed: Bools of the same shape, False where a value is missing, too; or None.
        name: What messages call the values.

    Returns:
        The values, and bools of their shape, or None if nothing is missing.

    Raises:
        RequestError: If the bools do not fit the values, or nothing is observed of a row.

    Example:
        >>> split_missing(torch.tensor([[0.5, torch.nan]]), None, "x")
        (tensor([[0.5000, 0.0000]]), tensor([[ True, False]]))
    """
    if observed is None and not _has_nan(values):
        return values, None
    tensor = as_tensor(values, name)
    known = ~tensor.isnan()
    if observed is not None:
        known = known & _as_bools(observed, tensor, name)
    if known.all():
        return values, None
    nothing = ~known.flatten(1).any(1)
    if nothing.any():
        raise RequestError(
            f"{name} has {int(nothing.sum()):,} rows without any observed value, such as row"
            f" {int(nothing.nonzero()[0])}: remove them"
        )
    return tensor.masked_fill(~known, 0), known


def like_values(observed: Tensor | None, x: Tensor, name: str) -> Tensor | None:
    """Which values are observed, in the layout to which the values were converted."""
    if observed is None:
        return None
    if observed.ndim in (IMAGE_DIMS, 1 + IMAGE_DIMS):
        observed = with_channels(observed, name)
    return observed.reshape(x.shape)


def check_fraction(fraction: float) -> None:
    """Raise `RequestError` unless a share of values can be hidden."""
    if not 0 <= fraction < 1:
        raise RequestError(
            f"the share of missing values must be from 0 to less than 1, but is {fraction}"
        )


def hide_at_random(x: Tensor, fraction: float, seed: int) -> Tensor:
    """Bools of the shape of `x` that are False with probability `fraction`, independently.

    At least one value of each row stays observed.
    """
    generator = torch.Generator().manual_seed(GAPS + seed)
    uniform = torch.rand(x.shape, generator=generator).flatten(1)
    largest = uniform.amax(1, keepdim=True)
    return ((uniform >= fraction) | (uniform == largest)).reshape(x.shape).to(x.device)


def _has_nan(values: Any) -> bool:
    if isinstance(values, Tensor):
        return bool(values.isnan().any())
    is_float = getattr(getattr(values, "dtype", None), "kind", "") == "f"
    return is_float and bool((values != values).any())


def _as_bools(observed: Array, values: Tensor, name: str) -> Tensor:
    tensor = as_tensor(observed, "observed")
    is_binary = (tensor == 0) | (tensor == 1)
    if tensor.shape != values.shape or not is_binary.all():
        raise RequestError(
            f"observed has shape {tuple(tensor.shape)} and type {tensor.dtype}, but needs a bool"
            f" for each value of {name}, shape {tuple(values.shape)}"
        )
    return tensor.bool()
