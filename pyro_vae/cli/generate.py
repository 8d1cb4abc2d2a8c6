"""`pyro-vae generate`: images or arrays from a saved run."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from logging import getLogger
from math import isfinite
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import pyro
import torch
from torch import Tensor

from pyro_vae.cli.options import (
    ArgumentParser,
    Namespace,
    NonNegativeInt,
    add,
    parse,
    run_parser,
    source,
    up_to,
)
from pyro_vae.data.files import Arrays
from pyro_vae.data.reading import read_file
from pyro_vae.data.split import Split
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.codes import ACTIVE, activity, codes
from pyro_vae.evaluation.impute import Imputation, impute
from pyro_vae.evaluation.metrics import RELIABLE, score_images
from pyro_vae.likelihoods import IMAGE_DIMS
from pyro_vae.reporting import figures, views
from pyro_vae.runs.build import pick_device
from pyro_vae.runs.folder import Run
from pyro_vae.runs.load import SavedRun, open_run
from pyro_vae.runs.recipe import FigureFormat
from pyro_vae.runs.store import npz, write
from pyro_vae.vae import Model

logger = getLogger("pyro_vae")

Format = Literal["png", "pdf", "svg", "npz"]

SAMPLES = 64
# Draws of missing values in a picture, and in a file.
DRAWS_IN_PICTURE = 2
DRAWS_IN_FILE = 5
IMAGES = 10
STEPS = 10
# Images whose codes say which dimensions are active, and in which range.
RANGE_IMAGES = 1000
# Longest part of a file name that a label makes.
LABEL_LENGTH = 60
# Classes and dimensions that a message lists.
LISTED = 20


class Output(NamedTuple):
    """Arrays, and a function that draws them."""

    arrays: Mapping[str, Any]
    figure: Callable[[], figures.Figure]


@dataclass(frozen=True)
class Request:
    """What the command is asked for.

    Attributes:
        vae: The model.
        config: The options.
        format: Whether to write a picture or arrays.
        load: Loads the images, which not all kinds need.
        load_truth: Loads them with the values that the run hid, or None if it hid none.
    """

    vae: Model
    config: Namespace
    format: Format
    load: Callable[[], Split]
    load_truth: Callable[[], Split | None]

    @cached_property
    def images(self) -> Split:
        """All images to choose from."""
        return self.load()

    @cached_property
    def label(self) -> Tensor | None:
        """The label of --label, shape `(1,)` or `(1, C)`; None if it is not given.

        Raises:
            RequestError: If it is not one of the model's.
        """
        if self.config.label is None:
            return None
        self.vae.check_labels(self.images.y)
        if self.images.y is None:
            raise RequestError("--label needs images whose labels name the classes; add labels")
        if self.images.covariates is not None:
            return _covariates(self.config.label, self.images.covariates)
        return _class(self.config.label, self.images)

    def y(self, rows: int) -> Tensor | None:
        """The label of --label, for each of some rows; None if it is not given."""
        if self.label is None:
            return None
        return self.label.repeat_interleave(rows, 0)

    def some(self, each: int = 1) -> Split:
        """A seeded choice of --count times `each` images; by default ten times, or all."""
        if self.config.count:
            asked = each * self.config.count
        else:
            asked = min(each * IMAGES, len(self.images))
        if asked > len(self.images):
            raise RequestError(
                f"--count needs {asked:,} images, but the split has {len(self.images):,};"
                " use a smaller count"
            )
        return self.images.subset(asked)

    def stored(self) -> Arrays | None:
        """The arrays of the file of --data, if it is one file without splits."""
        path = Path(self.config.data or "")
        if not path.is_file() or self.config.image_size is not None:
            return None
        parts = read_file(path).parts
        if len(parts) > 1:
            return None
        return parts["train"]

    @property
    def named(self) -> str:
        """What titles call the images."""
        if self.config.data is None:
            return f"{self.config.split} {self.images.noun}s"
        return f"{self.images.noun}s of {Path(self.config.data).name}"


def generate(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    run = Run.open(config.run_dir)
    device = pick_device(config.device)
    file_format = _format(config)
    file = _file(config, run, file_format)
    saved = open_run(config.run_dir, config.checkpoint, device, config.trust)
    vae = saved.vae
    if config.data is not None:
        _check_takes_images(vae, config.kind)
    if config.label is not None:
        _check_takes_label(vae, config.kind)
    if file_format == "npz" and len(saved.checkpoint.shape) < IMAGE_DIMS:
        # Vectors are stored in their own units.
        vae.likelihood.shown = lambda x: x  # type: ignore[method-assign]
    pyro.set_rng_seed(config.seed)
    asked = (config.split, config.data, config.data_dir, config.image_size)
    request = Request(
        vae,
        config,
        file_format,
        load=lambda: saved.images(*asked).split.to(device),
        load_truth=lambda: _truth(saved, config),
    )
    output = KINDS[config.kind](request)
    if file_format == "npz":
        content = npz(output.arrays)
    else:
        content = _picture(output, config, file_format)
    logger.info("written to %s", write(file, content))


def _truth(saved: SavedRun, config: Namespace) -> Split | None:
    """The images of the run with the values that it hid; None if it hid none."""
    if config.data is not None or saved.recipe.missing is None:
        return None
    split: Split = getattr(saved.data(config.data_dir, hidden=False), config.split)
    return split


def _parser() -> ArgumentParser:
    parser = run_parser("generate", "Write images or arrays from a saved run.")
    kinds: Any = Literal[tuple(KINDS)]
    parser.add_argument("kind", type=kinds, help="What to write.")
    add(
        parser,
        "format",
        Format,
        None,
        "Picture (png, pdf or svg) or arrays; png, but npz for codes.",
    )
    text = "Number of images, rows or dimensions; 64 samples, 10 of others."
    add(parser, "count", up_to(1_000_000), None, text)
    text = "Samples: means of p(x | z) or draws; both for pictures, draws for npz."
    add(parser, "mean", bool, None, text)
    add(parser, "columns", up_to(100), None, "Columns of a grid of samples or of the manifold.")
    text = "Latent dimension of a traversal; ten, of one image, by default."
    add(parser, "dimension", NonNegativeInt, None, text)
    text = (
        "Models that use labels: a class by its name or number, or a number or list of covariates,"
        " to decode with; those of the images by default."
    )
    add(parser, "label", str, None, text)
    add(parser, "out", str, None, "File to write; RUN_DIR/generated/KIND.FORMAT by default.")
    return parser


def _format(config: Namespace) -> Format:
    """What --format says, or else the name of the file."""
    if config.format is not None:
        return config.format
    suffix = Path(config.out or "").suffix.removeprefix(".")
    for known in get_args(Format):
        if suffix == known:
            return known
    return "npz" if config.kind == "codes" else "png"


def _file(config: Namespace, run: Run, file_format: Format) -> Path:
    """The file to write."""
    if config.out:
        path = Path(config.out)
    else:
        name = config.kind
        if config.label is not None:
            name += f"-label-{_in_file_name(config.label)}"
        if config.data is not None:
            name += f"-{source(config)}"
        path = run.path / "generated" / name
    if path.suffix not in ("", f".{file_format}") or os.path.isdir(path) or "\0" in str(path):
        raise RequestError(
            f"--out {path} must be a file that ends in .png, .pdf, .svg or .npz, as --format says"
        )
    return path.with_suffix(f".{file_format}")


def _in_file_name(label: str) -> str:
    """A label as a part of a file name: the covariates [0.5, 1] are 0p5_1."""
    text = re.sub(r"\s*,\s*", "_", label).translate(str.maketrans(" .", "_p", "[]"))
    return re.sub(r"[^\w-]", "_", text)[:LABEL_LENGTH]


def _check_takes_images(vae: Model, kind: str) -> None:
    """Raise `RequestError` unless the kind uses images."""
    if kind == "manifold" or (kind == "samples" and not vae.needs_labels):
        raise RequestError(f"{kind} use no images; leave out --data")


def _check_takes_label(vae: Model, kind: str) -> None:
    """Raise `RequestError` unless the model can decode with a label, and the kind decodes."""
    if not vae.needs_labels:
        name = type(vae).__name__
        raise RequestError(
            f"--label is for models that use labels, which {name} does not; leave it out"
        )
    if kind in ("analogies", "codes"):
        raise RequestError(f"{kind} are not decoded with one label; leave out --label")


def _class(label: str, images: Split) -> Tensor:
    """The number of a class, which is given by its name or number."""
    known = images.labels
    assert known is not None
    numbers = known[known >= 0].unique().tolist()
    names = {figures.class_name(number, images.classes): number for number in numbers}
    if label in names:
        number = names[label]
    elif label.isdecimal() and int(label) in numbers:
        number = int(label)
    else:
        listed = ", ".join(list(names)[:LISTED])
        raise RequestError(f"--label must be one of the classes {listed}, but is {label}")
    return torch.tensor([number], device=known.device)


def _covariates(label: str, known: Tensor) -> Tensor:
    """Covariates, which are given as a list or, if there is one, as a number."""
    count = known.shape[1]
    try:
        values = [float(part) for part in label.strip(" []").split(",")]
    except ValueError:
        values = []
    if len(values) != count or not all(map(isfinite, values)):
        example = f"[{', '.join(['0.5'] * count)}]"
        raise RequestError(f"--label must be a list of {count} covariates, such as {example}")
    return torch.tensor([values], dtype=known.dtype, device=known.device)


def _picture(output: Output, config: Namespace, file_format: FigureFormat) -> bytes:
    figure = output.figure()
    if config.label is not None:
        figures.add_to_title(figure, f"given y = {config.label}")
    return figures.rendered(figure, file_format)


def _samples(request: Request) -> Output:
    vae = request.vae
    config = request.config
    count = config.count or SAMPLES
    y = request.y(count)
    if vae.needs_labels and y is None:
        y = views.random_labels(vae, request.images, count)
    if config.mean is None and request.format != "npz":
        pairs = views.samples_and_draws(vae, count, y)
        return Output({}, lambda: figures.samples_and_draws(pairs, config.columns))
    mean = bool(config.mean)
    made = views.samples(vae, count, mean, y)
    return Output(
        {"images": _stored(made), "y": y}, lambda: figures.samples(made, mean, config.columns)
    )


def _reconstructions(request: Request) -> Output:
    split = request.some()
    made = views.reconstructions(request.vae, split, request.y(len(split)))
    arrays = {
        "images": _stored(made[:, 0]),
        "reconstructions": _stored(made[:, 1]),
        "labels": split.labels,
    }
    title = f"{request.named} and reconstructions"
    if request.label is not None:  # the ELBO is that of the images' own labels
        return Output(arrays, lambda: figures.reconstructions(made, title))
    elbo = score_images(request.vae, split, figures.ELBO_SAMPLES, engine="eager").elbo
    return Output(arrays, lambda: figures.reconstructions(made, title, elbo.tolist()))


def _interpolations(request: Request) -> Output:
    chosen = request.some(each=2)
    if len(chosen) < 2:
        raise RequestError(
            "an interpolation needs two images; use data with more images, or a larger --count"
        )
    pairs = chosen[: 2 * (len(chosen) // 2)]
    made = views.interpolations(request.vae, pairs, request.y(len(pairs)))
    return Output({"images": _stored(made)}, lambda: figures.interpolations(made))


def _traversals(request: Request) -> Output:
    vae = request.vae
    many = request.images.subset(min(RANGE_IMAGES, len(request.images)))
    active = views.active_dimensions(vae, many)
    if activity(vae, many)[active[0]] > ACTIVE:
        listed = ", ".join(map(str, active[:LISTED]))
        logger.info("active dimensions, the most active first: %s", listed)
    else:
        logger.info("no latent dimension is active; the most active one is %d", active[0])
    ranges = views.code_range(vae, many)
    dimension = request.config.dimension
    if dimension is None:
        return _dimensions(request, active[: request.config.count or figures.ROWS], ranges)
    if dimension >= vae.latent_dim:
        raise RequestError(
            f"--dimension {dimension} is out of range; choose 0 to {vae.latent_dim - 1}"
        )
    split = request.some()
    low, high = ranges[:, dimension].tolist()
    values = torch.linspace(low, high, STEPS)
    made = views.traversals(vae, split, dimension, values, request.y(len(split)))
    arrays = {"images": _stored(made), "dimension": torch.tensor(dimension), "z": values}
    return Output(arrays, lambda: figures.traversals(made, dimension, values))


def _dimensions(request: Request, order: list[int], ranges: Tensor) -> Output:
    """Traversals of several dimensions of one image."""
    image = request.images.subset(min(IMAGES, len(request.images)))[:1]
    chosen = ranges[:, order].cpu()
    made = views.dimensions(request.vae, image, order, chosen, STEPS, request.y(1))
    arrays = {"images": _stored(made), "dimensions": torch.tensor(order), "ranges": chosen}
    return Output(arrays, lambda: figures.dimensions(made, order, chosen))


def _manifold(request: Request) -> Output:
    vae = request.vae
    config = request.config
    if vae.needs_labels and config.label is None and vae.latent_dim == 2:
        raise RequestError("the manifold of a model that uses labels needs one: add --label")
    made, z = views.manifold(vae, config.columns or 20, request.label)
    return Output({"images": _stored(made), "z": z}, lambda: figures.manifold(made, z))


def _codes(request: Request) -> Output:
    split = request.images
    if request.config.count is not None:
        split = request.some()
    loc, scale = codes(request.vae, split)
    arrays = {"loc": loc, "scale": scale, "labels": split.labels}
    title = f"posterior means of {request.named}"
    return Output(arrays, lambda: figures.latent(loc, split.labels, title, split.classes))


def _analogies(request: Request) -> Output:
    if not request.vae.needs_labels:
        raise RequestError(
            "analogies need a model that uses labels, such as one trained with"
            " --model ConditionalVAE"
        )
    split = request.images
    if split.covariates is not None or split.labels is None or not split.class_names():
        raise RequestError(
            "analogies need images with classes, but these have covariates or no labels; use"
            " samples with --label"
        )
    y = split.labels[split.labels >= 0].unique()
    columns = request.config.columns or request.config.count or IMAGES
    made = views.analogies(request.vae, y, columns)
    return Output(
        {"images": _stored(made), "labels": y},
        lambda: figures.analogies(made, y, split.classes),
    )


def _imputations(request: Request) -> Output:
    """All images as arrays, or some of them as a picture."""
    vae = request.vae
    draws = DRAWS_IN_PICTURE
    if request.format == "npz":
        draws = DRAWS_IN_FILE
    is_whole = request.format == "npz" and request.config.count is None
    split = request.images
    truth = request.load_truth()
    if not is_whole:
        split = request.some()
    if split.observed is None:
        raise RequestError(
            "imputations need images with missing values, but these have none; use --data with NaN"
            " or an array `observed`"
        )
    imputed = impute(vae, split, num_draws=draws)
    unreliable = (imputed.pareto_k > RELIABLE).double().mean().item()
    logger.info(
        "effective samples: %.1f, median over rows; k-hat over %.1f: %.1f %% of rows",
        imputed.effective_sample_size.median().item(),
        RELIABLE,
        100 * unreliable,
    )
    stored = None
    if is_whole:
        stored = request.stored()
    rows = [scored(vae, split).x, imputed.mean, *imputed.draws]
    if truth is not None:
        rows.append(scored(vae, truth.subset(len(split))).x)
    made = views.to_grey(vae, torch.stack(rows))
    title = f"{request.named}: as observed, then imputed"
    return Output(
        _imputed_arrays(vae, split, imputed, stored),
        lambda: figures.imputations(made, title, truth is not None),
    )


def _imputed_arrays(
    vae: Model, split: Split, imputed: Imputation, stored: Arrays | None
) -> Mapping[str, Any]:
    """The arrays of an imputation, in the units of the split, or in the layout of a stored file."""
    assert split.observed is not None
    completed = [split.completed(x, vae.pixels) for x in (imputed.mean, *imputed.draws)]
    values = [each.x.cpu().numpy() for each in completed]
    observed = split.observed.cpu().numpy()
    if stored is not None:
        values = [stored.completed(each) for each in completed]
        observed = observed.reshape(stored.x.shape)
    return {
        "images": values[0],
        "draws": np.stack(values[1:]),
        "observed": observed,
        "effective_sample_size": imputed.effective_sample_size,
        "pareto_k": imputed.pareto_k,
        "labels": split.labels,
    }


KINDS: dict[str, Callable[[Request], Output]] = {
    "samples": _samples,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "analogies": _analogies,
    "traversals": _traversals,
    "manifold": _manifold,
    "codes": _codes,
    "imputations": _imputations,
}


def _stored(images: Tensor) -> Tensor:
    """Grey values as bytes; vectors stay as they are."""
    if images.ndim <= IMAGE_DIMS:
        return images
    return (images * 255).round().to(torch.uint8)
