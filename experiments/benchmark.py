"""Training speed side by side: epochs of each contestant in turn, medians, and ratios within a round.

    python experiments/benchmark.py --rounds 5 --out experiments/benchmark.json

The work: binarize, 784-400-50 and back, Bernoulli, Adam 1e-3, batches of 128, images already in memory as one tensor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterator
from statistics import median
from typing import Any

import pyro
import torch
from pyro.infer import SVI, Trace_ELBO
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Adam

import pyro_vae as pv

LATENT_DIM = 50
BATCH = 128
Step = Callable[[Tensor], object]


def new_vae() -> pv.VAE:
    encoder, decoder = pv.MLP((1, 28, 28), (2, LATENT_DIM)), pv.MLP((LATENT_DIM,), (1, 1, 28, 28))
    return pv.VAE(pv.StandardNormal(LATENT_DIM), pv.DiagonalNormal(encoder), decoder, pv.Bernoulli())


def pyro_vae_step() -> Step:
    vae = new_vae()
    return pv.SVI(vae.model, vae.guide, lambda params: Adam(params, lr=1e-3, fused=True), Trace_ELBO(), mean=True).step


def pyro_step() -> Step:
    vae = new_vae()
    return SVI(vae.model, vae.guide, pyro.optim.PyroOptim(Adam, {"lr": 1e-3}), Trace_ELBO()).step


def pyro_step_without_validation() -> Step:
    step = pyro_step()

    def unvalidated(x: Tensor) -> object:
        with pyro.validation_enabled(False):
            return step(x)

    return unvalidated


def torch_step() -> Step:
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * LATENT_DIM))
    decoder = nn.Sequential(nn.Linear(LATENT_DIM, 400), nn.ReLU(), nn.Linear(400, 784))
    optimizer = Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-3, fused=True)

    def step(x: Tensor) -> float:
        loc, log_scale = encoder(x).chunk(2, -1)
        z = loc + log_scale.exp() * torch.randn_like(loc)
        distortion = functional.binary_cross_entropy_with_logits(decoder(z), x.flatten(1), reduction="sum")
        rate = 0.5 * (loc.square() + (2 * log_scale).exp() - 1 - 2 * log_scale).sum()
        loss = (distortion + rate) / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def products_step() -> Step:
    """The matrix products alone: three a layer, forwards, for the weights and for the inputs (not for the first)."""
    sizes = [(784, 400), (400, 2 * LATENT_DIM), (LATENT_DIM, 400), (400, 784)]
    weights = [torch.randn(*size) for size in sizes]
    outputs = [torch.randn(BATCH, size[1]) for size in sizes]
    inputs = [torch.randn(BATCH, size[0]) for size in sizes]

    def step(x: Tensor) -> None:
        for index, (weight, a, b) in enumerate(zip(weights, inputs, outputs, strict=True)):
            torch.mm(a[: len(x)], weight)
            torch.mm(a[: len(x)].T, b[: len(x)])
            if index:
                torch.mm(b[: len(x)], weight.T)

    return step


CONTESTANTS: dict[str, Callable[[], Step]] = {
    "pyro_vae, SVI": pyro_vae_step,
    "Pyro, SVI": pyro_step,
    "Pyro, SVI, no validation": pyro_step_without_validation,
    "PyTorch, fused Adam": torch_step,
    "matrix products alone": products_step,
}


def epoch(step: Step, images: Tensor) -> float:
    start = time.perf_counter()
    for index in torch.randperm(len(images)).split(BATCH):
        step(pv.data.to_pixels(images[index], "binary"))
    return time.perf_counter() - start


def rounds(images: Tensor, count: int) -> Iterator[dict[str, float]]:
    steps = {name: make() for name, make in CONTESTANTS.items()}
    for step in steps.values():
        epoch(step, images[: 10 * BATCH])
    for _ in range(count):
        yield {name: epoch(step, images) for name, step in steps.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=60_000)
    parser.add_argument("--out")
    args = parser.parse_args()
    images = (torch.rand(args.images, 1, 28, 28) * 255).to(torch.uint8)
    measured = list(rounds(images, args.rounds))
    report(measured, args.out)


def report(measured: list[dict[str, float]], out: str | None) -> None:
    rows: dict[str, Any] = {}
    for name in CONTESTANTS:
        seconds = [one[name] for one in measured]
        ratio = median(one[name] / one["pyro_vae, SVI"] for one in measured)
        rows[name] = {"median": median(seconds), "min": min(seconds), "max": max(seconds), "ratio_to_pyro_vae": ratio}
        print(f"{name:<26}{rows[name]['median']:>7.2f} s  ({min(seconds):.2f} to {max(seconds):.2f}), {ratio:.2f} x pyro_vae")
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "pyro": pyro.__version__}
    if out:
        with open(out, "w") as file:
            json.dump(
                {"date": time.strftime("%Y-%m-%d"), "machine": machine, "versions": versions, "rows": rows}, file, indent=2
            )


if __name__ == "__main__":
    main()
