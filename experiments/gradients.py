"""The signal-to-noise ratio of the encoder's gradient, for four objectives and K samples.

    python experiments/gradients.py

The model is linear-Gaussian. Its guide is the exact posterior shifted by 0.1 and widened by a
factor of exp(0.2). The ratio is the norm of the mean gradient over the root of the total variance,
from `--count` gradients at each K.
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
from pyro_vae.reporting.figures import COLOURS
from pyro_vae.testing import LinearGaussianVAE

SAMPLES = (1, 3, 10, 30, 100, 300)
OBJECTIVES: dict[str, Callable[[int], Any]] = {
    "IWAE": pv.ImportanceWeightedELBO,
    "DReG": pv.DReGELBO,
    "ELBO": lambda k: Trace_ELBO(k, vectorize_particles=True, max_plate_nesting=1),
    "ELBO, sticking the landing": pv.StickingTheLandingELBO,
}
BLOCKS = 10  # groups of gradients, whose ratios give the standard error


def widened() -> LinearGaussianVAE:
    pyro.set_rng_seed(1)
    vae = LinearGaussianVAE((1, 1, 3), 2).double()
    vae.make_guide_exact()
    _, bias = vae.encoder.parameters()
    bias.data[:2] += 0.1  # the means
    bias.data[[2, 5]] += 0.2  # the log-scales
    return vae


def gradients(objective: Any, vae: LinearGaussianVAE, x: torch.Tensor, count: int) -> torch.Tensor:
    params = list(vae.encoder.parameters())
    losses = (objective.differentiable_loss(vae.model, vae.guide, x) for _ in range(count))
    return torch.stack(
        [
            torch.cat([part.flatten() for part in torch.autograd.grad(loss, params)])
            for loss in losses
        ]
    )


def ratio(grads: torch.Tensor) -> float:
    """Signal over noise.

    The squared norm of the mean is corrected for its bias, variance / count, and can become
    negative.
    """
    variance = grads.var(0).sum()
    signal = grads.mean(0).square().sum() - variance / len(grads)
    return float(signal.sign() * (signal.abs() / variance).sqrt())


def standard_error(grads: torch.Tensor) -> float:
    """The standard error of `ratio(grads)`, from the ratios of groups of gradients."""
    return float(np.std([ratio(part) for part in grads.chunk(BLOCKS)], ddof=1)) / BLOCKS**0.5


def draw(found: dict[str, tuple[list[float], list[float]]], path: str) -> None:
    """Draw each ratio with its error.

    A ratio below two of its errors is drawn as an upper limit.
    """
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, (ratios, errors)), colour, marker in zip(
        found.items(), COLOURS, "osd^", strict=False
    ):
        k, r, e = np.array(SAMPLES), np.array(ratios), np.array(errors)
        seen = r > 2 * e
        axes.errorbar(k[seen], r[seen], e[seen], marker=marker, color=colour, capsize=3, label=name)
        axes.errorbar(
            k[~seen], 2 * e[~seen], 0.3 * e[~seen], uplims=True, linestyle="", color=colour
        )
    axes.plot(
        SAMPLES,
        0.35 * np.sqrt(SAMPLES),
        ":",
        color="black",
        linewidth=1,
        label=r"slope of $\sqrt{K}$",
    )
    axes.set(xscale="log", yscale="log", xlabel="samples K", ylabel="signal-to-noise ratio")
    axes.set_title("Gradient of the encoder's parameters")
    axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--out", default="experiments/figures/signal_to_noise.png")
    args = parser.parse_args()
    vae = widened()
    x = torch.tensor([[0.4, -1.0, 0.2], [2.0, 0.5, -0.3]], dtype=torch.float64).reshape(2, 1, 1, 3)
    found = {}
    print(
        "| objective | "
        + " | ".join(f"K = {k}" for k in SAMPLES)
        + " |\n|---|"
        + "--:|" * len(SAMPLES)
    )
    for name, objective in OBJECTIVES.items():
        pyro.set_rng_seed(0)
        drawn = [gradients(objective(k), vae, x, args.count) for k in SAMPLES]
        ratios = [ratio(grads) for grads in drawn]
        errors = [standard_error(grads) for grads in drawn]
        found[name] = ratios, errors
        print(
            f"| {name} | "
            + " | ".join(f"{r:.3f} ± {e:.3f}" for r, e in zip(ratios, errors, strict=True))
            + " |",
            flush=True,
        )
    draw(found, args.out)


if __name__ == "__main__":
    main()
