"""`python -m pyro_vae.evaluate RUN_DIR`: score a saved run, and say how far to trust its figures."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import pyro
import torch
from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from pyro_vae.inference import distributed, plots, progress
from pyro_vae.evaluation.ais import Bounds, annealed_log_weights, bidirectional_bounds
from pyro_vae.cli.checkpoints import storing
from pyro_vae.cli import add_saved_run, device, new_parser, parse, run
from pyro_vae.data import Data, Split
from pyro_vae.evaluation.diagnostics import (
    evaluate,
    inference_gap,
    information,
    linear_probe,
    score_images,
    summarized,
    summary,
)
from pyro_vae.errors import RequestError
from pyro_vae.inference.graphs import Engine, pick_engine
from pyro_vae.inference.importance import log_likelihood, monte_carlo_error, terms
from pyro_vae.memory import rows_at_once
from pyro_vae.cli.run_folder import Run, load_run, run_data
from pyro_vae.evaluation.metrics import Scores
from pyro_vae.vae import Model
from pyro_vae.viz.views import seen

__all__ = ["evaluate", "main"]

__path__: list[str] = []
"""Tells `python -m` that it may run this module although the package has imported it already, for its function."""

WORST = 20
PROBED = 5000
GAP_STEPS = 500
GRADIENT = 3
"""So many times what a density takes, its gradient takes."""
SAMPLES_A_STEP = 5000
"""So many samples of an image count as a step, where it is asked whether compiling pays."""


def main(argv: list[str] | None = None) -> int:
    """Run the command; its exit code."""
    return run(_evaluate, argv)


def _parser() -> ArgumentParser:
    parser = new_parser("pyro_vae.evaluate", "Score a saved run, in nats per image, and say how far to trust the figures.")
    add_saved_run(parser)
    parser.add_argument("--num_samples", type=PositiveInt, default=5000, help="Importance samples for each image.")
    parser.add_argument("--num_images", type=PositiveInt | None, help=_NUM_IMAGES)
    parser.add_argument("--method", type=Literal["is", "ais"], default="is", help=_METHOD)
    parser.add_argument("--num_chains", type=PositiveInt, default=16, help="Chains of annealing for each image.")
    parser.add_argument("--num_temperatures", type=PositiveInt, default=500, help="Temperatures of annealing.")
    parser.add_argument("--gap_images", type=NonNegativeInt, default=100, help=_GAP)
    parser.add_argument("--memory_mb", type=PositiveFloat | None, help="What one pass may take, in MiB; default what is fast.")
    parser.add_argument("--engine", type=Literal["auto", *get_args(Engine)], default="auto", help="What runs the passes.")
    parser.add_argument("--per_image", type=str | None, help="An .npz file to write the figures of each image to.")
    return parser


_NUM_IMAGES = "Images whose log p(x) is estimated, a seeded random choice; default all, or 100 with annealing."
_METHOD = "Importance sampling, or that and annealed importance sampling beside it, on the same images."
_GAP = "Images whose posterior is optimized one by one, to split the inference gap; 0 for none."


def _evaluate(argv: list[str] | None) -> None:
    config = parse(_parser(), argv)
    where = device(config.device)
    with distributed.joined(where), progress.only_the_lead():
        folder = Run.open(config.run_dir)
        vae = load_run(config.run_dir, config.checkpoint, where, config.trust)
        with distributed.lead_first():
            data = run_data(folder, config.data_dir, config.trust, progress.say)
        _check(config, data, vae)
        pyro.set_rng_seed(config.seed)
        results, scores, images = _figures(vae, data, config)
        if distributed.is_lead():
            _report(vae, data, results, scores, images, folder, config)


def _check(config: Namespace, data: Data, vae: Model) -> None:
    """Refuse what is wrong, and choose what was left open, before minutes are spent."""
    images = getattr(data, config.split)
    default = min(100, len(images)) if config.method == "ais" else len(images)
    config.num_images = config.num_images or default
    images.subset(config.num_images)
    if config.per_image and not config.per_image.endswith(".npz"):
        raise RequestError(f"per_image must end in .npz, but is {config.per_image}")
    if config.per_image and not _is_writable(Path(config.per_image)):
        raise RequestError(f"per_image cannot be written to {config.per_image}: name a file in a folder of your own")
    if config.num_images < distributed.size():
        raise RequestError(f"num_images is {config.num_images}, but there are {distributed.size()} processes: ask for more")
    if config.engine == "auto":
        steps = config.num_images * config.num_samples // SAMPLES_A_STEP
        config.engine = pick_engine(next(vae.parameters()).device, steps)


def _is_writable(file: Path) -> bool:
    """Whether a file can be written, or made in the nearest folder that there is."""
    there = next(path for path in (file.absolute(), *file.absolute().parents) if os.path.exists(path))
    return os.access(there, os.W_OK) and (there.is_file() if there == file.absolute() else there.is_dir())


def _figures(vae: Model, data: Data, config: Namespace) -> tuple[dict[str, Any], Scores, Split]:
    split = getattr(data, config.split)
    images = split if config.num_images == len(split) else split.subset(config.num_images)
    with progress.bar(config.num_images // distributed.size(), f"scoring the {config.split} set") as bar:
        scores = score_images(vae, images, config.num_samples, config.memory_mb, config.engine, on_images=bar.update)
    results: dict[str, Any] = summarized(vae, split, scores, config.num_samples)
    where = next(vae.parameters()).device
    x = images.to(where).scored(vae.pixels)
    if config.method == "ais":
        results |= _annealed(vae, x, scores, config)
    results["information"] = information(vae, split[:PROBED].to(where).scored(vae.pixels))._asdict()
    with suppress(RequestError):  # there are no labels to find
        results["linear_probe"] = linear_probe(vae, data.train[:PROBED], split[:PROBED])._asdict()
    if config.gap_images:
        results["inference_gap"] = _gap(vae, x[: config.gap_images], config.memory_mb)
    return results, scores, images


def _gap(vae: Model, x: Tensor, memory_mb: float | None) -> dict[str, Any]:
    with progress.bar(GAP_STEPS * len(x), "optimizing each posterior", unit=" steps") as bar:
        try:
            gap = inference_gap(vae, x, steps=GAP_STEPS, memory_mb=memory_mb, on_step=bar.update)
        except RequestError as error:
            progress.say(f"no inference gap: {error}")
            return {"refused": str(error)}
    parts = {"total": gap.log_likelihood - gap.elbo, "approximation": gap.approximation, "amortization": gap.amortization}
    return {name: summary(values, 1000) for name, values in parts.items()}


def _annealed(vae: Model, x: Tensor, scores: Scores, config: Namespace) -> dict[str, Any]:
    """The figures of annealing, beside those of importance sampling on the same images, and on data from the model."""
    chains, temperatures = config.num_chains, config.num_temperatures
    engine: Engine = "traced" if config.engine == "eager" else config.engine
    at_once = len(x)
    if config.memory_mb is not None:
        at_once = rows_at_once(lambda x: terms(vae.model, vae.guide, x, GRADIENT * chains), x, config.memory_mb)
    parts, sides = [], []
    with progress.bar(5 * temperatures * len(x), "annealing", unit=" temperatures") as bar:
        for rows in x.split(at_once):
            on_temperature = partial(bar.update, len(rows))
            parts.append(annealed_log_weights(vae.model, rows, chains, temperatures, engine, on_temperature).cpu())
            sides.append(bidirectional_bounds(vae.model, rows, chains, temperatures, engine, on_temperature)[1])
    weights, bounds = torch.cat(parts, 1), Bounds(*(torch.cat(side) for side in zip(*sides, strict=True)))
    found = {**summary(log_likelihood(weights), chains), "monte_carlo_error": _error_of_mean(monte_carlo_error(weights))}
    difference = log_likelihood(weights) - scores.log_likelihood
    simulated = {name: summary(bound, chains) for name, bound in bounds._asdict().items()}
    sandwich = summary(bounds.upper - bounds.lower, chains)
    return {
        "annealed": found,
        "annealed_less_importance": summary(difference, chains),
        "simulated": {**simulated, "gap": sandwich},
    }


def _error_of_mean(errors: Tensor) -> float | None:
    error: float = (errors.square().sum().sqrt() / len(errors)).item()
    return error if isfinite(error) else None


def _report(
    vae: Model, data: Data, results: dict[str, Any], scores: Scores, images: Split, folder: Run, config: Namespace
) -> None:
    name = f"{config.split}-{config.checkpoint}"
    print(progress.table(results, f"{data.name}, {config.split} set, {config.checkpoint} checkpoint", vae.likelihood))
    written = [folder.save_results(results, f"results-{name}")]
    with storing(folder.figures):
        folder.figures.mkdir(exist_ok=True)
        written.append(plots.save(plots.bounds(results["k_curve"]), folder.figures / f"k_curve-{name}.png"))
        written.append(plots.save(_worst(vae, images, scores), folder.figures / f"worst-{name}.png"))
    if config.per_image:
        written.append(_save_per_image(Path(config.per_image), scores))
    print("\nwritten:", *(f"  {file}" for file in written), sep="\n")


def _worst(vae: Model, images: Split, scores: Scores) -> Any:
    """The images that the model finds least likely, with what is known of each."""
    order = scores.log_likelihood.argsort()[:WORST]
    x = seen(vae, images.to("cpu")[order].scored(vae.pixels))
    labels = [f"{scores.log_likelihood[i]:.0f}, k-hat {scores.pareto_k[i]:.2f}" for i in order.tolist()]
    return plots.captioned(x, "the least likely images: log p(x) in nats, k-hat", labels)


def _save_per_image(file: Path, scores: Scores) -> Path:
    names = ("elbo", "log_likelihood", "monte_carlo_error", "effective_sample_size", "pareto_k")
    arrays = {name: getattr(scores, name).numpy() for name in names}
    with storing(file):
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, allow_pickle=False, **arrays)
    return file


if __name__ == "__main__":
    sys.exit(main())
