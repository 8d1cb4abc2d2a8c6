"""The JSON document that a page's script reads: everything that it can show, precomputed.

The types below are the contract with `templates/page.js`. A key of a `...Models` type is the name
of a Bokeh model on the page, and its value the properties that the script sets, where `data` are
columns of a source. A key of a `...Text` type is the id of the element whose text is set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import floor, inf, isfinite, log10
from typing import Any, NamedTuple, TypedDict

import numpy as np
import torch
from contourpy import contour_generator
from torch import Tensor

from pyro_vae.data.split import MAX_CLASSES
from pyro_vae.evaluation.codes import ACTIVE
from pyro_vae.reporting.explorer import Draws, ExploredPosterior, Grid, Paths, Snapshot
from pyro_vae.reporting.overview import Overview
from pyro_vae.reporting.pictures import Atlas, atlas
from pyro_vae.reporting.style import COLOURS, GREY, PRIOR, VALIDATION, class_name, without_overlap

# Shares of the mass inside the contours, and how opaque the areas between them are.
MASSES = (0.99, 0.9, 0.5)
SHADES = (0.2, 0.45, 0.8)
# Side in pixels of a draw with all of the weight.
DRAW_SIZE = 60
# Width of a letter, height of a line and margin of a name, as shares of the side of a plot.
LETTER = 0.026
LINE = 0.062
MARGIN = 0.03


# --- the contract ---------------------------------------------------------------------------------


class Source(TypedDict):
    """Columns of a Bokeh source."""

    data: dict[str, list[Any]]


class Ends(TypedDict):
    """The ends of a Bokeh range."""

    start: float
    end: float


class SnapshotModels(TypedDict):
    """What an epoch shows around its images."""

    plane_points: Source
    plane_medians: Source
    prior: Source
    plane0: Ends
    plane1: Ends


class SnapshotText(TypedDict):
    """The name of an epoch, and the KL of each dimension in nats."""

    epoch_name: str
    kl: str


class PlaneState(TypedDict):
    """The tiles of the decoded plane: ends of both axes, tiles per side, and the first tile."""

    x: tuple[float, float]
    y: tuple[float, float]
    side: int
    first: int


class ImageModels(TypedDict):
    """One image's posterior, its approximations and its bounds."""

    exact: Source
    guide: Source
    best: Source
    z0: Ends
    z1: Ends
    mean_bound: Source
    level: Source


class ImageText(TypedDict):
    """One image's log p(x), ELBOs and gaps, in nats."""

    log_p: str
    best_elbo: str
    elbo: str
    approximation: str
    amortization: str
    total: str


class ImageBars(TypedDict):
    """The parts of the inference gap, as shares of the bar of each."""

    approximation_bar: float
    amortization_bar: float


class DrawsModels(TypedDict):
    """The first K draws, and the bound that they give."""

    draws: Source
    bound_of_draws: Source


class DrawsText(TypedDict):
    """The numbers of the first K draws."""

    k: str
    bound: str
    effective: str
    k_hat: str


class DrawsState(TypedDict):
    """What a position of the slider over K shows."""

    models: DrawsModels
    text: DrawsText


class ImageState(TypedDict):
    """What the choice of an image shows; `draws` has the states for K = 1, 2, 4, ..."""

    models: ImageModels
    text: ImageText
    bars: ImageBars
    draws: list[DrawsState]


class SnapshotState(TypedDict):
    """What the choice of an epoch shows; `images` is empty if posteriors cannot be explored."""

    models: SnapshotModels
    text: SnapshotText
    plane: PlaneState
    images: list[ImageState]


class DimensionState(TypedDict):
    """A latent dimension and the ends of its traversal."""

    name: str
    low: float
    high: float


class PathsState(TypedDict):
    """The tiles of traversals, `[image][dimension][step]`, then of pairs, `[pair][step]`, and then
    of the images as they are decoded, `[image]`.
    """

    count: int
    steps: int
    dimensions: list[DimensionState]
    pairs: list[tuple[int, int]]


class Document(TypedDict):
    """Everything: snapshots for two latent dimensions, the last epoch at the end, or paths."""

    atlas: Atlas
    snapshots: list[SnapshotState]
    paths: PathsState | None


# --- from arrays to the document ------------------------------------------------------------------


class Groups(NamedTuple):
    """The images of an overview in groups that have a name and a colour: their classes.

    Attributes:
        names: The name of each group.
        of_image: The group of each image, shape `(N,)`.
    """

    names: list[str]
    of_image: Tensor

    @property
    def labels(self) -> list[str]:
        """The name of each image's group."""
        return [self.names[group] for group in self.of_image.tolist()]

    @property
    def colours(self) -> list[str]:
        """The colour of each image's group."""
        palette = (*COLOURS, GREY)
        return [palette[group] for group in self.of_image.tolist()]

    @property
    def of_group(self) -> list[str]:
        """The colour of each group."""
        return [*COLOURS, GREY][: len(self.names)]


