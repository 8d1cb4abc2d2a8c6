"""`python -m pyro_vae.generate RUN_DIR samples`: pictures and arrays from a saved run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pyro
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt
from torch import Tensor

from pyro_vae import plots, views
from pyro_vae.cli import add_saved_run, device, new_parser, parse, run
from pyro_vae.data import Split
from pyro_vae.evaluation.diagnostics import codes
from pyro_vae.errors import RequestError
from pyro_vae.cli.run_folder import Run, load_run, run_data
from pyro_vae.vae import Model

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STEPS = 10


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    return run(_generate, argv)


def _parser() -> ArgumentParser:
    parser = new_parser("pyro_vae.generate", "Make pictures, or arrays, from a saved run.")
    add_saved_run(parser)
    parser.add_argument("kind", type=Literal[tuple(KINDS)], help="What to make.")  # type: ignore[valid-type]
    parser.add_argument("--format", type=Literal["png", "npz"] | None, help="Picture or arrays; default png, for codes npz.")
    parser.add_argument(
        "--count", type=PositiveInt | None, help="Number of images, pairs or rows; default 64 samples, 10 others."
    )
    parser.add_argument("--columns", type=PositiveInt | None, help="Columns of a grid of samples; default a square.")
    parser.add_argument("--dimension", type=NonNegativeInt, default=0, help="Latent dimension that a traversal varies.")
    parser.add_argument("--out", type=str | None, help="File to write; default RUN_DIR/generated/KIND.FORMAT.")
    return parser


def _generate(argv: list[str] | None) -> None:
    config = parse(_parser(), argv)
    folder = Run.open(config.run_dir)
    file = _file(config, folder)
    where = device(config.device)
    vae = load_run(config.run_dir, config.checkpoint, where, config.trust)
    pyro.set_rng_seed(config.seed)
    made = KINDS[config.kind](
        vae, lambda: getattr(run_data(folder, config.data_dir, config.trust), config.split).to(where), config
    )
    _write(file, made)
    print(f"written to {file}")


def _file(config: Namespace, folder: Run) -> Path:
    """The file to write: its name's ending is its format, unless `--format` says so."""
    asked = Path(config.out) if config.out else folder.path / "generated" / config.kind
    ending = config.format or asked.suffix[1:] or ("npz" if config.kind == "codes" else "png")
    if asked.suffix not in ("", f".{ending}") or ending not in ("png", "npz"):
        raise RequestError(f"out must end in .{ending if ending in ('png', 'npz') else 'png or .npz'}, but is {asked}")
    return asked.with_suffix(f".{ending}")


def _write(file: Path, made: Made) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".png":
            plots.save(made.figure(), file)
        else:
            np.savez_compressed(file, **{name: array.cpu().numpy() for name, array in made.arrays.items()})  # type: ignore[arg-type]
    except OSError as error:
        raise RequestError(f"{file} cannot be written ({error.strerror}): choose another --out") from error


class Made(NamedTuple):
    """What was made: its arrays, and how to draw them."""

    arrays: dict[str, Tensor]
    figure: Callable[[], Figure]


Images = Callable[[], Split]


def _samples(vae: Model, images: Images, config: Namespace) -> Made:
    made = views.samples(vae, config.count or 64)
    title = "samples: means of p(x | z), z from the prior"
    return Made({"images": _bytes(made)}, lambda: plots.grid(made, title, config.columns and min(config.columns, len(made))))


def _reconstructions(vae: Model, images: Images, config: Namespace) -> Made:
    split = _some(images(), config.count, 1)
    x = split.scored(vae.pixels)
    made = views.reconstructions(vae, x)
    arrays = {"images": _bytes(made[:, 0]), "reconstructions": _bytes(made[:, 1]), **_labels(split)}
    return Made(arrays, lambda: plots.pairs(made, f"{config.split} images and their reconstructions"))


def _interpolations(vae: Model, images: Images, config: Namespace) -> Made:
    chosen = _some(images(), config.count, 2)
    first, second = chosen[: 2 * (len(chosen) // 2)].scored(vae.pixels).chunk(2)
    made = views.interpolations(vae, first, second, STEPS)
    title = "from one image to another, along a line in latent space"
    return Made({"images": _bytes(made)}, lambda: plots.grid(made.flatten(0, 1), title, STEPS))


def _traversals(vae: Model, images: Images, config: Namespace) -> Made:
    x = _some(images(), config.count, 1).scored(vae.pixels)
    made = views.traversals(vae, x, config.dimension, STEPS)
    title = f"latent dimension {config.dimension} from -3 to 3, the others as encoded"
    return Made({"images": _bytes(made)}, lambda: plots.grid(made.flatten(0, 1), title, STEPS))


def _manifold(vae: Model, images: Images, config: Namespace) -> Made:
    made = views.manifold(vae, config.columns or 20)
    return Made({"images": _bytes(made)}, lambda: plots.manifold(made))


def _codes(vae: Model, images: Images, config: Namespace) -> Made:
    split = images()
    split = split if config.count is None else _some(split, config.count, 1)
    made = codes(vae, split.scored(vae.pixels))
    arrays = {"loc": made.loc, "scale": made.scale, **_labels(split)}
    return Made(arrays, lambda: plots.latent(made.loc, split.labels, f"posterior means of {config.split} images"))


KINDS: dict[str, Callable[[Model, Images, Namespace], Made]] = {
    "samples": _samples,
    "reconstructions": _reconstructions,
    "interpolations": _interpolations,
    "traversals": _traversals,
    "manifold": _manifold,
    "codes": _codes,
}


def _some(split: Split, count: int | None, each: int) -> Split:
    """A seeded choice of `count` times `each` images, or as many of ten times as there are."""
    asked = each * count if count else min(each * STEPS, len(split))
    if asked > len(split):
        raise RequestError(f"count asks for {asked:,} images, but the split has {len(split):,}: ask for fewer")
    return split.subset(asked)


def _labels(split: Split) -> dict[str, Tensor]:
    return {} if split.labels is None else {"labels": split.labels}


def _bytes(images: Tensor) -> Tensor:
    return (images * 255).round().to(torch.uint8)


if __name__ == "__main__":
    sys.exit(main())
