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
# Width of a line in pixels, and the empty edge. Left and right of bars it is wider than the space
# between them, so that those of pictures side by side do not run together.
LINE = 2
EDGE = 4
BAR_EDGE = 14
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
        rows: Vectors, shape `(N, D)`, or two or three for each picture, shape `(N, K, D)`.

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
    """Images within [0, 1], shape `(N, channels, height, width)`; vectors as `curves`."""
    if data.ndim == 1 + IMAGE_DIMS:
        return data.clamp(0, 1)
    return curves(data)


def caption(data: Tensor) -> str:
    """What the axes of `curves` are; nothing for images."""
    if data.ndim == 1 + IMAGE_DIMS:
        return ""
    low, high = limits(data)
    count = data.shape[-1]
    values = "value" if count == 1 else "values"
    return f"horizontal: {count:,} {values}; vertical: {low:g} to {high:g}, as encoded"


def limits(rows: Tensor) -> tuple[float, float]:
    """The vertical axis for vectors: from 0, or symmetric if there are negative values.

    It ends at a power of 2 that cuts off at most 1 % of the values, so that figures of one model
    mostly have the same axis.

    Example:
        >>> limits(torch.tensor([[0.0, 0.4, 1.0]])), limits(torch.tensor([[-0.5, 3.0]]))
        ((0.0, 1.0), (-4.0, 4.0))
    """
    values = rows[rows.isfinite()]
    if len(values) == 0:
        return 0.0, 1.0
    place = max(1, round(0.99 * len(values)))
    largest = float(values.abs().kthvalue(place).values)
    high = 1.0
    while high < largest:
        high *= 2
    low = -high if float(values.min()) < BELOW else 0.0
    return low, high


def _picture(heights: np.ndarray, zero: float, inks: Sequence[str]) -> np.ndarray:
    """One picture of K vectors, given by distances from the top, shape `(K, D)`."""
    image = Image.new("RGB", (FINE * WIDTH, FINE * HEIGHT), "white")
    draw = ImageDraw.Draw(image)
    count, length = heights.shape
    edge = BAR_EDGE if length <= BARS else EDGE
    left, right = FINE * edge, FINE * (WIDTH - edge)
    draw.line([left, zero, right, zero], ZERO, FINE)
    if length <= BARS:
        step = (right - left) / length
        width = step / (count + 0.5)
        for k, (row, ink) in enumerate(zip(heights, inks, strict=True)):
            _bars(draw, left + (k + 0.25) * width, step, width, row, zero, ink)
    else:
        for row, ink in zip(heights, inks, strict=True):
            _curve(draw, np.linspace(left, right, length), row, ink)
    return np.array(image.resize((WIDTH, HEIGHT), Image.Resampling.BOX))


def _bars(
    draw: ImageDraw.ImageDraw,
    left: float,
    step: float,
    width: float,
    tops: np.ndarray,
    zero: float,
    ink: str,
) -> None:
    """Draw a bar of this width for each value that is not missing."""
    for n in np.flatnonzero(np.isfinite(tops)):
        x = left + n * step
        draw.rectangle([x, min(tops[n], zero), x + width, max(tops[n], zero)], ink)


def _curve(draw: ImageDraw.ImageDraw, x: np.ndarray, heights: np.ndarray, ink: str) -> None:
    """Draw a line through the values, with gaps where they are missing."""
    is_present = np.isfinite(heights)
    starts = np.flatnonzero(np.diff(is_present)) + 1
    points = np.column_stack([x, heights])
    for run, present in zip(np.split(points, starts), np.split(is_present, starts), strict=True):
        if present[0]:
            start = run[0] - [LINE, 0]  # a single value is a short line
            line = np.vstack([start, run]).ravel().tolist()
            draw.line(line, ink, FINE * LINE, "curve")
