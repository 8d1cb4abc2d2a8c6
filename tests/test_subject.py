"""What a page is about, and which models can be compared."""

from __future__ import annotations

from dataclasses import replace

import torch
from families import SHAPE, make_vae
from pages import make_conditional, make_relaxed, random_split

from pyro_vae.data.split import Split
from pyro_vae.reporting.subject import Subject, facts_of, why_not_comparable


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


def test_what_the_numbers_are_in_words():
    test = random_split()
    values = {
        "log-probabilities of binary values": make_vae(),
        "log-probabilities of byte values": make_vae(likelihood="Categorical"),
        "log-densities of dequantized values": make_vae(likelihood="Beta"),
        "log-densities of unit values": make_vae(likelihood="Normal"),
        "cross-entropies of unit values": make_relaxed(),
        "log-probabilities of binary values given the labels": make_conditional(3),
    }
    assert [Subject("a", vae, test).values for vae in values.values()] == list(values)


def test_the_total_that_a_likelihood_is_given_is_named():
    test = Split(torch.randint(1, 9, (6, 5)))
    first = Subject("a", make_vae(likelihood="Poisson", shape=(5,)), test)
    other = Subject("b", make_vae(likelihood="Poisson", shape=(5,)), test)
    other.vae.likelihood.given_total = True
    assert first.notes == []
    assert other.notes == ["Given the total of each row: log p(x) stands for log p(x | total)."]
    assert "given the total of each row" in why_not_comparable(other, first)


def test_each_reason_against_a_comparison_is_found_alone():
    """In both directions; without it the same two can be compared."""
    first = Subject("first", make_vae(), random_split())
    assert why_not_comparable(replace(first, name="b", vae=make_vae("VampPrior")), first) == ""
    reasons = {
        "its data changed": replace(first, name="b", fault="its data changed"),
        "test images": replace(first, name="b", test=first.test[:5]),
        "log-densities": replace(first, name="b", vae=make_vae(likelihood="Normal")),
    }
    for reason, other in reasons.items():
        assert reason in why_not_comparable(other, first)
        assert reason in why_not_comparable(first, other)


def test_equal_pixels_of_another_type_are_other_images():
    test = random_split()
    first = Subject("a", make_relaxed(), test)
    floats = Subject("b", make_relaxed(), Split(test.x.float() / 255, test.labels))
    assert "test images" in why_not_comparable(floats, first)


def test_facts_count_parameters_and_images():
    vae, test = make_vae(), random_split()
    facts = facts_of(vae, test)
    count = sum(torch.Size(value.shape).numel() for value in vae.state_dict().values())
    assert facts["model"] == f"VAE, {count:,} parameters"
    assert facts["test images"] == f"{len(test)} of shape 1 x 4 x 4"
