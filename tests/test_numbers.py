"""Numbers as a page says them."""

from __future__ import annotations

import pytest
from families import make_vae
from pages import random_split, record, results

from pyro_vae.reporting.numbers import headlines, metrics, reliability
from pyro_vae.reporting.subject import SECONDS, Subject


def test_metrics_say_how_many_images_they_are_of():
    rows = {row.name: row for row in metrics(results(100, 30))}
    assert "100 images" in rows["ELBO"].meaning
    assert "30 images, 1,000 samples" in rows["log p(x)"].meaning
    assert "ELBO, same images" in rows
    assert "ELBO, same images" not in {row.name for row in metrics(results(100, 100))}


def test_headlines_are_the_numbers_of_the_results():
    facts = {SECONDS: "12.3"}
    subject = Subject("a", make_vae(), random_split(), results(100, 30), [record(1)], facts=facts)
    rows = {row.name: row for row in headlines(subject)}
    assert rows["ELBO"][1:3] == ("-90.00", "± 1.00 nats")
    assert rows["log p(x)"].value == "-88.00"  # of all images, as the ELBO
    assert (rows["active units"].value, rows["active units"].error) == ("2", "of 2")
    assert rows["training"].value == "12.3"
    assert headlines(Subject("a", make_vae(), random_split())) == []


@pytest.mark.parametrize(
    ("share", "disagree", "word"),
    [
        (None, False, "unchecked"),
        (0.0, False, "reliable"),
        (0.01, False, "fair"),
        (0.9, False, "unreliable"),
        (0.0, True, "too low"),
    ],
)
def test_reliability_is_a_word_with_its_reason(share, disagree, word):
    found = {"log_likelihood": {"share_of_images_with_k_hat_over_0.7": share}}
    assert reliability({**found, "check": {"disagree": disagree}})[0] == word
