"""Metrics as lines of text, at most 80 columns wide."""

from __future__ import annotations

from collections.abc import Mapping
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
    if "log_likelihood_all_images" in metrics:
        note = "  control variate: ELBO"
        lines.append(_row("log p(x), all images", metrics["log_likelihood_all_images"], note))
    if "log_joint" in metrics:
        joint = metrics["log_joint"]
        lines.append(_row("log p(x, y)", joint, f"  {joint['num_images']:,} known labels"))
    if "check" in metrics:
        lines += _check(metrics["check"])
    if "annealed" in metrics:
        bounds = metrics["simulated"]
        count = bounds["gap"]["num_images"]
        lines += [
            _row("log p(x), AIS", metrics["annealed"], "  same images, lower bound"),
            _row("  AIS - log p(x)", metrics["annealed_difference"], "  paired"),
            _row("  simulated, lower", bounds["lower"], f"  {count:,} images of the model"),
            _row("  simulated, upper", bounds["upper"]),
            _row("    upper - lower", bounds["gap"], "  paired"),
        ]
    if "bits_per_dimension" in metrics:
        bits = metrics["bits_per_dimension"]
        lines.append(_per_dimension("bits per dimension", bits, f"; {bits['of']}"))
    if "nats_per_count" in metrics:
        lines.append(_per_dimension("nats per count", metrics["nats_per_count"]))
    if "active_units" in metrics and metrics["active_units"]["count"] is not None:
        active = metrics["active_units"]
        note = ""
        if active.get("predicted") is not None:
            note = f"  a linear VAE: {active['predicted']}"
        units = f"{active['count']:>10} of {active['latent_dim']}{note}"
        lines.append(f"  {'active units':<20}{units}")
    if "information" in metrics:
        lines += _information(metrics["information"])
    if "classification" in metrics:
        lines += _classification(metrics["classification"])
    if "calibration" in metrics:
        lines += _calibration(metrics["calibration"])
    if "linear_probe" in metrics:
        lines.append(_accuracy("linear probe", metrics["linear_probe"]))
    if "bayes_classifier" in metrics:
        lines.append(_accuracy("Bayes classifier", metrics["bayes_classifier"]))
    if "inference_gap" in metrics:
        lines += _gap(metrics["inference_gap"])
    if "anomalies" in metrics:
        lines += _anomalies(metrics["anomalies"])
    if "given" in metrics:
        lines.append(f"  (given the {metrics['given']} y: log p(x) stands for log p(x | y))")
    if "observed" in metrics:
        share = 1 - metrics["observed"]
        lines.append(f"  ({share:.1%} of the values are missing: x stands for those observed)")
    if "exposure" in metrics:
        lines.append("  (given the total of each row: log p(x) stands for log p(x | total))")
    if not likelihood.is_density:
        lines.append("  (the likelihood is a cross-entropy, not a density: not log-probabilities)")
    return "\n".join([first, *(line.replace("image", each) for line in lines)])


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
