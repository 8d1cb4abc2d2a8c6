"""Numbers of results.json as a page says them: headlines, a table, and how far to trust them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite
from typing import Any, NamedTuple

from pyro_vae.evaluation.calibration import BINS
from pyro_vae.evaluation.labels import Bin, Classification
from pyro_vae.reporting.subject import SECONDS, Subject

# Share of images with k-hat over 0.7 from which the Monte Carlo error of the mean is too small: its
# intervals covered the exact value in 78 % instead of 95 % of repetitions where it was 0.13.
MANY = 0.05

# Metrics that have a mean and a standard error, with their names and meanings.
METRICS = (
    ("elbo", "ELBO", "Lower bound on log p(x); higher is better."),
    (
        "reconstruction",
        "reconstruction",
        "Mean of log p(x | z) over codes of the image: how well codes give back their image.",
    ),
    (
        "kl",
        "KL",
        "KL(q(z | x) || p(z)): at least the information that the code carries about its image.",
    ),
    (
        "log_likelihood",
        "log p(x)",
        "Importance-weighted estimate; a lower bound in expectation.",
    ),
    (
        "log_likelihood/elbo_same_images",
        "ELBO, same images",
        "The ELBO of the images of the estimate; the difference is the inference gap.",
    ),
    (
        "log_likelihood_all_images",
        "log p(x), all images",
        "The estimate for all images, with the ELBO as control variate.",
    ),
    (
        "log_joint",
        "log p(x, y)",
        "The same estimate with the known labels of the images.",
    ),
    (
        "bits_per_dimension",
        "bits per dimension",
        "-log2 p(x) for each pixel and channel, of the bytes if pixels are dequantized; an upper"
        " bound in expectation; lower is better.",
    ),
)
# Metrics without a standard error, and their formats.
PLAIN = (
    (
        "active_units/count",
        "active units",
        "Latent dimensions whose posterior mean varies over images by more than 0.01.",
        ".0f",
    ),
    (
        "log_likelihood/median_effective_sample_size",
        "effective samples",
        "Effective sample size of the weights, median over images; near 1, log p(x) rests on one"
        " sample.",
        ".1f",
    ),
    (
        "log_likelihood/share_of_images_with_k_hat_over_0.7",
        "k-hat over 0.7",
        "Share of images whose estimate of log p(x) is unreliable. Zero does not prove that the"
        " others are reliable.",
        ".1%",
    ),
    (
        "calibration/coverage/0.9/share",
        "codes in regions of 90 %",
        "Share of codes of simulated images that lie in the guide's regions of 90 %; less is a"
        " guide that is too narrow.",
        ".1%",
    ),
    (
        "observed",
        "values observed",
        "Share of the values that are not missing; x stands for these alone, so that scores are not"
        " comparable with those of complete data.",
        ".1%",
    ),
    (
        "classification/accuracy",
        "accuracy of q(y | x)",
        "Share of images whose most likely class is their label.",
        ".2%",
    ),
    (
        "classification/calibration_error",
        "calibration error",
        "Mean distance of the largest class probability from the accuracy, in 15 bins.",
        ".2%",
    ),
)

# What replaces these meanings where the likelihood is no density.
CROSS_ENTROPY = {
    "elbo": "Minus cross-entropy and KL; higher is better. Not a bound on a log-probability.",
    "reconstruction": "Mean of minus the cross-entropy over codes of the image.",
    "log_likelihood": "Importance-weighted estimate with the cross-entropy; no log-probability.",
    "bits_per_dimension": "The cross-entropy in bits for each pixel and channel.",
}


class Row(NamedTuple):
    """A row of a table of metrics."""

    name: str
    value: str
    meaning: str


class Headline(NamedTuple):
    """A number that is read first: its name, value, error or unit, and what it is based on."""

    name: str
    value: str
    error: str
    basis: str


def headlines(subject: Subject) -> list[Headline]:
    """The numbers that are read first, as far as they are known, and whether to trust them."""
    results = subject.results
    each = subject.test.noun
    found = []
    for key, name in (("elbo", "ELBO"), (log_likelihood_key(results), "log p(x)")):
        mean = number(results, f"{key}/mean")
        if mean is not None:
            error = number(results, f"{key}/standard_error")
            text = "nats" if error is None else f"± {error:.2f} nats"
            found.append(Headline(name, f"{mean:.2f}", text, _about(_basis(results, key), each)))
    active = number(results, "active_units/count")
    if active is not None:
        of = f"of {subject.vae.latent_dim}"
        found.append(Headline("active units", f"{active:.0f}", of, "latent dimensions"))
    if SECONDS in subject.facts:
        epochs = f"{len(subject.records)} epochs"
        found.append(Headline("training", subject.facts[SECONDS], "seconds", epochs))
    if found:
        word, reason = reliability(results)
        found.append(Headline("log p(x) is", word, "", _about(reason, each)))
    return found


def reliability(results: Mapping[str, Any]) -> tuple[str, str]:
    """How far the estimate of log p(x) can be trusted, in a word, and the reason."""
    checked = results.get("check")
    if isinstance(checked, Mapping) and checked.get("disagree") is True:
        return "too low", "A second method gives more."
    over = number(results, "log_likelihood/share_of_images_with_k_hat_over_0.7")
    if over is None:
        return "unchecked", "k-hat needs 25 samples of each image."
    if over > MANY:
        return "unreliable", f"k-hat is over 0.7 for {over:.0%} of the images: a lower bound."
    if over > 0:
        return "fair", f"k-hat is over 0.7 for {over:.1%} of the images."
    return "reliable", "k-hat is over 0.7 for no image, which is no proof."


def log_likelihood_key(results: Mapping[str, Any]) -> str:
    """The estimate of log p(x) for the images of the ELBO, not for a subset of them."""
    if number(results, "log_likelihood_all_images/mean") is None:
        return "log_likelihood"
    return "log_likelihood_all_images"


def metrics(results: Mapping[str, Any], is_density: bool = True, each: str = "image") -> list[Row]:
    """The rows of those metrics that there are, with what the estimates are based on.

    An element of the data is called `each`, see `Split.noun`.
    """
    rows = []
    images = number(results, "elbo/num_images")
    is_subset = images != number(results, "log_likelihood/num_images")
    for key, name, meaning in METRICS:
        mean = number(results, f"{key}/mean")
        if mean is None or (key == "log_likelihood/elbo_same_images" and not is_subset):
            continue
        if not is_density:
            meaning = CROSS_ENTROPY.get(key, meaning)
        error = number(results, f"{key}/standard_error")
        text = _about(f"{meaning} {_basis(results, key)}", each)
        rows.append(Row(_about(name, each), with_error(mean, error), text))
    for key, name, meaning, form in PLAIN:
        value = number(results, key)
        if value is not None:
            rows.append(Row(name, format(value, form), _about(meaning, each)))
    return rows


def _about(text: str, each: str) -> str:
    """A text about images as one about rows, if the data are these."""
    return text.replace("image", each)


def with_error(mean: float | None, error: float | None) -> str:
    """A mean with its standard error, as far as they are known."""
    if mean is None:
        return ""
    if error is None:
        return f"{mean:.2f}"
    return f"{mean:.2f} ± {error:.2f}"


def _basis(results: Mapping[str, Any], key: str) -> str:
    """How many images, and how many samples of each, a metric is based on."""
    num_images = number(results, f"{key}/num_images")
    num_samples = number(results, f"{key}/num_samples")
    if num_images is None or num_samples is None:
        return ""
    return f"{num_images:,.0f} images, {num_samples:,.0f} samples of each."


def number(results: Any, path: str) -> float | None:
    """A number in nested mappings; None if it is not there, or is something else."""
    for key in path.split("/"):
        if not isinstance(results, Mapping):
            return None
        results = results.get(key)
    if isinstance(results, int | float) and isfinite(results):
        return results
    return None


def calibration_of(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The calibration in results.json, if there is one and it is complete."""
    found = results.get("calibration")
    if not isinstance(found, Mapping) or number(found, "num_images") is None:
        return None
    histograms = found.get("histograms")
    coverage = found.get("coverage")
    if not (isinstance(histograms, Mapping) and histograms and isinstance(coverage, Mapping)):
        return None
    for counts in histograms.values():
        is_list = isinstance(counts, list) and len(counts) == BINS
        if not is_list or not all(isinstance(count, int | float) for count in counts):
            return None
    for region in coverage:
        if number(coverage, f"{region}/share") is None or not region.replace(".", "").isdecimal():
            return None
    return found


def classification_of(results: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The classification in results.json, if there is one and it is complete."""
    found = results.get("classification")
    if not isinstance(found, Mapping) or not isinstance(found.get("bins"), list):
        return None
    for name in Classification._fields:
        if name != "bins" and number(found, name) is None:
            return None
    for each in found["bins"]:
        if any(number(each, name) is None for name in Bin._fields):
            return None
    return found


def bounds(curve: Any) -> Iterator[tuple[int, float, float]]:
    """K, the bound and the standard error of its gain over K = 1, from results.json."""
    if not isinstance(curve, Mapping):
        return
    for k in curve:
        mean = number(curve, f"{k}/mean")
        if mean is not None and k.isdecimal() and len(k) < 10:
            yield int(k), mean, number(curve, f"{k}/gain_standard_error") or 0.0
