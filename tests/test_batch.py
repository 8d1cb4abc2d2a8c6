"""What the functions of evaluation take: checked, and with the same pixels at every call."""

from __future__ import annotations

import pyro
import pytest
import torch
from families import make_conditional, make_vae

import pyro_vae as pv
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.batch import random_rows, scored
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


@pytest.mark.parametrize("score", [pv.codes, score_images, pv.evaluate, pv.impute])
def test_what_is_not_images_is_refused(vae, score):
    x = torch.zeros(4, 1, 4, 4)
    split = pv.Split(x)
    for images in (x.numpy(), pv.Data("zeros", split, split, split), [0.0], "test"):
        with pytest.raises(pv.RequestError, match="must be a Split such as"):
            score(vae, images)


def test_a_bernoulli_refuses_pixels_outside_of_the_unit_interval(vae):
    """Bernoulli has a log-density for any number, which is no log-probability."""
    x = torch.zeros(4, 1, 4, 4)
    for value in (255.0, -0.5):
        x[0, 0, 0, 0] = value
        with pytest.raises(pv.RequestError, match="outside of 0 to 1"):
            pv.evaluate(vae, x, num_samples=2)
    x[0, 0, 0, 0] = torch.nan
    pv.evaluate(vae, x, num_samples=2)


@pytest.mark.parametrize("value", [0, -1, 2.5, "9"])
def test_numbers_of_samples_are_positive_integers(vae, value):
    x = torch.zeros(4, 1, 4, 4)
    with pytest.raises(pv.RequestError, match="num_samples must be a positive integer"):
        pv.evaluate(vae, x, num_samples=value)
    with pytest.raises(pv.RequestError, match="batch_size must be a positive integer"):
        pv.evaluate(vae, x, num_samples=2, batch_size=value)


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


def test_every_form_of_the_same_images_is_scored_alike(digits):
    vae = make_vae(shape=digits.shape).train()
    split = digits.test[:5]
    batch = scored(vae, split)
    assert not vae.training
    assert torch.equal(batch.x, split.scored("binary"))
    assert torch.equal(batch.y, split.y)
    assert torch.equal(scored(vae, batch.x).x, batch.x)
    assert torch.equal(scored(vae, Batch(batch.x, None)).x, batch.x)


def test_labels_are_those_of_the_split_and_are_needed_where_the_model_needs_them():
    vae = make_conditional()
    x = torch.randint(0, 256, (5, 1, 4, 4), dtype=torch.uint8)
    labels = torch.tensor([2, 0, 1, 0, 2])
    assert torch.equal(scored(vae, pv.Split(x, labels)).y, labels)
    with pytest.raises(pv.RequestError, match="labels"):
        scored(vae, pv.Split(x))


def test_checking_a_batch_leaves_the_random_state_alone(vae, x):
    before = torch.get_rng_state()
    scored(vae, x)
    assert torch.equal(torch.get_rng_state(), before)


def test_random_rows_are_distinct_and_the_same_at_every_call(digits):
    rows = random_rows(digits.test, 50)
    torch.rand(3)
    assert torch.equal(rows, random_rows(digits.test, 50))
    assert len(rows.unique()) == 50
    assert 0 <= rows.min() < rows.max() < len(digits.test)
    assert rows.tolist() != sorted(rows.tolist())
    assert torch.equal(random_rows(digits.test, 20), rows[:20])


@pytest.mark.parametrize("more", [0, 1, 1000])
def test_all_rows_are_in_order(x, more):
    assert random_rows(Batch(x, None), len(x) + more).tolist() == list(range(len(x)))
