"""Pictures of vectors: where the ink is."""

from __future__ import annotations

import pytest
import torch

from pyro_vae.reporting.vectors import (
    BARS,
    EDGE,
    HEIGHT,
    WIDTH,
    caption,
    curves,
    limits,
    pictures,
)


def middle_of_ink(picture):
    """The mean height of the ink in each column of pixels, from the top."""
    ink = (picture[0] - 0.2).clamp(min=0)  # the line at zero is lighter
    return (ink * torch.arange(HEIGHT)[:, None]).sum(0) / ink.sum(0)


def test_a_curve_is_where_its_values_are():
    row = torch.linspace(0.1, 0.9, 40)
    (picture,) = curves(row[None])
    assert picture.shape == (1, HEIGHT, WIDTH)
    inner = slice(EDGE + 2, WIDTH - EDGE - 2)
    expected = EDGE + (1 - torch.linspace(0.1, 0.9, WIDTH - 2 * EDGE)) * (HEIGHT - 2 * EDGE)
    measured = middle_of_ink(picture)[inner]
    torch.testing.assert_close(measured, expected[2:-2], atol=1.0, rtol=0)


def test_a_few_values_are_bars():
    (picture,) = curves(torch.tensor([[1.0, 0.0, 0.5]]))
    ink = (picture[0] > 0.9).sum(0)
    tops = [int(part.max()) for part in ink[EDGE:-EDGE].chunk(3)]
    whole = HEIGHT - 2 * EDGE
    assert tops == pytest.approx([whole, 0, whole / 2], abs=2)


@pytest.mark.parametrize("length", range(1, BARS + 1))
def test_bars_of_pictures_side_by_side_are_further_apart_than_those_of_one(length):
    (picture,) = curves(torch.ones(1, length))
    empty = (torch.cat([picture[0]] * 2, -1) < 0.5).all(0)
    gaps = [len(run) for run in "".join("01"[int(each)] for each in empty).split("0") if run]
    within = gaps[1:length] or [0]
    assert gaps[length] > 2 * max(within)


def test_two_curves_have_two_colours_and_one_axis():
    pairs = torch.stack([torch.full((2, 20), 0.25), torch.full((2, 20), 3.0)], 1)
    drawn = curves(pairs)
    assert drawn.shape == (2, 3, HEIGHT, WIDTH)
    column = drawn[0, :, :, WIDTH // 2]
    blue = int(column[0].argmin())  # the ink without red
    orange = int(column[2].argmin())
    assert (HEIGHT - blue) < (HEIGHT - orange) / 2
    assert limits(pairs) == (0, 4)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (torch.eye(9), (0, 1)),
        (torch.randn(100, 30, generator=torch.Generator().manual_seed(0)), (-4, 4)),
        (torch.full((3, 10), 2.0), (0, 2)),
        (torch.full((3, 10), -0.01), (0, 1)),
        (torch.cat([torch.zeros(1, 999), torch.full((1, 1), 50.0)], 1), (0, 1)),
    ],
)
def test_limits(rows, expected):
    assert limits(rows) == expected


def test_images_stay_as_they_are():
    images = torch.rand(3, 1, 5, 5)
    assert torch.equal(pictures(images), images)
    assert torch.equal(pictures(2 * images), (2 * images).clamp(max=1))
    assert caption(images) == ""
    assert "20 values" in caption(torch.rand(3, 20))
    assert pictures(torch.rand(3, 20)).shape == (3, 1, HEIGHT, WIDTH)


@pytest.mark.parametrize("length", [4, 40])
def test_missing_values_are_gaps(length):
    row = torch.full((length,), 0.5)
    row[length // 4 : length // 2] = torch.nan
    (picture,) = curves(row[None])
    columns = (picture[0] > 0.5).any(0)[EDGE:-EDGE].float()
    gap = columns.unfold(0, 5, 1).amax(1) == 0  # as wide as five pixels
    assert gap.nonzero().flatten().float().mean() == pytest.approx(3 / 8 * len(columns), abs=6)
    assert limits(torch.full((1, 3), torch.nan)) == (0, 1)


@pytest.mark.parametrize("length", [1, 2, 9, 3000])
def test_any_length(length):
    drawn = curves(torch.ones(2, length))
    assert drawn.isfinite().all()
    assert (drawn > 0.5).any()
