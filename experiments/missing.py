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
from sklearn.datasets import load_breast_cancer
from sklearn.experimental import enable_iterative_imputer  # noqa: F401
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer
from sklearn.preprocessing import StandardScaler
from torch import Tensor

import pyro_vae as pv
from pyro_vae.distributions import leave_out_missing

FRACTION = 0.5
SEEDS = range(5)
TEST_IMAGES = 1000
# scikit-learn's methods compare every image with all of these, or fit 784 regressions to them.
NEIGHBOURS_OF = 5000


def mnist(data_dir: str, epochs: int, out: Path) -> None:
    """Binary MNIST: the ELBO and MIWAE's bound with 5 samples."""
    truth = pv.load_data("mnist", data_dir, binarization="static", download=False)
    data = truth.with_missing(FRACTION)
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


def breast_cancer(epochs: int, out: Path) -> None:
    """scikit-learn's 569 rows of 30 features, imputed by models that were fitted to the same rows.

    As in the notebook of MIWAE's authors: standardized, MIWAE's bound with 20 samples, 10 latent
    dimensions, layers of width 128, Student's t distributions.
    """
    x = StandardScaler().fit_transform(load_breast_cancer().data)
    complete = torch.from_numpy(x).float()
    errors: dict[str, list[float]] = {}
    for seed in SEEDS:
        split = pv.Split(complete).with_missing(FRACTION, seed)
        rows = split.scored("real")
        hidden = rows.isnan()
        filled = {"MIWAE": _miwae(split, epochs, seed)}
        for name, make in {
            "mean": SimpleImputer,
            "k-NN, k = 5": KNNImputer,
            "IterativeImputer": lambda: IterativeImputer(max_iter=30, tol=1e-2, random_state=0),
        }.items():
            filled[name] = torch.from_numpy(make().fit_transform(rows.numpy())).float()
        for name, imputed in filled.items():
            errors.setdefault(name, []).append(_error(imputed, complete, hidden))
        print(seed, {name: round(values[-1], 3) for name, values in errors.items()}, flush=True)
        results = {}
        for name, values in errors.items():
            error = np.std(values, ddof=1) / len(values) ** 0.5 if len(values) > 1 else None
            results[name] = {"mse": np.mean(values), "standard_error": error, "seeds": len(values)}
        _write(out, results)


def _miwae(split: pv.Split, epochs: int, seed: int) -> Tensor:
    pyro.set_rng_seed(seed)
    shape = tuple(split.x.shape[1:])
    hidden = (128, 128)
    vae = pv.VAE(
        prior=pv.StandardNormal(10),
        encoder=pv.MLP(shape, (2, 10), hidden),
        posterior=pv.DiagonalNormal(),
        decoder=pv.MLP((10,), (1, *shape), hidden),
        likelihood=pv.likelihoods.StudentT(learned="column", data_shape=shape),
    )
    data = pv.Data("breast cancer", split, split[:64], split[:64])
    bound = pv.ImportanceWeightedELBO(20)
    for _ in pv.fit(vae, data, objective=bound, epochs=epochs, batch_size=64, seed=seed):
        pass
    return pv.impute(vae, split, num_samples=1000, num_draws=1).mean


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
    parser.add_argument("--epochs", type=int, help="20 for mnist, 300 for breast_cancer")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    out = args.out or Path(f"missing-{args.table}.json")
    if args.table == "mnist":
        mnist(args.data_dir, args.epochs or 20, out)
    else:
        breast_cancer(args.epochs or 300, out)


if __name__ == "__main__":
    main()
