"""Bokeh's plots of a page. Those that the script changes have the names that `document` lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import BasicTicker, ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure

from pyro_vae.reporting.document import (
    Groups,
    ImageState,
    SnapshotState,
    bars,
    contour_lines,
    ends,
    medians,
)
from pyro_vae.reporting.explorer import DecodedPlane
from pyro_vae.reporting.figures import BLUE, COLOURS, CURVE_COLOURS, GREEN, ORANGE, SHORT_NAME
from pyro_vae.reporting.overview import Overview
from pyro_vae.reporting.subject import Subject

# Largest number of epochs in a curve.
EPOCHS = 1000
# Position of the slider over K at first: K = 16.
FIRST_K = 4
DASHES = ("solid", "dashed", "dotted")

# The panels of the learning curves: title, unit, and the columns of the records with their labels.
PANELS = (
    ("ELBO", "nats per image", {"validation_elbo": "validation", "elbo": "training"}),
    ("KL", "nats per image", {"validation_kl": "validation", "kl": "training"}),
    ("active units", "latent dimensions", {"active_units": "validation"}),
    ("beta", "weight of the KL", {"beta": "training"}),
)

TOOLTIP = '<img src="@image" alt="" width="56" style="image-rendering: pixelated"> @label'

# Bokeh's CSS variables do not reach the colours of its legends.
LEGEND = """
:host { background: none !important; border: none !important; }
.bk-label { color: var(--ink) !important; }
"""


def curves(subjects: Sequence[Subject]) -> dict[str, figure]:
    """The learning curves: of one model training and validation, of several validation only."""
    recorded = [subject for subject in subjects if subject.records]
    if not recorded:
        return {}
    betas: set[float] = set()
    for subject in recorded:
        betas.update(record["beta"] for record in subject.records)
    plots = {}
    for title, unit, columns in PANELS:
        if title == "beta" and betas == {1}:
            continue
        plot = _counts("epoch", unit)
        if len(subjects) == 1:
            for column, label in columns.items():
                _add_curve(plot, recorded[0], column, label, CURVE_COLOURS[label])
        else:
            column = next(iter(columns))
            for n, subject in enumerate(subjects):
                if subject.records:
                    colour = COLOURS[n % len(COLOURS)]
                    dash = DASHES[n % len(DASHES)]
                    _add_curve(plot, subject, column, subject.name, colour, dash)
        plots[title] = _with_legend(plot)
    return plots


def _add_curve(
    plot: figure, subject: Subject, column: str, label: str, colour: str, dash: str = "solid"
) -> None:
    step = max(1, -(-len(subject.records) // EPOCHS))
    records: Sequence[Any] = subject.records[::-step][::-1]  # with the last
    x = [record["epoch"] for record in records]
    y = [record[column] for record in records]
    _add_line(plot, x, y, label, colour, dash)


def _add_line(
    plot: figure,
    x: Sequence[float],
    y: Sequence[float],
    label: str,
    colour: str,
    dash: str = "solid",
) -> None:
    """A line with points, which say their values on hover."""
    source = ColumnDataSource({"x": x, "y": y, "label": [label] * len(x)})
    plot.line(
        "x", "y", source=source, color=colour, line_width=2, line_dash=dash, legend_label=label
    )
    points = plot.scatter("x", "y", source=source, color=colour, size=4)
    tooltips = [("", "@label"), (plot.xaxis.axis_label, "@x"), ("", "@y{0.00}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))


def _figure(xlabel: str, ylabel: str, square: bool = False, log: bool = False) -> figure:
    shape: dict[str, Any] = {"sizing_mode": "stretch_width", "height": 300}
    if square:
        shape = {"sizing_mode": "scale_width", "height": 400, "aspect_ratio": 1}
    plot = figure(
        x_axis_label=xlabel,
        y_axis_label=ylabel,
        x_axis_type="log" if log else "linear",
        tools="pan,box_zoom,wheel_zoom,reset",
        active_drag=None,
        toolbar_location="above",
        **shape,
    )
    plot.toolbar.logo = None
    return plot


def _counts(xlabel: str, ylabel: str) -> figure:
    """A figure whose horizontal axis has integers."""
    plot = _figure(xlabel, ylabel)
    plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    return plot


def _with_legend(plot: figure) -> figure:
    """Move the legend below the plot, where it hides nothing."""
    plot.add_layout(plot.legend[0], "below")
    plot.legend.update(stylesheets=[LEGEND], margin=0, padding=0, spacing=0)
    plot.height += 22 * len(plot.legend.items)
    return plot


def latent(shown: Overview, urls: list[str], groups: Groups, plane: DecodedPlane | None) -> figure:
    """Posterior means of images, coloured by class; hovering shows the image.

    On a decoded plane also the prior.
    """
    points = shown.onto_plane(shown.codes)
    xlabel, ylabel = shown.onto_plane.names
    plot = _figure(xlabel, ylabel, square=True)
    if plane:
        _add_prior(plot, plane)
    x, y = points.T.numpy()
    columns = {"x": x, "y": y, "label": groups.labels, "image": urls, "colour": groups.colours}
    source = ColumnDataSource(columns, name="points")
    dots = plot.scatter(
        "x", "y", source=source, size=7, color="colour", line_color="white", line_width=0.4
    )
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP))
    # Ten colours alone are hard to tell apart.
    size = "22px" if max(map(len, groups.names)) <= SHORT_NAME else "14px"
    columns = {**medians(points, groups), "text": groups.names}
    plot.text(
        "x",
        "y",
        "text",
        source=ColumnDataSource(columns, name="medians"),
        text_font_size=size,
        text_font_style="bold",
        anchor="center",
        text_outline_color="white",
    )
    return plot


def _add_prior(plot: figure, plane: DecodedPlane) -> None:
    """Contours of the prior, and the ring at the code that is decoded."""
    plot.name = "latent"
    z0, z1 = ends(plane.grid)
    plot.x_range = Range1d(**z0, name="plane0")
    plot.y_range = Range1d(**z1, name="plane1")
    prior = ColumnDataSource(contour_lines(plane.fine, plane.log_prior), name="prior")
    plot.multi_line("xs", "ys", source=prior, color="gray", line_dash="dashed")
    centre = {"x": [float(plane.grid.z0.mean())], "y": [float(plane.grid.z1.mean())]}
    plot.scatter(
        "x",
        "y",
        source=ColumnDataSource(centre, name="cursor"),
        marker="circle_cross",
        size=20,
        fill_alpha=0,
        line_color="gray",
        line_width=2,
    )


def dimensions(shown: Overview) -> figure:
    """Bars of the KL of each dimension, or of its activity if the KL does not split."""
    unit = "variance of the posterior mean" if shown.kl is None else "nats"
    plot = _counts("rank", unit)
    rectangles = plot.vbar(
        "x",
        top="top",
        width=0.8,
        source=ColumnDataSource(bars(shown.kl, shown.activity), name="dimensions"),
        color="colour",
        hatch_pattern="hatch",
        hatch_color="white",
    )
    tooltips = [("", "@label"), ("", "@top{0.000}")]
    plot.add_tools(HoverTool(renderers=[rectangles], tooltips=tooltips))
    return plot


def bounds(curve: Sequence[tuple[int, float, float]]) -> figure:
    """The importance-weighted bound over K, with the standard error of its gain over K = 1."""
    num_samples, means, errors = np.array(curve).T
    plot = _figure("K, number of importance samples", "nats per image", log=True)
    plot.varea(num_samples, means - errors, means + errors, fill_color=BLUE, fill_alpha=0.25)
    _add_line(plot, num_samples.tolist(), means.tolist(), "bound of K samples", BLUE)
    return _with_legend(plot)


def explorer(snapshot: SnapshotState) -> dict[str, figure]:
    """The plots of the posterior explorer, which show the first image."""
    image: ImageState = snapshot["images"][0]
    draws = image["draws"][FIRST_K]
    models: dict[str, Any] = {**image["models"], **draws["models"]}
    z_ranges = [Range1d(**models.pop(name), name=name) for name in ("z0", "z1")]
    sources = {name: ColumnDataSource(model["data"], name=name) for name, model in models.items()}
    plots = {}
    for name in ("guide", "best", "draws"):
        plot = _figure("z[0]", "z[1]", square=True)
        plot.x_range, plot.y_range = z_ranges
        plot.multi_polygons(
            "xs",
            "ys",
            source=sources["exact"],
            fill_color=BLUE,
            fill_alpha="alpha",
            line_color=None,
        )
        plots[name] = plot
    for name in ("guide", "best"):
        plots[name].multi_line("xs", "ys", source=sources[name], color=ORANGE, line_width=2)
    plots["draws"].scatter(
        "x", "y", size="size", source=sources["draws"], color=ORANGE, fill_alpha=0.5
    )
    plots["gap"] = _gap_plot(sources["gap"])
    plots["weighting"] = _weighting_plot(sources)
    return plots


def _gap_plot(source: ColumnDataSource) -> figure:
    plot = _figure("nats", "")
    plot.height = 110
    plot.yaxis.visible = False
    plot.toolbar_location = None
    plot.hbar(0, left="left", right="right", height=0.8, source=source, color="colour")
    return plot


def _weighting_plot(sources: Mapping[str, ColumnDataSource]) -> figure:
    plot = _figure("K, number of draws", "nats", log=True)
    lines = (
        ("mean_bound", BLUE, "mean bound of K draws"),
        ("level", GREEN, "exact log p(x)"),
    )
    for name, colour, label in lines:
        plot.line("x", "y", source=sources[name], color=colour, line_width=2, legend_label=label)
    plot.scatter(
        "x",
        "y",
        source=sources["bound_of_draws"],
        color=ORANGE,
        size=12,
        legend_label="estimate from these draws",
    )
    return _with_legend(plot)
