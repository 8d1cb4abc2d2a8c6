"""Matplotlib figures of images, codes and metrics.

Images have shape `(N, channels, height, width)` and values in [0, 1]. Grey images are drawn inverted: 1 is black.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Labels = Sequence[str]

# Six colours of Okabe and Ito's palette and four more: any two differ by a CIEDE2000 distance of at least 21, and of at
# least 10 with any colour blindness as simulated by Machado et al. (2009).
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#b2df8a",
    "#963cff",
    "#8c564b",
    "#332288",
)

TERMS = {
    "elbo": "ELBO",
    "reconstruction": "reconstruction, log p(x | z)",
    "kl": "KL(q(z | x) || p(z))",
}


def _subplots(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Create a figure, size in inches, and its axes. The import is local because it takes most of a second."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def png(figure: Figure) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return buffer.getvalue()


def grid(
    images: Tensor,
    title: str,
    columns: int | None = None,
    row_labels: Labels = (),
    column_labels: Labels = (),
) -> Figure:
    """Draw images side by side.

    Arguments:
        images: The images, row by row.
        title: The figure's title.
        columns: Images per row; by default the grid is about square.
        row_labels: Labels at the left of the rows.
        column_labels: Labels above the columns.
    """
    height, width = images.shape[-2:]
    columns = min(columns or ceil(sqrt(len(images) * height / width)), len(images))
    rows = ceil(len(images) / columns)
    inches = min(8 / (columns * width), 8 / (rows * height), 1 / sqrt(height * width))
    inches = max(inches, 0.25 / max(height, width))  # per pixel
    figure, axes = _subplots(columns * width * inches + 1, rows * height * inches + 1)
    axes.imshow(tile(images, columns))
    axes.set_title(title, fontsize=11)
    # Font sizes in points at which one line of six characters fits a cell.
    axes.set_xticks(
        _centres(width, len(column_labels)),
        labels=column_labels,
        fontsize=min(8, 20 * width * inches),
    )
    axes.set_yticks(
        _centres(height, len(row_labels)), labels=row_labels, fontsize=min(8, 60 * height * inches)
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    return figure


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Tile the images into one RGB picture, shape `(height, width, 3)`, with white lines between them."""
    from torchvision.utils import make_grid

    images = images[:, :3] if images.shape[1] in (3, 4) else 1 - images.mean(1, keepdim=True)
    return make_grid(images.cpu(), columns, padding=1, pad_value=1.0).permute(1, 2, 0).numpy()


def _centres(size: int, count: int) -> list[float]:
    """Pixel coordinates of the centres of the first `count` cells of `tile`."""
    return [(size + 1) * (cell + 0.5) for cell in range(count)]


def samples(images: Tensor, mean: bool = True, columns: int | None = None) -> Figure:
    """Draw the images of `views.samples`."""
    return grid(
        images,
        f"samples: {'means of' if mean else 'draws x ~'} p(x | z) for draws z ~ p(z)",
        columns,
    )


def reconstructions(images: Tensor, title: str) -> Figure:
    """Draw the images of `views.reconstructions`, shape `(N, 2, ...)`: each image above its reconstruction."""
    return grid(
        images.transpose(0, 1).flatten(0, 1), title, len(images), ["image", "mean of p(x | z)"]
    )


def interpolations(images: Tensor) -> Figure:
    """Draw the images of `views.interpolations`, shape `(N, steps + 2, ...)`."""
    labels = ["image", *_numbers(torch.linspace(0, 1, images.shape[1] - 2)), "image"]
    title = "means of p(x | z) for z from the code of the first image (0) to that of the second (1)"
    return grid(images.flatten(0, 1), title, images.shape[1], (), labels)


def analogies(images: Tensor, y: Tensor) -> Figure:
    """Draw the images of `views.analogies`, shape `(R, columns, ...)`; `y` has the classes of the rows."""
    title = "means of p(x | z, y): one class per row, the same z in each column"
    return grid(images.flatten(0, 1), title, images.shape[1], [str(label) for label in y.tolist()])


def traversals(images: Tensor, dimension: int, width: float = 3.0) -> Figure:
    """Draw the images of `views.traversals`, shape `(N, steps + 1, ...)`; `dimension` and `width` as there."""
    labels = ["image", *_numbers(torch.linspace(-width, width, images.shape[1] - 1))]
    title = f"means of p(x | z) for each value of z[{dimension}], the other dimensions as encoded"
    return grid(images.flatten(0, 1), title, images.shape[1], (), labels)


def manifold(images: Tensor, z: Tensor) -> Figure:
    """Draw the images of `views.manifold`, shape `(side, side, ...)`, and the values of z, shape `(2, side)`."""
    title = "means of p(x | z) on a grid of z, spaced by the quantiles of the prior"
    figure = grid(images.flatten(0, 1), title, len(images), _numbers(z[1].flip(0)), _numbers(z[0]))
    figure.axes[0].set(xlabel="z[0]", ylabel="z[1]")
    return figure


