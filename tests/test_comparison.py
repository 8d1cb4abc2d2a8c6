"""Pages that compare models: paired differences, groups of seeds, and what cannot be compared."""

from __future__ import annotations

import pytest
import torch
from families import SHAPE, make_vae
from pages import TINY, make_conditional, make_relaxed, random_split, record, results

from pyro_vae.data.split import Split
from pyro_vae.reporting.overview import overview
from pyro_vae.reporting.subject import Subject

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from pyro_vae.reporting.comparison import (
    Group,
    Scored,
    _difference,
    _differing_options,
    _groups,
    comparison,
)


def test_the_comparison_has_elbo_and_log_p_of_the_same_images():
    test = random_split()
    subjects = []
    for name in ("first", "second"):
        subjects.append(Subject(name, make_vae(), test, results=results(100, 30)))
    text = comparison(subjects, TINY)
    assert "-88.00 ± 1.00" in text
    assert "-89.00" not in text
    assert '<td class="number">100</td>' in text
    assert '<td class="number">1,000</td>' in text


OTHERS = {
    "its test images": lambda test: (make_vae(), random_split()),
    "log-probabilities of byte values": lambda test: (make_vae(likelihood="Categorical"), test),
    "log-densities of dequantized values": lambda test: (make_vae(likelihood="Beta"), test),
    "cross-entropies of unit values": lambda test: (make_relaxed(), test),
    "given the labels": lambda test: (make_conditional(), test),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_models_that_cannot_be_compared_are_listed_with_the_reason(reason, monkeypatch):
    """Before anything is scored, and without their numbers."""
    test = Split(torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8), torch.arange(40) % 3)
    vae, split = OTHERS[reason](test)
    scored_models = []

    def spy(vae, *args):
        scored_models.append(vae)
        return overview(vae, *args)

    monkeypatch.setattr("pyro_vae.reporting.comparison.overview", spy)
    first = Subject("first", make_vae(), test, results=results())
    other = Subject("other", vae, split, results={"elbo": {"mean": -77.77}}, records=[record(1)])
    third = Subject("third", make_vae(), test)
    text = comparison([first, other, third], TINY)
    assert reason in text
    assert "-77.77" not in text
    assert vae not in scored_models
    assert len(scored_models) == 2
    assert "Differences from first" in text


def make_scored(prior, seed, elbo=None):
    options = {"prior": f"pyro_vae.{prior}", "seed": seed, "prior.scale": prior}
    subject = Subject(f"{prior}-{seed}", make_vae(), random_split(), options=options)
    scores = torch.randn(40).double() if elbo is None else elbo
    return Scored(subject, scores, scores, [])


def test_runs_that_differ_in_the_seed_are_a_group():
    runs = [make_scored(prior, seed) for prior in ("A", "B") for seed in ("0", "1", "2")]
    differing = _differing_options([run.subject for run in runs])
    assert differing == ["prior", "seed"]
    groups = _groups(runs, differing)
    assert [(group.name, len(group.members)) for group in groups] == [("A", 3), ("B", 3)]
    alone = _groups(runs[:3], ["seed"])
    assert [group.name for group in alone] == ["A-0", "A-1", "A-2"]


def test_differences_are_paired_by_seed_and_image():
    """The seeds and images vary much more than the difference of 1 nat."""
    seeds = {seed: 10 * torch.randn(40).double() for seed in ("0", "1", "2")}
    noise = 0.1 * torch.randn(3, 40).double()
    first = Group("A", [make_scored("A", seed, elbo) for seed, elbo in seeds.items()])
    others = []
    for n, seed in enumerate(("2", "0", "1")):
        others.append(make_scored("B", seed, seeds[seed] + 1 + noise[n]))
    found = _difference(Group("B", others), first, "elbo")
    assert found.mean == pytest.approx(1 + noise.mean().item())
    assert found.error == pytest.approx(noise.mean(0).std().item() / 40**0.5)
    assert found.seeds == pytest.approx((1 + noise.mean(1)).tolist())
    assert found.text == f"{found.mean:+.2f} ± {found.error:.2f}"


def test_other_seeds_are_set_beside_the_first_run():
    first = Group("A", [make_scored("A", "0", torch.zeros(40).double())])
    other = Group("B", [make_scored("B", "7", torch.ones(40).double())])
    assert _difference(other, first, "elbo").mean == 1


def test_the_table_has_validation_elbo_and_k_hat():
    test = random_split()
    found = results()
    found["log_likelihood"]["share_of_images_with_k_hat_over_0.7"] = 0.9876
    records = [{**record(1), "validation_elbo": -55.55}]
    subjects = [Subject("a", make_vae(), test, found, records), Subject("b", make_vae(), test)]
    text = comparison(subjects, TINY)
    assert '<td class="number">98.8%</td>' in text
    assert '<td class="number">-55.55</td>' in text
