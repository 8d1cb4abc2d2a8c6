"""Pictures of vectors: a curve over the index of their values, or bars if there are few values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from pyro_vae.likelihoods import IMAGE_DIMS

# Size of a picture in pixels. It is drawn larger by the factor FINE, and then averaged.
WIDTH, HEIGHT = 108, 72
FINE = 3
# Width of a line in pixels, and the empty edge.
LINE = 2
EDGE = 4
# Largest number of values that are drawn as bars.
BARS = 8
# The colours of several curves in a picture, of a single one, and of the line at zero.
INKS = ("#0072b2", "#d55e00", "#009e73")
INK = "black"
ZERO = "#d0d0d0"
# Values below the axis that rounding and means of p(x | z) explain.
BELOW = -0.1


def curves(rows: Tensor) -> Tensor:
    """A picture of each vector, with a grey line at zero.

    Arguments:
        rows: Vectors, shape `(N, D)`, or two or three for each picture, shape
            `(N, K, D)`.

    Returns:
        Pictures of values in [0, 1], shape `(N, 1, 72, 108)`, where 1 is black; or RGB, shape
        `(N, 3, 72, 108)`, if there are several curves in each. All have the vertical axis of
        `limits`.
    """
    if rows.ndim == 2:
        rows = rows[:, None]
    low, high = limits(rows)
    edge = FINE * EDGE
    # Of each value its distance from the top of the picture.
    shares = ((high - rows.cpu().double()) / (high - low)).clamp(0, 1)
    heights = (edge + shares * (FINE * HEIGHT - 2 * edge)).numpy()
    zero = edge + high / (high - low) * (FINE * HEIGHT - 2 * edge)
    inks = INKS[: rows.shape[1]] if rows.shape[1] > 1 else (INK,)
    drawn = np.stack([_picture(each, zero, inks) for each in heights])
    rgb = torch.from_numpy(drawn).permute(0, 3, 1, 2) / 255
    if rows.shape[1] > 1:
        return rgb
    return 1 - rgb[:, :1]


def pictures(data: Tensor) -> Tensor:
    """Images as they are, shape `(N, channels, height, width)`; vectors as `curves`."""
    if data.ndim == 1 + IMAGE_DIMS:
        return data
    return curves(data)


def caption(data: Tensor) -> str:
    """What the axes of `curves` are; nothing for images."""
    if data.ndim == 1 + IMAGE_DIMS:
        return ""
    low, high = limits(data)
    return f"horizontal: {data.shape[-1]:,} values; vertical: {low:g} to {high:g}, as encoded"


def limits(rows: Tensor) -> tuple[float, float]:
    """The vertical axis for vectors: from 0, or symmetric if there are negative values.

    It ends at a power of 2 that cuts off at most 1 % of the values, so that figures of one model
    mostly have the same axis.

    Example:
        >>> limits(torch.tensor([[0.0, 0.4, 1.0]])), limits(torch.tensor([[-0.5, 3.0]]))
        ((0.0, 1.0), (-4.0, 4.0))
    """
    values = rows.abs().flatten()
    place = max(1, round(0.99 * len(values)))
    largest = float(values.kthvalue(place).values)
    high = 1.0
    while high < largest:
        high *= 2
    low = -high if float(rows.min()) < BELOW else 0.0
    return low, high


def _picture(heights: np.ndarray, zero: float, inks: Sequence[str]) -> np.ndarray:
    """One picture of K vectors, given by distances from the top, shape `(K, D)`."""
    image = Image.new("RGB", (FINE * WIDTH, FINE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    left, right = FINE * EDGE, FINE * (WIDTH - EDGE)
    draw.line([left, zero, right, zero], ZERO, FINE)
    count, length = heights.shape
    if length <= BARS:
        width = (right - left) / (length * (count + 0.5))
        for k, (row, ink) in enumerate(zip(heights, inks, strict=True)):
            for n, top in enumerate(row):
                x = left + width * (n * (count + 0.5) + k + 0.25)
                draw.rectangle([x, min(top, zero), x + width, max(top, zero)], ink)
    else:
        x = np.linspace(left, right, length)
        for row, ink in zip(heights, inks, strict=True):
            draw.line(np.column_stack([x, row]).ravel().tolist(), ink, FINE * LINE, "curve")
    return np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))
