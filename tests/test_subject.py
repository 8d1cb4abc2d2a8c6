"""What a page is about, and which models can be compared."""

from __future__ import annotations

import torch
from families import SHAPE, make_vae
from pages import make_conditional, make_relaxed, random_split

from pyro_vae.data.split import Split
from pyro_vae.reporting.subject import Subject, why_not_comparable


def test_relaxed_values_are_not_set_beside_densities():
    test = Split(torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8))
    normal = Subject("normal", make_vae(likelihood="Normal"), test)
    relaxed = Subject("relaxed", make_relaxed(), test)
    assert "cross-entropies" in why_not_comparable(relaxed, normal)
    assert why_not_comparable(relaxed, relaxed) == ""


def test_models_given_other_labels_are_not_compared():
    test = random_split()
    relabelled = Split(test.x, (test.labels + 1) % 3)
    first = Subject("first", make_conditional(), test)
    assert "labels" in why_not_comparable(Subject("b", make_conditional(), relabelled), first)
    assert why_not_comparable(Subject("c", make_conditional(), test), first) == ""
