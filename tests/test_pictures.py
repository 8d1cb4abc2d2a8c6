"""Images as URLs."""

from __future__ import annotations

import torch

from pyro_vae.reporting.pictures import atlas


def test_large_colour_images_fit_the_page():
    state = atlas(torch.rand(500, 3, 64, 64))
    assert len(state["url"]) < 1.6e6
    assert state["width"] == state["height"] < 64
