"""What is shown of every model."""

from __future__ import annotations

import torch
from families import make_vae
from pages import TINY, random_split

from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.codes import codes
from pyro_vae.reporting.overview import kl_per_dimension, overview
from pyro_vae.reporting.projection import projection


def test_kl_per_dimension_adds_up_to_the_closed_form():
    vae = make_vae(latent_dim=3)
    x = random_split().scored(vae.pixels)
    loc, scale = vae.q_z(x).mean, vae.q_z(x).stddev
    expected = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0)
    torch.testing.assert_close(kl_per_dimension(vae, Batch(x, None)), expected, atol=0.15, rtol=0)


def test_kl_per_dimension_needs_independent_dimensions():
    vae = make_vae("VampPrior")
    assert kl_per_dimension(vae, scored(vae, random_split())) is None


def test_codes_are_projected_as_in_the_figures():
    """On the principal components of all test images, not of those that are scored."""
    vae, test = make_vae(latent_dim=3), random_split(200)
    shown = overview(vae, test, TINY)
    assert len(shown.codes) == 40
    loc = codes(vae, test).loc
    assert shown.onto_plane.names == projection(loc).names
    expected = projection(loc)(shown.codes)
    torch.testing.assert_close(shown.onto_plane(shown.codes), expected)
