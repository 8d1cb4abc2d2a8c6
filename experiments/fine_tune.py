"""Train a run further, with the importance-weighted bound.

    python experiments/fine_tune.py RUN --num_particles 5 --epochs 30 --learning_rate 1e-3 \
        --data_dir DIR --run_dir NEW --out FILE

The new run starts from the last weights of RUN. The bound with K samples is tighter than the ELBO,
and a guide that need not be close to the posterior leaves the decoder freer. log p(x) of validation
images is estimated before, during and after the training; the test images are scored once, at the
end.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import pyro
import torch
from time_to_figure import IMAGES, SAMPLES, TEST_SAMPLES, estimate
from torch.optim import Adam
from torch.optim.lr_scheduler import CosineAnnealingLR

import pyro_vae as pv
from pyro_vae.runs.load import open_run

# Epochs between estimates of log p(x).
EVERY = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--num_particles", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--batch_size", type=int, default=200)
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--run_dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--test_images", type=int, default=10_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    saved = open_run(args.run)
    vae = saved.vae
    data = saved.data(args.data_dir)
    before = estimate(vae, data.validation, SAMPLES, IMAGES)
    print(before, flush=True)
    pyro.set_rng_seed(args.seed)
    training = pv.fit(
        vae,
        data,
        epochs=args.epochs,
        batch_size=args.batch_size,
        seed=args.seed,
        objective=pv.ImportanceWeightedELBO(args.num_particles),
        optimizer=partial(Adam, lr=args.learning_rate, fused=True),
        lr_scheduler=partial(CosineAnnealingLR, T_max=args.epochs),
        average=0.999,
        precision="auto",
    )
    results: dict[str, Any] = {"arguments": vars(args), "before": before, "epochs": []}
    used = 0.0
    start = time.process_time()
    for record in training:
        used += time.process_time() - start
        row: dict[str, Any] = {
            "epoch": record["epoch"],
            "cpu_seconds": round(used, 1),
            "elbo": record["elbo"],
            "validation_elbo": record["validation_elbo"],
        }
        if record["epoch"] % EVERY == 0 or training.ended:
            row["validation"] = estimate(vae, data.validation, SAMPLES, IMAGES)
        results["epochs"].append(row)
        print(row, flush=True)
        start = time.process_time()
    saved.recipe.data_dir = args.data_dir
    pv.save_run(vae, args.run_dir, saved.recipe, data)
    results["test"] = estimate(vae, data.test, TEST_SAMPLES, args.test_images)
    print(results["test"])
    args.out.write_text(json.dumps(results, indent=1, default=str) + "\n")


if __name__ == "__main__":
    main()
