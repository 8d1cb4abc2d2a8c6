"""Names on plots do not overlap, and the style file is one that matplotlib reads."""

from __future__ import annotations

from itertools import combinations

import numpy as np
from matplotlib import rc_params_from_file

from pyro_vae.reporting.style import STYLE, without_overlap


def overlaps(places, sizes):
    found = []
    for i, j in combinations(range(len(places)), 2):
        needed = (sizes[i] + sizes[j]) / 2 - 1e-6
        if (abs(places[i] - places[j]) < needed).all():
            found.append((i, j))
    return found


def test_names_at_one_place_are_pushed_apart():
    generator = np.random.default_rng(0)
    middles = generator.normal(0, 0.05, (10, 2))
    middles[3] = middles[4]
    sizes = np.tile([0.3, 0.1], (10, 1))
    sizes[5] = [0.9, 0.1]
    assert len(overlaps(middles, sizes)) > 10
    assert overlaps(without_overlap(middles, sizes), sizes) == []


def test_names_that_do_not_overlap_stay_where_they_are():
    middles = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    np.testing.assert_array_equal(without_overlap(middles, np.full((3, 2), 0.9)), middles)


def test_the_style_file_has_no_unknown_settings():
    assert rc_params_from_file(STYLE, use_default_template=False)["savefig.dpi"] == 300
