"""The signal-to-noise ratio of the guide's gradient against the number of samples: IWAE, DReG, and the ELBO's two gradients.

    python experiments/gradients.py

On the linear-Gaussian model, with its guide moved off the exact posterior by 0.1 and widened by a factor of exp(0.2): the norm
of the mean gradient over the root of its total variance, the mean's own noise taken out, from --count gradients at each K.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pyro
import torch
from pyro.infer import Trace_ELBO

import pyro_vae as pv
from pyro_vae.plots import COLOURS, INK
from pyro_vae.testing import LinearGaussianVAE

SAMPLES = (1, 3, 10, 30, 100, 300)
OBJECTIVES: dict[str, Callable[[int], Any]] = {
    "IWAE": pv.ImportanceWeightedELBO,
    "DReG": pv.DReGELBO,
    "ELBO": lambda k: Trace_ELBO(k, vectorize_particles=True, max_plate_nesting=1),
    "ELBO, sticking the landing": pv.StickingTheLandingELBO,
}
BLOCKS = 10
"""The gradients are divided into so many groups, whose spread gives each ratio its error."""


def widened() -> LinearGaussianVAE:
    pyro.set_rng_seed(1)
    vae = LinearGaussianVAE((1, 1, 3), 2).double()
    vae.make_guide_exact()
    bias = list(vae.posterior.parameters())[-1].data
    bias[:2] += 0.1
    bias[[2, 5]] += 0.2
    return vae


def gradients(objective: Any, vae: LinearGaussianVAE, x: torch.Tensor, count: int) -> torch.Tensor:
    params = list(vae.posterior.parameters())
    losses = (objective.differentiable_loss(vae.model, vae.guide, x) for _ in range(count))
    return torch.stack([torch.cat([part.flatten() for part in torch.autograd.grad(loss, params)]) for loss in losses])


def ratio(grads: torch.Tensor) -> float:
    """Signal over noise; the mean's squared norm is too large by variance / count, and may be less than nothing."""
    variance = grads.var(0).sum()
    signal = grads.mean(0).square().sum() - variance / len(grads)
    return float(signal.sign() * (signal.abs() / variance).sqrt())


def draw(found: dict[str, tuple[list[float], list[float]]], path: str) -> None:
    """Each ratio with its error; where it is lost in its noise, the arrow of an upper limit."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, (ratios, errors)), colour, marker in zip(found.items(), COLOURS, "osd^", strict=False):
        k, r, e = np.array(SAMPLES), np.array(ratios), np.array(errors)
        seen = r > 2 * e
        axes.errorbar(k[seen], r[seen], e[seen], marker=marker, color=colour, capsize=3, label=name)
        axes.errorbar(k[~seen], 2 * e[~seen], 0.3 * e[~seen], uplims=True, linestyle="", color=colour)
    axes.plot(SAMPLES, 0.35 * np.sqrt(SAMPLES), ":", color=INK, linewidth=1, label=r"slope of $\sqrt{K}$")
    axes.set(xscale="log", yscale="log", xlabel="samples K", ylabel="signal-to-noise ratio")
    axes.set_title("The gradient in the guide's parameters")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", default="experiments/figures/signal_to_noise.png")
    args = parser.parse_args()
    vae = widened()
    x = torch.tensor([[0.4, -1.0, 0.2], [2.0, 0.5, -0.3]], dtype=torch.float64).reshape(2, 1, 1, 3)
    found = {}
    print("| objective | " + " | ".join(f"K = {k}" for k in SAMPLES) + " |\n|---|" + "--:|" * len(SAMPLES))
    for name, objective in OBJECTIVES.items():
        pyro.set_rng_seed(0)
        drawn = [gradients(objective(k), vae, x, args.count) for k in SAMPLES]
        ratios = [ratio(grads) for grads in drawn]
        errors = [float(np.std([ratio(part) for part in grads.chunk(BLOCKS)])) / BLOCKS**0.5 for grads in drawn]
        found[name] = ratios, errors
        print(f"| {name} | " + " | ".join(f"{r:.3f} ± {e:.3f}" for r, e in zip(ratios, errors, strict=True)) + " |", flush=True)
    draw(found, args.out)


if __name__ == "__main__":
    main()
