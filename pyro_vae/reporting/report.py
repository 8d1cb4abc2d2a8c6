"""Reports from Python: a page about one model, or a page that compares several."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from pyro_vae.data.split import Data, Split
from pyro_vae.engine.random_state import forked_rng
from pyro_vae.errors import RequestError
from pyro_vae.evaluation.metrics import evaluate
from pyro_vae.reporting.overview import FULL, Effort
from pyro_vae.reporting.subject import Subject, facts_of
from pyro_vae.runs.store import write
from pyro_vae.training.fit import Record
from pyro_vae.vae import Model


def report(
    vae: Model,
    data: Data,
    path: str | Path,
    *,
    records: Sequence[Record] = (),
    results: Mapping[str, Any] | None = None,
    title: str = "",
    seed: int = 0,
) -> Path:
    """Write an HTML page about a trained model, with an explorer of its latent space.

    The page is one file that loads nothing. Making it takes seconds to minutes; it needs Bokeh and
    Jinja2 (`pip install 'pyro_vae[report]'`).

    Arguments:
        vae: A trained model.
        data: Its data; the page shows test images.
        path: The file to write, which ends in .html.
        records: What `fit` yielded; without them the page has no learning curves.
        results: What `evaluate` returned for the test images; by default they are scored, log p(x)
            with 100 importance samples for each of 500 images.
        title: The title of the page; by default the name of the data.
        seed: Seed of the draws. The global random state is left as it is.

    Returns:
        The path of the file.

    Raises:
        RequestError: If `path` does not end in .html, or Bokeh or Jinja2 is not installed.
        StorageError: If the file cannot be written.
    """
    path = check_page(path)
    if results is None:
        results = _evaluated(vae, data.test, seed)
    subject = Subject(
        title or data.name,
        vae,
        data.test,
        results=results,
        records=records,
        facts=facts_of(vae, data.test),
    )
    return write_page(path, [subject], seed=seed)


def compare_models(
    models: Mapping[str, Model], data: Data, path: str | Path, *, seed: int = 0
) -> Path:
    """Write an HTML page that compares models with the first, on the same test images.

    Models whose numbers cannot be compared with the first's, such as log-densities with
    log-probabilities, are listed with the reason.

    Arguments:
        models: Trained models, by name.
        data: Their data.
        path: The file to write, which ends in .html.
        seed: Seed of the draws. The global random state is left as it is.

    Returns:
        The path of the file.

    Raises:
        RequestError: If there are fewer than two models, `path` does not end in .html, or Bokeh or
            Jinja2 is not installed.
        StorageError: If the file cannot be written.
    """
    path = check_page(path)
    if len(models) < 2:
        raise RequestError("a comparison needs at least two models; use report for one")
    subjects = []
    for name, vae in models.items():
        results = _evaluated(vae, data.test, seed)
        facts = facts_of(vae, data.test)
        subjects.append(Subject(name, vae, data.test, results=results, facts=facts))
    return write_page(path, subjects, seed=seed)


def _evaluated(vae: Model, test: Split, seed: int) -> Mapping[str, Any]:
    with forked_rng():
        torch.manual_seed(seed)
        return evaluate(vae, test, FULL.samples, min(FULL.scored, len(test)))


def check_installed() -> None:
    """Raise `RequestError` unless the libraries that make pages are installed."""
    if not (find_spec("bokeh") and find_spec("jinja2")):
        raise RequestError(
            "the report needs Bokeh and Jinja2; install them with pip install 'pyro_vae[report]'"
        )


def check_page(path: str | Path) -> Path:
    """The path of a page, if one can be made there.

    Raises:
        RequestError: If it cannot be.
    """
    check_installed()
    file = Path(path)
    if file.suffix != ".html" or os.path.isdir(file) or "\0" in str(file):
        raise RequestError(f"{file} must be a file that ends in .html")
    return file


def write_page(
    path: Path, subjects: Sequence[Subject], effort: Effort = FULL, seed: int = 0
) -> Path:
    """Write the page about one model, or the page that compares several, and return its path."""
    from pyro_vae.reporting.comparison import comparison
    from pyro_vae.reporting.page import page

    if len(subjects) == 1:
        text = page(subjects[0], effort, seed)
    else:
        text = comparison(subjects, effort, seed)
    return write(path, text.encode())
