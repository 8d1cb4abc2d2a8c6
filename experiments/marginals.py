"""log p(x) of models with global latents: importance sampling, annealing, Pyro, NumPyro, exact.

    python experiments/marginals.py
    python experiments/marginals.py --numpyro      with NumPyro installed, which is no dependency

The models are those of `tests/conjugate.py`, whose log p(x) is known. The guide of importance
sampling has heavier tails than the posterior. Pyro and NumPyro estimate the same bound by their
`RenyiELBO` at alpha = 0, with the same number of samples.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import pyro
import torch
from pyro.infer import RenyiELBO

import pyro_vae as pv

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from conjugate import CONJUGATE, Case

SAMPLES = 10_000


def importance(case: Case) -> tuple[float, float]:
    """The estimate, and its standard error."""
    weights = pv.log_weights(case.model, case.wide, *case.args, num_samples=SAMPLES)
    return pv.log_likelihood(weights).item(), pv.monte_carlo_error(weights).item()


def annealing(case: Case) -> tuple[float, float]:
    weights = pv.annealed_log_weights(case.model, *case.args, num_chains=64, num_temperatures=None)
    return pv.log_likelihood(weights).item(), pv.monte_carlo_error(weights).item()


def pyros(case: Case) -> tuple[float, None]:
    """Of programs that do not broadcast, a tenth of the samples, one by one."""
    options: dict[str, Any] = {"num_particles": SAMPLES, "vectorize_particles": True}
    if case.model.__qualname__.startswith("linear_regression"):
        options = {"num_particles": SAMPLES // 10}
    bound = RenyiELBO(alpha=0, max_plate_nesting=1, **options)
    return -bound.loss(case.model, case.wide, *case.args), None


def numpyros(case: Case) -> tuple[float, None]:
    """The same programs, written for NumPyro."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import RenyiELBO

    jax.config.update("jax_enable_x64", True)
    name = case.model.__qualname__.partition(".")[0]
    arrays = tuple(jnp.asarray(tensor.numpy()) for tensor in case.args)
    x, y = arrays[0], arrays[-1]
    n = len(x)
    precision = jnp.eye(2)
    counts = jnp.zeros(3)
    if name == "linear_regression":
        precision = jnp.eye(2) + x.T @ x / 0.25
    if name == "dirichlet_categorical":
        counts = jnp.bincount(x, length=3)
    total = y.sum()
    priors = {
        "normal_normal": lambda: dist.Normal(0.0, 1.0),
        "gamma_poisson": lambda: dist.Gamma(2.0, 1.0),
        "dirichlet_categorical": lambda: dist.Dirichlet(jnp.ones(3)),
        "beta_binomial": lambda: dist.Beta(2.0, 3.0),
        "linear_regression": lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
    }
    likelihoods = {
        "normal_normal": lambda z: dist.Normal(z, 1.0),
        "gamma_poisson": lambda z: dist.Poisson(z),
        "dirichlet_categorical": lambda z: dist.Categorical(z),
        "beta_binomial": lambda z: dist.Binomial(10, z),
        "linear_regression": lambda z: dist.Normal(x @ z, 0.5),
    }
    guides = {
        "normal_normal": lambda: dist.Normal(total / (1 + n), 1.3 / (1 + n) ** 0.5),
        "gamma_poisson": lambda: dist.Gamma(0.7 * (2 + total), 0.7 * (1 + n)),
        "dirichlet_categorical": lambda: dist.Dirichlet(1 + 0.7 * counts),
        "beta_binomial": lambda: dist.Beta(2 + 0.7 * total, 3 + 0.7 * (10 * n - total)),
        "linear_regression": lambda: dist.MultivariateNormal(
            jnp.linalg.solve(precision, x.T @ y / 0.25), precision_matrix=precision / 1.3**2
        ),
    }

    def model() -> None:
        z = numpyro.sample("z", priors[name]())
        with numpyro.plate("data", n):
            numpyro.sample("y", likelihoods[name](z), obs=y)

    def guide() -> None:
        numpyro.sample("z", guides[name]())

    bound = RenyiELBO(alpha=0, num_particles=SAMPLES)
    return -float(bound.loss(jax.random.PRNGKey(0), {}, model, guide)), None


def main() -> None:
    pyro.set_rng_seed(0)
    methods: dict[str, Callable[[Case], tuple[float, float | None]]] = {
        "importance": importance,
        "annealing": annealing,
        "Pyro": pyros,
    }
    if "--numpyro" in sys.argv:
        methods["NumPyro"] = numpyros
    for name, make in CONJUGATE.items():
        case = make()
        print(f"{name}: exact {case.log_p:.4f}")
        for method, run in methods.items():
            start = perf_counter()
            value, error = run(case)
            seconds = perf_counter() - start
            spread = ""
            if error is not None:
                spread = f"+- {error:.4f}"
            print(f"    {method:10s} {value:9.4f} {spread:9s} {seconds:7.2f} s", flush=True)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
