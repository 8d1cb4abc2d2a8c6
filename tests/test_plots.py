"""Plots of a page: what their sources hold."""

from __future__ import annotations

import numpy as np
import pytest
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


def test_no_records_no_curves_and_a_constant_beta_no_curve_of_it():
    vae, test = make_vae(latent_dim=3), random_split()
    assert plots.curves([Subject("run", vae, test)]) == {}
    assert "beta" not in plots.curves([Subject("run", vae, test, records=[record(1)])])
    warmed = [{**record(1), "beta": 0.5}, record(2)]
    plot = plots.curves([Subject("run", vae, test, records=warmed)])["beta"]
    assert sources(plot) == [{"x": [1, 2], "y": [0.5, 1.0]}]


def sources(plot):
    """The points of the lines of a plot."""
    lines = [each for each in plot.renderers if type(each.glyph).__name__ == "Line"]
    return [{axis: list(each.data_source.data[axis]) for axis in "xy"} for each in lines]


@pytest.mark.parametrize("epochs", [1, 999, 1000, 1001, 2500])
def test_curves_keep_the_last_epoch_and_the_spacing(epochs):
    records = [{**record(epoch), "validation_elbo": -epoch} for epoch in range(1, epochs + 1)]
    plot = plots.curves([Subject("run", make_vae(), random_split(), records=records)])["ELBO"]
    validation, training = sources(plot)
    assert validation["x"] == training["x"]
    assert validation["y"] == [-epoch for epoch in validation["x"]]
    assert validation["x"][-1] == epochs
    assert len(validation["x"]) <= plots.EPOCHS
    assert len(set(np.diff(validation["x"]))) <= 1


def test_of_several_models_there_is_one_curve_each():
    vae, test = make_vae(), random_split()
    first = Subject("first", vae, test, records=[{**record(1), "elbo": 5.0}])
    second = Subject("second", vae, test, records=[record(1), record(2)])
    plot = plots.curves([first, Subject("new", vae, test), second])["ELBO"]
    assert [item.label.value for item in plot.legend[0].items] == ["first", "second"]
    assert sources(plot) == [{"x": [1], "y": [1.0]}, {"x": [1, 2], "y": [1.0, 1.0]}]


def test_the_band_of_the_bound_is_one_standard_error():
    plot = plots.bounds([(1, -90.0, 0.0), (10, -88.0, 0.5)])
    band, line = plot.renderers[0].data_source.data, sources(plot)[0]
    assert line == {"x": [1, 10], "y": [-90.0, -88.0]}
    assert list(band["y1"]) == [-90.0, -88.5]
    assert list(band["y2"]) == [-90.0, -87.5]
