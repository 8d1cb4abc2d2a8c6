"""The model that a page is about, what its numbers mean, and whether they can be compared."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pyro_vae.data.split import Split
from pyro_vae.training.fit import Record
from pyro_vae.vae import Model

# Kinds of values that are discrete, so that their log-likelihood is a log-probability.
DISCRETE = ("binary", "byte", "count")

# The name of a fact that comparisons show.
SECONDS = "seconds of training"


@dataclass(frozen=True)
class Subject:
    """A model that a page is about, with what is known before anything is computed for the page.

    Attributes:
        name: How the page calls it.
        vae: The model.
        test: Its test images.
        results: What `evaluate` returned for them.
        records: What `fit` yielded.
        options: What the run was asked for, by dotted names.
        facts: What else is known, by name.
        earlier: The model after earlier epochs, with their names.
        fault: Why the results cannot be compared with those of other models; empty if they can.
    """

    name: str
    vae: Model
    test: Split
    results: Mapping[str, Any] = field(default_factory=dict)
    records: Sequence[Record] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    earlier: Iterable[tuple[str, Model]] = ()
    fault: str = ""

    @property
    def given(self) -> str:
        """What the model is conditioned on: "labels", "covariates", or nothing."""
        if not self.vae.needs_labels or self.vae.infers_labels:
            return ""
        if self.test.covariates is None:
            return "labels"
        return "covariates"

    @property
    def values(self) -> str:
        """What the numbers called log p(x) are, in words."""
        likelihood = self.vae.likelihood
        kind = "log-densities"
        if not likelihood.is_density:
            kind = "cross-entropies"
        elif likelihood.pixels in DISCRETE:
            kind = "log-probabilities"
        values = f"{kind} of {likelihood.pixels} values"
        if self.given:
            values += f" given the {self.given}"
        if likelihood.given_total:
            values += f" given the total of each {self.test.noun}"
        return values

    @property
    def formula(self) -> list[tuple[str, str]]:
        """The densities of the model, each with the classes that make it."""
        parts = dict(self.vae.named_children())
        names = {name: type(part).__name__ for name, part in parts.items()}
        own = type(self.vae).__name__
        z = "z"
        x = "x"
        if self.given:
            x = "x, y"
        if self.vae.decodes_labels:
            z = "z, y"
        return [
            ("p(z)", f"{names.get('prior', own)}({self.vae.latent_dim})"),
            (f"p(x | {z})", f"{names['likelihood']}({names['decoder']}({z}))"),
            (f"q(z | {x})", f"{names['posterior']}({names['encoder']}({x}))"),
        ]

    @property
    def notes(self) -> list[str]:
        """Remarks without which the numbers mislead."""
        notes = []
        if self.given:
            notes.append(f"Given the {self.given} y: log p(x) stands for log p(x | y).")
        if self.vae.likelihood.given_total:
            each = self.test.noun
            notes.append(f"Given the total of each {each}: log p(x) stands for log p(x | total).")
        if not self.vae.likelihood.is_density:
            notes.append(
                "The likelihood is a cross-entropy, not a density: the numbers called ELBO and"
                " log p(x) are not log-probabilities, nor bounds on them."
            )
        return notes


def why_not_comparable(subject: Subject, first: Subject) -> str:
    """Why the numbers of a model cannot be set beside those of the first; empty if they can."""
    for each in (first, subject):
        if each.fault:
            return f"{each.name}: {each.fault}"
    if not _equal(subject.test.x, first.test.x):
        return f"its test images are not those of {first.name}"
    if subject.values != first.values:
        return f"its numbers are {subject.values}, those of {first.name} {first.values}"
    if subject.given and not _equal(subject.test.y, first.test.y):
        return f"its {subject.given} are not those of {first.name}"
    return ""


def _equal(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    if first is None or second is None:
        return first is second
    return first.dtype == second.dtype and torch.equal(first.cpu(), second.cpu())


def facts_of(vae: Model, test: Split) -> dict[str, str]:
    """What a page says of any model."""
    device = next(vae.parameters()).device
    parameters = sum(param.numel() for param in vae.parameters())
    threads = torch.get_num_threads()
    unit = "thread" if threads == 1 else "threads"
    where = f"{platform.machine()} CPU, {threads} {unit}"
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    return {
        "model": f"{type(vae).__name__}, {parameters:,} parameters",
        f"test {test.noun}s": f"{len(test):,} of shape {' x '.join(map(str, test.x.shape[1:]))}",
        "page made on": where,
    }
