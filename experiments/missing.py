"""Data with half of the values missing: log p of what is observed, and errors of imputations.

    python experiments/missing.py mnist --data_dir data
    python experiments/missing.py breast_cancer

Every method gets the same data. Squared errors are means over the missing values.
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
from pyro.infer import Trace_ELBO
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from torch import Tensor

import pyro_vae as pv
from pyro_vae.distributions import leave_out_missing

FRACTION = 0.5
TRAIN_IMAGES = 20_000
TEST_IMAGES = 1000
# scikit-learn's methods compare every image with all of these, or fit 784 regressions to them.
NEIGHBOURS_OF = 5000


def mnist(data_dir: str, epochs: int, out: Path) -> None:
    """Binary MNIST: the ELBO and MIWAE's bound with 5 samples."""
    truth = pv.load_data("mnist", data_dir, binarization="static", download=False)
    data = truth.with_missing(FRACTION)
    data = pv.Data("mnist", data.train.subset(TRAIN_IMAGES), data.validation, data.test)
    test = data.test.subset(TEST_IMAGES)
    complete = truth.test.subset(TEST_IMAGES).scored("binary")
    hidden = test.scored("binary").isnan()
    results = _baselines(data, test, complete)
    # A step of MIWAE's bound takes about three times as long.
    objectives = {
        "VAE, ELBO": (Trace_ELBO(), epochs),
        "VAE, MIWAE's bound, K = 5": (pv.ImportanceWeightedELBO(5), epochs // 2),
    }
    for name, (objective, length) in objectives.items():
        pyro.set_rng_seed(0)
        vae = pv.VAE(
            prior=pv.StandardNormal(20),
            encoder=pv.MLP(data.shape, (2, 20), mask_input=True),
            posterior=pv.DiagonalNormal(),
            decoder=pv.MLP((20,), (1, *data.shape)),
            likelihood=pv.Bernoulli(),
        )
        start = time.process_time()
        for record in pv.fit(vae, data, epochs=length, seed=0, objective=objective):
            print(name, record["epoch"], round(record["validation_elbo"], 2), flush=True)
        seconds = time.process_time() - start
        score = pv.evaluate(vae, test, num_samples=1000)["log_likelihood"]
        imputed = pv.impute(vae, test, num_samples=1000)
        results[name] = {
            "mse": _error(imputed.mean, complete, hidden),
            "mse_of_one_draw": _error(imputed.draws[0], complete, hidden),
            "log_p": score["mean"],
            "log_p_error": score["standard_error"],
            "monte_carlo_error": score["monte_carlo_error"],
            "k_hat_over_0.7": (imputed.pareto_k > 0.7).double().mean().item(),
            "cpu_seconds": seconds,
        }
        _write(out, results)
        torch.save(vae.state_dict(), out.with_suffix(f".{len(results)}.pt"))


def _baselines(data: pv.Data, test: pv.Split, complete: Tensor) -> dict[str, Any]:
    """Mean, nearest neighbours and iterative imputation, from the same incomplete data."""
    hidden = test.scored("binary").isnan()
    train = data.train.scored("binary").flatten(1).numpy()
    few = data.train.subset(NEIGHBOURS_OF).scored("binary").flatten(1).numpy()
    x = test.scored("binary").flatten(1).numpy()
    share = torch.from_numpy(np.nanmean(train, 0)).clamp(1e-4, 1 - 1e-4)
    independent = leave_out_missing(
        pyro.distributions.Bernoulli(share, validate_args=False).to_event(1)
    )
    log_p = independent.log_prob(torch.from_numpy(x))
    results: dict[str, Any] = {}
    methods: dict[str, tuple[Callable[[], Any], np.ndarray]] = {
        "mean": (SimpleImputer, train),
        "k-NN, k = 10": (lambda: KNNImputer(n_neighbors=10), few),
        "IterativeImputer": (_iterative, few),
    }
    for name, (make, fitted_to) in methods.items():
        start = time.process_time()
        imputer = make().set_params(keep_empty_features=True).fit(fitted_to)
        filled = torch.from_numpy(imputer.transform(x)).reshape(complete.shape)
        results[name] = {
            "mse": _error(filled, complete, hidden),
            "cpu_seconds": time.process_time() - start,
        }
        print(name, results[name], flush=True)
    results["mean"]["log_p"] = log_p.mean().item()
    results["mean"]["log_p_error"] = (log_p.std() / len(log_p) ** 0.5).item()
    return results


def _iterative() -> IterativeImputer:
    return IterativeImputer(
        max_iter=3, n_nearest_features=50, min_value=0, max_value=1, random_state=0, tol=1e-2
    )


def _error(imputed: Tensor, truth: Tensor, hidden: Tensor) -> float:
    """The mean squared error over the missing values."""
    return (imputed - truth)[hidden].double().square().mean().item()


def _write(out: Path, results: Any) -> None:
    out.write_text(json.dumps(results, indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", choices=["mnist", "breast_cancer"])
    parser.add_argument("--data_dir", default="data")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--out", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(1)
    mnist(args.data_dir, args.epochs, args.out or Path("missing-mnist.json"))


if __name__ == "__main__":
    main()
