"""Metrics as lines of text, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import log
from typing import Any

from pyro_vae.likelihoods import Likelihood
from pyro_vae.training.fit import Record

Values = Mapping[str, Any]
WIDTH = 80


def epoch_line(record: Record, epochs: int) -> str:
    """One epoch: training and validation ELBO, KL, active units, beta if it is not 1, seconds, as far as they fit."""
    parts = [
        f"ELBO {record['elbo']:.2f}",
        f"validation {record['validation_elbo']:.2f}",
        f"KL {record['kl']:.2f}",
    ]
    parts += [f"{record['active_units']} active"]
    parts += [] if record["beta"] == 1 else [f"beta {record['beta']:.3g}"]
    parts += [f"{record['seconds']:.1f} s"]
    while len(line := f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}") > WIDTH:
        parts.pop()
    return line


def table(metrics: Values, title: str, likelihood: Likelihood) -> str:
    """Metrics with their standard errors, one per line."""
    lines = [f"{title}: {metrics['elbo']['num_images']:,} images, {likelihood.pixels} pixels"]
    lines.append("nats per image ± standard error over images")
    lines += [
        _row(name, metrics[key])
        for key, name in (("elbo", "ELBO"), ("reconstruction", "reconstruction"), ("kl", "KL"))
    ]
    lines += [
        line
        for key, section in SECTIONS.items()
        if metrics.get(key)
        for line in section(metrics[key])
    ]
    if not likelihood.is_density:
        lines.append("  (the likelihood is a cross-entropy, not a density: not log-probabilities)")
    return "\n".join(lines)


def _row(name: str, value: Values, note: str = "") -> str:
    error = "-" if value["standard_error"] is None else f"{value['standard_error']:.2f}"
    return f"  {name:<20}{value['mean']:>10.2f} ± {error}{note}"


def _log_likelihood(value: Values) -> list[str]:
    lines = [
        _row("log p(x)", value, f"  K = {value['num_samples']:,}, {value['num_images']:,} images")
    ]
    lines.append(_row("  ELBO, same images", value["elbo_same_images"]))
    if value["monte_carlo_error"] is not None:
        lines.append(f"  {'  Monte Carlo error':<20}{value['monte_carlo_error']:>10.3f}")
    lines.append(
        f"  {'  effective samples':<20}{value['median_effective_sample_size']:>10.1f}  median over images"
    )
    over = value["share_of_images_with_k_hat_over_0.7"]
    if over is not None:
        note = "unreliable there" if over else "zero is no proof"
        lines.append(f"  {'  k-hat over 0.7':<20}{over:>10.1%}  of images: {note}")
    return lines


def _check(value: Values) -> list[str]:
    """The second estimate minus the importance-weighted one; one image suffices for a disagreement."""
    name = {"ais": "AIS"}.get(value["method"], value["method"])
    verdict = "DISAGREES" if value["disagree"] else "agrees"
    difference = {"mean": value["difference"], **value}
    return [
        _row(f"  {name} minus it", difference, f"  {value['num_images']:,} images: {verdict}"),
        f"  {'    largest':<20}{value['max_difference']:>10.2f}",
    ]


def _active(value: Values) -> list[str]:
    return (
        []
        if value["count"] is None
        else [f"  {'active units':<20}{value['count']:>10} of {value['latent_dim']}"]
    )


def _information(value: Values) -> list[str]:
    ceiling = f"  {value['num_images']:,} images, at most {log(value['num_images']):.2f}"
    pairs = (
        {"mean": value[key], "standard_error": value[f"{key}_error"]}
        for key in ("mutual_information", "marginal_kl")
    )
    return [_row("mutual information", next(pairs), ceiling), _row("KL(q(z) || p(z))", next(pairs))]


def _accuracy(name: str, value: Values) -> list[str]:
    return [
        f"  {name:<20}{value['accuracy']:>10.1%} ± {value['standard_error']:.1%}  {value['num_images']:,} labels"
    ]


def _gap(value: Values) -> list[str]:
    rows = {
        "inference gap": "total",
        "  approximation": "approximation",
        "  amortization": "amortization",
    }
    return [
        _row(name, value[key], f"  {value[key]['num_images']} images") for name, key in rows.items()
    ]


# The lines of each key of the results, in the order in which they are printed.
SECTIONS: dict[str, Callable[[Values], list[str]]] = {
    "log_likelihood": _log_likelihood,
    "log_likelihood_all_images": lambda value: [
        _row("log p(x), all images", value, "  control variate: ELBO")
    ],
    "check": _check,
    "annealed": lambda value: [_row("log p(x), AIS", value, "  same images")],
    "annealed_difference": lambda value: [_row("  AIS - log p(x)", value, "  paired")],
    "simulated": lambda value: [
        _row(
            "  AIS bounds, gap", value["gap"], f"  {value['gap']['num_images']} images of the model"
        )
    ],
    "bits_per_dimension": lambda value: [_row("bits per dimension", value)],
    "active_units": _active,
    "information": _information,
    "linear_probe": partial(_accuracy, "linear probe"),
    "bayes_classifier": partial(_accuracy, "Bayes classifier"),
    "inference_gap": _gap,
    "given": lambda value: [f"  (given the {value} y: log p(x) stands for log p(x | y))"],
}
