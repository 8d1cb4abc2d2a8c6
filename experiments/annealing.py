"""Compare annealing from the prior with annealing from the guide, and count unreliable k-hats.

    python experiments/annealing.py RUN --data_dir DIR --num_images 100

Every row of the first table has the mean of the importance-weighted log p(x) and of the annealed
lower bounds on the same random test images, the paired difference, and the gap of the bounds on as
many images of the model. The second table is about importance sampling with the guide.
"""

from __future__ import annotations

import argparse
import time

import pyro
import torch

import pyro_vae as pv
from pyro_vae.evaluation.metrics import summary
from pyro_vae.runs.load import open_run


def shown(values: torch.Tensor) -> str:
    found = summary(values, 1)
    return f"{found['mean']:.2f} ± {found['standard_error']:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run")
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--num_images", type=int, default=100)
    parser.add_argument("--num_samples", type=int, default=5000)
    parser.add_argument("--largest", type=int, default=20_000)
    parser.add_argument("--num_chains", type=int, default=16)
    parser.add_argument("--num_temperatures", nargs="+", type=int, default=[500])
    args = parser.parse_args()
    saved = open_run(args.run)
    vae, images = saved.vae, saved.images(data_dir=args.data_dir).split
    x = images.subset(args.num_images).scored(vae.pixels)
    pyro.set_rng_seed(0)
    scores = pv.score_images(vae, x, args.num_samples)
    print(f"log p(x), K = {args.num_samples:,}: {shown(scores.log_likelihood)}")
    print("| K | k-hat over 0.7 | over 1 | median k-hat | median K needed |")
    print("|--:|--:|--:|--:|--:|")
    for length, k_hat in pv.k_hat_curve(vae, x, args.largest).items():
        shares = [f"{(k_hat > limit).double().mean():.0%}" for limit in (0.7, 1)]
        needed = pv.required_samples(k_hat).median()
        cells = [f"{length:,}", *shares, f"{k_hat.quantile(0.5):.2f}", f"{needed:.2g}"]
        print(f"| {' | '.join(cells)} |", flush=True)
    print("| start | temperatures | annealed | minus importance-weighted ", end="")
    print("| gap of the bounds | seconds |")
    print("|---|--:|--:|--:|--:|--:|")
    options = {"num_chains": args.num_chains, "batch_size": 2000}
    for num_temperatures in args.num_temperatures:
        for name, guide in (("prior", None), ("guide and prior", vae.guide)):
            pyro.set_rng_seed(0)
            start = time.process_time()
            options["num_temperatures"] = num_temperatures
            weights = pv.annealed_log_weights(vae.model, x, guide=guide, **options)
            _, bounds = pv.bidirectional_bounds(vae.model, x, guide=guide, **options)
            seconds = time.process_time() - start
            annealed = pv.log_likelihood(weights)
            print(f"| {name} | {num_temperatures} | {shown(annealed)} ", end="")
            print(f"| {shown(annealed - scores.log_likelihood)} ", end="")
            print(f"| {shown(bounds.upper - bounds.lower)} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
