"""Vectors of reals and counts: which likelihood is best, and how close is log p(x) to a known one.

    python experiments/counts.py reals | digits | simulated

`reals` are the 569 x 30 measurements of scikit-learn's breast cancer data, `digits` its 1,797
digits as counts 0 to 16. `simulated` are counts of 50 genes in cells, made by a stated process
whose log p(x) is known by quadrature.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from scipy.special import gammaln, logsumexp
from sklearn.datasets import load_breast_cancer, load_digits

import pyro_vae as pv
from pyro_vae.likelihoods import Laplace, Likelihood, Normal, StudentT

RESULTS = Path(__file__).parent / "results"
SAMPLES = 1000

REALS: dict[str, Callable[[], Likelihood]] = {
    "Normal, one scale": lambda: Normal(kind="real", learned="scalar"),
    "Normal, one scale per column": lambda: Normal(kind="real"),
    "Laplace, one scale per column": lambda: Laplace(kind="real"),
    "StudentT, one scale per column": StudentT,
}
DIGITS: dict[str, Callable[[], Likelihood]] = {
    "Binomial(16)": lambda: pv.Binomial(16),
    "Poisson": pv.Poisson,
    "NegativeBinomial": pv.NegativeBinomial,
}
SIMULATED: dict[str, Callable[[], Likelihood]] = {
    "Poisson": pv.Poisson,
    "NegativeBinomial": pv.NegativeBinomial,
}


def split(name: str, x: np.ndarray, validation: int, test: int) -> pv.Data:
    """Random rows for validation and for the test."""
    rows = np.random.default_rng(0).permutation(len(x))
    shuffled = torch.from_numpy(x[rows])
    parts = shuffled.split([len(x) - validation - test, validation, test])
    return pv.Data(name, *map(pv.Split, parts))


def trained(
    data: pv.Data, likelihood: Likelihood, latent_dim: int, hidden: int, seed: int, **options: Any
) -> pv.VAE:
    """A VAE at its best epoch on the validation set."""
    pyro.set_rng_seed(seed)
    vae = pv.VAE(
        pv.StandardNormal(latent_dim),
        pv.MLP(data.shape, (2, latent_dim), (hidden,)),
        pv.DiagonalNormal(),
        pv.MLP((latent_dim,), (likelihood.num_params, *data.shape), (hidden,)),
        likelihood,
    )
    training = pv.fit(vae, data, seed=seed, **options)
    for _ in training:
        if training.improved:
            best = {name: value.clone() for name, value in vae.state_dict().items()}
    vae.load_state_dict(best)
    return vae


def compare(
    data: pv.Data, likelihoods: dict[str, Callable[[], Likelihood]], **options: Any
) -> dict[str, Any]:
    """The held-out ELBO and log p(x) of each likelihood, and its paired difference from the first.

    Standard errors are over rows.
    """
    results: dict[str, Any] = {}
    first = None
    for name, make in likelihoods.items():
        start = time.perf_counter()
        vae = trained(data, make(), **options)
        seconds = time.perf_counter() - start
        scores = pv.score_images(vae, data.test, SAMPLES)
        log_p = scores.log_likelihood
        first = log_p if first is None else first
        difference = log_p - first
        results[name] = {
            "elbo": mean(scores.elbo),
            "log_p": mean(log_p),
            "difference": mean(difference),
            "k_hat_over_0.7": (scores.pareto_k > 0.7).double().mean().item(),
            "seconds": round(seconds),
        }
        print(name, json.dumps(results[name]), flush=True)
    return results


def mean(values: torch.Tensor) -> list[float]:
    """The mean and its standard error."""
    values = values.double()
    return [round(values.mean().item(), 3), round((values.std() / len(values) ** 0.5).item(), 3)]


class Process:
    r"""Counts x of 50 genes in a cell with a known p(x).

    .. math:: z \sim \mathcal{N}(0, I_2), \quad \log l \sim \mathcal{N}(\log 60, 0.4^2), \quad
        x_g \sim \mathrm{NB}(l \rho_g(z), \theta_g), \quad \rho = \mathrm{softmax}(A \tanh(B z) + b)
    """

    GENES = 50
    SPREAD = 0.4

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.inner = 0.7 * rng.normal(size=(2, 8))
        self.outer = 0.7 * rng.normal(size=(8, self.GENES))
        self.bias = rng.normal(size=self.GENES)
        self.theta = np.exp(rng.normal(1.0, 0.5, self.GENES))

    def log_mean(self, z: np.ndarray, log_l: np.ndarray) -> np.ndarray:
        logits = np.tanh(z @ self.inner) @ self.outer + self.bias
        return log_l[:, None] + logits - logsumexp(logits, 1, keepdims=True)

    def sample(self, count: int) -> np.ndarray:
        rng = np.random.default_rng(1)
        z = rng.normal(size=(count, 2))
        log_l = rng.normal(np.log(60), self.SPREAD, count)
        mean = np.exp(self.log_mean(z, log_l))
        return rng.poisson(rng.gamma(self.theta, mean / self.theta))

    def log_p(self, x: np.ndarray, points: int) -> np.ndarray:
        """log p(x) of each row, on a grid of `points` to the power of 3 values of z and log l."""
        t = np.linspace(-5, 5, points)
        grid = np.stack(np.meshgrid(t, t, t, indexing="ij"), -1).reshape(-1, 3)
        log_weight = (-(grid**2) / 2).sum(1) + 3 * (np.log(t[1] - t[0]) - np.log(2 * np.pi) / 2)
        total = np.full(len(x), -np.inf)
        for part, weight in zip(
            np.array_split(grid, 64), np.array_split(log_weight, 64), strict=True
        ):
            log_mean = self.log_mean(part[:, :2], np.log(60) + self.SPREAD * part[:, 2])
            log_sum = np.logaddexp(log_mean, np.log(self.theta))
            score = x @ log_mean.T - (x + self.theta) @ log_sum.T + weight
            total = np.logaddexp(total, logsumexp(score, 1))
        theta = self.theta
        constant = gammaln(x + theta) - gammaln(theta) - gammaln(x + 1) + theta * np.log(theta)
        return total + constant.sum(1)


def reals() -> dict[str, Any]:
    data = split("breast cancer", load_breast_cancer().data, 69, 100)
    return compare(data, REALS, latent_dim=5, hidden=32, seed=0, epochs=300, batch_size=50)


def digits() -> dict[str, Any]:
    counts = load_digits().data.astype(int)
    data = split("digits", counts, 197, 400)
    return compare(data, DIGITS, latent_dim=10, hidden=200, seed=0, epochs=60)


def simulated() -> dict[str, Any]:
    process = Process()
    data = split("simulated", process.sample(5000), 500, 1000)
    test = data.test.x.numpy().astype(float)
    exact, coarse = process.log_p(test, 71), process.log_p(test, 61)
    results = {
        "exact": mean(torch.from_numpy(exact)),
        "error of the grid": np.abs(exact - coarse).max(),
    }
    print(json.dumps(results), flush=True)
    options = {"latent_dim": 5, "hidden": 128, "seed": 0, "epochs": 60}
    results |= compare(data, SIMULATED, **options)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parts = {"reals": reals, "digits": digits, "simulated": simulated}
    parser.add_argument("part", choices=parts)
    part = parser.parse_args().part
    results = parts[part]()
    (RESULTS / f"counts-{part}.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
