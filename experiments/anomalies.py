"""Scores of anomalies on images that a model was not trained on, as AUROC.

    python experiments/anomalies.py RUN --data_dir DIR --others mnist blank noise

Every row compares the run's test images with as many others. 0.5 is a score that tells nothing, and
less means that the others look more normal than the test images.
"""

from __future__ import annotations

import argparse
import time

import pyro
import torch

import pyro_vae as pv
from pyro_vae.runs.load import open_run


def other_images(name: str, like: pv.Split, data_dir: str) -> pv.Split:
    """Images of a data set, blank (black) ones, or uniform noise, as many as there are of `like`.

    The noise that makes their pixels binary or dequantized is fixed.
    """
    count = len(like)
    generator = torch.Generator().manual_seed(0)
    if name == "blank":
        return pv.Split(torch.zeros_like(like.x)).with_fixed_noise(3)
    if name == "noise":
        x = torch.randint(0, 256, like.x.shape, dtype=torch.uint8, generator=generator)
        return pv.Split(x).with_fixed_noise(3)
    return pv.load_data(name, data_dir).test.subset(count)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--others", nargs="+", default=["blank", "noise"])
    parser.add_argument("--num_images", type=int, default=500)
    parser.add_argument("--num_samples", type=int, default=500)
    args = parser.parse_args()
    saved = open_run(args.run)
    vae = saved.vae
    test = saved.images(data_dir=args.data_dir).split.subset(args.num_images)
    names = ("minus_elbo", "minus_log_likelihood", "typicality", "likelihood_regret")
    print(
        "| others | log p(x), test | others | -ELBO | -log p(x) | typicality | regret | seconds |"
    )
    print("|---|--:|--:|--:|--:|--:|--:|--:|")
    for name in args.others:
        start = time.perf_counter()
        log_p = []
        parts = []
        for images in (test, other_images(name, test, args.data_dir)):
            pyro.set_rng_seed(0)
            x = images.scored(vae.pixels)
            scores = pv.score_images(vae, x, args.num_samples)
            log_p.append(f"{scores.log_likelihood.mean():.1f}")
            parts.append(pv.anomaly_scores(vae, x, scores, args.num_samples))
        is_anomaly = torch.arange(2 * args.num_images) >= args.num_images
        cells = []
        for score in names:
            found = pv.auroc(torch.cat([part[score] for part in parts]), is_anomaly)
            cells.append(f"{found.auroc:.3f} ± {found.standard_error:.3f}")
        seconds = time.perf_counter() - start
        print(f"| {name} | {' | '.join(log_p + cells)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
