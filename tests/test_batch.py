"""What the functions of evaluation take: checked, and with the same pixels at every call."""

from __future__ import annotations

import pyro
import pytest
import torch
from families import make_vae

import pyro_vae as pv
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.metrics import score_images


@pytest.mark.parametrize("score", [pv.codes, score_images, pv.evaluate, pv.information])
def test_images_of_a_wrong_type_or_shape_are_refused(vae, score):
    """The message says what helps: another shape for one, the likelihood's values for the other."""
    with pytest.raises(pv.RequestError, match=r"split\.scored\(vae\.pixels\)"):
        score(vae, torch.zeros(2, 1, 4, 4, dtype=torch.uint8))
    for images in (torch.zeros(2, 1, 4, 5), torch.zeros(2, 16), pv.Split(torch.zeros(2, 1, 5, 5))):
        with pytest.raises(pv.RequestError, match=r"made for \(1, 4, 4\).*image_size"):
            score(vae, images)
    with pytest.raises(pv.RequestError, match="no images"):
        score(vae, torch.zeros(0, 1, 4, 4))


def test_a_split_made_by_hand_is_scored_on_the_same_pixels(digits):
    vae = make_vae(shape=digits.shape)
    split = pv.Split(digits.train.x[:60], digits.train.labels[:60])
    assert torch.equal(scored(vae, split).x, scored(vae, split).x)
    results = []
    for _ in range(2):
        pyro.set_rng_seed(3)
        torch.rand(len(results))
        pyro.set_rng_seed(3)
        results.append(pv.evaluate(vae, split, num_samples=5))
    assert results[0] == results[1]
    torch.rand(7)
    third = pv.evaluate(vae, split, num_samples=5)
    assert third["elbo"]["mean"] == pytest.approx(results[0]["elbo"]["mean"], abs=0.3)
