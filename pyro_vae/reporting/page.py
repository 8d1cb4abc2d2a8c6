"""One self-contained HTML page about one run or several, from what `explorer` computes. Needs Bokeh and Jinja2."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from math import floor, inf, isfinite, log10, sqrt
from typing import Any

import numpy as np
import torch
from bokeh.embed import components
from bokeh.models import BasicTicker, ColumnDataSource, HoverTool, Range1d
from bokeh.plotting import figure
from bokeh.resources import Resources
from contourpy import contour_generator
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from torch import Tensor

from pyro_vae.evaluation.codes import ACTIVE
from pyro_vae.reporting.explorer import (
    CHOSEN,
    WIDTH,
    Grid,
    Moment,
    Overview,
    Plane,
    Posterior,
    RunReport,
    View,
)
from pyro_vae.reporting.figures import COLOURS, plane
from pyro_vae.reporting.pictures import atlas, pictures

# Shares of the mass inside the contours, and how opaque the areas between them are.
MASSES, SHADES = (0.99, 0.9, 0.5), (0.2, 0.45, 0.8)
# Position of the slider over K at first: K = 16.
FIRST_K = 4
# Largest number of epochs in a curve.
EPOCHS = 1000
BLUE, ORANGE, GREEN = COLOURS[:3]

State = dict[str, Any]


# Metrics in results.json that have a mean and a standard error, with their names and meanings.
METRICS = (
    ("elbo", "ELBO", "Lower bound on log p(x); higher is better."),
    (
        "reconstruction",
        "reconstruction",
        "Mean of log p(x | z) over codes of the image: how well codes give back their image.",
    ),
    (
        "kl",
        "KL",
        "KL(q(z | x) || p(z)): at least the information that the code carries about its image.",
    ),
    (
        "log_likelihood",
        "log p(x)",
        "Importance-weighted estimate, on a subset; a lower bound in expectation.",
    ),
    (
        "log_likelihood/elbo_same_images",
        "ELBO, same images",
        "The ELBO of that subset; the difference is the inference gap.",
    ),
    (
        "log_likelihood_all_images",
        "log p(x), all images",
        "The estimate for all images, with the ELBO as control variate.",
    ),
    (
        "bits_per_dimension",
        "bits per dimension",
        "-log2 p(x) for each pixel and channel; lower is better.",
    ),
)
# Metrics without a standard error, and their formats.
PLAIN = (
    (
        "active_units/count",
        "active units",
        "Latent dimensions whose posterior mean varies over images by more than 0.01.",
        "d",
    ),
    (
        "log_likelihood/median_effective_sample_size",
        "effective samples",
        "Effective sample size of the weights, median over images; near 1, log p(x) rests on one sample.",
        ".1f",
    ),
    (
        "log_likelihood/share_of_images_with_k_hat_over_0.7",
        "k-hat over 0.7",
        "Share of images whose estimate of log p(x) is unreliable. Zero does not prove that the others are reliable.",
        ".1%",
    ),
)
# The panels of the learning curves: title, unit, and the columns of the records with their labels.
PANELS = (
    ("ELBO", "nats per image", {"validation_elbo": "validation", "elbo": "training"}),
    ("KL", "nats per image", {"validation_kl": "validation", "kl": "training"}),
    ("active units", "latent dimensions", {"active_units": "validation"}),
    ("beta", "weight of the KL", {"beta": "training"}),
)


def page(runs: Sequence[RunReport]) -> str:
    """The HTML page: everything about one run, or a comparison of several."""
    plots, context = _one(runs[0]) if len(runs) == 1 else _several(runs)
    curves = dict(_curves(runs))
    plots |= curves
    script, divs = components(plots)
    environment = Environment(
        loader=PackageLoader("pyro_vae.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    library = Resources(mode="inline", components=["bokeh"], log_level="warn").render()
    safe = {
        "library": Markup(library),
        "script": Markup(script),
        "plots": {name: Markup(div) for name, div in divs.items()},
    }
    return environment.get_template("page.html").render(
        {**context, **safe, "runs": runs, "curves": list(curves)}
    )


# --- one run ----------------------------------------------------------------------------------------------------------


def _one(run: RunReport) -> tuple[dict[str, Any], dict[str, Any]]:
    shown, view = run.overview, run.view
    urls = pictures(shown.pictures)
    images, means = (pictures(part) for part in shown.reconstructions.unbind(1))
    plots = {
        "latent": _latent(shown, urls, view and view.plane),
        "dimensions": _dimensions(shown.kl, shown.activity),
    }
    if curve := list(_k_curve(run.results.get("k_curve"))):
        plots["bounds"] = _bounds(curve)
    context: dict[str, Any] = {
        "metrics": list(_metrics(run.results)),
        "samples": pictures(shown.samples),
        "reconstructions": list(zip(images, means, shown.scores.elbo[:10].tolist(), strict=True)),
        "worst": [
            (urls[n], f"{shown.scores.log_likelihood[n]:.1f}")
            for n in shown.scores.log_likelihood.argsort()[:10]
        ],
        "by_kl": shown.kl is not None,
        "data": None,
    }
    if view:
        data = _interactive(view)
        context |= {"data": data, "view": view, "chosen": urls[: len(view.posteriors) or CHOSEN]}
        if view.posteriors:
            first = data["images"][0]
            plots |= _posterior_plots({**first["models"], **first["weighted"][FIRST_K]["models"]})
            context["slider"] = {"last": len(first["weighted"]) - 1, "first": FIRST_K}
    return plots, context


def _metrics(results: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Names, values and meanings of those metrics that there are."""
    for key, name, meaning in METRICS:
        if (mean := _number(results, f"{key}/mean")) is not None:
            error = _number(results, f"{key}/standard_error")
            yield name, f"{mean:.2f}" + ("" if error is None else f" ± {error:.2f}"), meaning
    for key, name, meaning, form in PLAIN:
        if (value := _number(results, key)) is not None:
            yield name, format(int(value) if form == "d" else value, form), meaning


