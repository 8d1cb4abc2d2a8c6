"""What users bring, as tensors: images, vectors, labels, covariates, converted or refused."""

from __future__ import annotations

import logging

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import IMAGE_DIMS, Pixels

logger = logging.getLogger("pyro_vae")

Array = Tensor | np.ndarray
Classes = tuple[str, ...]

# Minimum height and width for a last dimension of 1, 3 or 4 to count as channels in images that
# are not square.
MIN_SIZE = 8
# Bytes with a smaller maximum are probably levels from 0 to that maximum.
DARK = 32
# The label of images whose class is unknown, as in scikit-learn.
UNKNOWN = -1
# The largest count of each kind; up to 2^24 they are exact in float32.
LARGEST = {"byte": 255, "count": 2**24}
# Elements that are checked at once, to bound memory.
CHUNK = 2**24
# Likelihoods of vectors for messages, in Python and on the command line.
REALS = "reals such as Normal(kind='real'), --likelihood Normal --likelihood.kind real"
COUNTS = "NegativeBinomial, --likelihood NegativeBinomial"
# Distance from [0, 1] that rounding explains.
ROUNDING = 1e-3


def as_values(values: Array, name: str) -> Tensor:
    """Images as `as_images` returns them, or vectors as `as_rows` does; `name` is for messages.

    Values of shape `(N, height, width)` or with channels are images, others are vectors.
    """
    if isinstance(values, Tensor | np.ndarray) and values.ndim in (IMAGE_DIMS, 1 + IMAGE_DIMS):
        return as_images(values, name)
    return as_rows(values, name)


def as_rows(values: Array, name: str) -> Tensor:
    """Vectors as bools, counts or real numbers, shape `(N, *data_shape)`.

    Bools, and integers that are 0 or 1, are binary. Other integers from 0 are counts, as uint8 if
    they are at most 255, otherwise int32. All other values are real numbers, as float32.

    Arguments:
        values: Vectors of any dtype, shape `(N, D)`.
        name: What messages call them.

    Raises:
        RequestError: If they have another shape, or are not finite.

    Example:
        >>> as_rows(np.array([[3, 0, 999]]), "x")
        tensor([[  3,   0, 999]], dtype=torch.int32)
        >>> as_rows(torch.tensor([1.0, 2.0]), "x")
        Traceback (most recent call last):
        pyro_vae.errors.RequestError: x has shape (2,), but vectors need (N, D): use
        x.reshape(-1, 1)
    """
    tensor = as_tensor(values, name)
    shape = tuple(tensor.shape)
    if tensor.ndim < 2 or 0 in shape[1:]:
        advice = ": use x.reshape(-1, 1)" if tensor.ndim == 1 else ""
        raise RequestError(f"{name} has shape {shape}, but vectors need (N, D){advice}")
    if tensor.dtype == torch.bool or tensor.numel() == 0:
        return tensor
    if not tensor.is_floating_point():
        low, high = (int(value) for value in tensor.aminmax())
        if low >= 0 and high <= 1:
            return tensor.bool()
        if low >= 0 and high <= LARGEST["byte"]:
            return tensor.to(torch.uint8)
        if low >= 0 and high <= LARGEST["count"]:
            return tensor.to(torch.int32)
    tensor = tensor.to(torch.float32)
    check_finite(tensor, name)
    return tensor


def check_finite(x: Tensor, name: str) -> None:
    """Raise `RequestError` unless all real numbers are finite."""
    if not x.is_floating_point() or x.numel() == 0:
        return
    low, high = (value.item() for value in x.aminmax())
    if low != low:
        count = sum(int(part.isnan().sum()) for part in x.split(chunk_rows(x)))
        raise RequestError(
            f"{name} holds {count:,} values that are NaN: remove their rows, or replace them"
        )
    if max(-low, high) == torch.inf:
        raise RequestError(f"{name} holds values that are infinite in float32: use finite numbers")


