"""Measure how often `pv.calibration` rejects guides that are exact, and guides that are wrong.

    python experiments/calibration.py --seeds 200 --out experiments/results

Exact posteriors are those of a linear-Gaussian model with five latent dimensions. A missed mode is
a part of a Gaussian mixture prior that the guide leaves out, in a model whose images tell nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import torch
from torch import nn

import pyro_vae as pv
from pyro_vae.evaluation.uniformity import SIZE, power
from pyro_vae.networks import Linear
from pyro_vae.testing import LinearGaussianVAE

DIM = 5
SHAPE = (1, 4, 4)


def linear(change: Callable[[Any], None] = lambda vae: None) -> pv.VAE:
    """A linear-Gaussian model whose guide is exact but for a change."""
    pyro.set_rng_seed(1)
    vae = LinearGaussianVAE(SHAPE, DIM).double()
    vae.make_guide_exact()
    with torch.no_grad():
        change(vae)
    return vae


def shifted(size: float) -> pv.VAE:
    """The mean of the first dimension is off by a number of posterior standard deviations."""

    def change(vae: Any) -> None:
        scale = vae.encode(torch.zeros(1, *SHAPE).double()).stddev[0, 0]
        vae.encoder.layers[1].bias[0] += size * scale

    return linear(change)


def scaled(factor: float) -> pv.VAE:
    """All standard deviations are multiplied by a factor."""

    def change(vae: Any) -> None:
        square = vae.encoder.layers[1].bias[DIM:].unflatten(0, (DIM, DIM))
        square.diagonal().add_(torch.tensor(factor).log())

    return linear(change)


def uncorrelated() -> pv.VAE:
    """The correlations of the posterior are left out, but its marginals are exact."""

    def change(vae: Any) -> None:
        square = vae.encoder.layers[1].bias[DIM:].unflatten(0, (DIM, DIM))
        scales = vae.encode(torch.zeros(1, *SHAPE).double()).stddev[0]
        square.copy_(scales.log().diag())

    return linear(change)


def prior_as_guide() -> pv.VAE:
    """The guide ignores the image, and is the prior."""
    return linear(lambda vae: vae.set_guide(torch.zeros(DIM), torch.eye(DIM)))


def missed_mode(mass: float) -> pv.VAE:
    """The guide leaves out a mode of the posterior with this probability."""
    prior = pv.GaussianMixture(1, components=2)
    encoder, decoder = Linear(SHAPE, (2, 1)), Linear((1,), (1, *SHAPE))
    parts = pv.DiagonalNormal(), decoder, pv.likelihoods.Normal(0.5)
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([1 - mass, mass]).log())
        prior.loc.copy_(torch.tensor([[3.0], [-3.0]]))
        outputs: list[Any] = [encoder.layers[1], decoder.layers[1]]
        for output in outputs:
            nn.init.zeros_(output.weight)
        outputs[0].bias.copy_(torch.tensor([3.0, 0.0]))
    return pv.VAE(prior, encoder, *parts)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--num_images", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    images, quantities = args.num_images, DIM + 2
    cases: dict[str, tuple[pv.VAE, float | None]] = {
        "exact": (linear(), SIZE),
        "shift of 0.1": (shifted(0.1), power(images, quantities, shift=0.1)),
        "shift of 0.15": (shifted(0.15), power(images, quantities, shift=0.15)),
        "shift of 0.2": (shifted(0.2), power(images, quantities, shift=0.2)),
        "scale 0.95, all dimensions": (scaled(0.95), None),
        "scale 0.8, all dimensions": (scaled(0.8), None),
        "no correlations": (uncorrelated(), None),
        "prior as guide": (prior_as_guide(), None),
        "missed mode of 2 %": (missed_mode(0.02), None),
        "missed mode of 5 %": (missed_mode(0.05), None),
        "missed mode of 10 %": (missed_mode(0.1), None),
        "missed mode of 50 %": (missed_mode(0.5), None),
    }
    results = {}
    print("| guide | rejected | predicted | coverage of 50 % | 90 % | 99 % | seconds |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, (vae, predicted) in cases.items():
        start = time.perf_counter()
        p_values = []
        coverage = []
        for seed in range(args.seeds):
            pyro.set_rng_seed(seed)
            found = pv.calibration(vae, num_images=images)
            p_values.append(found.p_value)
            coverage.append(list(found.coverage.values()))
        seconds = (time.perf_counter() - start) / args.seeds
        rejected = sum(p < SIZE for p in p_values) / args.seeds
        means = torch.tensor(coverage).mean(0).tolist()
        shown = " | ".join(f"{mean:.1%}" for mean in means)
        expected = "" if predicted is None else f"{predicted:.1%}"
        print(f"| {name} | {rejected:.1%} | {expected} | {shown} | {seconds:.2f} |", flush=True)
        results[name] = {
            "rejected": rejected,
            "predicted": predicted,
            "coverage": means,
        }
    if args.out:
        text = json.dumps({"seeds": args.seeds, "num_images": images, "cases": results}, indent=1)
        (args.out / "calibration.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
