"""The panels of the page about one model, in their order.

To add one, write a function below that returns a `Panel`, or None where it has nothing to show, add
it to `PANELS`, and write its template `templates/panels/NAME.html`, which reads `values` and
`plots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, NamedTuple

import torch
from bokeh.plotting import figure

from pyro_vae.evaluation.batch import completed
from pyro_vae.evaluation.quadrature import has_two_dimensions
from pyro_vae.reporting import plots
from pyro_vae.reporting.document import (
    Document,
    Groups,
    document_of_paths,
    document_of_snapshots,
    groups_of,
)
from pyro_vae.reporting.explorer import CHOSEN, COARSE, SIDE, Paths, Snapshot, paths, snapshot
from pyro_vae.reporting.numbers import bounds, calibration_of, classification_of, metrics
from pyro_vae.reporting.overview import Effort, Overview, overview
from pyro_vae.reporting.pictures import pictures
from pyro_vae.reporting.projection import planes
from pyro_vae.reporting.subject import Subject

RECONSTRUCTIONS = 10
WORST = 10
# Bytes of the pixels of samples, and of the pictures that only hovering shows.
SAMPLES = 150_000
HOVERED = 150_000


class Columns(NamedTuple):
    """The pictures of each image and of its reconstruction, as URLs."""

    image: list[str]
    mean: list[str]


@dataclass(frozen=True)
class Material:
    """All that the panels of a page are made of.

    Attributes:
        subject: The model.
        shown: What is shown of every model.
        columns: The pictures of the images of `shown`, which hovering shows.
        first: The same of the first images, in full size.
        groups: Their classes.
        snapshots: With two latent dimensions, the model after each epoch that was kept.
        paths: Otherwise, if there are two images.
    """

    subject: Subject
    shown: Overview
    columns: Columns
    first: Columns
    groups: Groups
    snapshots: Sequence[Snapshot] = ()
    paths: Paths | None = None

    @property
    def chosen(self) -> list[str]:
        """The pictures of the images that can be chosen, the first ones."""
        count = 0
        if self.snapshots:
            count = len(self.snapshots[-1].explored)
        elif self.paths:
            count = CHOSEN
        return self.first.image[:count]

    def document(self) -> Document | None:
        """What the page's script reads."""
        if self.snapshots:
            return document_of_snapshots(self.snapshots, self.groups)
        if self.paths:
            return document_of_paths(self.paths)
        return None


def material(subject: Subject, effort: Effort) -> Material:
    """Compute what the panels show."""
    vae = subject.vae
    shown = overview(vae, subject.test, effort)
    columns = Columns(*(pictures(part, HOVERED) for part in shown.reconstructions.unbind(1)))
    in_full = shown.reconstructions[: max(effort.explored, RECONSTRUCTIONS)]
    first = Columns(*(pictures(part) for part in in_full.unbind(1)))
    groups = groups_of(shown)
    found = Material(subject, shown, columns, first, groups)
    batch = completed(vae, shown.images)
    if has_two_dimensions(vae, batch[:1]):
        models = [*subject.earlier, ("last epoch", vae)]
        count, side = effort.explored, SIDE
        if len(models) > 1:
            count, side = effort.several, COARSE
        made = [snapshot(name, each, batch, count, side, effort.steps) for name, each in models]
        return replace(found, snapshots=made)
    if len(batch) > 1:
        return replace(found, paths=paths(vae, batch, shown.order))
    return found


@dataclass(frozen=True)
class Panel:
    """A part of a page.

    Attributes:
        name: Its id, and the name of its template.
        title: Its heading.
        columns: How many of 12 columns it takes, on a screen of at least 900 pixels.
        values: What its template reads.
        plots: Bokeh's plots, by name; no two panels have a name in common.
    """

    name: str
    title: str
    columns: int
    values: Mapping[str, Any] = field(default_factory=dict)
    plots: Mapping[str, figure] = field(default_factory=dict)


