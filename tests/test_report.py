"""Reports of models that the user built and trained alone, without a run folder."""

from __future__ import annotations

import pytest
import torch
from families import make_vae
from pages import TINY, make_relaxed, random_data

import pyro_vae as pv
from pyro_vae.reporting.report import write_page

pytest.importorskip("bokeh", reason="Bokeh is not installed")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr(write_page, "__defaults__", (TINY, 0))


def test_a_model_in_hand_has_a_report(tmp_path):
    data, vae = random_data(), make_vae()
    records = list(pv.fit(vae, data, epochs=2, batch_size=10))
    vae.train()
    before = torch.get_rng_state()
    path = pv.report(vae, data, tmp_path / "page.html", records=records, title="my <b>model</b>")
    assert torch.equal(before, torch.get_rng_state())
    text = path.read_text()
    assert "my &lt;b&gt;model&lt;/b&gt;" in text
    assert 'id="samples"' in text
    assert 'id="curves"' in text
    assert "All options" not in text
    assert "40 images" in text


def test_results_and_curves_are_shown_if_they_are_given(tmp_path):
    data, vae = random_data(), make_vae()
    results = pv.evaluate(vae, data.test, 20)
    text = pv.report(vae, data, str(tmp_path / "a.html"), results=results).read_text()
    assert f"{results['elbo']['mean']:.2f} ± {results['elbo']['standard_error']:.2f}" in text
    assert 'id="curves"' not in text
    again = pv.report(vae, data, tmp_path / "b.html", results=results).read_text()
    pictures = [page.split('id="samples"')[1].split("</section>")[0] for page in (text, again)]
    assert pictures[0] == pictures[1]


def test_models_in_hand_are_compared(tmp_path):
    data = random_data()
    models = {"plain": make_vae(), "flow": make_vae(posterior="FlowPosterior")}
    text = pv.compare_models({**models, "relaxed": make_relaxed()}, data, tmp_path / "c.html")
    text = text.read_text()
    assert "Differences from plain" in text
    assert "cross-entropies of unit values" in text


def test_wrong_requests_are_refused(tmp_path):
    data, vae = random_data(), make_vae()
    with pytest.raises(pv.RequestError, match="html"):
        pv.report(vae, data, tmp_path / "page.pdf")
    with pytest.raises(pv.RequestError, match="two models"):
        pv.compare_models({"one": vae}, data, tmp_path / "page.html")


def test_the_function_is_not_hidden_by_a_module():
    assert callable(pv.report)
    assert pv.figures.COLOURS
    assert callable(pv.views.samples)
