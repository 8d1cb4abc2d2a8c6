"""Templates are rendered with their plots, and values are escaped."""

from __future__ import annotations

import pytest
from pages import HOSTILE, random_split

from pyro_vae.reporting.subject import Subject

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from bokeh.plotting import figure
from families import make_vae

from pyro_vae.reporting.panels import Panel
from pyro_vae.reporting.rendering import render


def test_plots_are_placed_and_names_are_escaped():
    plot = figure()
    plot.line([1, 2], [3, 4])
    subject = Subject(HOSTILE, make_vae(), random_split())
    panels = [Panel("curves", HOSTILE, 6, {"names": ["ELBO"]})]
    context = {"title": HOSTILE, "subject": subject, "panels": panels, "headlines": []}
    text = render("one.html", {**context, "data": None, "epochs": 0}, {"ELBO": plot})
    assert "<script>hacked" not in text
    assert "<img src=x" not in text
    assert plot.id in text