def samples(made: Material) -> Panel:
    """A wall of samples."""
    return Panel("samples", "Samples", 4, {"urls": pictures(made.shown.samples, SAMPLES)})


def plane(made: Material) -> Panel | None:
    """The plane of two latent dimensions, which decodes where one points."""
    if not made.snapshots:
        return None
    last = made.snapshots[-1]
    columns = made.columns._asdict()
    plot = plots.plane(last.plane, last.codes.cpu(), columns, made.groups, len(made.chosen))
    values = {"images": len(made.shown.codes)}
    return Panel("plane", "Latent space", 8, values, {"plane": plot})


def traversals(made: Material) -> Panel | None:
    """Each active dimension of a chosen image, by a slider."""
    if not made.paths:
        return None
    sliders = []
    shown = made.shown
    ranges = made.paths.ranges.T.tolist()
    for dimension, (low, high) in zip(made.paths.dimensions, ranges, strict=True):
        kl = ""
        if shown.kl is not None:
            kl = f"{shown.kl[dimension]:.2f} nats"
        # The end that is farther from the first image's own code, so that something is seen.
        own = float(shown.codes[0, dimension])
        at = high if own < (low + high) / 2 else low
        sliders.append({"name": f"z[{dimension}]", "low": low, "high": high, "kl": kl, "at": at})
    values = {"sliders": sliders, "active": len(shown.order), "latent_dim": len(shown.activity)}
    return Panel("traversals", "Traversals", 8, values)


def codes(made: Material) -> Panel | None:
    """The codes of more than two dimensions on two planes, and the KL of each dimension."""
    if made.snapshots:
        return None
    shown = made.shown
    drawn = {"dimensions": plots.dimensions(shown)}
    captions = []
    for n, found in enumerate(planes(shown.codes, shown.order)):
        name = f"codes{n}"
        columns = made.columns._asdict()
        drawn[name] = plots.codes(name, found, columns, made.groups, len(made.chosen))
        captions.append((name, found.title, found.caption))
    values = {"planes": captions, "images": len(shown.codes), "kl": shown.kl is not None}
    return Panel("codes", "Latent space", 12, values, drawn)


def posteriors(made: Material) -> Panel | None:
    """Exact posteriors of images beside their approximations."""
    document = made.document()
    if not document or not made.chosen or made.paths:
        return None
    state = document["snapshots"][-1]
    slider = {"last": len(state["images"][0]["draws"]) - 1, "first": plots.FIRST_K}
    return Panel("posteriors", "Posterior explorer", 12, {"slider": slider}, plots.explorer(state))


def curves(made: Material) -> Panel | None:
    """The learning curves."""
    drawn = plots.curves([made.subject])
    if not drawn:
        return None
    return Panel("curves", "Learning curves", 6, {"names": list(drawn)}, drawn)


def reconstructions(made: Material) -> Panel:
    """Images, their reconstructions and their ELBO."""
    elbo = [f"{value:.1f}" for value in made.shown.scores.elbo[:RECONSTRUCTIONS].tolist()]
    rows = list(zip(*made.first, elbo, strict=False))
    return Panel("reconstructions", "Reconstructions", 6, {"rows": rows})


def reliability(made: Material) -> Panel:
    """How far log p(x) can be trusted: k-hat, a second estimate, the bound over K."""
    scores = made.shown.scores
    each = made.subject.test.noun
    drawn = {}
    k_hat = scores.pareto_k
    if k_hat.isfinite().any():
        drawn["k_hats"] = plots.k_hats(k_hat[k_hat.isfinite()].tolist(), each)
    first, second, method = _two_estimates(made)
    if first:
        drawn["estimates"] = plots.estimates(first, second)
    curve = list(bounds(made.subject.results.get("k_curve")))
    exact = None
    if curve:
        exact = _exact_level(made, curve)
        drawn["k_curve"] = plots.k_curve(curve, exact, each)
    covered = ""
    calibrated = calibration_of(made.subject.results)
    if calibrated is not None:
        drawn["calibration"] = plots.calibration(calibrated)
        for region, share in calibrated["coverage"].items():
            covered += f", {float(region):.0%}: {share['share']:.1%}"
    worst = []
    order = scores.log_likelihood.argsort()[:WORST].tolist()
    urls = pictures(made.shown.reconstructions[order, 0])
    for n, url in zip(order, urls, strict=True):
        log_p = f"{scores.log_likelihood[n]:.1f}"
        worst.append((url, log_p, f"{k_hat[n]:.2f}"))
    values = {
        "images": len(k_hat),
        "num_samples": made.shown.num_samples,
        "worst": worst,
        "method": method,
        "checked": len(first),
        "exact": exact is not None,
        "covered": covered.removeprefix(", "),
    }
    columns = 8 if made.paths else 12
    return Panel("reliability", "How far to trust log p(x)", columns, values, drawn)


