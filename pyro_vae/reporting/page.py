"""Self-contained HTML pages: about one model, or comparing several. Needs Bokeh and Jinja2."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, sqrt
from typing import Any, NamedTuple

import torch
from bokeh.embed import components
from bokeh.plotting import figure
from bokeh.resources import Resources
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from torch import Tensor

from pyro_vae.engine.random_state import forked_rng
from pyro_vae.evaluation.batch import completed, scored
from pyro_vae.evaluation.quadrature import has_two_dimensions
from pyro_vae.reporting import plots
from pyro_vae.reporting.document import (
    AMORTIZATION,
    APPROXIMATION,
    document_of_paths,
    document_of_snapshots,
    groups_of,
)
from pyro_vae.reporting.explorer import CHOSEN, COARSE, SIDE, Paths, Snapshot, paths, snapshot
from pyro_vae.reporting.figures import BLUE, ORANGE
from pyro_vae.reporting.overview import FULL, Effort, Overview, overview
from pyro_vae.reporting.pictures import pictures
from pyro_vae.reporting.subject import SECONDS, Subject, why_not_comparable

LEAST_LIKELY = 10
# Pictures of each model on a page about several.
STRIP = 10

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


def page(subject: Subject, effort: Effort = FULL, seed: int = 0) -> str:
    """The page about one model. Leaves the random state as it is."""
    with forked_rng():
        torch.manual_seed(seed)
        return _page(subject, effort)


def _page(subject: Subject, effort: Effort) -> str:
    shown = overview(subject.vae, subject.test, effort)
    urls = pictures(shown.pictures)
    groups = groups_of(shown)
    context: dict[str, Any] = {"data": None, "plane": False, "paths": None, "chosen": []}
    drawn: dict[str, figure] = {}
    plane = None
    is_explored = False
    if has_two_dimensions(subject.vae, scored(subject.vae, shown.images)[:1]):
        snapshots = _snapshots(subject, shown, effort)
        last = snapshots[-1]
        plane = last.plane
        is_explored = bool(last.explored)
        context["data"] = document_of_snapshots(snapshots, groups)
        context["plane"] = True
        context["epochs"] = len(snapshots)
        if is_explored:
            drawn |= plots.explorer(context["data"]["snapshots"][-1])
            context["chosen"] = urls[: len(last.explored)]
            context["slider"] = {"last": len(last.explored[0].draws.curve) - 1}
            context["slider"]["first"] = plots.FIRST_K
    elif len(shown.images) > 1:
        found: Paths = paths(subject.vae, shown.images)
        context["data"] = document_of_paths(found)
        context["paths"] = _sliders(found)
        context["chosen"] = urls[:CHOSEN]
    drawn["latent"] = plots.latent(shown, urls, groups, plane)
    drawn["dimensions"] = plots.dimensions(shown)
    bounds = list(_bounds(subject.results.get("k_curve")))
    if bounds:
        drawn["bounds"] = plots.bounds(bounds)
    context |= {
        "title": subject.name,
        "subject": subject,
        "shown": shown,
        "explored": is_explored,
        "metrics": metrics(subject.results, subject.vae.likelihood.is_density),
        "samples": pictures(shown.samples),
        "reconstructions": _reconstructions(shown),
        "least_likely": _least_likely(shown, urls),
    }
    return _render("one.html", context, drawn, plots.curves([subject]))


def _snapshots(subject: Subject, shown: Overview, effort: Effort) -> list[Snapshot]:
    """The model after earlier epochs that were kept, and after the last."""
    batch = completed(subject.vae, shown.images)
    models = [*subject.earlier, ("last epoch", subject.vae)]
    count = effort.explored
    side = SIDE
    if len(models) > 1:
        count = effort.several
        side = COARSE
    return [snapshot(name, vae, batch, count, side, effort.steps) for name, vae in models]


def _sliders(found: Paths) -> list[dict[str, Any]]:
    """The ends and the first value of the slider of each traversal."""
    sliders = []
    for dimension, (low, high) in zip(found.dimensions, found.ranges.T.tolist(), strict=True):
        middle = (low + high) / 2
        sliders.append({"name": f"z[{dimension}]", "low": low, "high": high, "middle": middle})
    return sliders


def _reconstructions(shown: Overview) -> list[tuple[str, str, str]]:
    images, means = (pictures(part) for part in shown.reconstructions.unbind(1))
    elbos = [f"{elbo:.1f}" for elbo in shown.scores.elbo[: len(images)].tolist()]
    return list(zip(images, means, elbos, strict=True))


def _least_likely(shown: Overview, urls: list[str]) -> list[tuple[str, str]]:
    log_p = shown.scores.log_likelihood
    order = log_p.argsort()[:LEAST_LIKELY].tolist()
    return [(urls[n], f"{log_p[n]:.1f}") for n in order]


def metrics(results: Mapping[str, Any], is_density: bool = True) -> list[Row]:
    """The rows of those metrics that there are, with what the estimates are based on."""
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
        rows.append(Row(name, _with_error(mean, error), f"{meaning} {_basis(results, key)}"))
    for key, name, meaning, form in PLAIN:
        value = number(results, key)
        if value is not None:
            rows.append(Row(name, format(value, form), meaning))
    return rows


def _with_error(mean: float | None, error: float | None) -> str:
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


def _bounds(curve: Any) -> Iterator[tuple[int, float, float]]:
    """K, the bound and the standard error of its gain over K = 1, from results.json."""
    if not isinstance(curve, Mapping):
        return
    for k in curve:
        mean = number(curve, f"{k}/mean")
        if mean is not None and k.isdecimal() and len(k) < 10:
            yield int(k), mean, number(curve, f"{k}/gain_standard_error") or 0.0


# --- several models -------------------------------------------------------------------------------


def comparison(subjects: Sequence[Subject], effort: Effort = FULL, seed: int = 0) -> str:
    """The page that compares several models with the first. Leaves the random state as it is.

    Those whose numbers cannot be compared with the first's are not scored, but listed with the
    reason. The others are scored with the same random numbers.
    """
    first = subjects[0]
    compared = [first]
    excluded = []
    for subject in subjects[1:]:
        reason = why_not_comparable(subject, first)
        if reason:
            excluded.append((subject.name, reason))
        else:
            compared.append(subject)
    overviews = []
    for subject in compared:
        with forked_rng():
            torch.manual_seed(seed)
            overviews.append(overview(subject.vae, subject.test, effort))
    differing = _differing_options(compared)
    rows = []
    for subject in compared:
        options = [subject.options.get(key, "") for key in differing]
        rows.append((subject.name, [*options, *_merits(subject)]))
    differences = []
    for subject, shown in zip(compared[1:], overviews[1:], strict=True):
        elbo = _paired(shown.scores.elbo, overviews[0].scores.elbo)
        log_p = _paired(shown.scores.log_likelihood, overviews[0].scores.log_likelihood)
        differences.append((subject.name, elbo, log_p))
    strips = []
    for subject, shown in zip(compared, overviews, strict=True):
        strips.append((subject.name, pictures(shown.samples[:STRIP])))
    context = {
        "data": None,
        "title": f"{len(subjects)} runs",
        "first": first,
        "shown": overviews[0],
        "columns": [*differing, *MERITS],
        "rows": rows,
        "groups": _groups(compared),
        "differences": differences,
        "excluded": excluded,
        "strips": strips,
    }
    return _render("several.html", context, {}, plots.curves(compared))


# The columns of the comparison after the options.
MERITS = ("ELBO", "log p(x)", "K", "images", "active units", "seconds")


def _differing_options(subjects: Sequence[Subject]) -> list[str]:
    """The names of the options that are not the same in all runs."""
    differing = []
    for subject in subjects:
        for key in subject.options:
            values = {other.options.get(key) for other in subjects}
            if len(values) > 1 and key not in differing:
                differing.append(key)
    return differing


def _merits(subject: Subject) -> list[str]:
    """The values of `MERITS`."""
    results = subject.results
    values = []
    for key in ("elbo", _log_likelihood_key(results)):
        mean = number(results, f"{key}/mean")
        error = number(results, f"{key}/standard_error")
        values.append(_with_error(mean, error))
    for key in ("log_likelihood/num_samples", "elbo/num_images", "active_units/count"):
        value = number(results, key)
        text = ""
        if value is not None:
            text = f"{value:,.0f}"
        values.append(text)
    return [*values, subject.facts.get(SECONDS, "")]


def _log_likelihood_key(results: Mapping[str, Any]) -> str:
    """The estimate of log p(x) for the images of the ELBO, not for a subset of them."""
    if number(results, "log_likelihood_all_images/mean") is None:
        return "log_likelihood"
    return "log_likelihood_all_images"


def _groups(subjects: Sequence[Subject]) -> list[tuple[str, int, list[str]]]:
    """Runs that differ in the seed only: names, number, and mean and range of ELBO and log p(x)."""
    groups: dict[str, list[Subject]] = {}
    for subject in subjects:
        if subject.options:
            options = {key: value for key, value in subject.options.items() if key != "seed"}
            groups.setdefault(str(sorted(options.items())), []).append(subject)
    rows = []
    for group in groups.values():
        if len(group) > 1:
            elbos = [number(subject.results, "elbo/mean") for subject in group]
            log_ps = [
                number(subject.results, f"{_log_likelihood_key(subject.results)}/mean")
                for subject in group
            ]
            names = ", ".join(subject.name for subject in group)
            rows.append((names, len(group), [_range(elbos), _range(log_ps)]))
    return rows


def _range(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return ""
    return f"{sum(known) / len(known):.2f} ({min(known):.2f} to {max(known):.2f})"


def _paired(values: Tensor, first: Tensor) -> str:
    """The mean difference over the same images, with its standard error."""
    difference = values - first
    mean = f"{difference.mean():+.2f}"
    if len(difference) < 2:
        return mean
    return f"{mean} ± {difference.std() / sqrt(len(difference)):.2f}"


# --- HTML -----------------------------------------------------------------------------------------


def _render(
    template: str,
    context: Mapping[str, Any],
    drawn: Mapping[str, figure],
    curves: Mapping[str, figure],
) -> str:
    script = ""
    divs = {}
    if drawn or curves:
        script, divs = components({**drawn, **curves})
    environment = Environment(
        loader=PackageLoader("pyro_vae.reporting"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    library = Resources(mode="inline", components=["bokeh"], log_level="warn").render()
    colours = {
        "blue": BLUE,
        "orange": ORANGE,
        "approximation": APPROXIMATION,
        "amortization": AMORTIZATION,
    }
    return environment.get_template(template).render(
        **context,
        plots={name: Markup(div) for name, div in divs.items()},
        curves=list(curves),
        colours=colours,
        library=Markup(library),
        script=Markup(script),
    )
