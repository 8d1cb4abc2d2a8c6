"""`python -m pyro_vae.evaluate RUN_DIR`: score a saved run."""

from __future__ import annotations

import sys

import pyro
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt

from pyro_vae import progress
from pyro_vae.cli import add_saved_run, device, new_parser, parse, run
from pyro_vae.diagnostics import evaluate
from pyro_vae.runs import Run, load_run, run_data

__all__ = ["evaluate", "main"]

__path__: list[str] = []
"""Tells `python -m` that it may run this module although the package has imported it already, for its function."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    return run(_evaluate, argv)


def _parser() -> ArgumentParser:
    parser = new_parser("pyro_vae.evaluate", "Score a saved run: ELBO, reconstruction, KL and log p(x), in nats per image.")
    add_saved_run(parser)
    parser.add_argument("--num_samples", type=PositiveInt, default=5000, help="Importance samples for each image.")
    parser.add_argument("--num_images", type=PositiveInt | None, help="Images whose log p(x) is estimated; default all.")
    return parser


def _evaluate(argv: list[str] | None) -> None:
    config = parse(_parser(), argv)
    folder = Run.open(config.run_dir)
    vae = load_run(config.run_dir, config.checkpoint, device(config.device), config.trust)
    data = run_data(folder, config.data_dir, config.trust)
    images = getattr(data, config.split)
    pyro.set_rng_seed(config.seed)
    with progress.bar(config.num_images or len(images), f"scoring the {config.split} set") as bar:
        results = evaluate(vae, images, config.num_samples, config.num_images, on_images=bar.update)
    print(progress.table(results, f"{data.name}, {config.split} set, {config.checkpoint} checkpoint", vae.likelihood))
    print(f"\nwritten to {folder.save_results(results, f'results-{config.split}-{config.checkpoint}')}")


if __name__ == "__main__":
    sys.exit(main())