def chunk_rows(x: Tensor) -> int:
    """The number of rows of `x` to check at once."""
    return max(1, CHUNK // max(1, x[:1].numel()))


def check_kind(x: Tensor, pixels: Pixels, largest: int | None = None) -> None:
    """Raise `RequestError` if a likelihood cannot score these values.

    Arguments:
        x: The data of a split, shape `(N, *data_shape)`.
        pixels: The kind of data that the likelihood scores.
        largest: The largest count that it scores, if there is one.
    """
    is_image = x.ndim == 1 + IMAGE_DIMS
    if len(x) == 0 or x.dtype == torch.bool or pixels == "real":
        return
    if is_image and pixels != "count":
        return  # `as_images` has checked them
    low, high = (value.item() for value in x.aminmax())
    span = f"from {low:g} to {high:g}"
    if pixels in LARGEST:
        if low < 0 or not _is_whole(x):
            raise RequestError(
                f"counts need non-negative integers, but x holds values {span}: use a likelihood"
                f" on {REALS}"
            )
        if largest is None:
            largest = LARGEST[pixels]
        if high > largest:
            raise RequestError(
                f"the likelihood scores counts up to {largest:,}, but x holds {high:,.0f}: use"
                " another likelihood, such as NegativeBinomial, or smaller counts"
            )
    elif not x.is_floating_point():
        raise RequestError(
            f"a likelihood on {pixels} values cannot score counts {span}: use one on counts such as"
            f" {COUNTS}, or x / {high:g} if they are levels"
        )
    elif low < 0 or high > 1:
        raise RequestError(
            f"a likelihood on {pixels} values needs 0 to 1, but x holds floats {span}: use a"
            f" likelihood on {REALS}"
        )


def _is_whole(x: Tensor) -> bool:
    if not x.is_floating_point():
        return True
    return all(bool((part == part.round()).all()) for part in x.split(chunk_rows(x)))


def as_images(values: Array, name: str) -> Tensor:
    """Images as bytes, or as float32 in [0, 1], shape `(N, channels, height, width)`.

    Bools, and bytes that are 0 or 1, are binary pixels: they become 0 and 255. Other integers from
    0 to 255 become bytes.

    Arguments:
        values: Images of any dtype, shape `(N, height, width)` or with channels.
        name: What messages call them.

    Raises:
        RequestError: If they have another shape, or other values.

    Example:
        >>> as_images(torch.eye(4, dtype=torch.bool)[None], "x").unique()
        tensor([  0, 255], dtype=torch.uint8)
        >>> as_images(torch.tensor([[[-1.0, 1.0]]]), "x")
        Traceback (most recent call last):
        pyro_vae.errors.RequestError: x holds torch.float32 from -1 to 1, but images are bytes from
        0 to 255 or floats from 0 to 1: use (x + 1) / 2
    """
    tensor = with_channels(as_tensor(values, name), name)
    if tensor.numel() == 0:
        return tensor
    if tensor.dtype == torch.bool:
        return tensor.to(torch.uint8) * 255
    low, high = (value.item() for value in tensor.aminmax())
    check_range(values.dtype, low, high, tensor, name)
    if tensor.is_floating_point():
        return tensor.to(torch.float32)
    tensor = tensor.to(torch.uint8)
    if high == 1:
        logger.info("%r has integers 0 and 1: taken as black and white", name)
        return tensor * 255
    if 1 < high < DARK:
        logger.warning(
            "%r has bytes from %d to %d of 255, nearly black: if these are levels, use x / %d",
            name,
            low,
            high,
            high,
        )
    return tensor


def as_tensor(values: Array, name: str) -> Tensor:
    """A tensor of numbers; integers that torch cannot compute with become int64.

    Raises:
        RequestError: If the values are not real numbers.
    """
    if not isinstance(values, Tensor | np.ndarray):
        raise RequestError(
            f"{name} is of type {type(values).__name__}: use a tensor, or an array of NumPy"
        )
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "biuf":
            raise RequestError(f"{name} holds {values.dtype}: use numbers or bools")
        if values.dtype.kind == "u" and values.dtype.itemsize > 1:
            values = values.astype(np.int64)
        elif values.dtype.itemsize > 8:
            values = values.astype(np.float64)
        elif not values.dtype.isnative or not values.flags.writeable:
            values = values.astype(values.dtype.newbyteorder("="))
        values = torch.from_numpy(values)
    if values.is_complex() or values.is_quantized or values.layout != torch.strided:
        raise RequestError(f"{name} holds {values.dtype}, {values.layout}: use dense real numbers")
    if values.dtype in (torch.uint16, torch.uint32, torch.uint64):
        values = values.to(torch.int64)
    return values


def with_channels(images: Tensor, name: str) -> Tensor:
    """Images of shape `(N, channels, height, width)`; a view where possible.

    Raises:
        RequestError: If they have another number of dimensions.
    """
    shape = tuple(images.shape)
    if images.ndim == 3 and 0 not in shape[1:]:
        return images.unsqueeze(1)
    if images.ndim != 4 or 0 in shape[1:]:
        raise RequestError(
            f"{name} has shape {shape}, but images need (N, height, width) or"
            " (N, channels, height, width)"
        )
    if channels_are_last(*shape[1:]):
        logger.info("%r has shape %s: moved the channels from last to first", name, shape)
        return images.permute(0, 3, 1, 2).contiguous()
    return images


def channels_are_last(first: int, second: int, last: int) -> bool:
    """Whether the dimensions of an image are height, width and channels."""
    if last not in (1, 3, 4) or first in (1, 3, 4):
        return False
    return first == second or min(first, second) >= MIN_SIZE


def check_range(dtype: object, low: float, high: float, values: Tensor, name: str) -> None:
    """Raise `RequestError` unless floats are in [0, 1] and integers in 0..255.

    Arguments:
        dtype: The type that messages name.
        low: The minimum, NaN if there is one.
        high: The maximum.
        values: The values.
        name: What messages call them.
    """
    is_float = values.is_floating_point()
    largest = 1 if is_float else 255
    if low >= 0 and high <= largest:
        return
    if low != low:
        problem = f"{int(values.isnan().sum()):,} values that are NaN"
        library = "np" if isinstance(dtype, np.dtype) else "torch"
        conversion = f"{library}.nan_to_num(x)"
    else:
        problem = f"{dtype} from {low:g} to {high:g}"
        cast = None
        if not is_float or bool((values == values.round()).all()):
            cast = ".astype(np.uint8)" if isinstance(dtype, np.dtype) else ".to(torch.uint8)"
        conversion = _conversion(low, high, cast)
    raise RequestError(
        f"{name} holds {problem}, but images are bytes from 0 to 255 or floats from 0 to 1:"
        f" use {conversion}"
    )


def _conversion(low: float, high: float, cast: str | None) -> str:
    """What to apply to values `x` from `low` to `high`; `cast` is for whole numbers."""
    if low == -torch.inf or high == torch.inf:
        return "finite numbers"
    if low >= -ROUNDING and high <= 1 + ROUNDING:
        return "x.clip(0, 1)"
    if low >= -1 and high <= 1:
        return "(x + 1) / 2"
    if low >= 0 and 127 < high <= 255:
        if cast:
            return f"x{cast}"
        return "x / 255"
    if cast and low >= 0 and 2**15 <= high < 2**16:
        return "x / 65535"
    return "(x - x.min()) / (x.max() - x.min())"


def as_labels(values: Array, count: int, name: str) -> tuple[Tensor, Classes | None]:
    """Labels as int64, shape `(count,)`, and the names of the classes if the labels are strings.

    Columns, of shape `(count, 1)`, and one-hot codes are accepted, too. The label -1 is unknown, as
    in scikit-learn, and so are the names "-1" and "".

    Raises:
        RequestError: If they are not one class per image, or an integer is below -1.

    Example:
        >>> as_labels(np.array(["dog", "cat", "dog"]), 3, "labels")
        (tensor([1, 0, 1]), ('cat', 'dog'))
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "USO":
        return _named_labels(values, count, name)
    labels = as_tensor(values, name)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    elif labels.ndim == 2 and _is_one_hot(labels):
        labels = labels.long().argmax(1)
    if labels.shape != (count,) or labels.is_floating_point():
        raise RequestError(
            f"{name} has shape {tuple(values.shape)} and type {values.dtype}, but labels are one"
            f" integer per image, shape ({count},){_label_conversion(labels, count, values)}"
        )
    labels = labels.long()
    if count > 0 and labels.min() < UNKNOWN:
        raise RequestError(
            f"{name} has the value {labels.min()}, but classes are numbered from 0: use -1 for"
            " unknown labels"
        )
    return labels, None


def _label_conversion(labels: Tensor, count: int, given: Tensor | np.ndarray) -> str:
    """What to do with labels that are not one integer per image, in the library that made them."""
    if len(labels.shape) == 0 or len(labels) != count:
        return ""
    if labels.ndim > 2:
        return ": use labels.reshape(len(labels), -1), then one column"
    if labels.ndim == 2 and bool(((labels >= 0).all(1) & (labels > 0).any(1)).all()):
        return ": use labels.argmax(1) for the most likely class, or give them as covariates"
    if labels.ndim == 1 and bool((labels == labels.round()).all()):
        return ": use labels.long()" if isinstance(given, Tensor) else ": use labels.astype(int)"
    return ": give real numbers as covariates"


def _is_one_hot(labels: Tensor) -> bool:
    is_binary = (labels == 0) | (labels == 1)
    return bool(is_binary.all() and (labels.sum(1) == 1).all())


def _named_labels(values: np.ndarray, count: int, name: str) -> tuple[Tensor, Classes]:
    names = values.astype(str)
    if names.shape not in ((count,), (count, 1)):
        raise RequestError(
            f"{name} has shape {names.shape}, but labels are one name per image, shape ({count},)"
        )
    names = np.char.strip(names.ravel())
    is_known = ~np.isin(names, ("", str(UNKNOWN)))
    classes, numbers = np.unique(names[is_known], return_inverse=True)
    labels = torch.full((count,), UNKNOWN)
    labels[torch.from_numpy(is_known)] = torch.from_numpy(numbers.astype(np.int64))
    return labels, tuple(classes.tolist())


def as_covariates(values: Array, count: int, name: str) -> Tensor:
    """Covariates as float32, shape `(count, C)`.

    Raises:
        RequestError: If they have another shape, or are not finite.
    """
    covariates = as_tensor(values, name)
    shape = tuple(covariates.shape)
    if covariates.ndim != 2 or shape[0] != count or shape[1] == 0:
        advice = ""
        if shape == (count,):
            advice = f": use {name.rsplit(maxsplit=1)[-1]}.reshape(-1, 1)"
        raise RequestError(
            f"{name} has shape {shape}, but covariates need ({count}, number of covariates){advice}"
        )
    covariates = covariates.float()
    if not covariates.isfinite().all():
        raise RequestError(f"{name} has covariates that are NaN or infinite: use finite numbers")
    return covariates
