"""`pyro-vae generate`: images or arrays from a saved run."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Literal, NamedTuple

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
from pyro_vae.data.split import Split
from pyro_vae.engine.graphs import logger
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.codes import codes
from pyro_vae.report import figures, views
from pyro_vae.runs.folder import Run
from pyro_vae.runs.load import open_run
from pyro_vae.runs.recipe import pick_device
from pyro_vae.runs.store import npz, write
from pyro_vae.vae import Model


class Output(NamedTuple):
    """Arrays, and a function that draws them."""

    arrays: dict[str, Tensor | None]
    figure: Callable[[], figures.Figure]


Images = Callable[[], Split]


def generate(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    device = pick_device(config.device)
    file = _file(config, Run.open(config.run_dir))
    saved = open_run(config.run_dir, config.checkpoint, device, config.trust)
    vae = saved.vae

    if config.data is not None and (
        config.kind == "manifold" or (config.kind == "samples" and not vae.needs_labels)
    ):
        raise RequestError(f"{config.kind} use no images; leave out --data")

    @cache
    def images() -> Split:
        images = saved.images(config.split, config.data, config.data_dir, config.image_size)
        return images.split.to(device)

    pyro.set_rng_seed(config.seed)
    if config.label is not None:
        _check_label(vae, images, config)
    output = KINDS[config.kind](vae, images, config)
    content = _picture(output, config) if file.suffix == ".png" else npz(output.arrays)
    logger.info("written to %s", write(file, content))


def _parser() -> ArgumentParser:
    parser = run_parser("generate", "Write images or arrays from a saved run.")
    parser.add_argument("kind", type=Literal[tuple(KINDS)], help="What to write.")  # type: ignore[valid-type]
    add(parser, "format", Literal["png", "npz"], None, "Picture or arrays; png, but npz for codes.")
    add(
        parser,
        "count",
        up_to(1_000_000),
        None,
        "Number of images or rows; 64 samples, 10 of others.",
    )
    add(
        parser,
        "mean",
        bool,
        None,
        "Samples: means of p(x | z) or draws; means for png, draws for npz.",
    )
    add(parser, "columns", up_to(100), None, "Columns of a grid of samples or of the manifold.")
    add(parser, "dimension", NonNegativeInt, 0, "Latent dimension of a traversal.")
    text = "Models that use labels: a class, or a list of covariates, to decode with; those of the images by default."
    add(parser, "label", int | list[float], None, text)
    add(parser, "out", str, None, "File to write; RUN_DIR/generated/KIND.FORMAT by default.")
    return parser


def _file(config: Namespace, run: Run) -> Path:
    """The file to write; its suffix is the format."""
    label = (
        ""
        if config.label is None
        else f"-label-{config.label}".translate(str.maketrans(" .", "_p", "[],"))
    )
    other = "" if config.data is None else f"-{source(config)}"
    path = (
        Path(config.out) if config.out else run.path / "generated" / f"{config.kind}{label}{other}"
    )
    default = "npz" if config.kind == "codes" else "png"
    config.format = config.format or {".png": "png", ".npz": "npz"}.get(path.suffix, default)
    if path.suffix not in ("", f".{config.format}") or os.path.isdir(path) or "\0" in str(path):
        raise RequestError(
            f"--out {path} must be a file that ends in .png or .npz, as --format says"
        )
    return path.with_suffix(f".{config.format}")


def _check_label(vae: Model, images: Images, config: Namespace) -> None:
    """Raise `RequestError` unless the model can decode with --label: one of the classes, or as many covariates as it has."""
    if not vae.needs_labels:
        raise RequestError(
            f"--label is for models that use labels, which {type(vae).__name__} does not; leave it out"
        )
    if config.kind in ("analogies", "codes"):
        raise RequestError(f"{config.kind} are not decoded with one label; leave out --label")
    known = images().y
    vae.check_labels(known)
    if known is not None and known.is_floating_point():
        count = known.shape[1]
        if not (
            isinstance(config.label, list)
            and len(config.label) == count
            and all(map(isfinite, config.label))
        ):
            raise RequestError(
                f"--label must be a list of {count} covariates, such as [{', '.join(['0.5'] * count)}]"
            )
    elif known is not None and (
        isinstance(config.label, list) or config.label not in known.unique().tolist()
    ):
        classes = ", ".join(map(str, known.unique().tolist()[:20]))
        raise RequestError(f"--label must be one of the classes {classes}, but is {config.label}")


def _picture(output: Output, config: Namespace) -> bytes:
    figure = output.figure()
    if config.label is not None:
        figure.axes[0].set_title(
            f"{figure.axes[0].get_title()}, given y = {config.label}", fontsize=11
        )
    return figures.png(figure)


def _samples(vae: Model, images: Images, config: Namespace) -> Output:
    mean = config.format == "png" if config.mean is None else config.mean
    count = config.count or 64
    y = _asked_y(vae, config, count)
    if vae.needs_labels and y is None:
        y = views.random_labels(vae, images(), count)
    made = views.samples(vae, count, mean, y)
    return Output(
        {"images": _bytes(made), "y": y}, lambda: figures.samples(made, mean, config.columns)
    )


def _reconstructions(vae: Model, images: Images, config: Namespace) -> Output:
    split = _some(images(), config.count)
    made = views.reconstructions(vae, split, _asked_y(vae, config, len(split)))
    arrays = {
        "images": _bytes(made[:, 0]),
        "reconstructions": _bytes(made[:, 1]),
        "labels": split.labels,
    }
    return Output(
        arrays, lambda: figures.reconstructions(made, f"{_named(config)} and reconstructions")
    )


def _interpolations(vae: Model, images: Images, config: Namespace) -> Output:
    chosen = _some(images(), config.count, 2)
    if len(chosen) < 2:
        raise RequestError(
            "an interpolation needs two images; use data with more images, or a larger --count"
        )
    pairs = chosen[: 2 * (len(chosen) // 2)]
    made = views.interpolations(vae, pairs, _asked_y(vae, config, len(pairs)))
    return Output({"images": _bytes(made)}, lambda: figures.interpolations(made))


def _traversals(vae: Model, images: Images, config: Namespace) -> Output:
    split = _some(images(), config.count)
    y = _asked_y(vae, config, len(split))
    made = views.traversals(vae, split, config.dimension, y)
    return Output({"images": _bytes(made)}, lambda: figures.traversals(made, config.dimension))


def _manifold(vae: Model, images: Images, config: Namespace) -> Output:
    if vae.needs_labels and config.label is None and vae.latent_dim == 2:
        raise RequestError("the manifold of a model that uses labels needs one: add --label")
    made, z = views.manifold(vae, config.columns or 20, _asked_y(vae, config, 1))
    return Output({"images": _bytes(made), "z": z}, lambda: figures.manifold(made, z))


def _codes(vae: Model, images: Images, config: Namespace) -> Output:
    split = images()
    split = split if config.count is None else _some(split, config.count)
    loc, scale = codes(vae, split)
    return Output(
        {"loc": loc, "scale": scale, "labels": split.labels},
        lambda: figures.latent(loc, split.labels, f"posterior means of {_named(config)}"),
    )


def _analogies(vae: Model, images: Images, config: Namespace) -> Output:
    split = images()
    if not vae.needs_labels:
        raise RequestError(
            "analogies need a model that uses labels, such as one trained with --model ConditionalVAE"
        )
    if split.covariates is not None or split.labels is None:
        raise RequestError(
            "analogies need classes, but this model uses covariates; use samples with --label"
        )
    y = split.labels.unique()
    made = views.analogies(vae, y, config.columns or config.count or 10)
    return Output({"images": _bytes(made), "labels": y}, lambda: figures.analogies(made, y))


KINDS: dict[str, Callable[[Model, Images, Namespace], Output]] = {
    "samples": _samples,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "analogies": _analogies,
    "traversals": _traversals,
    "manifold": _manifold,
    "codes": _codes,
}


def _asked_y(vae: Model, config: Namespace, rows: int) -> Tensor | None:
    """The label of --label, for each of some rows; None if it is not given."""
    if config.label is None:
        return None
    return torch.tensor([config.label], device=next(vae.parameters()).device).repeat_interleave(
        rows, 0
    )


def _some(split: Split, count: int | None, each: int = 1) -> Split:
    """A seeded choice of `count` times `each` images; ten times, or as many as there are, by default."""
    asked = each * count if count else min(10 * each, len(split))
    if asked > len(split):
        raise RequestError(
            f"--count needs {asked:,} images, but the split has {len(split):,}; use a smaller count"
        )
    return split.subset(asked)


def _named(config: Namespace) -> str:
    return (
        f"{config.split} images" if config.data is None else f"images of {Path(config.data).name}"
    )


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)
