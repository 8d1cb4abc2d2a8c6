"""Bokeh's plots of a page. Those that the script changes have the names that `document` lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from bokeh.models import (
    BasicTicker,
    ColumnDataSource,
    FixedTicker,
    HoverTool,
    NumeralTickFormatter,
    Range1d,
    Span,
    Whisker,
)
from bokeh.plotting import figure
from torch import Tensor

from pyro_vae.evaluation.calibration import deviations
from pyro_vae.evaluation.labels import Bin
from pyro_vae.evaluation.metrics import RELIABLE
from pyro_vae.reporting.document import (
    Groups,
    ImageState,
    SnapshotState,
    bars,
    contour_lines,
    ends,
    names_of,
)
from pyro_vae.reporting.explorer import DecodedPlane
from pyro_vae.reporting.overview import Overview
from pyro_vae.reporting.projection import Plane
from pyro_vae.reporting.style import (
    BEST,
    EXACT,
    GUIDE,
    PRIOR,
    TRAINING,
    VALIDATION,
    ink_on,
)
from pyro_vae.reporting.subject import Subject

# Largest number of epochs in a curve.
EPOCHS = 1000
# Position of the slider over K at first: K = 16.
FIRST_K = 4

# The panels of the learning curves: title, and the columns of the records with their colours.
PANELS = (
    ("ELBO", {"elbo": TRAINING, "validation_elbo": VALIDATION}),
    ("KL", {"kl": TRAINING, "validation_kl": VALIDATION}),
    ("beta", {"beta": TRAINING}),
)

TOOLTIP = """
<img src="@image" alt="" width="56" style="image-rendering: pixelated">
<img src="@mean" alt="" width="56" style="image-rendering: pixelated"> @label
"""
# Margins in pixels of a square plot, whose axes then have equal scales.
AXIS = 46
EDGE = 8


def curves(subjects: Sequence[Subject], colours: Sequence[str] = ()) -> dict[str, figure]:
    """The learning curves: of one model training and validation, of several validation only.

    Arguments:
        subjects: The models.
        colours: The colour of each, if they are several.
    """
    betas: set[float] = set()
    for subject in subjects:
        betas.update(record["beta"] for record in subject.records)
    if not betas:
        return {}
    plots = {}
    for title, columns in PANELS:
        if title == "beta" and betas == {1}:
            continue
        plot = _counts("epoch", "" if title == "beta" else f"nats per {subjects[0].test.noun}")
        if colours:
            column = list(columns)[-1]
            for subject, colour in zip(subjects, colours, strict=True):
                _add_curve(plot, subject, column, subject.name, colour)
        else:
            for column, colour in columns.items():
                _add_curve(plot, subjects[0], column, column.replace("_", " "), colour)
        plots[title] = plot
    return plots


def _add_curve(plot: figure, subject: Subject, column: str, label: str, colour: str) -> None:
    step = max(1, -(-len(subject.records) // EPOCHS))
    records: Sequence[Any] = subject.records[::-step][::-1]  # with the last
    if records:
        x = [record["epoch"] for record in records]
        y = [record[column] for record in records]
        _add_line(plot, x, y, label, colour)


def _add_line(
    plot: figure, x: Sequence[float], y: Sequence[float], label: str, colour: str
) -> None:
    """A line with points, which say their values on hover."""
    source = ColumnDataSource({"x": x, "y": y, "label": [label] * len(x)})
    plot.line("x", "y", source=source, color=colour, line_width=2)
    points = plot.scatter("x", "y", source=source, color=colour, size=4 if len(x) < 60 else 1)
    tooltips = [("", "@label"), (plot.xaxis.axis_label, "@x"), ("", "@y{0.00}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))


def _figure(xlabel: str, ylabel: str, square: bool = False, **more: Any) -> figure:
    shape: dict[str, Any] = {"sizing_mode": "stretch_width", "height": 230}
    if square:
        shape = {"sizing_mode": "scale_width", "height": 400, "aspect_ratio": 1}
    plot = figure(
        x_axis_label=xlabel,
        y_axis_label=ylabel,
        tools="pan,box_zoom,wheel_zoom,reset",
        active_drag=None,
        toolbar_location="above",
        toolbar_inner=True,
        min_border_left=AXIS,
        min_border_bottom=AXIS,
        min_border_top=EDGE,
        min_border_right=EDGE,
        **shape,
        **more,
    )
    plot.toolbar.logo = None
    plot.toolbar.autohide = True
    plot.axis.axis_label_text_font_size = "13px"
    plot.axis.axis_label_text_font_style = "normal"
    plot.axis.major_label_text_font_size = "12px"
    plot.axis.minor_tick_line_color = None
    plot.outline_line_color = None
    return plot


def _counts(xlabel: str, ylabel: str) -> figure:
    """A figure whose horizontal axis has integers."""
    plot = _figure(xlabel, ylabel)
    plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    return plot


def _samples_axis(ylabel: str, largest: int) -> figure:
    """A figure over the number K of samples, with powers of 4 as ticks."""
    plot = _figure("K, number of samples", ylabel, x_axis_type="log")
    powers = range(0, largest.bit_length(), 2)
    plot.xaxis.ticker = FixedTicker(ticks=[2**power for power in powers])
    plot.xaxis.formatter = NumeralTickFormatter(format="0,0")
    plot.xgrid.ticker = plot.xaxis.ticker
    return plot


def codes(
    name: str, plane: Plane, columns: Mapping[str, Sequence[Any]], groups: Groups, chosen: int
) -> figure:
    """Codes on a plane, coloured by class; hovering shows the image and its reconstruction.

    Arguments:
        name: The name of the plot, and the first part of the names of its sources.
        plane: The points.
        columns: Of each point: `image` and `mean`, as URLs.
        groups: Their classes.
        chosen: How many of the first images a click can choose; rings mark them.
    """
    plot = _figure(*plane.names, square=True, name=name)
    low = plane.points.amin(0)
    high = plane.points.amax(0)
    side = float((high - low).max()) * 1.1 or 1.0
    middle = ((low + high) / 2).tolist()
    if plane.names[1] == "index of the image":
        plot.y_range = Range1d(-1, len(plane.points))
    else:
        plot.x_range = Range1d(middle[0] - side / 2, middle[0] + side / 2)
        plot.y_range = Range1d(middle[1] - side / 2, middle[1] + side / 2)
    if not any(plane.names):
        plot.axis.visible = False
        plot.grid.visible = False
        plot.update(min_border_left=EDGE, min_border_bottom=EDGE)
    _add_points(plot, name, plane.points, columns, groups, chosen, side)
    return plot


def _add_points(
    plot: figure,
    name: str,
    points: Tensor,
    columns: Mapping[str, Sequence[Any]],
    groups: Groups,
    chosen: int,
    side: float,
) -> None:
    x, y = points.T.tolist()
    data = {"x": x, "y": y, "label": groups.labels, "colour": groups.colours, **columns}
    dots = plot.scatter(
        "x",
        "y",
        source=ColumnDataSource(data, name=f"{name}_points"),
        size=7,
        color="colour",
        line_color="white",
        line_width=0.7,
    )
    plot.add_tools(HoverTool(renderers=[dots], tooltips=TOOLTIP))
    rings = {"x": x[:chosen], "y": y[:chosen], "size": [10] * chosen, "width": [1.5] * chosen}
    plot.scatter(
        "x",
        "y",
        size="size",
        line_width="width",
        source=ColumnDataSource(rings, name=f"{name}_rings"),
        fill_alpha=0,
        line_color=PRIOR,
    )
    if len(groups.names) > 1:
        colours = groups.of_group
        data = {**names_of(points, groups, side), "text": groups.names, "colour": colours}
        plot.text(
            "x",
            "y",
            "text",
            source=ColumnDataSource(
                {**data, "ink": [ink_on(colour) for colour in colours]}, name=f"{name}_medians"
            ),
            text_font_size="15px",
            text_font_style="bold",
            text_color="ink",
            background_fill_color="colour",
            border_line_color="white",
            border_radius=4,
            padding=3,
            anchor="center",
        )


def plane(
    decoded: DecodedPlane,
    points: Tensor,
    columns: Mapping[str, Sequence[Any]],
    groups: Groups,
    chosen: int,
) -> figure:
    """The plane of two latent dimensions: codes, prior, and the ring at what is decoded."""
    plot = _figure("z[0]", "z[1]", square=True, name="plane")
    z0, z1 = ends(decoded.grid)
    plot.x_range = Range1d(**z0, name="plane0")
    plot.y_range = Range1d(**z1, name="plane1")
    prior = ColumnDataSource(contour_lines(decoded.fine, decoded.log_prior), name="prior")
    plot.multi_line("xs", "ys", source=prior, color=PRIOR, line_dash="dashed")
    _add_points(plot, "plane", points, columns, groups, chosen, z0["end"] - z0["start"])
    centre = {"x": [float(decoded.grid.z0.mean())], "y": [float(decoded.grid.z1.mean())]}
    plot.scatter(
        "x",
        "y",
        source=ColumnDataSource(centre, name="cursor"),
        marker="circle_cross",
        size=20,
        fill_alpha=0,
        line_color=PRIOR,
        line_width=2,
    )
    return plot


def dimensions(shown: Overview) -> figure:
    """Bars of the KL of each dimension, or of its activity if the KL does not split."""
    unit = "nats" if shown.kl is not None else "variance of the posterior mean"
    data = bars(shown)
    plot = _figure(unit, "", y_range=data["x"][::-1])
    plot.height = max(120, min(420, 19 * len(data["x"]) + 60))
    rectangles = plot.hbar(
        "x",
        right="top",
        height=0.8,
        source=ColumnDataSource(data, name="dimensions"),
        color="colour",
    )
    plot.ygrid.visible = False
    plot.x_range.start = 0
    if len(data["x"]) > 25:
        plot.yaxis.major_label_text_font_size = "0px"
    tooltips = [("@x", "@top{0.000} @label")]
    plot.add_tools(HoverTool(renderers=[rectangles], tooltips=tooltips))
    return plot


def k_curve(
    curve: Sequence[tuple[int, float, float]],
    exact: tuple[float, float] | None = None,
    each: str = "image",
) -> figure:
    """The importance-weighted bound over K, with the standard error of its gain over K = 1.

    Arguments:
        curve: K, the bound and the error.
        exact: The exact log p(x) and its error, where it is known.
        each: What an element of the data is called, `Split.noun`.
    """
    num_samples, means, errors = np.array(curve).T
    plot = _samples_axis(f"nats per {each}", int(num_samples.max()))
    plot.varea(num_samples, means - errors, means + errors, fill_color=GUIDE, fill_alpha=0.25)
    _add_line(plot, num_samples.tolist(), means.tolist(), "bound of K samples", GUIDE)
    if exact is not None:
        level, error = exact
        edges = [num_samples.min(), num_samples.max()]
        plot.varea(edges, level - error, level + error, fill_color=EXACT, fill_alpha=0.2)
        plot.line(edges, [level, level], color=EXACT, line_width=2)
    return plot


def k_hats(values: Sequence[float], each: str = "image") -> figure:
    """A histogram of k-hat, with the thresholds 0.5 and 0.7; unreliable values are orange."""
    heights, edges = np.histogram(np.clip(values, -0.5, 2.0), bins=25, range=(-0.5, 2.0))
    plot = _figure("k-hat", f"{each}s")
    colours = [GUIDE if left >= RELIABLE - 1e-9 else EXACT for left in edges[:-1]]
    plot.quad(
        left=edges[:-1], right=edges[1:], top=heights, bottom=0, color=colours, line_color="white"
    )
    for threshold in (0.5, RELIABLE):
        plot.add_layout(
            Span(location=threshold, dimension="height", line_color=PRIOR, line_dash="dashed")
        )
    plot.xaxis.ticker = FixedTicker(ticks=[-0.5, 0, RELIABLE, 1, 1.5, 2])
    plot.xaxis.major_label_overrides = {-0.5: "≤ -0.5", 2: "≥ 2", 0: "0"}
    plot.y_range.start = 0
    plot.xgrid.visible = False
    return plot


def estimates(first: Sequence[float], second: Sequence[float]) -> figure:
    """A second estimate of log p(x) of images, minus the first, over the first."""
    plot = _figure("log p(x), importance sampling", "second minus first, nats")
    difference = np.array(second) - np.array(first)
    plot.add_layout(Span(location=0, dimension="width", line_color=PRIOR, line_dash="dashed"))
    source = ColumnDataSource({"x": first, "y": difference, "second": second})
    points = plot.scatter("x", "y", source=source, color=EXACT, size=7)
    plot.y_range.start = min(-0.1, 1.2 * difference.min())
    plot.y_range.end = max(0.1, 1.2 * difference.max())
    tooltips = [("first", "@x{0.00}"), ("second", "@second{0.00}"), ("difference", "@y{0.000}")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
    return plot


def calibration(found: Mapping[str, Any]) -> figure:
    """The deviations of a `Calibration.summary`; those that leave the band are orange."""
    level, excess, band = deviations(found)
    plot = _figure("level of the true code", "distribution function - level")
    edges = level.numpy()
    plot.varea(edges, -band.numpy(), band.numpy(), fill_color=EXACT, fill_alpha=0.2)
    leaves = (excess.abs() > band + 1e-9).any(1).tolist()
    columns = {
        "xs": [level.tolist()] * len(excess),
        "ys": excess.tolist(),
        "name": list(found["histograms"]),
        "colour": [GUIDE if each else PRIOR for each in leaves],
    }
    lines = plot.multi_line(
        "xs", "ys", color="colour", source=ColumnDataSource(columns), line_width=1.5
    )
    plot.add_tools(HoverTool(renderers=[lines], tooltips=[("", "@name")]))
    return plot


def classifier(found: Mapping[str, Any]) -> figure:
    """The accuracy of a `Classification.summary` over the confidence, with standard errors."""
    plot = _figure("probability of the most likely class", "share right")
    plot.line([0, 1], [0, 1], color=PRIOR, line_dash="dashed")
    columns: dict[str, list[float]] = {"low": [], "high": []}
    for name in Bin._fields:
        columns[name] = [each[name] for each in found["bins"]]
    for accuracy, error in zip(columns["accuracy"], columns["standard_error"], strict=True):
        columns["low"].append(accuracy - error)
        columns["high"].append(accuracy + error)
    source = ColumnDataSource(columns)
    plot.line("confidence", "accuracy", source=source, color=GUIDE)
    points = plot.scatter("confidence", "accuracy", source=source, color=GUIDE, size=7)
    plot.add_layout(
        Whisker(base="confidence", lower="low", upper="high", source=source, line_color=GUIDE)
    )
    tooltips = [
        ("probability", "@confidence{0.000}"),
        ("right", "@accuracy{0.000} ± @standard_error{0.000}"),
        ("images", "@num_images"),
    ]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
    return plot


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
            fill_color=EXACT,
            fill_alpha="alpha",
            line_color=None,
        )
        plots[name] = plot
    for name, colour in (("guide", GUIDE), ("best", BEST)):
        plots[name].multi_line("xs", "ys", source=sources[name], color=colour, line_width=2)
    plots["draws"].scatter(
        "x", "y", size="size", source=sources["draws"], color=GUIDE, fill_alpha=0.5
    )
    plots["weighting"] = _weighting_plot(sources)
    return plots


def _weighting_plot(sources: Mapping[str, ColumnDataSource]) -> figure:
    plot = _samples_axis("nats", max(sources["level"].data["x"]))
    for name, colour in (("mean_bound", GUIDE), ("level", EXACT)):
        plot.line("x", "y", source=sources[name], color=colour, line_width=2)
    plot.scatter("x", "y", source=sources["bound_of_draws"], color=GUIDE, size=12)
    return plot


def forest(rows: Sequence[tuple[str, float, float, Sequence[float]]], unit: str) -> figure:
    """Differences with their errors: a row each, with a point for each seed.

    Arguments:
        rows: Name, mean, error of the mean, and the difference of each seed; the first row at the
            top.
        unit: What the differences are.
    """
    names = [name for name, *_ in rows]
    plot = _figure(unit, "", y_range=names[::-1])
    plot.height = 70 + 34 * len(rows)
    plot.add_layout(Span(location=0, dimension="height", line_color=PRIOR, line_dash="dashed"))
    data: dict[str, list[Any]] = {"name": [], "mean": [], "low": [], "high": []}
    for name, mean, error, seeds in rows:
        data["name"].append(name)
        data["mean"].append(mean)
        data["low"].append(mean - error)
        data["high"].append(mean + error)
        if len(seeds) > 1:
            above = [(name, -0.28)] * len(seeds)
            plot.scatter(seeds, above, color=VALIDATION, alpha=0.5, size=6)
    source = ColumnDataSource(data)
    whisker = Whisker(base="name", lower="low", upper="high", source=source, dimension="width")
    for line in (whisker, whisker.lower_head, whisker.upper_head):
        line.update(line_color=VALIDATION, line_width=2)
    plot.add_layout(whisker)
    points = plot.scatter("mean", "name", source=source, color=VALIDATION, size=10)
    tooltips = [("", "@name"), ("", "@mean{+0.00} (@low{+0.00} to @high{+0.00})")]
    plot.add_tools(HoverTool(renderers=[points], tooltips=tooltips))
    plot.ygrid.visible = False
    return plot
