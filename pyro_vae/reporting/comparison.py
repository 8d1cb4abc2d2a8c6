"""The HTML page that compares several models. Needs Bokeh and Jinja2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt
from typing import NamedTuple

import torch
from bokeh.plotting import figure
from torch import Tensor

from pyro_vae.engine.random_state import forked_rng
from pyro_vae.reporting import plots
from pyro_vae.reporting.numbers import log_likelihood_key, number, with_error
from pyro_vae.reporting.overview import FULL, Effort, overview
from pyro_vae.reporting.pictures import pictures
from pyro_vae.reporting.rendering import render
from pyro_vae.reporting.style import COLOURS
from pyro_vae.reporting.subject import SECONDS, Subject, why_not_comparable

# Pictures of each model.
STRIP = 20

# The columns of the table after the options.
MERITS = (
    "validation ELBO",
    "ELBO",
    "log p(x)",
    "k-hat > 0.7",
    "K",
    "test set",
    "active",
    "seconds",
)


class Scored(NamedTuple):
    """A model of the page, with its scores of each image and pictures of its samples.

    Attributes:
        subject: The model.
        elbo: Its ELBO of each image, in nats.
        log_likelihood: Its estimate of log p(x) of each image, in nats.
        samples: Pictures as URLs.
    """

    subject: Subject
    elbo: Tensor
    log_likelihood: Tensor
    samples: list[str]


class Group(NamedTuple):
    """Models that differ in the seed only."""

    name: str
    members: list[Scored]


class Difference(NamedTuple):
    """What a group has more than the first one, in nats, paired by seed and image.

    Attributes:
        name: The name of the group.
        mean: The mean over seeds and images.
        error: Its standard error over images, or None for one image.
        seeds: The mean of each seed.
    """

    name: str
    mean: float
    error: float | None
    seeds: list[float]

    @property
    def text(self) -> str:
        """The mean and its error."""
        if self.error is None:
            return f"{self.mean:+.2f}"
        return f"{self.mean:+.2f} ± {self.error:.2f}"

    @property
    def range(self) -> str:
        """The lowest and the highest seed, if there are several."""
        if len(self.seeds) < 2:
            return ""
        return f"{min(self.seeds):+.2f} to {max(self.seeds):+.2f}"


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
    differing = _differing_options(compared)
    groups = _groups([_scored(subject, effort, seed) for subject in compared], differing)
    differences = {
        "ELBO": [_difference(group, groups[0], "elbo") for group in groups[1:]],
        "log p(x)": [_difference(group, groups[0], "log_likelihood") for group in groups[1:]],
    }
    colours = {}
    table = []
    for n, group in enumerate(groups):
        for member in group.members:
            subject = member.subject
            colours[subject.name] = COLOURS[n % len(COLOURS)]
            options = [_short(subject.options.get(key, "")) for key in differing]
            table.append((subject.name, [*options, *_merits(subject)]))
    curves = plots.curves(compared, [colours[subject.name] for subject in compared])
    forests = _forests(differences, groups[0].name)
    context = {
        "data": None,
        "title": f"{len(subjects)} runs",
        "first": first,
        "each": subjects[0].test.noun,
        "groups": groups,
        "colours": COLOURS,
        "columns": [*differing, *MERITS],
        "rows": table,
        "differences": list(zip(*differences.values(), strict=True)),
        "images": len(groups[0].members[0].elbo),
        "num_samples": effort.samples,
        "excluded": excluded,
        "curves": list(curves),
    }
    return render("several.html", context, {**forests, **curves})


def _forests(differences: Mapping[str, Sequence[Difference]], first: str) -> dict[str, figure]:
    """A plot of the differences of each score from the first group, if there are several groups."""
    drawn = {}
    for title, found in differences.items():
        if found:
            rows = [(each.name, each.mean, each.error or 0.0, each.seeds) for each in found]
            unit = f"{title} minus that of {first}, nats"
            drawn[f"difference of {title}"] = plots.forest(rows, unit)
    return drawn


def _scored(subject: Subject, effort: Effort, seed: int) -> Scored:
    with forked_rng():
        torch.manual_seed(seed)
        shown = overview(subject.vae, subject.test, effort)
    samples = pictures(shown.samples[:STRIP])
    return Scored(subject, shown.scores.elbo, shown.scores.log_likelihood, samples)


def _differing_options(subjects: Sequence[Subject]) -> list[str]:
    """The names of the options that are not the same in all runs.

    Options of parts that differ themselves are left out, such as `prior.scale` beside `prior`.
    """
    differing: list[str] = []
    for subject in subjects:
        for key in subject.options:
            values = {other.options.get(key) for other in subjects}
            if len(values) > 1 and key not in differing:
                differing.append(key)
    return [key for key in differing if key.rpartition(".")[0] not in differing]


def _short(value: str) -> str:
    """A class without its module."""
    module, _, name = value.rpartition(".")
    if module.replace(".", "").isidentifier():
        return name
    return value


def _groups(scored: Sequence[Scored], differing: Sequence[str]) -> list[Group]:
    """The models in groups that differ in the seed only; each alone if there is one group."""
    found: dict[str, Group] = {}
    for each in scored:
        options = each.subject.options
        key = each.subject.name
        name = each.subject.name
        if options:
            key = str(sorted((name, value) for name, value in options.items() if name != "seed"))
            values = [_short(options.get(option, "")) for option in differing if option != "seed"]
            name = ", ".join(values)
        found.setdefault(key, Group(name, [])).members.append(each)
    groups = list(found.values())
    names = [group.name for group in groups]
    if len(groups) == 1 or len(set(names)) < len(names) or not all(names):
        return [Group(each.subject.name, [each]) for each in scored]
    return groups


def _difference(group: Group, first: Group, score: str) -> Difference:
    """Pairs the seeds that both have; without any, with the first member of the first group."""
    of_first = {member.subject.options.get("seed"): member for member in first.members}
    pairs = []
    for member in group.members:
        seed = member.subject.options.get("seed")
        if seed in of_first:
            pairs.append((member, of_first[seed]))
    if not pairs:
        pairs = [(member, first.members[0]) for member in group.members]
    of_seeds = torch.stack([getattr(a, score) - getattr(b, score) for a, b in pairs])
    of_images = of_seeds.mean(0)
    error = None
    if len(of_images) > 1:
        error = float(of_images.std()) / sqrt(len(of_images))
    return Difference(group.name, float(of_images.mean()), error, of_seeds.mean(1).tolist())


def _merits(subject: Subject) -> list[str]:
    """The values of `MERITS`."""
    results = subject.results
    validation = ""
    if subject.records:
        validation = f"{subject.records[-1]['validation_elbo']:.2f}"
    values = [validation]
    for key in ("elbo", log_likelihood_key(results)):
        mean = number(results, f"{key}/mean")
        error = number(results, f"{key}/standard_error")
        values.append(with_error(mean, error))
    formats = {
        "log_likelihood/share_of_images_with_k_hat_over_0.7": ".1%",
        "log_likelihood/num_samples": ",.0f",
        "elbo/num_images": ",.0f",
        "active_units/count": ",.0f",
    }
    for key, form in formats.items():
        value = number(results, key)
        values.append("" if value is None else format(value, form))
    return [*values, subject.facts.get(SECONDS, "")]
