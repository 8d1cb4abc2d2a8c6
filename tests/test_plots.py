"""Plots of a page: what their sources hold."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from families import make_vae
from pages import random_split, record

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from bokeh.models import Line

from pyro_vae.reporting import figures, plots
from pyro_vae.reporting.document import Groups
from pyro_vae.reporting.projection import Plane
from pyro_vae.reporting.style import GUIDE
from pyro_vae.reporting.subject import Subject


def test_curves_have_the_colours_of_the_pictures():
    """Validation was blue on the page and orange in curves.png, training the reverse."""
    subject = Subject("run", make_vae(latent_dim=3), random_split(), records=[record(1), record(2)])
    plot = plots.curves([subject])["ELBO"]
    colours = [each.glyph.line_color for each in plot.renderers if type(each.glyph) is Line]
    zeros = {"loss": -1.0, "reconstruction": 0.0, "validation_reconstruction": 0.0}
    drawn = figures.curves([{**record(1), **zeros}]).axes[0].lines
    assert colours == [line.get_color() for line in drawn]


def test_no_records_no_curves_and_a_constant_beta_no_curve_of_it():
    vae, test = make_vae(latent_dim=3), random_split()
    assert plots.curves([Subject("run", vae, test)]) == {}
    assert "beta" not in plots.curves([Subject("run", vae, test, records=[record(1)])])
    warmed = [{**record(1), "beta": 0.5}, record(2)]
    plot = plots.curves([Subject("run", vae, test, records=warmed)])["beta"]
    assert sources(plot) == [{"x": [1, 2], "y": [0.5, 1.0]}]


def sources(plot):
    """The points of the lines of a plot."""
    lines = [each for each in plot.renderers if type(each.glyph) is Line]
    return [{axis: list(each.data_source.data[axis]) for axis in "xy"} for each in lines]


@pytest.mark.parametrize("epochs", [1, 999, 1000, 1001, 2500])
def test_curves_keep_the_last_epoch_and_the_spacing(epochs):
    records = [{**record(epoch), "validation_elbo": -epoch} for epoch in range(1, epochs + 1)]
    plot = plots.curves([Subject("run", make_vae(), random_split(), records=records)])["ELBO"]
    training, validation = sources(plot)
    assert validation["x"] == training["x"]
    assert validation["y"] == [-epoch for epoch in validation["x"]]
    assert validation["x"][-1] == epochs
    assert len(validation["x"]) <= plots.EPOCHS
    assert len(set(np.diff(validation["x"]))) <= 1


def test_of_several_models_there_is_one_curve_each():
    vae, test = make_vae(), random_split()
    first = Subject("first", vae, test, records=[{**record(1), "elbo": 5.0}])
    second = Subject("second", vae, test, records=[record(1), record(2)])
    colours = ("red", "green", "blue")
    plot = plots.curves([first, Subject("new", vae, test), second], colours)["ELBO"]
    lines = [each.glyph.line_color for each in plot.renderers if type(each.glyph) is Line]
    assert lines == ["red", "blue"]
    assert sources(plot) == [{"x": [1], "y": [1.0]}, {"x": [1, 2], "y": [1.0, 1.0]}]


def test_the_band_of_the_bound_is_one_standard_error():
    plot = plots.k_curve([(1, -90.0, 0.0), (10, -88.0, 0.5)], exact=(-87.0, 0.25))
    band, line = plot.renderers[0].data_source.data, sources(plot)[0]
    assert line == {"x": [1, 10], "y": [-90.0, -88.0]}
    assert list(band["y1"]) == [-90.0, -88.5]
    assert list(band["y2"]) == [-90.0, -87.5]
    assert sources(plot)[1]["y"] == [-87.0, -87.0]


def test_lines_of_a_calibration_that_leave_the_band_are_orange():
    even = [50] * 20
    found = {"num_images": 1000, "histograms": {"z[0]": even, "z[1]": [500, 500] + [0] * 18}}
    band, lines = plots.calibration(found).renderers
    assert (np.array(band.data_source.data["y2"]) >= 0).all()
    columns = lines.data_source.data
    assert columns["name"] == ["z[0]", "z[1]"]
    assert columns["colour"][0] != columns["colour"][1] == GUIDE
    np.testing.assert_allclose(columns["ys"][0], 0, atol=1e-9)
    assert columns["ys"][1][2] == pytest.approx(1 - 0.1)


def test_the_histogram_of_k_hat_counts_every_image():
    (bars,) = plots.k_hats([-3.0, 0.1, 0.69, 0.71, 1.0, 9.0]).renderers
    heights = bars.data_source.data["top"]
    colours = bars.data_source.data["fill_color"]
    assert sum(heights) == 6
    over = [height for height, colour in zip(heights, colours, strict=True) if colour == GUIDE]
    assert sum(over) == 3


def test_differences_stand_over_their_seeds():
    plot = plots.forest([("A", 1.0, 0.25, [0.5, 1.5]), ("B", -1.0, 0.0, [-1.0])], "nats")
    seeds, means = (each.data_source.data for each in plot.renderers)
    assert list(seeds["x"]) == [0.5, 1.5]
    assert means["low"] == [0.75, -1.0]
    assert means["high"] == [1.25, -1.0]
    assert plot.y_range.factors == ["B", "A"]


@pytest.mark.parametrize("count", [1, 2, 30])
def test_square_plots_have_equal_scales(count):
    points = torch.randn(count, 2).double() * torch.tensor([1.0, 9.0])
    plane = Plane("codes", ("z[0]", "z[1]"), points, "")
    urls = {"image": [""] * count, "mean": [""] * count}
    groups = Groups(["a", "b"], torch.arange(count) % 2)
    groups = Groups(["a"], torch.zeros(count, dtype=torch.int64)) if count == 1 else groups
    plot = plots.codes("codes0", plane, urls, groups, 1)
    ranges = plot.x_range, plot.y_range
    sides = [each.end - each.start for each in ranges]
    assert sides[0] == pytest.approx(sides[1])
    for axis, each in zip(points.T, ranges, strict=True):
        assert ((axis >= each.start) & (axis <= each.end)).all()
