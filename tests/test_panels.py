"""Every model has its panels."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from families import make_hierarchical, make_semi_supervised, make_vae
from pages import TINY, make_conditional, make_relaxed, random_split, results

import pyro_vae as pv
from pyro_vae.data.split import Split
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting.subject import Subject

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from pyro_vae.reporting.page import page
from pyro_vae.reporting.panels import PANELS, classifier, material, reliability


@pytest.mark.parametrize(
    ("prior", "latent_dim"),
    [("GaussianMixture", 2), ("VampPrior", 2), ("StudentT", 2), ("VampPrior", 3)],
)
def test_every_prior_has_a_page(prior, latent_dim):
    subject = Subject("run", make_vae(prior, latent_dim=latent_dim), random_split())
    assert 'id="samples"' in page(subject, TINY)


def hierarchical():
    return make_hierarchical(latent_dim=2)


def flow():
    return make_vae(posterior="FlowPosterior", latent_dim=2)


@pytest.mark.parametrize("make", [hierarchical, make_conditional, flow])
def test_every_model_has_a_page(make):
    text = page(Subject("run", make(), random_split()), TINY)
    assert ("Posterior explorer" in text) == (make is not hierarchical)


def test_a_page_about_rows_calls_nothing_an_image():
    x = torch.randn(12, 4)
    vae = pv.VAE(
        prior=pv.StandardNormal(2),
        encoder=pv.MLP((4,), (2, 2), hidden=[8]),
        posterior=pv.DiagonalNormal(),
        decoder=pv.MLP((2,), (1, 4), hidden=[8]),
        likelihood=pv.likelihoods.Normal(kind="real"),
    )
    vae.initialize(x)
    subject = Subject("run", vae, Split(x), results(12, 10))
    text = page(subject, TINY)
    visible = re.sub("<script.*?</script>|<style.*?</style>|<[^>]*>", "", text, flags=re.DOTALL)
    assert "12 rows" in visible
    assert "image" not in visible.lower()


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_few_images_have_a_page(count, latent_dim):
    assert page(Subject("run", make_vae(latent_dim=latent_dim), random_split(count)), TINY)


def test_classes_have_the_users_names():
    test = random_split()
    named = Split(test.x, test.labels, classes=("cat", "<b>dog</b>", "$x^{$"))
    text = page(Subject("run", make_vae(latent_dim=3), named), TINY)
    assert '"cat"' in text
    assert "<b>dog" not in text


def test_a_relaxed_bernoulli_has_no_bound_on_log_p():
    text = page(Subject("run", make_relaxed(), random_split(), results=results()), TINY)
    assert "Lower bound on log p(x)" not in text
    assert "not log-probabilities" in text
    text = page(Subject("run", make_vae(latent_dim=3), random_split(), results=results()), TINY)
    assert "Lower bound on log p(x)" in text
    assert "not log-probabilities" not in text


def test_a_model_that_uses_labels_says_so():
    text = page(Subject("run", make_conditional(3), random_split(), results=results()), TINY)
    assert "log p(x) stands for log p(x | y)" in text


def test_no_two_panels_share_a_name_or_a_plot():
    for latent_dim in (2, 3):
        made = material(Subject("run", make_vae(latent_dim=latent_dim), random_split()), TINY)
        panels = [panel for panel in (make(made) for make in PANELS) if panel]
        names = [panel.name for panel in panels]
        plots = [name for panel in panels for name in panel.plots]
        assert len(set(names)) == len(names)
        assert len(set(plots)) == len(plots)


def sources(plot):
    return [renderer.data_source.data for renderer in plot.renderers]


def test_the_second_estimate_and_the_exact_line_are_those_of_the_quadrature():
    subject = Subject("run", make_vae(latent_dim=2), random_split())
    made = material(subject, TINY)
    exact = quadrature_log_likelihood(subject.vae, made.shown.images[:3])
    first = made.shown.scores.log_likelihood[:3]
    explored = made.snapshots[0].explored
    added = torch.tensor([exact[n] - explored[n].draws.curve[64] for n in range(3)])
    subject.results["k_curve"] = {"1": {"mean": -12.0}, "64": {"mean": -11.0}}  # type: ignore[index]
    panel = reliability(made)
    (points,) = sources(panel.plots["estimates"])
    torch.testing.assert_close(torch.tensor(points["y"]), exact - first, atol=2e-3, rtol=0)
    level = sources(panel.plots["k_curve"])[-1]["y"]
    assert level[0] == pytest.approx(-11.0 + float(added.mean()), abs=2e-3)


def test_a_calibration_is_drawn_if_it_is_complete():
    vae = make_vae(latent_dim=3)
    found = pv.calibration(vae, num_images=30).summary()
    text = page(Subject("run", vae, random_split(), results={"calibration": found}), TINY)
    assert f"90%: {found['coverage']['0.9']['share']:.1%}" in text
    for odd in (3, {**found, "histograms": {"z": [1]}}, {**found, "coverage": {"<b>": 1}}):
        subject = Subject("run", vae, random_split(), results={"calibration": odd})
        assert "calibration" not in reliability(material(subject, TINY)).plots


def test_a_classification_is_drawn_if_it_is_complete():
    split = random_split()
    vae = make_semi_supervised(3)
    found = pv.classify(vae, split, num_bins=3).summary()
    text = page(Subject("run", vae, split, results={"classification": found}), TINY)
    assert f"{found['accuracy']:.2%} ± {found['standard_error']:.2%}" in text
    made = material(Subject("run", make_vae(), split, results={"classification": found}), TINY)
    points = sources(classifier(made).plots["classifier"])[-1]
    assert points["accuracy"] == [each["accuracy"] for each in found["bins"]]
    for odd in (3, {**found, "bins": [{}]}, {**found, "accuracy": "<b>"}):
        odd_subject = Subject("run", vae, split, results={"classification": odd})
        assert classifier(replace(made, subject=odd_subject)) is None


def test_estimates_of_a_check_are_drawn_where_there_is_no_quadrature():
    check = {"method": "ais", "importance_sampling": [-3.0, -4.0], "second": [-2.5, -4.0]}
    found = {**results(), "check": check}
    subject = Subject("run", make_vae(latent_dim=3), random_split(), results=found)
    (points,) = sources(reliability(material(subject, TINY)).plots["estimates"])
    assert list(points["y"]) == [0.5, 0.0]
    for odd in ({}, {"importance_sampling": 3, "second": []}):
        subject = Subject("run", make_vae(latent_dim=3), random_split(), results={"check": odd})
        assert "estimates" not in reliability(material(subject, TINY)).plots