def groups_of(overview: Overview) -> Groups:
    """The classes of the images; one group without a name if there are none, or over ten."""
    labels = overview.images.labels
    if labels is None or len(labels[labels >= 0].unique()) > len(COLOURS):
        return Groups([""], torch.zeros(len(overview.codes), dtype=torch.int64))
    # Those without a label come last.
    numbered = labels.cpu().where(labels.cpu() >= 0, MAX_CLASSES)
    present, of_image = numbered.unique(return_inverse=True)
    names = []
    for label in present.tolist():
        names.append(class_name(-1 if label == MAX_CLASSES else label, overview.images.classes))
    return Groups(names, of_image)


def document_of_snapshots(snapshots: Sequence[Snapshot], groups: Groups) -> Document:
    """The document of a model with two latent dimensions."""
    states: list[SnapshotState] = []
    first = 0
    for snapshot in snapshots:
        states.append(_snapshot_state(snapshot, first, groups))
        first += len(snapshot.plane.images)
    tiles = torch.cat([snapshot.plane.images for snapshot in snapshots])
    document: Document = {"atlas": atlas(tiles), "snapshots": states, "paths": None}
    return finite(document)


def document_of_paths(paths: Paths) -> Document:
    """The document of a model with other than two latent dimensions."""
    count, _, steps = paths.traversals.shape[:3]
    dimensions: list[DimensionState] = []
    for dimension, (low, high) in zip(paths.dimensions, paths.ranges.T.tolist(), strict=True):
        dimensions.append({"name": f"z[{dimension}]", "low": low, "high": high})
    tiles = [
        paths.traversals.flatten(0, 2),
        paths.interpolations.flatten(0, 1),
        paths.unchanged,
    ]
    return {
        "atlas": atlas(torch.cat(tiles)),
        "snapshots": [],
        "paths": {
            "count": count,
            "steps": steps,
            "dimensions": dimensions,
            "pairs": paths.pairs,
        },
    }


