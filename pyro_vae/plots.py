"""Pictures: arrays in, matplotlib figures out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from pyro_vae.fit import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1b1b1b"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8a7d00", "#7f7f7f", "#8c564b", "#332288")
"""After Okabe and Ito's palette, which reads in print and with any colour vision, lengthened to ten."""


def _figure(size: tuple[float, float]) -> Figure:
    """An empty figure of a size in inches; matplotlib is imported only now, for it takes its time."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def save(figure: Figure, path: Path) -> Path:
    """Write a figure as PNG; the path it was written to."""
    figure.savefig(path, dpi=150)
    return path


def grid(images: Tensor, title: str, columns: int | None = None, labels: Sequence[str] = ()) -> Figure:
    """Images, shape `(N, channels, height, width)` in [0, 1], side by side.

    Arguments:
        images: The images.
        title: The figure's title.
        columns: Images in a row; None makes a square.
        labels: A name for each row, at its left.
    """
    columns = columns or ceil(sqrt(len(images)))
    rows = ceil(len(images) / columns)
    height, width = images.shape[-2:]
    cell = max(0.3, min(0.9, 8 / columns))
    figure = _figure((max(columns * cell + 0.9, 4.0), rows * cell * height / width + 0.8))
    axes = figure.subplots()
    axes.imshow(_tiled(images, rows, columns), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([(height + 1) * (row + 0.5) - 0.5 for row in range(len(labels))], labels=list(labels))
    axes.tick_params(left=False)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=11)
    return figure


def pairs(images: Tensor, title: str) -> Figure:
    """The images of `views.reconstructions`, shape `(N, 2, ...)`: a row of images over a row of reconstructions."""
    return grid(images.transpose(0, 1).flatten(0, 1), title, len(images), ["image", "mean of p(x | z)"])


def _tiled(images: Tensor, rows: int, columns: int) -> np.ndarray:
    """One picture of all images with a line of the paper's colour between them: greys, or RGB."""
    images = images if images.shape[1] in (1, 3, 4) else images.mean(1, keepdim=True)
    count, channels, height, width = images.shape
    paper = 0.0 if channels == 1 else 1.0
    canvas = np.full((rows, height + 1, columns, width + 1, channels), paper, dtype=np.float32)
    cells = np.full((rows * columns, height, width, channels), paper, dtype=np.float32)
    cells[:count] = images.cpu().permute(0, 2, 3, 1).numpy()
    canvas[:, :height, :, :width] = cells.reshape(rows, columns, height, width, channels).transpose(0, 2, 1, 3, 4)
    picture = canvas.reshape(rows * (height + 1), columns * (width + 1), channels)[:-1, :-1]
    return picture[..., 0] if channels == 1 else picture[..., :3]


def curves(records: Sequence[Record]) -> Figure:
    """The ELBO and its two terms over the epochs, in nats per image, for training and validation, and the active units."""
    figure = _figure((13, 3.2))
    *panels, last = figure.subplots(1, 4)
    titles = {"elbo": "ELBO", "reconstruction": "reconstruction, log p(x | z)", "kl": "KL(q(z | x) || p(z))"}
    epochs = [record["epoch"] for record in records]
    for axes, (key, title) in zip(panels, titles.items(), strict=True):
        _curve(axes, epochs, [record[key] for record in records], COLOURS[0], "training")  # type: ignore[literal-required]
        _curve(axes, epochs, [record[f"validation_{key}"] for record in records], COLOURS[1], "validation")  # type: ignore
        axes.set(title=title, xlabel="epoch", ylabel="nats per image")
    if any(abs(record["loss"] + record["elbo"]) > 1e-3 * abs(record["elbo"]) for record in records):
        _curve(panels[0], epochs, [-record["loss"] for record in records], COLOURS[2], "training, as optimized")
    _curve(last, epochs, [record["active_units"] for record in records], COLOURS[1], "validation")
    last.set(title="active units", xlabel="epoch", ylabel="latent dimensions", ylim=(0, None))
    for axes in [*panels, last]:
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(frameon=False)
    return figure


def _curve(axes: Any, x: Sequence[int], y: Sequence[float], colour: str, label: str) -> None:
    axes.plot(x, y, color=colour, label=label, marker="o" if len(x) < 30 else None, markersize=3)


