"""What is shown of every model."""

from __future__ import annotations

import torch
from families import make_vae
from pages import TINY, random_split

from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.batch import scored
from pyro_vae.reporting.overview import kl_per_dimension, order_of, overview


def test_kl_per_dimension_adds_up_to_the_closed_form():
    vae = make_vae(latent_dim=3)
    x = random_split().scored(vae.pixels)
    loc, scale = vae.q_z(x).mean, vae.q_z(x).stddev
    expected = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0)
    torch.testing.assert_close(kl_per_dimension(vae, Batch(x, None)), expected, atol=0.15, rtol=0)


def test_kl_per_dimension_needs_independent_dimensions():
    vae = make_vae("VampPrior")
    assert kl_per_dimension(vae, scored(vae, random_split())) is None


def test_codes_are_drawn_of_more_images_than_are_scored():
    """The scores are those of the first images, and each image has its reconstruction."""
    vae, test = make_vae(latent_dim=3), random_split(200)
    shown = overview(vae, test, TINY._replace(drawn=60))
    assert len(shown.codes) == len(shown.reconstructions) == 60
    assert len(shown.scores.kl) == 40
    images = shown.reconstructions[:, 0]
    torch.testing.assert_close(images, shown.images.scored(vae.pixels))


def test_the_order_has_active_dimensions_by_their_kl():
    activity = torch.tensor([0.5, 0.001, 0.2, 0.3])
    assert order_of(activity, torch.tensor([1.0, 5.0, 3.0, 2.0])) == [2, 3, 0]
    assert order_of(activity, None) == [0, 3, 2]
    assert order_of(torch.zeros(3), torch.tensor([0.1, 0.3, 0.2])) == [1]
