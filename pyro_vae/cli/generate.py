"""`pyro-vae generate`: images or arrays from a saved run."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyro
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from pyro_vae.cli.build import pick_device
from pyro_vae.cli.files import write
from pyro_vae.cli.options import add_run_options, new_parser, parse
from pyro_vae.cli.run_folder import Run, load_run, run_data
from pyro_vae.data import Split
from pyro_vae.errors import RequestError
from pyro_vae.inference.codes import codes
from pyro_vae.vae import Model
from pyro_vae.viz import figures, views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MAX_COUNT = 1_000_000


class Output(NamedTuple):
    """Arrays, and a function that draws them."""

    arrays: dict[str, Tensor]
    figure: Callable[[], Figure]


Images = Callable[[], Split]


def generate(argv: list[str]) -> None:
    """Run the command."""
    config = parse(_parser(), argv)
    run = Run.open(config.run_dir)
    file = _file(config, run)
    device = pick_device(config.device)
    vae = load_run(config.run_dir, config.checkpoint, device, config.trust)
    pyro.set_rng_seed(config.seed)
    output = KINDS[config.kind](
        vae, lambda: getattr(run_data(run, config.data_dir, config.trust), config.split).to(device), config
    )
    content = figures.png(output.figure()) if file.suffix == ".png" else _npz(output.arrays)
    print(f"written to {write(file, content)}")


def _parser() -> ArgumentParser:
    parser = new_parser("generate", "Write images or arrays from a saved run.")
    add_run_options(parser)
    parser.add_argument("kind", type=Literal[tuple(KINDS)], help="What to write.")  # type: ignore[valid-type]
    parser.add_argument("--format", type=Literal["png", "npz"] | None, help="Picture or arrays; png, but npz for codes.")
    parser.add_argument("--count", type=PositiveInt | None, help="Number of images or rows; 64 samples, 10 of others.")
    parser.add_argument("--mean", type=bool | None, help="Samples: means of p(x | z) or draws; means for png, draws for npz.")
    parser.add_argument("--columns", type=PositiveInt | None, help="Columns of a grid of samples; a square by default.")
    parser.add_argument("--dimension", type=NonNegativeInt, default=0, help="Latent dimension of a traversal.")
    parser.add_argument("--out", type=str | None, help="File to write; RUN_DIR/generated/KIND.FORMAT by default.")
    return parser


def _file(config: Namespace, run: Run) -> Path:
    """The file to write; its suffix and `--format` must agree."""
    asked = Path(config.out) if config.out else run.path / "generated" / config.kind
    suffix = config.format or asked.suffix[1:] or ("npz" if config.kind == "codes" else "png")
    if suffix not in ("png", "npz") or asked.suffix not in ("", f".{suffix}") or asked.is_dir():
        raise RequestError(f"--out {asked} must be a file that ends in .png or .npz, as --format says")
    if config.count is not None and config.count > MAX_COUNT:
        raise RequestError(f"--count {config.count} exceeds {MAX_COUNT:,}; generate several files with different seeds")
    return asked.with_suffix(f".{suffix}")


def _npz(arrays: dict[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **{name: array.cpu().numpy() for name, array in arrays.items()})
    return buffer.getvalue()


def _samples(vae: Model, images: Images, config: Namespace) -> Output:
    arrays = config.format == "npz" or str(config.out).endswith(".npz")
    mean = not arrays if config.mean is None else config.mean
    made = views.samples(vae, config.count or 64, mean)
    return Output({"images": _bytes(made)}, lambda: figures.samples(made, mean, config.columns))


def _reconstructions(vae: Model, images: Images, config: Namespace) -> Output:
    split = _some(images(), config.count)
    made = views.reconstructions(vae, split.scored(vae.pixels))
    arrays = {"images": _bytes(made[:, 0]), "reconstructions": _bytes(made[:, 1]), **_labels(split)}
    return Output(arrays, lambda: figures.reconstructions(made, f"{config.split} images and reconstructions"))


def _interpolations(vae: Model, images: Images, config: Namespace) -> Output:
    chosen = _some(images(), config.count, 2)
    first, second = chosen[: 2 * (len(chosen) // 2)].scored(vae.pixels).chunk(2)
    made = views.interpolations(vae, first, second)
    return Output({"images": _bytes(made)}, lambda: figures.interpolations(made))


def _traversals(vae: Model, images: Images, config: Namespace) -> Output:
    made = views.traversals(vae, _some(images(), config.count).scored(vae.pixels), config.dimension)
    return Output({"images": _bytes(made)}, lambda: figures.traversals(made, config.dimension))


def _manifold(vae: Model, images: Images, config: Namespace) -> Output:
    made, z = views.manifold(vae, config.columns or 20)
    return Output({"images": _bytes(made), "z": z}, lambda: figures.manifold(made, z))


def _codes(vae: Model, images: Images, config: Namespace) -> Output:
    split = images()
    split = split if config.count is None else _some(split, config.count)
    loc, scale = codes(vae, split.scored(vae.pixels))
    return Output(
        {"loc": loc, "scale": scale, **_labels(split)},
        lambda: figures.latent(loc, split.labels, f"posterior means of {config.split} images"),
    )


KINDS: dict[str, Callable[[Model, Images, Namespace], Output]] = {
    "samples": _samples,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "traversals": _traversals,
    "manifold": _manifold,
    "codes": _codes,
}


def _some(split: Split, count: int | None, each: int = 1) -> Split:
    """A seeded choice of `count` times `each` images; ten times, or as many as there are, by default."""
    asked = each * count if count else min(10 * each, len(split))
    if asked > len(split):
        raise RequestError(f"--count needs {asked:,} images, but the split has {len(split):,}; use a smaller count")
    return split.subset(asked)


def _labels(split: Split) -> dict[str, Tensor]:
    return {} if split.labels is None else {"labels": split.labels}


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)