def _numbers(values: Tensor) -> list[str]:
    """Round to two decimals, without a sign of zero."""
    return [f"{round(value, 2) + 0.0:g}" for value in values.tolist()]


def curves(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the ELBO, its two terms and the number of active units over the epochs, from the records of `fit`."""
    figure, (*panels, last) = _subplots(13, 3.2, columns=4)
    for axes, (key, title) in zip(panels, TERMS.items(), strict=True):
        _curve(axes, records, [record[key] for record in records], "training", COLOURS[0])
        _curve(
            axes,
            records,
            [record[f"validation_{key}"] for record in records],
            "validation",
            COLOURS[1],
        )
        axes.set(title=title, xlabel="epoch", ylabel="nats per image")
    if any(abs(record["loss"] + record["elbo"]) > 1e-3 * abs(record["elbo"]) for record in records):
        _curve(
            panels[0],
            records,
            [-record["loss"] for record in records],
            "training, -loss",
            COLOURS[2],
        )
    _curve(last, records, [record["active_units"] for record in records], "validation", COLOURS[1])
    last.set(title="active units", xlabel="epoch", ylabel="latent dimensions", ylim=(-0.5, None))
    last.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def _curve(
    axes: Any,
    records: Sequence[Mapping[str, Any]],
    values: Sequence[float],
    label: str,
    colour: str,
) -> None:
    epochs = [record["epoch"] for record in records]
    axes.plot(
        epochs,
        values,
        color=colour,
        label=label,
        marker="o" if len(epochs) < 30 else None,
        markersize=3,
    )
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.legend(frameon=False)


def bounds(curve: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Draw the importance-weighted bound over the number of samples K, from the `k_curve` of `evaluate`.

    The band is the standard error of the gain over K = 1 on the same images.
    """
    figure, axes = _subplots(5.6, 3.6)
    num_samples = [int(k) for k in curve]
    means, errors = (
        np.array([bound[key] or 0 for bound in curve.values()])
        for key in ("mean", "gain_standard_error")
    )
    axes.plot(num_samples, means, color=COLOURS[0], marker="o", markersize=4)
    axes.fill_between(
        num_samples, means - errors, means + errors, color=COLOURS[0], alpha=0.25, linewidth=0
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(
        "importance-weighted bound; band: standard error of\nthe gain over K = 1 on the same images",
        fontsize=11,
    )
    axes.set(xlabel="K, number of importance samples", ylabel="nats per image")
    return figure


def latent(codes: Tensor, labels: Tensor | None, title: str) -> Figure:
    """Draw a scatter plot of codes, shape `(N, latent_dim)`, coloured by label if there are at most ten labels.

    The name of each label stands at the median of its codes, because ten colours alone are hard to tell apart. More than two
    dimensions are projected on their first two principal components.
    """
    from matplotlib.patheffects import withStroke

    if labels is None or len(labels.unique()) > len(COLOURS):
        labels = torch.zeros(len(codes))
    names, groups = labels.cpu().unique(return_inverse=True)
    points, (xlabel, ylabel) = plane(codes.cpu().double())
    figure, axes = _subplots(6.4, 5.4)
    x, y = points.T.numpy()
    axes.scatter(
        x,
        y,
        s=6 if len(points) > 1000 else 14,
        c=[COLOURS[group] for group in groups.tolist()],
        linewidths=0,
    )
    axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
    if len(names) > 1:
        for group, name in enumerate(names.tolist()):
            axes.scatter([], [], color=COLOURS[group], label=name)
            middle = points[groups == group].median(0).values.tolist()
            text = axes.annotate(
                str(name), middle, ha="center", va="center", size=18, weight="bold"
            )
            text.set_path_effects([withStroke(linewidth=3, foreground="white")])
        axes.legend(
            title="label", frameon=False, handletextpad=0, bbox_to_anchor=(1, 1), loc="upper left"
        )
    return figure


def plane(codes: Tensor) -> tuple[Tensor, tuple[str, str]]:
    """Two coordinates of each code and their names."""
    if codes.shape[1] == 1:
        return torch.stack([codes[:, 0], torch.arange(len(codes))], 1), (
            "z[0]",
            "index of the image",
        )
    if codes.shape[1] == 2:
        return codes, ("z[0]", "z[1]")
    centred = codes - codes.mean(0)
    variances, directions = torch.linalg.eigh(centred.T @ centred)  # in increasing order
    shares = variances / variances.sum().clamp(min=1e-300)
    first, second = (f"principal component {i} ({shares[-i]:.0%} of the variance)" for i in (1, 2))
    return centred @ directions.flip(1)[:, :2], (first, second)
