"""Measure the CPU time in which the training of a recipe reaches a figure of log p(x).

    python experiments/time_to_figure.py experiments/published/gated_fast.yaml --figure -84.45 \
        --data_dir DIR --run_dir RUN --out gated_fast.json

Trains until log p(x) of the validation images reaches the figure, the CPU time is used up, or the
recipe's epochs are over; then scores the test images, once. The same command continues a
measurement that was stopped. CPU time is that of the epochs, with the validation that `fit` does;
the estimates of log p(x), and the C++ compiler, which is another process, are not in it.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

import pyro_vae as pv
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.runs.build import build_training
from pyro_vae.runs.checkpoints import load_checkpoint, resume, save_checkpoint
from pyro_vae.runs.folder import Run

# Epochs between estimates of log p(x); validation images and samples of each estimate.
EVERY = 10
IMAGES = 1000
SAMPLES = 500
# There is no estimate while the ELBO is so many nats below the figure.
LARGEST_GAP = 4.0
# Of each test image, as in the papers.
TEST_SAMPLES = 5000


def estimate(vae: pv.Model, split: pv.Split, samples: int, images: int) -> dict[str, Any]:
    """The ELBO and log p(x) of a split, estimated from a random subset of its images."""
    with forked_rng():
        torch.manual_seed(0)
        images = min(images, len(split))
        scores: Any = pv.evaluate(vae, split, samples, images)
    log_p = scores.get("log_likelihood_all_images", scores["log_likelihood"])
    return {
        "elbo": scores["elbo"]["mean"],
        "log_likelihood": log_p["mean"],
        "standard_error": log_p["standard_error"],
        "num_samples": samples,
        "num_images": images,
        "active_units": scores["active_units"]["count"],
        "k_hat_over_0.7": scores["log_likelihood"]["share_of_images_with_k_hat_over_0.7"],
    }


class Measurement:
    """The training of a recipe in a run folder, and its curve.

    Arguments:
        recipe: The recipe.
        run_dir: The run folder, which is continued if it exists.
        figure: Where to stop, in nats per image.
        out: The file of the results.
    """

    def __init__(self, recipe: pv.Recipe, run_dir: Path, figure: float, out: Path) -> None:
        self.figure = figure
        self.out = out
        self.vae, self.data, self.training = build_training(recipe)
        self.run = Run(run_dir)
        self.results: dict[str, Any] = {"figure": figure, "seed": recipe.seed, "epochs": []}
        if self.run.exists():
            checkpoint = load_checkpoint(self.run, "last")
            resume(self.training, self.data, checkpoint, self.training.epochs)
            self.results = json.loads(out.read_text())
            del self.results["epochs"][self.training.epoch :]
        else:
            Run.create(run_dir)
            save_checkpoint(self.run, "last", self.training, self.data)
            recipe.save(self.run.recipe_file)

    def train(self, seconds: float) -> None:
        """Train until the figure is reached or the CPU time is used up."""
        rows = self.results["epochs"]
        used = rows[-1]["cpu_seconds"] if rows else 0.0
        while used < seconds and not self.training.ended and not self.reached():
            start = time.process_time()
            record = next(self.training)
            used += time.process_time() - start
            row = {
                "epoch": record["epoch"],
                "cpu_seconds": round(used, 1),
                "elbo": record["elbo"],
                "validation_elbo": record["validation_elbo"],
            }
            is_near = record["validation_elbo"] > self.figure - LARGEST_GAP
            is_due = record["epoch"] % EVERY == 0 or self.training.ended
            if is_near and is_due:
                row["validation"] = estimate(self.vae, self.data.validation, SAMPLES, IMAGES)
            rows.append(row)
            print(row, flush=True)
            self._write()
            save_checkpoint(self.run, "last", self.training, self.data)

    def reached(self) -> bool:
        """Whether the last estimate is at least the figure."""
        rows = self.results["epochs"]
        if not rows or "validation" not in rows[-1]:
            return False
        return bool(rows[-1]["validation"]["log_likelihood"] >= self.figure)

    def score(self, images: int) -> None:
        """Score the test images, log p(x) on so many of them."""
        self.results["reached"] = self.reached()
        self.results["test"] = estimate(self.vae, self.data.test, TEST_SAMPLES, images)
        print(self.results["test"])
        self._write()

    def _write(self) -> None:
        self.out.write_text(json.dumps(self.results, indent=1) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--figure", type=float, required=True)
    parser.add_argument("--minutes", type=float, default=30.0, help="limit of the CPU time")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test_images", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    recipe = pv.Recipe.from_yaml(args.recipe.read_text())
    recipe.data_dir = args.data_dir
    recipe.seed = args.seed
    measurement = Measurement(recipe, args.run_dir, args.figure, args.out)
    measurement.train(60 * args.minutes)
    measurement.score(args.test_images)


if __name__ == "__main__":
    main()
