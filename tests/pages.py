"""Shared by the tests of pages: little effort, small models and data, and a page's document."""

from __future__ import annotations

import json
from typing import Any

import torch
from families import SHAPE

import pyro_vae as pv
from pyro_vae.reporting.overview import Effort
from pyro_vae.runs.folder import Run
from pyro_vae.runs.load import open_run

TINY = Effort(drawn=40, scored=40, samples=10, explored=3, several=2, steps=20)

HOSTILE = "</script><script>hacked=1</script><img src=x onerror=hacked=1>$$x$$"


def random_split(n: int = 40, labels: bool = True) -> pv.Split:
    images = torch.bernoulli(torch.full((n, *SHAPE), 0.4))
    return pv.Split(images, torch.arange(n) % 3 if labels else None)


def random_data(n: int = 40) -> pv.Data:
    return pv.Data("noise", random_split(n), random_split(n), random_split(n))


def make_conditional(latent_dim: int = 2) -> pv.ConditionalVAE:
    encoder = pv.MLP(SHAPE, (2, latent_dim), hidden=(8,))
    decoder = pv.MLP((latent_dim + 3,), (1, *SHAPE), hidden=(8,))
    parts = pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    return pv.ConditionalVAE(*parts, data_shape=SHAPE, label_dim=3)


def make_relaxed(latent_dim: int = 3) -> pv.VAE:
    encoder = pv.MLP(SHAPE, (2, latent_dim), hidden=(8,))
    decoder = pv.MLP((latent_dim,), (1, *SHAPE), hidden=(8,))
    likelihood = pv.Bernoulli(relaxed=True)
    return pv.VAE(pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, likelihood)


def document_in(text: str) -> Any:
    """The JSON document in a page."""
    document = text.partition('<script type="application/json" id="data">')[2]
    return json.loads(document.partition("</script>")[0])


def opened_run(run: Run) -> tuple[pv.Model, pv.Data]:
    saved = open_run(run.path)
    return saved.vae, saved.data()


def record(epoch):
    names = ("elbo", "validation_elbo", "kl", "validation_kl", "active_units", "beta")
    return {"epoch": epoch, **dict.fromkeys(names, 1.0)}


def results(images=100, subset=100, density=True):
    value = {"mean": -90.0, "standard_error": 1.0, "num_samples": 1000, "num_images": images}
    of_subset = {**value, "mean": -89.0, "num_images": subset}
    found = {
        "elbo": value,
        "kl": value,
        "log_likelihood": {**of_subset, "elbo_same_images": of_subset},
        "active_units": {"count": 2, "latent_dim": 2},
    }
    if subset < images:
        found["log_likelihood_all_images"] = {**value, "mean": -88.0}
    return found