def _two_estimates(made: Material) -> tuple[list[float], list[float], str]:
    """Both estimates of log p(x), for images that have two, and the name of the second method."""
    exact = _exact(made)
    if exact:
        first = made.shown.scores.log_likelihood[: len(exact)].tolist()
        pairs = zip(first, exact, strict=True)
        known = [(one, other) for one, other in pairs if other == other]
        return [one for one, _ in known], [other for _, other in known], "quadrature"
    check = made.subject.results.get("check")
    if isinstance(check, Mapping):
        values = check.get("importance_sampling"), check.get("second")
        if all(isinstance(each, list) and each for each in values):
            return list(values[0] or []), list(values[1] or []), str(check.get("method")).upper()
    return [], [], ""


def _exact(made: Material) -> list[float]:
    """log p(x) by quadrature of the first images, if there is any."""
    if not made.snapshots:
        return []
    return [explored.log_likelihood for explored in made.snapshots[-1].explored]


def _exact_level(
    made: Material, curve: Sequence[tuple[int, float, float]]
) -> tuple[float, float] | None:
    """The exact log p(x) of the images of the curve, and its error.

    It is the bound of K samples for all images, plus what quadrature adds to it for a few.
    """
    if not made.chosen or not made.snapshots:
        return None
    explored = made.snapshots[-1].explored
    of_all = {num_samples: mean for num_samples, mean, _ in curve}
    common = [k for k in explored[0].draws.curve if k in of_all]
    if not common:
        return None
    k = max(common)
    added = torch.tensor([each.log_likelihood - each.draws.curve[k] for each in explored])
    added = added[added.isfinite()]
    if len(added) < 2:
        return None
    return of_all[k] + float(added.mean()), float(added.std()) / sqrt(len(added))


def interpolations(made: Material) -> Panel | None:
    """The line from one image to another."""
    if not made.paths:
        return None
    return Panel("interpolations", "Interpolation", 4)


def classifier(made: Material) -> Panel | None:
    """How often q(y | x) is right, and how far its probabilities can be trusted."""
    found = classification_of(made.subject.results)
    if found is None:
        return None
    values = {
        "accuracy": f"{found['accuracy']:.2%} ± {found['standard_error']:.2%}",
        "log_loss": f"{found['log_loss']:.3f} ± {found['log_loss_error']:.3f}",
        "calibration_error": f"{found['calibration_error']:.2%}",
        "images": f"{found['num_images']:,.0f}",
    }
    drawn = {"classifier": plots.classifier(found)}
    return Panel("classifier", "Classifier q(y | x)", 12, values, drawn)


def table(made: Material) -> Panel | None:
    """All metrics with their meanings."""
    subject = made.subject
    rows = metrics(subject.results, subject.vae.likelihood.is_density, subject.test.noun)
    return Panel("metrics", "Test metrics", 8, {"rows": rows})


def options(made: Material) -> Panel:
    """What was run, with which versions."""
    subject = made.subject
    return Panel("run", "What was run", 4, {"facts": subject.facts, "options": subject.options})


PANELS = (
    samples,
    plane,
    traversals,
    curves,
    reconstructions,
    codes,
    posteriors,
    reliability,
    interpolations,
    classifier,
    table,
    options,
)