def bounds(curve: Mapping[str, Mapping[str, Any]]) -> Figure:
    """The importance-weighted bound over the number of samples, with its standard error over images, from `evaluate`."""
    figure = _figure((5.6, 3.6))
    axes = figure.subplots()
    means, errors = (np.array([value[key] or 0.0 for value in curve.values()]) for key in ("mean", "standard_error"))
    lengths = [int(k) for k in curve]
    axes.plot(lengths, means, color=COLOURS[0], marker="o", markersize=4)
    axes.fill_between(lengths, means - errors, means + errors, color=COLOURS[0], alpha=0.15, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set(title="how tight is tight: the bound of K samples", xlabel="K", ylabel="nats per image")
    axes.text(0.98, 0.05, "band: standard error over images", transform=axes.transAxes, ha="right", fontsize=8)
    return figure


def captioned(images: Tensor, title: str, captions: Sequence[str], columns: int = 5) -> Figure:
    """Images, shape `(N, channels, height, width)` in [0, 1], each over its caption."""
    rows = ceil(len(images) / columns)
    figure = _figure((1.7 * columns, 1.8 * rows + 0.5))
    for axes, image, caption in zip(figure.subplots(rows, columns, squeeze=False).flat, images, captions, strict=False):
        axes.imshow(_tiled(image[None], 1, 1), cmap="gray_r", vmin=0, vmax=1, interpolation="nearest")
        axes.set_xlabel(caption, fontsize=8)
    for index, axes in enumerate(figure.axes):
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_visible(index < len(images))
    figure.suptitle(title, fontsize=11)
    return figure


def latent(codes: Tensor, labels: Tensor | None, title: str) -> Figure:
    """The codes, shape `(N, latent_dim)`, as a scatter plot coloured by label; by PCA where there are over two dimensions."""
    points, names = _plane(codes.cpu().double().numpy())
    figure = _figure((6.4, 5.4))
    axes = figure.subplots()
    size = 4 if len(points) > 1000 else 14
    for index, (name, chosen) in enumerate(_by_label(labels, len(points))):
        x, y = points[chosen].T
        axes.scatter(x, y, s=size, alpha=0.6, linewidths=0, color=COLOURS[index % len(COLOURS)], label=name)
    axes.set(title=title, xlabel=names[0], ylabel=names[1])
    if labels is not None and len(axes.collections) <= len(COLOURS):
        axes.legend(title="label", frameon=False, markerscale=6 / size**0.5, bbox_to_anchor=(1, 1), loc="upper left")
    return figure


def _by_label(labels: Tensor | None, count: int) -> list[tuple[str, np.ndarray]]:
    if labels is None:
        return [("", np.ones(count, dtype=bool))]
    values = labels.cpu().numpy()
    return [(str(value), values == value) for value in np.unique(values)]


def _plane(codes: np.ndarray) -> tuple[np.ndarray, tuple[str, str]]:
    if codes.shape[1] == 1:
        return np.stack([codes[:, 0], np.zeros(len(codes))], 1), ("z, dimension 0", "")
    if codes.shape[1] == 2 or len(codes) < 3:
        return codes[:, :2], ("z, dimension 0", "z, dimension 1")
    centred = codes - codes.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    share = singular**2 / max((singular**2).sum(), 1e-300)
    first, second = (f"principal component {i + 1} ({share[i]:.0%} of variance)" for i in range(2))
    return centred @ axes[:2].T, (first, second)


def manifold(images: Tensor) -> Figure:
    """The images of `views.manifold`, shape `(side, side, channels, height, width)`, over their place in latent space."""
    side = len(images)
    figure = grid(images.flatten(0, 1), "mean of p(x | z) over the latent plane, equal prior mass a cell", side)
    axes = figure.axes[0]
    quantiles = [0.025, 0.25, 0.5, 0.75, 0.975]
    names = ["-1.96", "-0.67", "0", "0.67", "1.96"]
    height, width = (images.shape[i] + 1 for i in (-2, -1))
    axes.set_xticks([q * side * width - 0.5 for q in quantiles], labels=names)
    axes.set_yticks([(1 - q) * side * height - 0.5 for q in quantiles], labels=names)
    axes.set(xlabel="z, dimension 0", ylabel="z, dimension 1")
    return figure
