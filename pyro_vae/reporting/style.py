"""The look of pages and pictures: one set of colours, the names of classes, and where names go."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

# Six colours of Okabe and Ito's palette and four more: any two differ by a CIEDE2000 distance of at
# least 21, and of at least 10 with any colour blindness as simulated by Machado et al. (2009).
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#b2df8a",
    "#963cff",
    "#8c564b",
    "#332288",
)
# Of images without a label, where ten classes have the other colours.
GREY = "#999999"
# The same thing has the same colour everywhere.
TRAINING = "#56b4e9"
VALIDATION = "#0072b2"
LOSS = "#e69f00"
PRIOR = "#808080"
GUIDE = "#d55e00"
BEST = "#cc79a7"
EXACT = "#009e73"

# Settings of all matplotlib figures.
STYLE = Path(__file__).with_name("figures.mplstyle")
# Widths in inches of figures in one and in two columns of a paper.
ONE_COLUMN = 3.4
TWO_COLUMNS = 7.0

# Passes after which names that still overlap are left where they are.
PASSES = 500


def class_name(label: int, classes: Sequence[str] | None = None) -> str:
    """The name of a label: that of its class if classes have names, otherwise the number.

    Example:
        >>> class_name(1, ("cat", "dog")), class_name(1), class_name(-1)
        ('dog', '1', 'no label')
    """
    if label < 0:
        return "no label"
    if classes is None or label >= len(classes):
        return str(label)
    return classes[label]


def ink_on(colour: str) -> str:
    """Black or white, depending on which has more contrast with a colour.

    Example:
        >>> ink_on("#332288"), ink_on("#b2df8a")
        ('white', 'black')
    """
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    if 0.299 * red + 0.587 * green + 0.114 * blue > 140:
        return "black"
    return "white"


def without_overlap(middles: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Places near `middles` at which boxes do not overlap.

    Overlapping pairs are pushed apart, each pair along the axis on which it overlaps less.

    Arguments:
        middles: Where the middles of the boxes should be, shape `(N, 2)`.
        sizes: Their widths and heights in the same units, shape `(N, 2)`.
    """
    places = middles.astype(float)
    for _ in range(PASSES):
        moved = False
        for first in range(len(places)):
            for second in range(first + 1, len(places)):
                moved |= _push_apart(places, sizes, first, second)
        if not moved:
            break
    return places


def _push_apart(places: np.ndarray, sizes: np.ndarray, first: int, second: int) -> bool:
    """Move two boxes apart if they overlap, and return whether they did."""
    apart = places[second] - places[first]
    needed = (sizes[first] + sizes[second]) / 2
    overlap = needed - np.abs(apart)
    if (overlap <= 1e-9 * needed).any():
        return False
    axis = int((overlap / needed).argmin())
    sign = -1.0 if apart[axis] < 0 else 1.0
    places[second, axis] += sign * overlap[axis] / 2
    places[first, axis] -= sign * overlap[axis] / 2
    return True
