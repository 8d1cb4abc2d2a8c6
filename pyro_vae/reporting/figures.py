"""Matplotlib figures of images, codes and metrics.

Images have shape `(N, channels, height, width)` and values in [0, 1], as `views` returns them. Grey
images are drawn inverted: 1 is black. Each function returns a figure, which fits one or two columns
of a paper; `rendered` makes a file of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from importlib.util import find_spec
from io import BytesIO
from logging import getLogger
from math import ceil, sqrt
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data.split import Data
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.calibration import deviations
from pyro_vae.evaluation.codes import codes
from pyro_vae.evaluation.labels import classify, known_labels
from pyro_vae.evaluation.metrics import score
from pyro_vae.likelihoods import IMAGE_DIMS, noun
from pyro_vae.reporting import vectors, views
from pyro_vae.reporting.projection import Plane, planes
from pyro_vae.reporting.style import (
    COLOURS,
    EXACT,
    GUIDE,
    LOSS,
    ONE_COLUMN,
    STYLE,
    TRAINING,
    TWO_COLUMNS,
    VALIDATION,
    class_name,
    ink_on,
    without_overlap,
)
from pyro_vae.runs.recipe import FigureFormat
from pyro_vae.runs.store import write
from pyro_vae.vae import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from pyro_vae.training.fit import Record

logger = getLogger("pyro_vae")

# The colours of curves, in pictures and on pages.
CURVE_COLOURS = {"training": TRAINING, "validation": VALIDATION, "training, -loss": LOSS}

TERMS = {
    "elbo": "ELBO",
    "reconstruction": "reconstruction, log p(x | z)",
    "kl": "KL(q(z | x) || p(z))",
}

# Quantities of a calibration that have colours and names.
NAMED = 4

# Largest number of test images whose codes are drawn.
LATENT_IMAGES = 5000
# The same if they are drawn by t-SNE, which takes seconds for them.
T_SNE_IMAGES = 1000
# Samples, and importance samples of the ELBO of each reconstruction.
SAMPLES = 48
ELBO_SAMPLES = 100
# Images, or dimensions, in a figure of traversals, and its steps.
ROWS = 10
STEPS = 10
# Ticks of the manifold.
TICKS = 5

P = ParamSpec("P")
T = TypeVar("T")


def check_installed() -> None:
    """Raise `RequestError` unless matplotlib is installed."""
    if find_spec("matplotlib") is None:
        raise RequestError(
            "figures need matplotlib; install it with pip install 'pyro_vae[report]'"
        )


def are_possible() -> bool:
    """Whether figures can be drawn; logs what to install otherwise."""
    try:
        check_installed()
    except RequestError as error:
        logger.info("no figures: %s", error)
        return False
    return True


def styled(function: Callable[P, T]) -> Callable[P, T]:
    """Run a function that makes or renders figures with the settings of figures.mplstyle.

    It raises `RequestError` if matplotlib is not installed.
    """

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        check_installed()
        from matplotlib import style  # takes most of a second

        with style.context([STYLE]):
            return function(*args, **kwargs)

    return run


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


@styled
def rendered(figure: Figure, file_format: FigureFormat = "png") -> bytes:
    """Render a figure as the bytes of a file, the same bytes for the same figure."""
    undated = {"png": {}, "pdf": {"CreationDate": None}, "svg": {"Date": None}}
    buffer = BytesIO()
    figure.savefig(
        buffer,
        format=file_format,
        bbox_inches="tight",
        pad_inches=0.03,
        metadata=undated[file_format],
    )
    return buffer.getvalue()


def png(figure: Figure) -> bytes:
    """Render a figure as the bytes of a PNG file."""
    return rendered(figure)


def write_figure(figure: Figure, path: Path, file_format: FigureFormat = "png") -> list[Path]:
    """Write a figure as a PNG file and in another format, and return the paths.

    Arguments:
        figure: A figure.
        path: The file without the ending.
        file_format: The format.
    """
    files = [write(path.with_name(f"{path.name}.png"), png(figure))]
    if file_format != "png":
        content = rendered(figure, file_format)
        files.append(write(path.with_name(f"{path.name}.{file_format}"), content))
    return files


def _subplots(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    """Create a figure, size in inches, and its axes."""
    from matplotlib.figure import Figure  # takes most of a second

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(1, columns)


@styled
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
    columns = _columns(images, columns)
    inches = _inches_per_pixel(images, columns, TWO_COLUMNS - 0.5)
    width, height = _size(images, columns, inches)
    figure, axes = _subplots(width + 0.5, height + 0.4)
    _draw_grid(axes, images, title, columns, row_labels, column_labels)
    if caption:
        figure.supxlabel(caption, fontsize="medium")
    return figure


def _columns(images: Tensor, columns: int | None) -> int:
    """Images per row; by default as many as make the grid about square."""
    height, width = images.shape[-2:]
    return min(columns or ceil(sqrt(len(images) * height / width)), len(images))


def _inches_per_pixel(images: Tensor, columns: int, largest: float) -> float:
    """The size of a pixel at which a grid is at most `largest` inches wide or high."""
    height, width = images.shape[-2:]
    rows = ceil(len(images) / columns)
    fitting = min(largest / (columns * width), largest / (rows * height))
    inches = min(fitting, 0.7 / sqrt(height * width))
    return max(inches, 0.15 / max(height, width))


def _size(images: Tensor, columns: int, inches: float) -> tuple[float, float]:
    """Width and height in inches of a grid."""
    height, width = images.shape[-2:]
    return columns * width * inches, ceil(len(images) / columns) * height * inches


def _draw_grid(
    axes: Any,
    images: Tensor,
    title: str,
    columns: int,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    lines: int = 1,
) -> None:
    """Draw images on axes, with white lines of this width in pixels between them."""
    height, width = images.shape[-2:]
    axes.imshow(tile(images, columns, lines))
    axes.set_title(plain(title))
    axes.set_xticks(
        _centres(width + lines, range(len(column_labels))),
        labels=[plain(label) for label in column_labels],
    )
    axes.set_yticks(
        _centres(height + lines, range(len(row_labels))),
        labels=[plain(label) for label in row_labels],
    )
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.spines[:].set_visible(False)


def tile(images: Tensor, columns: int, lines: int = 1) -> np.ndarray:
    """Tile images into one RGB picture, `(height, width, 3)`, with white lines between them."""
    from torchvision.utils import make_grid

    picture = make_grid(as_drawn(images).cpu(), columns, padding=lines, pad_value=1.0)
    return picture.permute(1, 2, 0).numpy()


def as_drawn(images: Tensor) -> Tensor:
    """Data as they are drawn.

    Images with 3 or 4 channels are RGB, others an inverted grey channel. Vectors are curves.
    """
    images = vectors.pictures(images)
    if images.shape[1] in (3, 4):
        return images[:, :3]
    return 1 - images.mean(1, keepdim=True)


def _centres(size: int, cells: Sequence[int]) -> list[float]:
    """Pixel coordinates of the centres of cells of this size."""
    return [size * (cell + 0.5) for cell in cells]


def add_to_title(figure: Figure, text: str) -> None:
    """Append a remark to the title of a figure of images."""
    axes = figure.axes[0]
    axes.set_title(f"{axes.get_title()}, {plain(text)}")


def samples(images: Tensor, mean: bool = True, columns: int | None = None) -> Figure:
    """Draw the images of `views.samples`."""
    what = "means of" if mean else "draws x ~"
    return grid(images, f"samples: {what} p(x | z) for draws z ~ p(z)", columns)


@styled
def samples_and_draws(images: Tensor, columns: int | None = None) -> Figure:
    """Draw the means and the draws of `views.samples_and_draws` next to each other."""
    both = images.flatten(0, 1)  # with one axis for all curves
    means, draws = vectors.pictures(both).unflatten(0, (-1, 2)).unbind(1)
    columns = _columns(means, columns)
    inches = _inches_per_pixel(means, columns, TWO_COLUMNS / 2)
    width, height = _size(means, columns, inches)
    figure, (left, right) = _subplots(2 * width + 0.3, height + 0.4, columns=2)
    _draw_grid(left, means, "means of p(x | z) for draws z ~ p(z)", columns)
    _draw_grid(right, draws, "draws x ~ p(x | z), the same z", columns)
    if caption := vectors.caption(both):
        figure.supxlabel(caption, fontsize="medium")
    return figure


def reconstructions(images: Tensor, title: str, elbo: Sequence[float] = ()) -> Figure:
    """Draw the images of `views.reconstructions`, each image above its reconstruction.

    The curves of a vector and of its reconstruction are in one picture.

    Arguments:
        images: The images.
        title: The figure's title.
        elbo: The ELBO of each image, in nats.
    """
    if images.ndim < 2 + IMAGE_DIMS:
        return grid(images, f"{title} (orange: mean of p(x | z))")
    rows = images.transpose(0, 1).flatten(0, 1)
    labels = [f"{value:.1f}" for value in elbo]
    if labels:
        title += "; above them the ELBO in nats"
    return grid(rows, title, len(images), ["image", "mean of p(x | z)"], labels)


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


@styled
def dimensions(images: Tensor, order: Sequence[int], ranges: Tensor) -> Figure:
    """Draw traversals of several latent dimensions of one image.

    Arguments:
        images: Means of p(x | z), shape `(D, steps, ...)`.
        order: The latent dimension of each row.
        ranges: Its lowest and highest value, shape `(2, D)`.
    """
    lows, highs = (_numbers(ends) for ends in ranges)
    labels = []
    for dimension, low, high in zip(order, lows, highs, strict=True):
        labels.append(f"z[{dimension}], {low} to {high}")
    title = "means of p(x | z): one latent dimension per row over the range of the codes"
    return grid(images.flatten(0, 1), title, images.shape[1], labels)


@styled
def manifold(images: Tensor, z: Tensor) -> Figure:
    """Draw the images of `views.manifold`, and five values of z on each axis."""
    side = len(images)
    cells = sorted(set(torch.linspace(0, side - 1, TICKS).round().int().tolist()))
    images = vectors.pictures(images.flatten(0, 1))
    figure, axes = _subplots(ONE_COLUMN, ONE_COLUMN)
    title = "means of p(x | z), spaced by the quantiles of p(z)"
    _draw_grid(axes, images, title, side, lines=0)
    height, width = images.shape[-2:]
    axes.set_xticks(_centres(width, cells), labels=_numbers(z[0, cells]))
    axes.set_yticks(_centres(height, cells), labels=_numbers(z[1].flip(0)[cells]))
    axes.tick_params(length=2.5, labeltop=False, labelbottom=True)
    axes.set(xlabel="z[0]", ylabel="z[1]")
    return figure


def _numbers(values: Tensor) -> list[str]:
    """Round to two decimals, without a sign of zero."""
    return [f"{round(value, 2) + 0.0:g}" for value in values.tolist()]


@styled
def curves(records: Sequence[Record], each: str = "image") -> Figure:
    """Draw the ELBO and its two terms over the epochs.

    Arguments:
        records: What `fit` yields.
        each: What an element of the data is called, `Split.noun`.
    """
    figure, panels = _subplots(TWO_COLUMNS, 2.0, columns=3)
    for axes, (key, title) in zip(panels, TERMS.items(), strict=True):
        _curve(axes, records, key, "training")
        _curve(axes, records, f"validation_{key}", "validation")
        axes.set(title=title, xlabel="epoch")
    if any(abs(record["loss"] + record["elbo"]) > 1e-3 * abs(record["elbo"]) for record in records):
        _curve(panels[0], records, "loss", "training, -loss", sign=-1)
    panels[0].set_ylabel(f"nats per {each}")
    panels[0].legend(loc="lower right")
    return figure


def _curve(axes: Any, records: Sequence[Any], key: str, label: str, sign: int = 1) -> None:
    epochs = [record["epoch"] for record in records]
    values = [sign * record[key] for record in records]
    marker = "o" if len(epochs) < 30 else None
    axes.plot(epochs, values, color=CURVE_COLOURS[label], label=label, marker=marker)
    axes.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1)


@styled
def bounds(curve: Mapping[str, Mapping[str, Any]], each: str = "image") -> Figure:
    """Draw the importance-weighted bound over the number of samples K.

    The band is the standard error of the gain over K = 1 on the same images.

    Arguments:
        curve: The `k_curve` of `evaluate`.
        each: What an element of the data is called, `Split.noun`.
    """
    figure, axes = _subplots(ONE_COLUMN, 2.4)
    num_samples = [int(k) for k in curve]
    means = np.array([bound["mean"] for bound in curve.values()])
    errors = np.array([bound["gain_standard_error"] or 0 for bound in curve.values()])
    axes.plot(num_samples, means, color=GUIDE, marker="o")
    axes.fill_between(
        num_samples, means - errors, means + errors, color=GUIDE, alpha=0.25, linewidth=0
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_title("importance-weighted bound; band: standard error of\nthe gain over K = 1")
    axes.set(xlabel="K, number of importance samples", ylabel=f"nats per {each}")
    return figure


@styled
def calibration(found: Mapping[str, Any]) -> Figure:
    """Draw the levels of a calibration, and the coverage of the guide's regions.

    The lines are the distribution functions of the levels minus that of an exact guide, one for
    each quantity; with an exact guide all stay inside the band with a probability of at least 95 %.
    The four that leave zero furthest have names.

    Arguments:
        found: The `summary` of `pv.calibration`.
    """
    level, excess, band = deviations(found)
    figure, (left, right) = _subplots(TWO_COLUMNS, 2.6, columns=2)
    left.fill_between(level, -band, band, color=EXACT, alpha=0.2, linewidth=0, label="exact guide")
    order = excess.abs().amax(1).argsort(descending=True).tolist()
    names = list(found["histograms"])
    for rank, one in enumerate(order):
        if rank < NAMED:
            left.plot(level, excess[one], color=COLOURS[rank + 1], label=plain(names[one]))
        else:
            left.plot(level, excess[one], color="0.7", linewidth=0.8, zorder=0)
    left.legend()
    left.set_title("levels of true codes among draws of q(z | x)")
    left.set(xlabel="level", ylabel="distribution function - level", xlim=(0, 1))
    positions = range(len(found["coverage"]))
    nominal = [float(region) for region in found["coverage"]]
    covered = list(found["coverage"].values())
    right.bar(positions, nominal, color="0.85", label="exact guide")
    right.errorbar(
        positions,
        [value["share"] for value in covered],
        [2 * value["standard_error"] for value in covered],
        color=GUIDE,
        fmt="o",
        capsize=3,
        label="found ± two standard errors",
    )
    right.set_xticks(positions, labels=[f"{region:.0%}" for region in nominal])
    right.set_title("true codes in regions of highest q(z | x)")
    right.set(xlabel="region", ylabel="share", ylim=(0, 1.05))
    right.legend(loc="upper left")
    return figure


@styled
def latent(
    codes: Tensor, labels: Tensor | None, title: str, classes: Sequence[str] | None = None
) -> Figure:
    """Draw a scatter plot of codes, coloured by label if there are at most ten labels.

    Codes whose label is unknown are left out, unless all are. The name of each label stands near
    the median of its codes, because ten colours alone are hard to tell apart. More than two
    dimensions are drawn on two planes, see `planes`, for at most 1,000 codes.

    Arguments:
        codes: The codes, shape `(N, latent_dim)`.
        labels: Their labels, shape `(N,)`, or None.
        title: The figure's title.
        classes: The names of the classes, such as `Split.classes`.
    """
    if labels is not None and bool((labels >= 0).any()):
        codes = codes[(labels >= 0).to(codes.device)]
        labels = labels[labels >= 0]
    if codes.shape[1] > 2:
        codes = codes[:T_SNE_IMAGES]
    if labels is None or len(labels.unique()) > len(COLOURS):
        labels = torch.zeros(len(codes), dtype=torch.int64)
    present, groups = labels[: len(codes)].cpu().unique(return_inverse=True)
    names = [plain(class_name(label, classes)) for label in present.tolist()]
    order = codes.var(0, unbiased=False).argsort(descending=True).tolist()
    found = planes(codes, order)
    figure, panels = _subplots(ONE_COLUMN * len(found), ONE_COLUMN, columns=len(found))
    figure.suptitle(plain(title))
    for axes, plane in zip(np.atleast_1d(panels), found, strict=True):
        _draw_plane(axes, plane, groups, names)
    return figure


def _draw_plane(axes: Any, plane: Plane, groups: Tensor, names: Sequence[str]) -> None:
    """Draw codes on a plane, with the name of each group near the median of its points."""
    colours = [COLOURS[group] for group in groups.tolist()]
    size = 3 if len(groups) > 1000 else 6
    axes.scatter(*plane.points.T.numpy(), s=size, c=colours, linewidths=0)
    axes.set(xlabel=plane.names[0], ylabel=plane.names[1])
    if not any(plane.names):
        axes.set(xticks=[], yticks=[], xlabel=_two_lines(plane.caption))
        axes.spines[:].set_visible(False)
    if len(names) > 1:
        _name_groups(axes, names, plane.points, groups)


def _two_lines(caption: str) -> str:
    return caption.replace(". ", ".\n", 1)


def _name_groups(axes: Any, names: Sequence[str], points: Tensor, groups: Tensor) -> None:
    """Write the name of each group near the median of its points, over no other name."""
    middles = [points[groups == group].median(0).values for group in range(len(names))]
    extent = np.ptp(points.numpy(), axis=0) / (72 * (ONE_COLUMN - 0.6))  # per point of the font
    sizes = np.array([[6 * len(name) + 6, 13.0] for name in names]) * extent
    places = without_overlap(torch.stack(middles).numpy(), sizes)
    for name, place, colour in zip(names, places, COLOURS, strict=False):
        box = {"boxstyle": "round,pad=0.2", "facecolor": colour, "edgecolor": "white"}
        axes.annotate(
            name,
            place,
            ha="center",
            va="center",
            weight="bold",
            color=ink_on(colour),
            bbox={**box, "linewidth": 0.8},
        )


@styled
def reliability(classification: Mapping[str, Any]) -> Figure:
    """Draw the reliability diagram of a classifier: accuracy over confidence, in bins.

    Arguments:
        classification: The `classification` of `evaluate`.
    """
    bins = classification["bins"]
    confidence = [each["confidence"] for each in bins]
    accuracy = [each["accuracy"] for each in bins]
    errors = [each["standard_error"] for each in bins]
    figure, axes = _subplots(ONE_COLUMN, 3.1)
    axes.plot([0, 1], [0, 1], color="0.6", linestyle="--", label="calibrated")
    axes.errorbar(
        confidence, accuracy, errors, color=GUIDE, marker="o", capsize=3, label="q(y | x)"
    )
    for each in bins:
        point = each["confidence"], each["accuracy"]
        axes.annotate(
            f"{each['num_images']:,}", point, (4, -8), fontsize=6, textcoords="offset points"
        )
    title = f"{classification['accuracy']:.1%} right, calibration error"
    title += f" {classification['calibration_error']:.1%}, {classification['num_images']:,} images"
    axes.set(title=title, xlabel="probability of the most likely class", ylabel="share right")
    axes.legend(loc="upper left")
    return figure


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
    first = batch[:ROWS]
    pairs = views.reconstructions(vae, first)
    # Only the main process draws, so that these rows are not shared between processes.
    scores = score(vae.model, vae.guide, first, ELBO_SAMPLES, batch_size=ROWS * ELBO_SAMPLES)
    elbo = scores.elbo.tolist()
    y = views.random_labels(vae, images, SAMPLES)
    loc = codes(vae, batch).loc
    drawn = {
        "reconstructions": reconstructions(pairs, f"test {each}s and reconstructions", elbo),
        "samples": samples_and_draws(views.samples_and_draws(vae, SAMPLES, y)),
        "latent": latent(loc, images.labels, f"posterior means of test {each}s", images.classes),
    }
    if records:
        drawn = {"curves": curves(records, each), **drawn}
    labels = images.labels
    if vae.needs_labels and labels is not None and images.covariates is None:
        labels = labels[labels >= 0].unique().to(batch.x.device)
        drawn["analogies"] = analogies(views.analogies(vae, labels), labels, images.classes)
    if vae.latent_dim > 2:
        order = views.active_dimensions(vae, batch)[:ROWS]
        ranges = views.code_range(vae, batch)[:, order].cpu()
        made = views.dimensions(vae, batch[:1], order, ranges, STEPS)
        drawn["traversals"] = dimensions(made, order, ranges)
    if vae.infers_labels and known_labels(vae, data.test) is not None:
        drawn["reliability"] = reliability(classify(vae, data.test).summary())
    if vae.latent_dim == 2 and not vae.needs_labels:
        drawn["manifold"] = manifold(*views.manifold(vae))
    return drawn