def finite(value: Any) -> Any:
    """The same nested value with None, which JSON has, for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: finite(child) for key, child in value.items()}
    if isinstance(value, list | tuple):
        return [finite(child) for child in value]
    if isinstance(value, float) and not isfinite(value):
        return None
    return value


def _snapshot_state(snapshot: Snapshot, first: int, groups: Groups) -> SnapshotState:
    grid = snapshot.plane.grid
    codes = snapshot.codes.cpu().double()
    x, y = codes.T.tolist()
    plane0, plane1 = ends(grid)
    return {
        "models": {
            "plane_points": {"data": {"x": _short(x, 0.001), "y": _short(y, 0.001)}},
            "plane_medians": {"data": names_of(codes, groups, side_of(grid))},
            "prior": {"data": contour_lines(snapshot.plane.fine, snapshot.plane.log_prior)},
            "plane0": plane0,
            "plane1": plane1,
        },
        "text": {"epoch_name": snapshot.name, "kl": _kl_text(snapshot)},
        "plane": {
            "x": (plane0["start"], plane0["end"]),
            "y": (plane1["start"], plane1["end"]),
            "side": len(grid.z0),
            "first": first,
        },
        "images": [_image_state(explored) for explored in snapshot.explored],
    }


def ends(grid: Grid) -> tuple[Ends, Ends]:
    """The ends of both axes of a grid."""
    z0: Ends = {"start": float(grid.z0[0]), "end": float(grid.z0[-1])}
    z1: Ends = {"start": float(grid.z1[0]), "end": float(grid.z1[-1])}
    return z0, z1


def side_of(grid: Grid) -> float:
    """The side of a square grid."""
    return float(grid.z0[-1] - grid.z0[0])


def names_of(points: Tensor, groups: Groups, side: float) -> dict[str, list[Any]]:
    """Where the names of the groups stand: near their medians, and over no other name.

    Arguments:
        points: Shape `(N, 2)`.
        groups: Their groups.
        side: The side of the plot, in the units of the points.
    """
    middles = [np.median(points[groups.of_image == n].numpy(), 0) for n in range(len(groups.names))]
    sizes = np.array([[LETTER * len(name) + MARGIN, LINE] for name in groups.names])
    x, y = without_overlap(np.array(middles), sizes * side).T.tolist()
    return {"x": x, "y": y}


def _kl_text(snapshot: Snapshot) -> str:
    """The KL of each dimension, or its activity."""
    unit = "nats"
    values = snapshot.kl
    if values is None:
        unit = "variance of the posterior mean"
        values = snapshot.activity
    parts = [f"z[{dimension}] {value:.2f}" for dimension, value in enumerate(values.tolist())]
    return f"{', '.join(parts)} {unit}"


def bars(shown: Overview) -> dict[str, list[Any]]:
    """The KL of each dimension, or its activity, in decreasing order, collapsed ones grey."""
    activity = shown.activity.cpu()
    values = activity
    if shown.kl is not None:
        values = shown.kl.cpu()
    order = values.argsort(descending=True)
    active = (activity > ACTIVE)[order].tolist()
    return {
        "x": [f"z[{dimension}]" for dimension in order.tolist()],
        "top": values[order].tolist(),
        "label": ["active" if is_active else "collapsed" for is_active in active],
        "colour": [VALIDATION if is_active else PRIOR for is_active in active],
    }


def _image_state(explored: ExploredPosterior) -> ImageState:
    log_p = round(explored.log_likelihood, 2)
    best_elbo = round(explored.best_elbo, 2)
    elbo = round(explored.elbo, 2)
    z0, z1 = ends(explored.grid)
    curve = explored.draws.curve
    approximation = log_p - best_elbo
    amortization = best_elbo - elbo
    longest = max(approximation, amortization, 1e-9)
    return {
        "models": {
            "exact": {"data": _areas(explored.grid, explored.exact)},
            "guide": {"data": contour_lines(explored.grid, explored.guide)},
            "best": {"data": contour_lines(explored.grid, explored.best)},
            "z0": z0,
            "z1": z1,
            "mean_bound": {"data": {"x": list(curve), "y": _short(curve.values(), 0.001)}},
            "level": {"data": {"x": [1, max(curve)], "y": [explored.log_likelihood] * 2}},
        },
        "text": {
            "log_p": _text(log_p),
            "best_elbo": _text(best_elbo),
            "elbo": _text(elbo),
            "approximation": _text(approximation),
            "amortization": _text(amortization),
            "total": _text(log_p - elbo),
        },
        "bars": {
            "approximation_bar": round(max(approximation / longest, 0.0), 3),
            "amortization_bar": round(max(amortization / longest, 0.0), 3),
        },
        "draws": [_draws_state(explored.draws, k) for k in curve],
    }


def _draws_state(draws: Draws, k: int) -> DrawsState:
    """The first k draws; the area of a draw is its normalized weight."""
    x, y = draws.z[:k].T.tolist()
    sizes = [DRAW_SIZE * weight**0.5 for weight in draws.weights(k).tolist()]
    estimates = draws.estimates(k)
    columns = {"x": _short(x, 0.0001), "y": _short(y, 0.0001), "size": _short(sizes, 0.1)}
    return {
        "models": {
            "draws": {"data": columns},
            "bound_of_draws": {"data": {"x": [k], "y": [estimates["bound"]]}},
        },
        "text": {
            "k": str(k),
            "bound": _text(estimates["bound"]),
            "effective": _text(estimates["effective"]),
            "k_hat": _text(estimates["k_hat"]),
        },
    }


def _text(value: float) -> str:
    if not isfinite(value):
        return "-"
    return f"{value:.2f}"


def _areas(grid: Grid, log_density: Tensor) -> dict[str, list[Any]]:
    """Polygons of the areas between the contours of `MASSES`."""
    density, levels = density_levels(grid, log_density)
    contours = _contours(grid, density)
    x, y = [], []
    for low, high in pairwise([*levels, 2.0]):
        x_of_area, y_of_area = [], []
        for points, offsets in zip(*contours.filled(low, high), strict=True):
            rings = [points[start:end] for start, end in pairwise(offsets)]
            x_of_area.append([_round(ring[:, 0], grid) for ring in rings])
            y_of_area.append([_round(ring[:, 1], grid) for ring in rings])
        x.append(x_of_area)
        y.append(y_of_area)
    return {"xs": x, "ys": y, "alpha": list(SHADES)}


def contour_lines(grid: Grid, log_density: Tensor) -> dict[str, list[Any]]:
    """Contours that hold the shares `MASSES` of the mass."""
    density, levels = density_levels(grid, log_density)
    contours = _contours(grid, density)
    lines = []
    for level in levels:
        lines += contours.lines(level)
    return {
        "xs": [_round(line[:, 0], grid) for line in lines],
        "ys": [_round(line[:, 1], grid) for line in lines],
    }


def _contours(grid: Grid, density: np.ndarray) -> Any:
    x, y = (side.cpu().numpy() for side in grid)
    return contour_generator(x, y, density)  # type: ignore[arg-type,call-arg]


def density_levels(
    grid: Grid, log_density: Tensor, masses: Sequence[float] = MASSES
) -> tuple[np.ndarray, list[float]]:
    """A density on a grid, scaled to a maximum of 1, and the levels that enclose `masses` of it."""
    log_density = log_density.double().cpu().nan_to_num(-inf, inf, -inf)
    density = (log_density - log_density.max()).exp()
    ordered = density.sort(descending=True).values
    shares = ordered.cumsum(0) / ordered.sum()
    levels = [float(ordered[int(torch.searchsorted(shares, mass))]) for mass in masses]
    return density.unflatten(0, (len(grid.z1), len(grid.z0))).numpy(), levels


def _round(values: np.ndarray, grid: Grid) -> list[float]:
    """To a thousandth of the grid's width, as the size of the page matters."""
    return np.round(values, 3 - floor(log10(float(grid.z0[-1] - grid.z0[0])))).tolist()


def _short(values: Iterable[float], unit: float) -> list[float]:
    return [round(value, round(-log10(unit))) for value in values]
