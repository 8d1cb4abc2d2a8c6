"""Plots of a page: what their sources hold."""

from __future__ import annotations

from families import make_vae
from pages import random_split, record

from pyro_vae.reporting import figures, plots
from pyro_vae.reporting.subject import Subject


def test_curves_have_the_colours_of_the_pictures():
    """Validation was blue on the page and orange in curves.png, training the reverse."""
    subject = Subject("run", make_vae(latent_dim=3), random_split(), records=[record(1), record(2)])
    plot = plots.curves([subject])["ELBO"]
    on_page = {}
    for item in plot.legend[0].items:
        on_page[item.label.value] = item.renderers[0].glyph.line_color
    lines = (
        figures.curves(
            [{**record(1), "loss": -1.0, "reconstruction": 0.0, "validation_reconstruction": 0.0}]
        )
        .axes[0]
        .lines
    )
    assert on_page == {line.get_label(): line.get_color() for line in lines}