def _number(results: Any, path: str) -> float | None:
    """A number in nested mappings; None if it is not there, or is something else."""
    for key in path.split("/"):
        results = results.get(key) if isinstance(results, Mapping) else None
    return results if isinstance(results, int | float) and isfinite(results) else None


def _curves(runs: Sequence[RunReport]) -> Iterator[tuple[str, figure]]:
    """The title and the plot of each panel; of several runs only the first column."""
    for title, unit, columns in PANELS:
        if title == "beta" and all(record["beta"] == 1 for run in runs for record in run.records):
            continue
        plot = _counts("epoch", unit)
        lines = [
            (run, *item)
            for run in runs
            for item in list(columns.items())[: 1 if len(runs) > 1 else None]
        ]
        for n, (run, column, label) in enumerate(lines):
            step = -(-len(run.records) // EPOCHS) or 1
            records = run.records[::-step][::-1]  # with the last
            data = {
                "x": [record["epoch"] for record in records],
                "y": [record[column] for record in records],
            }
            _line(plot, data, run.name if len(runs) > 1 else label, n)
        yield title, _with_legend(plot)


def _line(plot: figure, data: Mapping[str, Any], label: str, n: int) -> None:
    """A line with points, which say their values on hover; colour and dashes tell lines apart."""
    colour, dash = COLOURS[n % len(COLOURS)], ["solid", "dashed", "dotted"][n % 3]
    source = ColumnDataSource({**data, "label": [label] * len(data["x"])})
    plot.line(
        "x", "y", source=source, color=colour, line_width=2, line_dash=dash, legend_label=label
    )
    points = plot.scatter("x", "y", source=source, color=colour, size=4)
    plot.add_tools(
        HoverTool(
            renderers=[points],
            tooltips=[("", "@label"), (plot.xaxis.axis_label, "@x"), ("", "@y{0.00}")],
        )
    )


def _figure(xlabel: str, ylabel: str, square: bool = False, log: bool = False) -> figure:
    plot = figure(
        x_axis_label=xlabel,
        y_axis_label=ylabel,
        x_axis_type="log" if log else "linear",
        sizing_mode="scale_width" if square else "stretch_width",
        aspect_ratio=1 if square else None,
        height=400 if square else 300,
        tools="pan,box_zoom,wheel_zoom,reset",
        active_drag=None,
        toolbar_location="above",
    )
    plot.toolbar.logo = None
    return plot


def _counts(xlabel: str, ylabel: str) -> figure:
    """A figure whose horizontal axis has integers."""
    plot = _figure(xlabel, ylabel)
    plot.xaxis.ticker = BasicTicker(min_interval=1, num_minor_ticks=0)
    return plot


LEGEND = ":host { background: none !important; border: none !important; } .bk-label { color: var(--ink) !important; }"


def _with_legend(plot: figure) -> figure:
    """Move the legend below the plot, where it hides nothing. Bokeh's CSS variables do not reach its colours."""
    plot.add_layout(plot.legend[0], "below")
    plot.legend.update(stylesheets=[LEGEND], margin=0, padding=0, spacing=0)
    plot.height += 22 * len(plot.legend.items)
    return plot


def _latent(shown: Overview, urls: list[str], over: Plane | None) -> figure:
    """Posterior means of images, coloured by class; hovering shows the image. On a decoded plane also the prior."""
    codes, (xlabel, ylabel) = plane(shown.codes.cpu().double())
    plot = _figure(xlabel, ylabel, square=True)
    if over:
        _add_prior(plot, over)
    labels, (x, y) = _classes(shown), codes.T.numpy()
    classes = sorted(set(labels))
    data = {
        "x": x,
        "y": y,
        "label": labels,
        "image": urls,
        "colour": [COLOURS[classes.index(name)] for name in labels],
    }
    source = ColumnDataSource(data, name="points")
    points = plot.scatter(
        "x", "y", source=source, size=7, color="colour", line_color="white", line_width=0.4
    )
    plot.add_tools(HoverTool(renderers=[points], tooltips=TOOLTIP))
    # Ten colours alone are hard to tell apart.
    middle = ColumnDataSource({**_medians(codes, labels), "text": classes}, name="medians")
    style = {
        "text_font_size": "22px",
        "text_font_style": "bold",
        "anchor": "center",
        "text_outline_color": "white",
    }
    plot.text("x", "y", "text", source=middle, **style)
    return plot


def _medians(codes: Tensor, labels: list[str]) -> State:
    """The median code of each class, in the order of their names."""
    middle = [codes[[label == name for label in labels]].numpy() for name in sorted(set(labels))]
    x, y = np.array([np.median(part, 0) for part in middle]).T.tolist()
    return {"x": x, "y": y}


def _add_prior(plot: figure, over: Plane) -> None:
    """Contours of the prior, and the ring at the code that is decoded."""
    plot.name = "latent"
    plot.x_range, plot.y_range = (
        Range1d(**ends, name=name) for name, ends in _ends(over.grid, "plane").items()
    )
    prior = ColumnDataSource(_lines(over.fine, over.log_prior), name="prior")
    plot.multi_line("xs", "ys", source=prior, color="gray", line_dash="dashed")
    centre = {axis: [float(side.mean())] for axis, side in zip("xy", over.grid, strict=True)}
    ring = ColumnDataSource(centre, name="cursor")
    plot.scatter(
        "x",
        "y",
        source=ring,
        marker="circle_cross",
        size=20,
        fill_alpha=0,
        line_color="gray",
        line_width=2,
    )


def _classes(shown: Overview) -> list[str]:
    """The class of each image as text; empty if there are none, or more than there are colours."""
    labels = shown.images.labels
    if labels is None or len(labels.unique()) > len(COLOURS):
        return [""] * len(shown.codes)
    return [str(label) for label in labels.tolist()]


TOOLTIP = '<img src="@image" alt="" width="56" style="image-rendering: pixelated"> @label'


def _ends(grid: Grid, name: str) -> State:
    """The properties of the ranges of a plot, `name` with 0 or 1 added."""
    return {
        f"{name}{i}": {"start": float(side[0]), "end": float(side[-1])}
        for i, side in enumerate(grid)
    }


def _dimensions(kl: Tensor | None, activity: Tensor) -> figure:
    """Bars of the KL of each dimension, or of its activity if the KL does not split; collapsed ones are hatched."""
    plot = _counts("rank", "nats" if kl is not None else "variance of the posterior mean")
    source = ColumnDataSource(_bars(kl, activity), name="dimensions")
    bars = plot.vbar(
        "x",
        top="top",
        width=0.8,
        source=source,
        color="colour",
        hatch_pattern="hatch",
        hatch_color="white",
    )
    plot.add_tools(HoverTool(renderers=[bars], tooltips=[("", "@label"), ("", "@top{0.000}")]))
    return plot


def _bars(kl: Tensor | None, activity: Tensor) -> State:
    values = (activity if kl is None else kl).cpu()
    order = values.argsort(descending=True)
    active = [bool(activity[d] > ACTIVE) for d in order]
    return {
        "x": list(range(1, len(order) + 1)),
        "top": values[order].tolist(),
        "label": [
            f"z[{d}]{'' if on else ', collapsed'}"
            for d, on in zip(order.tolist(), active, strict=True)
        ],
        "colour": [BLUE if on else "gray" for on in active],
        "hatch": [" " if on else "/" for on in active],
    }


def _k_curve(curve: Any) -> Iterator[tuple[int, float, float]]:
    """K, the bound and the standard error of its gain over K = 1, from results.json."""
    for k in curve if isinstance(curve, Mapping) else ():
        if k.isdecimal() and len(k) < 10 and (mean := _number(curve, f"{k}/mean")) is not None:
            yield int(k), mean, _number(curve, f"{k}/gain_standard_error") or 0.0


def _bounds(curve: list[tuple[int, float, float]]) -> figure:
    """The importance-weighted bound over K."""
    x, y, error = (np.array(values) for values in zip(*curve, strict=True))
    plot = _figure("K, number of importance samples", "nats per image", log=True)
    plot.varea(x, y - error, y + error, fill_color=BLUE, fill_alpha=0.25)
    _line(plot, {"x": x, "y": y}, "bound of K samples", 0)
    return _with_legend(plot)


# --- the explorer: everything is computed here, the browser only shows the state of the chosen image -------------------


def _interactive(view: View) -> State:
    """The data of the page's script."""
    if moves := view.traversals:
        images = torch.cat([moves.traversals.flatten(0, 2), moves.interpolations.flatten(0, 1)])
        count, units, steps = moves.traversals.shape[:3]
        shape = {"count": count, "units": units, "steps": steps, "width": WIDTH}
        return {
            "traversals": {**shape, "dimensions": moves.dimensions, "pairs": moves.pairs},
            **atlas(images),
        }
    labels = _classes(view.overview)
    *earlier, last = (_moment_state(moment, n, labels) for n, moment in enumerate(view.moments))
    return {
        **last,
        "earlier": earlier,
        **atlas(torch.cat([moment.plane.images for moment in view.moments])),
    }


def _moment_state(moment: Moment, n: int, labels: list[str]) -> State:
    """What the page shows of an epoch, the n-th in the atlas: the plane, and the state of each image."""
    (x, y), codes = moment.plane.grid, moment.codes.cpu().double()
    models = {
        "points": {
            "data": {
                axis: _short(column.tolist(), 0.001)
                for axis, column in zip("xy", codes.T, strict=True)
            }
        },
        "medians": {"data": _medians(codes, labels)},
        "prior": {"data": _lines(moment.plane.fine, moment.plane.log_prior)},
        "dimensions": {"data": _bars(moment.kl, moment.activity)},
        **_ends(moment.plane.grid, "plane"),
    }
    over = {
        "x": [float(x[0]), float(x[-1])],
        "y": [float(y[0]), float(y[-1])],
        "side": len(x),
        "first": n * len(x) * len(y),
    }
    images = [_state(posterior) for posterior in moment.posteriors]
    state: State = _finite(
        {"models": models, "text": {"epoch-name": moment.name}, "plane": over, "images": images}
    )
    return state


def _posterior_plots(first: State) -> dict[str, figure]:
    """Figures of the first image; the sources' names are those in its state."""
    sources = {
        name: ColumnDataSource(model["data"], name=name)
        for name, model in first.items()
        if "data" in model
    }
    ranges = [Range1d(**first[name], name=name) for name in ("z0", "z1")]
    plots = {}
    for name in ("guide", "best", "draws"):
        plot = plots[name] = _figure("z[0]", "z[1]", square=True)
        plot.x_range, plot.y_range = ranges
        plot.multi_polygons(
            "xs",
            "ys",
            source=sources["exact"],
            fill_color=BLUE,
            fill_alpha="alpha",
            line_color=None,
        )
    for name in ("guide", "best"):
        plots[name].multi_line("xs", "ys", source=sources[name], color=ORANGE, line_width=2)
    plots["draws"].scatter(
        "x", "y", size="size", source=sources["draws"], color=ORANGE, fill_alpha=0.5
    )
    return {**plots, "gap": _gap_plot(sources["gap"]), "weighting": _weighting_plot(sources)}


def _gap_plot(source: ColumnDataSource) -> figure:
    plot = _figure("nats", "")
    plot.height, plot.yaxis.visible, plot.toolbar_location = 110, False, None
    plot.hbar(0, left="left", right="right", height=0.8, source=source, color="colour")
    return plot


def _weighting_plot(sources: Mapping[str, ColumnDataSource]) -> figure:
    plot = _figure("K, number of draws", "nats", log=True)
    for name, colour, label in (
        ("mean-bound", BLUE, "mean bound of K draws"),
        ("level", GREEN, "exact log p(x)"),
    ):
        plot.line("x", "y", source=sources[name], color=colour, line_width=2, legend_label=label)
    plot.scatter(
        "x",
        "y",
        source=sources["bound"],
        color=ORANGE,
        size=12,
        legend_label="estimate from these draws",
    )
    return _with_legend(plot)


def _state(posterior: Posterior) -> State:
    """What the page shows when an image is chosen: properties of Bokeh's models, and texts."""
    exact, best, elbo = (
        round(value, 2) for value in (posterior.log_likelihood, posterior.best_elbo, posterior.elbo)
    )
    curve = posterior.draws.curve
    models = {
        "exact": {"data": _areas(posterior.grid, posterior.exact)},
        "guide": {"data": _lines(posterior.grid, posterior.guide)},
        "best": {"data": _lines(posterior.grid, posterior.best)},
        **_ends(posterior.grid, "z"),
        "gap": {"data": {"left": [elbo, best], "right": [best, exact], "colour": [ORANGE, BLUE]}},
        "mean-bound": {"data": {"x": list(curve), "y": _short(curve.values(), 0.001)}},
        "level": {"data": {"x": [1, max(curve)], "y": [posterior.log_likelihood] * 2}},
    }
    text = {"log-p": exact, "best-elbo": best, "elbo": elbo}
    text |= {"approximation": exact - best, "amortization": best - elbo, "total": exact - elbo}
    return {
        "models": models,
        "text": _texts(text),
        "weighted": [_weighted_state(posterior, k) for k in curve],
    }


def _finite(value: Any) -> Any:
    """The same nested value with None, which JSON has, for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _weighted_state(posterior: Posterior, k: int) -> State:
    """What the page shows of the first k draws; the area of a draw is its normalized weight."""
    values, z = posterior.draws.first(k), posterior.draws.z[:k]
    sizes = _short((60 * weight**0.5 for weight in values["weights"].tolist()), 0.1)
    x, y = (_short(column.tolist(), 0.0001) for column in z.T)
    models = {
        "draws": {"data": {"x": x, "y": y, "size": sizes}},
        "bound": {"data": {"x": [k], "y": [values["bound"]]}},
    }
    text = _texts({name: values[name] for name in ("bound", "effective", "k_hat")})
    return {"models": models, "text": {**text, "k": str(k)}}


def _texts(values: Mapping[str, float]) -> dict[str, str]:
    return {name: f"{value:.2f}" if isfinite(value) else "-" for name, value in values.items()}


def _areas(grid: Grid, log_density: Tensor) -> State:
    """Polygons of the areas between the contours of `MASSES`."""
    density, levels = _density(grid, log_density)
    contours, x, y = _contours(grid, density), [], []
    for low, high in pairwise([*levels, 2.0]):
        polygons = zip(*contours.filled(low, high), strict=True)
        rings = [[points[a:b] for a, b in pairwise(offsets)] for points, offsets in polygons]
        x.append([[_round(ring[:, 0], grid) for ring in polygon] for polygon in rings])
        y.append([[_round(ring[:, 1], grid) for ring in polygon] for polygon in rings])
    return {"xs": x, "ys": y, "alpha": SHADES}


def _lines(grid: Grid, log_density: Tensor) -> State:
    """Contours that hold the shares `MASSES` of the mass."""
    density, levels = _density(grid, log_density)
    contours = _contours(grid, density)
    lines = [line for level in levels for line in contours.lines(level)]
    return {
        "xs": [_round(line[:, 0], grid) for line in lines],
        "ys": [_round(line[:, 1], grid) for line in lines],
    }


def _contours(grid: Grid, density: np.ndarray) -> Any:
    x, y = (side.cpu().numpy() for side in grid)
    return contour_generator(x, y, density)  # type: ignore[arg-type,call-arg]


def _density(
    grid: Grid, log_density: Tensor, masses: Sequence[float] = MASSES
) -> tuple[np.ndarray, list[float]]:
    """A density on a grid, 1 at its maximum, and its levels above which it has the given shares of its mass."""
    log_density = log_density.double().cpu().nan_to_num(-inf, inf, -inf)
    density = (log_density - log_density.max()).exp()
    ordered = density.sort(descending=True).values
    shares = ordered.cumsum(0) / ordered.sum()
    levels = [float(ordered[int(torch.searchsorted(shares, mass))]) for mass in masses]
    return density.unflatten(0, (len(grid.z1), len(grid.z0))).numpy(), levels


def _round(values: np.ndarray, grid: Grid) -> list[float]:
    """To a thousandth of the grid's width, as the size of the page matters."""
    return np.round(values, 3 - floor(log10(float(grid.z0[-1] - grid.z0[0])))).tolist()


def _short(values: Any, unit: float) -> list[float]:
    return [round(value, round(-log10(unit))) for value in values]


# --- several runs -----------------------------------------------------------------------------------------------------


def _several(runs: Sequence[RunReport]) -> tuple[dict[str, Any], dict[str, Any]]:
    keys = list(dict.fromkeys(key for run in runs for key in run.config))
    differing = [key for key in keys if len({str(run.config.get(key)) for run in runs}) > 1]
    shown = runs[0].overview.pictures
    return {}, {
        "columns": [*differing, "ELBO", "log p(x)", "active units", "seconds"],
        "rows": [
            (run.name, [*(run.config.get(key, "") for key in differing), *_scores(run)])
            for run in runs
        ],
        "groups": list(_groups(runs)),
        "pairs": [
            (run.name, *_paired(run, runs[0]))
            for run in runs[1:]
            if torch.equal(run.overview.pictures, shown)
        ],
        "strips": [(run.name, pictures(run.overview.samples[:10])) for run in runs],
    }


def _scores(run: RunReport) -> list[str]:
    table = {name: value for name, value, _ in _metrics(run.results)}
    return [
        *(table.get(name, "") for name in ("ELBO", "log p(x)", "active units")),
        run.facts["seconds of training"],
    ]


def _groups(runs: Sequence[RunReport]) -> Iterator[tuple[str, int, list[str]]]:
    """Runs that differ in the seed only: their names, and the mean and range of their metrics."""
    groups = defaultdict(list)
    for run in runs:
        groups[
            str(sorted((key, str(value)) for key, value in run.config.items() if key != "seed"))
        ].append(run)
    for group in groups.values():
        if len(group) > 1:
            ranges = [_range(group, key) for key in ("elbo/mean", "log_likelihood/mean")]
            yield ", ".join(run.name for run in group), len(group), ranges


def _range(runs: Sequence[RunReport], key: str) -> str:
    values = [value for run in runs if (value := _number(run.results, key)) is not None]
    return (
        f"{sum(values) / len(values):.2f} ({min(values):.2f} to {max(values):.2f})"
        if values
        else ""
    )


def _paired(run: RunReport, first: RunReport) -> tuple[str, str]:
    """Differences of the ELBO and of log p(x), over the same images."""
    pairs = (
        (getattr(r.overview.scores, name) for r in (run, first))
        for name in ("elbo", "log_likelihood")
    )
    differences = [a - b for a, b in pairs]
    elbo, log_p = (f"{d.mean():+.2f} ± {d.std() / sqrt(len(d)):.2f}" for d in differences)
    return elbo, log_p
