"""Metrics as lines of text, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro_vae.likelihoods import Likelihood, noun
from pyro_vae.reporting.numbers import MANY
from pyro_vae.training.fit import Record

Values = Mapping[str, Any]
WIDTH = 80
# p-value below which a guide is said not to be exact: one exact guide in a hundred.
REJECTED = 0.01
# Smallest p-value that is printed: the approximation of smaller ones is poor.
LEAST = 1e-4


def epoch_line(record: Record, epochs: int) -> str:
    """One line about an epoch; what does not fit into 80 columns is left out."""
    parts = [
        f"ELBO {record['elbo']:.2f}",
        f"validation {record['validation_elbo']:.2f}",
        f"KL {record['kl']:.2f}",
        f"{record['active_units']} active",
    ]
    if record["beta"] != 1:
        parts.append(f"beta {record['beta']:.3g}")
    parts.append(f"{record['seconds']:.1f} s")
    while True:
        line = f"epoch {record['epoch']}/{epochs}: {', '.join(parts)}"
        if len(line) <= WIDTH:
            return line
        parts.pop()


def table(metrics: Values, title: str, likelihood: Likelihood) -> str:
    """Metrics with their standard errors, one per line."""
    each = noun(likelihood.data_dims)
    values = "pixels" if each == "image" else "values"
    first = f"{title}: {metrics['elbo']['num_images']:,} {each}s, {likelihood.pixels} {values}"
    lines = [
        "nats per image ± standard error over images",
        _row("ELBO", metrics["elbo"]),
        _row("reconstruction", metrics["reconstruction"]),
        _row("KL", metrics["kl"]),
    ]
    if "log_likelihood" in metrics:
        lines += _log_likelihood(metrics["log_likelihood"], metrics["elbo"]["num_images"])
    for name, lines_of in SECTIONS.items():
        if name in metrics:
            lines += lines_of(metrics[name])
    lines += _remarks(metrics, likelihood)
    return "\n".join([first, *(line.replace("image", each) for line in lines)])


def _remarks(metrics: Values, likelihood: Likelihood) -> list[str]:
    """What log p(x) stands for, where it is not the log-probability of complete data alone."""
    lines = []
    if "given" in metrics:
        lines.append(f"  (given the {metrics['given']} y: log p(x) stands for log p(x | y))")
    if "observed" in metrics:
        share = 1 - metrics["observed"]
        lines.append(f"  ({share:.1%} of the values are missing: x stands for those observed)")
    if "exposure" in metrics:
        lines.append("  (given the total of each row: log p(x) stands for log p(x | total))")
    if not likelihood.is_density:
        lines.append("  (the likelihood is a cross-entropy, not a density: not log-probabilities)")
    return lines


def _row(name: str, value: Values, note: str = "") -> str:
    error = "-"
    if value["standard_error"] is not None:
        error = f"{value['standard_error']:.2f}"
    return f"  {name:<20}{value['mean']:>10.2f} ± {error}{note}"


def _per_dimension(name: str, value: Values, note: str = "") -> str:
    """An upper bound, because log p(x) is a lower one."""
    error = "-"
    if value["standard_error"] is not None:
        error = f"{value['standard_error']:.4f}"
    return f"  {name:<20}{value['mean']:>10.4f} ± {error}  upper bound{note}"


def _log_likelihood(value: Values, all_images: int) -> list[str]:
    note = f"  K = {value['num_samples']:,}, {value['num_images']:,} images"
    lines = [_row("log p(x)", value, note)]
    if value["num_images"] < all_images:
        lines.append(_row("  ELBO, same images", value["elbo_same_images"]))
    over = value["share_of_images_with_k_hat_over_0.7"]
    if value["monte_carlo_error"] is not None:
        note = ""
        if over is not None and over > MANY:
            note = "  too small: k-hat"
        lines.append(f"  {'  Monte Carlo error':<20}{value['monte_carlo_error']:>10.3f}{note}")
    effective = value["median_effective_sample_size"]
    lines.append(f"  {'  effective samples':<20}{effective:>10.1f}  median over images")
    if over is not None:
        note = "unreliable there" if over else "zero is no proof"
        lines.append(f"  {'  k-hat over 0.7':<20}{over:>10.1%}  of images: {note}")
    return lines


def _all_images(value: Values) -> list[str]:
    return [_row("log p(x), all images", value, "  control variate: ELBO")]


def _log_joint(value: Values) -> list[str]:
    return [_row("log p(x, y)", value, f"  {value['num_images']:,} known labels")]


def _check(value: Values) -> list[str]:
    """The second estimate minus the importance-weighted one."""
    name = value["method"]
    if name == "ais":
        name = "AIS"
    verdicts = {True: "DISAGREES", False: "agrees", None: "error unknown"}
    note = f"  {value['num_images']:,} images: {verdicts[value['disagree']]}"
    difference = {"mean": value["difference"], "standard_error": value["standard_error"]}
    return [
        _row(f"  {name} minus it", difference, note),
        f"  {'    largest':<20}{value['max_difference']:>10.2f}",
    ]


def _annealed(value: Values) -> list[str]:
    return [_row("log p(x), AIS", value, "  same images, lower bound")]


def _annealed_difference(value: Values) -> list[str]:
    return [_row("  AIS - log p(x)", value, "  paired")]


def _simulated(value: Values) -> list[str]:
    """Bounds from both sides, for images that were drawn from the model."""
    note = f"  {value['gap']['num_images']:,} images of the model"
    return [
        _row("  simulated, lower", value["lower"], note),
        _row("  simulated, upper", value["upper"]),
        _row("    upper - lower", value["gap"], "  paired"),
    ]


def _bits(value: Values) -> list[str]:
    return [_per_dimension("bits per dimension", value, f"; {value['of']}")]


def _counts(value: Values) -> list[str]:
    return [_per_dimension("nats per count", value)]


def _active_units(value: Values) -> list[str]:
    if value["count"] is None:
        return []
    note = ""
    if value.get("predicted") is not None:
        note = f"  a linear VAE: {value['predicted']}"
    units = f"{value['count']:>10} of {value['latent_dim']}{note}"
    return [f"  {'active units':<20}{units}"]


def _information(value: Values) -> list[str]:
    """Near its ceiling the mutual information is too low, and the KL is what it leaves over."""
    shared = {
        "mean": value["mutual_information"],
        "standard_error": value["mutual_information_error"],
    }
    marginal = {"mean": value["marginal_kl"], "standard_error": value["marginal_kl_error"]}
    note = f"  {value['num_images']:,} images, at most {value['ceiling']:.2f}"
    note_of_kl = ""
    if value["saturated"]:
        note = f"  lower bound: at most {value['ceiling']:.2f}"
        note_of_kl = "  upper bound"
    return [
        _row("mutual information", shared, note),
        _row("KL(q(z) || p(z))", marginal, note_of_kl),
    ]


def _calibration(value: Values) -> list[str]:
    """Whether simulated codes look like draws of the guide, and how many its regions hold."""
    p_value = f"{value['p_value']:.2g}"
    if value["p_value"] < LEAST:
        p_value = f"< {LEAST:f}".rstrip("0")
    verdict = "not rejected"
    if value["p_value"] < REJECTED:
        verdict = f"not exact: {value['worst']}"
    shares = []
    for region, found in value["coverage"].items():
        shares.append(f"{float(region):.0%}: {found['share']:.1%}")
    note = f"  {verdict}; {value['num_images']:,} simulated"
    return [
        f"  {'calibration, p':<20}{p_value:>10}{note}",
        f"    true codes in regions of {', '.join(shares)}",
    ]


def _accuracy(name: str, value: Values) -> str:
    share = f"{value['accuracy']:>10.1%} ± {value['standard_error']:.1%}"
    return f"  {name:<20}{share}  {value['num_images']:,} labels"


def _linear_probe(value: Values) -> list[str]:
    return [_accuracy("linear probe", value)]


def _bayes_classifier(value: Values) -> list[str]:
    return [_accuracy("Bayes classifier", value)]


def _classification(value: Values) -> list[str]:
    """The log loss is that of the known label, in nats per image."""
    loss = f"{value['log_loss']:>10.3f} ± {value['log_loss_error']:.3f}"
    bins = f"{value['calibration_error']:>10.1%}"
    return [
        _accuracy("classifier q(y | x)", value),
        f"  {'  log loss':<20}{loss}  nats per label",
        f"  {'  calibration error':<20}{bins}  expected, {len(value['bins'])} bins",
    ]


def _anomalies(value: Values) -> list[str]:
    """The probability that an anomaly has a higher score than a normal image."""
    first = next(iter(value.values()))
    lines = [
        f"  AUROC: {first['num_anomalies']:,} anomalies, {first['num_normal']:,} normal images"
    ]
    for name, found in value.items():
        error = "-"
        if found["standard_error"] is not None:
            error = f"{found['standard_error']:.3f}"
        lines.append(f"    {name.replace('_', ' '):<20}{found['auroc']:>8.3f} ± {error}")
    return lines


def _gap(value: Values) -> list[str]:
    """The approximation gap is a lower bound where log p(x) is one."""
    note = "  log p(x) by quadrature"
    if value["method"] == "ais":
        note = "  lower bound, by AIS"
    if value["method"] == "is":
        note = "  lower bound"
        over = value["share_of_images_with_k_hat_over_0.7"]
        if over is not None:
            note += f": k-hat over 0.7 for {over:.0%}"
    return [
        _row("inference gap", value["total"], f"  {value['total']['num_images']:,} images"),
        _row("  approximation", value["approximation"], note),
        _row("  amortization", value["amortization"]),
    ]


# The lines of each result that there may be, in the order of the table.
SECTIONS: dict[str, Callable[[Values], list[str]]] = {
    "log_likelihood_all_images": _all_images,
    "log_joint": _log_joint,
    "check": _check,
    "annealed": _annealed,
    "annealed_difference": _annealed_difference,
    "simulated": _simulated,
    "bits_per_dimension": _bits,
    "nats_per_count": _counts,
    "active_units": _active_units,
    "information": _information,
    "classification": _classification,
    "calibration": _calibration,
    "linear_probe": _linear_probe,
    "bayes_classifier": _bayes_classifier,
    "inference_gap": _gap,
    "anomalies": _anomalies,
}
