"""Matplotlib figures of images, codes and metrics.

Images have shape `(N, channels, height, width)` and values in [0, 1], as `views` returns them. Grey
images are drawn inverted: 1 is black. Each function returns a figure; `png` renders it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.split import Data
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.codes import codes
from pyro_vae.evaluation.labels import classify, known_labels
from pyro_vae.likelihoods import IMAGE_DIMS, noun
from pyro_vae.reporting import vectors, views
from pyro_vae.reporting.projection import projection
from pyro_vae.vae import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_vae.training.fit import Record

# Six colours of Okabe and Ito's palette and four more: any two differ by a CIEDE2000 distance of at
# least 21, and of at least 10 with any colour blindness as simulated by Machado et al. (2009).
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
BLUE, ORANGE, GREEN = COLOURS[:3]
# Of images without a label, where ten classes have the other colours.
GREY = "#999999"
# The colours of curves, in pictures and on pages.
CURVE_COLOURS = {"training": BLUE, "validation": ORANGE, "training, -loss": GREEN}

# Longest name of a class, in characters, that is written in large letters.
SHORT_NAME = 3

TERMS = {
    "elbo": "ELBO",
    "reconstruction": "reconstruction, log p(x | z)",
    "kl": "KL(q(z | x) || p(z))",
}

# Quantities of a calibration that have colours and names.
NAMED = 4

# Largest number of test images whose codes are drawn.
LATENT_IMAGES = 5000


def plain(text: str) -> str:
    r"""Escape text for titles and labels, so that matplotlib draws it as it is.

    Dollar signs are no mathematics. Characters that the font lacks are written as escapes.

    Example:
        >>> print(plain("a$x^{$b.npz, 猫"))
        a\$x^{\$b.npz, \u732b
    """
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    letters = []
    for letter in text:
        is_drawn = letter == "\n" or (letter.isprintable() and font.get_char_index(ord(letter)))
        if not is_drawn:
            letter = letter.encode("unicode_escape").decode()
        letters.append(letter)
    return "".join(letters).replace("$", r"\$")


def class_name(label: int, classes: Sequence[str] | None = None) -> str:
    """The name of a label: that of its class if classes have names, otherwise the number.

    Example:
        >>> class_name(1, ("cat", "dog")), class_name(1), class_name(-1)
        ('dog', '1', 'no label')
    """
    if label < 0:
        return "no label"
    if classes is None or label >= len(classes):
        return str(label)
    return classes[label]


def png(figure: Figure) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=150, bbox_inches="tight")
    return buffer.getvalue()


def _subplots(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Create a figure, size in inches, and its axes."""
    from matplotlib.figure import Figure  # takes most of a second

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


def grid(
    images: Tensor,
    title: str,
    columns: int | None = None,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Figure:
    """Draw images side by side.

    Arguments:
        images: The images, row by row.
        title: The figure's title.
        columns: Images per row; by default the grid is about square.
        row_labels: Labels at the left of the rows.
        column_labels: Labels above the columns.
    """
    caption = vectors.caption(images)
    images = vectors.pictures(images)
    height, width = images.shape[-2:]
    columns = min(columns or ceil(sqrt(len(images) * height / width)), len(images))
    rows = ceil(len(images) / columns)
    inches = min(8 / (columns * width), 8 / (rows * height), 1 / sqrt(height * width))
    inches = max(inches, 0.25 / max(height, width))  # per pixel
    figure, axes = _subplots(columns * width * inches + 1, rows * height * inches + 1)
    axes.imshow(tile(images, columns))
    axes.set_title(plain(title), fontsize=11)
    # Font sizes in points at which one line of six characters fits a cell.
    axes.set_xticks(
        _centres(width, len(column_labels)),
        labels=[plain(label) for label in column_labels],
        fontsize=min(8, 20 * width * inches),
    )
    axes.set_yticks(
        _centres(height, len(row_labels)),
        labels=[plain(label) for label in row_labels],
        fontsize=min(8, 60 * height * inches),
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)
    if caption:
        figure.supxlabel(caption, fontsize=8)
    return figure


def tile(images: Tensor, columns: int) -> np.ndarray:
    """Tile images into one RGB picture, `(height, width, 3)`, with white lines between them."""
    from torchvision.utils import make_grid

    picture = make_grid(as_drawn(images).cpu(), columns, padding=1, pad_value=1.0)
    return picture.permute(1, 2, 0).numpy()


def as_drawn(images: Tensor) -> Tensor:
    """Data as they are drawn.

    Images with 3 or 4 channels are RGB, others an inverted grey channel. Vectors are curves.
    """
    images = vectors.pictures(images)
    if images.shape[1] in (3, 4):
        return images[:, :3]
    return 1 - images.mean(1, keepdim=True)


def _centres(size: int, count: int) -> list[float]:
    """Pixel coordinates of the centres of the first `count` cells of `tile`."""
    return [(size + 1) * (cell + 0.5) for cell in range(count)]


def add_to_title(figure: Figure, text: str) -> None:
    """Append a remark to the title of a figure of images."""
    axes = figure.axes[0]
    axes.set_title(f"{axes.get_title()}, {plain(text)}", fontsize=11)


def samples(images: Tensor, mean: bool = True, columns: int | None = None) -> Figure:
    """Draw the images of `views.samples`."""
    what = "means of" if mean else "draws x ~"
    return grid(images, f"samples: {what} p(x | z) for draws z ~ p(z)", columns)


def reconstructions(images: Tensor, title: str) -> Figure:
    """Draw the images of `views.reconstructions`, each image above its reconstruction.

    The curves of a vector and of its reconstruction are in one picture.
    """
    if images.ndim < 2 + IMAGE_DIMS:
        return grid(images, f"{title} (orange: mean of p(x | z))")
    rows = images.transpose(0, 1).flatten(0, 1)
    return grid(rows, title, len(images), ["image", "mean of p(x | z)"])


def imputations(images: Tensor, title: str, has_truth: bool) -> Figure:
    """Draw images with missing pixels in columns: as observed, the mean, draws, and the truth.

    Arguments:
        images: Shape `(rows, N, *data_shape)`; the first row is as observed, the second the mean,
            the others are draws.
        title: The figure's title.
        has_truth: Whether the last row is the truth instead.
    """
    labels = ["observed", "mean", *["draw"] * (len(images) - 2)]
    if has_truth:
        labels[-1] = "truth"
    return grid(images.flatten(0, 1), title, images.shape[1], labels)


def interpolations(images: Tensor) -> Figure:
    """Draw the images of `views.interpolations`."""
    each = noun(images.ndim - 2)
    labels = [each, *_numbers(torch.linspace(0, 1, images.shape[1] - 2)), each]
    title = "means of p(x | z) for z from the code of the first (0) to that of the second (1)"
    return grid(images.flatten(0, 1), title, images.shape[1], (), labels)


def analogies(images: Tensor, y: Tensor, classes: Sequence[str] | None = None) -> Figure:
    """Draw the images of `views.analogies`.

    Arguments:
        images: The images, shape `(R, columns, ...)`.
        y: The label of each row.
        classes: The names of the classes, such as `Split.classes`.
    """
    title = "means of p(x | z, y): one class per row, the same z in each column"
    labels = [class_name(label, classes) for label in y.tolist()]
    return grid(images.flatten(0, 1), title, images.shape[1], labels)


def traversals(images: Tensor, dimension: int, values: Tensor) -> Figure:
    """Draw the images of `views.traversals`; `dimension` and `values` as there."""
    labels = [noun(images.ndim - 2), *_numbers(values)]
    title = f"means of p(x | z) for each value of z[{dimension}], the other dimensions as encoded"
    return grid(images.flatten(0, 1), title, images.shape[1], (), labels)


def manifold(images: Tensor, z: Tensor) -> Figure:
    """Draw the images of `views.manifold`, and the values of z."""
    title = "means of p(x | z) on a grid of z, spaced by the quantiles of the prior"
    figure = grid(images.flatten(0, 1), title, len(images), _numbers(z[1].flip(0)), _numbers(z[0]))
    figure.axes[0].set(xlabel="z[0]", ylabel="z[1]")
    return figure


def _numbers(values: Tensor) -> list[str]:
    """Round to two decimals, without a sign of zero."""
    return [f"{round(value, 2) + 0.0:g}" for value in values.tolist()]


def curves(records: Sequence[Record], each: str = "image") -> Figure:
    """Draw the ELBO, its two terms and the number of active units over the epochs.

    Arguments:
        records: What `fit` yields.
        each: What an element of the data is called, `Split.noun`.
    """
    figure, (*panels, last) = _subplots(13, 3.2, columns=4)
    for axes, (key, title) in zip(panels, TERMS.items(), strict=True):
        _curve(axes, records, key, "training")
        _curve(axes, records, f"validation_{key}", "validation")
        axes.set(title=title, xlabel="epoch", ylabel=f"nats per {each}")
    if any(abs(record["loss"] + record["elbo"]) > 1e-3 * abs(record["elbo"]) for record in records):
        _curve(panels[0], records, "loss", "training, -loss", sign=-1)
    _curve(last, records, "active_units", "validation")
    last.set(title="active units", xlabel="epoch", ylabel="latent dimensions", ylim=(-0.5, None))
    last.yaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    return figure


def _curve(axes: Any, records: Sequence[Any], key: str, label: str, sign: int = 1) -> None:
    epochs = [record["epoch"] for record in records]
    values = [sign * record[key] for record in records]
    marker = "o" if len(epochs) < 30 else None
    axes.plot(epochs, values, color=CURVE_COLOURS[label], label=label, marker=marker, markersize=3)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    axes.legend(frameon=False)


def bounds(curve: Mapping[str, Mapping[str, Any]], each: str = "image") -> Figure:
    """Draw the importance-weighted bound over the number of samples K.

    The band is the standard error of the gain over K = 1 on the same images.

    Arguments:
        curve: The `k_curve` of `evaluate`.
        each: What an element of the data is called, `Split.noun`.
    """
    figure, axes = _subplots(5.6, 3.6)
    num_samples = [int(k) for k in curve]
    means = np.array([bound["mean"] for bound in curve.values()])
    errors = np.array([bound["gain_standard_error"] or 0 for bound in curve.values()])
    axes.plot(num_samples, means, color=BLUE, marker="o", markersize=4)
    axes.fill_between(
        num_samples, means - errors, means + errors, color=BLUE, alpha=0.25, linewidth=0
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title(
        "importance-weighted bound; band: standard error of\nthe gain over K = 1",
        fontsize=11,
    )
    axes.set(xlabel="K, number of importance samples", ylabel=f"nats per {each}")
    return figure


def calibration(found: Mapping[str, Any]) -> Figure:
    """Draw the levels of a calibration, and the coverage of the guide's regions.

    The lines are the distribution functions of the levels minus that of an exact guide, one for
    each quantity; with an exact guide all stay inside the band with a probability of at least 95 %.
    The four that leave zero furthest have names.

    Arguments:
        found: The `summary` of `pv.calibration`.
    """
    counts = torch.tensor(list(found["histograms"].values())).double()
    bins = counts.shape[1]
    level = torch.linspace(0, 1, bins + 1).double()
    shares = counts.cumsum(1) / found["num_images"]
    excess = torch.cat([torch.zeros(len(counts), 1), shares], 1) - level
    points = len(counts) * (bins - 1)
    z = torch.special.ndtri(torch.tensor(1 - 0.05 / (2 * points)).double())
    band = z * (level * (1 - level) / found["num_images"]).sqrt()
    figure, (left, right) = _subplots(9.6, 3.6, columns=2)
    left.fill_between(level, -band, band, color=BLUE, alpha=0.2, linewidth=0, label="exact guide")
    order = excess.abs().amax(1).argsort(descending=True).tolist()
    names = list(found["histograms"])
    for rank, one in enumerate(order):
        if rank < NAMED:
            left.plot(level, excess[one], color=COLOURS[rank + 1], label=plain(names[one]))
        else:
            left.plot(level, excess[one], color="0.7", linewidth=0.8, zorder=0)
    left.legend(frameon=False, fontsize=8)
    left.set_title("levels of true codes among draws of q(z | x)", fontsize=11)
    left.set(xlabel="level", ylabel="distribution function - level", xlim=(0, 1))
    positions = range(len(found["coverage"]))
    nominal = [float(region) for region in found["coverage"]]
    covered = list(found["coverage"].values())
    right.bar(positions, nominal, color="0.85", label="exact guide")
    right.errorbar(
        positions,
        [value["share"] for value in covered],
        [2 * value["standard_error"] for value in covered],
        color=ORANGE,
        fmt="o",
        capsize=4,
        label="found ± two standard errors",
    )
    right.set_xticks(positions, labels=[f"{region:.0%}" for region in nominal])
    right.set_title("true codes in regions of highest q(z | x)", fontsize=11)
    right.set(xlabel="region", ylabel="share", ylim=(0, 1.05))
    right.legend(frameon=False, fontsize=8, loc="upper left")
    return figure


def latent(
    codes: Tensor, labels: Tensor | None, title: str, classes: Sequence[str] | None = None
) -> Figure:
    """Draw a scatter plot of codes, coloured by label if there are at most ten labels.

    Codes whose label is unknown are left out, unless all are.
    The name of each label stands at the median of its codes, because ten colours alone are hard to
    tell apart. More than two dimensions are projected on their first two principal components.

    Arguments:
        codes: The codes, shape `(N, latent_dim)`.
        labels: Their labels, shape `(N,)`, or None.
        title: The figure's title.
        classes: The names of the classes, such as `Split.classes`.
    """
    if labels is not None and bool((labels >= 0).any()):
        codes = codes[(labels >= 0).to(codes.device)]
        labels = labels[labels >= 0]
    if labels is None or len(labels.unique()) > len(COLOURS):
        labels = torch.zeros(len(codes), dtype=torch.int64)
    present, groups = labels.cpu().unique(return_inverse=True)
    onto_plane = projection(codes)
    points = onto_plane(codes)
    figure, axes = _subplots(6.4, 5.4)
    size = 6 if len(points) > 1000 else 14
    colours = [COLOURS[group] for group in groups.tolist()]
    axes.scatter(*points.T.numpy(), s=size, c=colours, linewidths=0)
    xlabel, ylabel = onto_plane.names
    axes.set(title=plain(title), xlabel=xlabel, ylabel=ylabel)
    if len(present) > 1:
        names = [plain(class_name(label, classes)) for label in present.tolist()]
        _name_groups(axes, names, points, groups)
    return figure


def reliability(classification: Mapping[str, Any]) -> Figure:
    """Draw the reliability diagram of a classifier: accuracy over confidence, in bins.

    Arguments:
        classification: The `classification` of `evaluate`.
    """
    bins = classification["bins"]
    confidence = [each["confidence"] for each in bins]
    accuracy = [each["accuracy"] for each in bins]
    errors = [each["standard_error"] for each in bins]
    figure, axes = _subplots(4.8, 4.4)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    axes.errorbar(confidence, accuracy, errors, color=BLUE, marker="o", capsize=3, label="q(y | x)")
    for each in bins:
        point = each["confidence"], each["accuracy"]
        axes.annotate(f"{each['num_images']:,}", point, (6, -10), textcoords="offset points")
    title = f"{classification['accuracy']:.1%} right, calibration error"
    title += f" {classification['calibration_error']:.1%}, {classification['num_images']:,} images"
    axes.set(title=title, xlabel="probability of the most likely class", ylabel="share right")
    axes.legend(frameon=False, loc="upper left")
    return figure


def _name_groups(axes: Any, names: Sequence[str], points: Tensor, groups: Tensor) -> None:
    """Write the name of each group at the median of its points, and in a legend."""
    from matplotlib.patheffects import withStroke

    outline = [withStroke(linewidth=3, foreground="white")]
    size = 18 if max(map(len, names)) <= SHORT_NAME else 11
    for group, name in enumerate(names):
        label = name
        if name.startswith("_"):  # matplotlib leaves such names out
            label = f" {name}"
        axes.scatter([], [], color=COLOURS[group], label=label)
        middle = points[groups == group].median(0).values.tolist()
        text = axes.annotate(name, middle, ha="center", va="center", size=size, weight="bold")
        text.set_path_effects(outline)
    axes.legend(
        title="label", frameon=False, handletextpad=0, bbox_to_anchor=(1, 1), loc="upper left"
    )


def figures_of(vae: Model, data: Data, records: Sequence[Record] = ()) -> dict[str, Figure]:
    """The figures of a trained model, by name: those that a run folder holds.

    Arguments:
        vae: A trained model.
        data: Its data; the figures show test images.
        records: What `fit` yielded; without them there is no figure of learning curves.
    """
    images = data.test.subset(min(LATENT_IMAGES, len(data.test)))
    batch = scored(vae, images)
    each = images.noun
    pairs = views.reconstructions(vae, batch[:10])
    means = views.samples(vae, 64, y=views.random_labels(vae, images, 64))
    loc = codes(vae, batch).loc
    drawn = {
        "reconstructions": reconstructions(pairs, f"test {each}s and reconstructions"),
        "samples": samples(means),
        "latent": latent(loc, images.labels, f"posterior means of test {each}s", images.classes),
    }
    if records:
        drawn = {"curves": curves(records, each), **drawn}
    labels = images.labels
    if vae.needs_labels and labels is not None and images.covariates is None:
        labels = labels[labels >= 0].unique().to(batch.x.device)
        drawn["analogies"] = analogies(views.analogies(vae, labels), labels, images.classes)
    if vae.infers_labels and known_labels(vae, data.test) is not None:
        drawn["reliability"] = reliability(classify(vae, data.test).summary())
    if vae.latent_dim == 2 and not vae.needs_labels:
        drawn["manifold"] = manifold(*views.manifold(vae))
    return drawn
