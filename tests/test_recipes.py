"""The classes in the docstrings of the base classes work as written there, and the experiments' recipes can be trained."""

import inspect
import textwrap
from itertools import takewhile
from pathlib import Path

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import make_vae
from pyro import poutine

import pyro_vae as pv
from pyro_vae import testing
from pyro_vae.cli.options import parse_training
from pyro_vae.runs.build import build_training

PUBLIC = {name: getattr(pv, name) for name in pv.__all__}
NAMES = {"dist": dist, "nn": torch.nn, "poutine": poutine, "pyro": pyro, "torch": torch, **PUBLIC}

FOLDER = Path(__file__).parents[1] / "experiments"
FILES = [path for path in sorted(FOLDER.rglob("*.yaml")) if "results" not in path.parts]


def recipe(base):
    """The class in the indented block of a docstring."""
    lines = inspect.getdoc(base).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("    class "))
    block = takewhile(lambda line: not line or line.startswith("    "), lines[start:])
    made = {}
    exec(textwrap.dedent("\n".join(block)), NAMES, made)
    (cls,) = made.values()
    assert issubclass(cls, base)
    return cls


def train(vae, **options):
    images = pv.Split(torch.randint(0, 256, (8, 1, 4, 4), dtype=torch.uint8))
    before = [param.clone() for param in vae.parameters()]
    (record,) = pv.fit(
        vae, pv.Data("small", images, images, images), epochs=1, engine="eager", **options
    )
    assert not any(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    return record


def test_prior():
    testing.check_prior(recipe(pv.Prior)(2))


def test_posterior():
    testing.check_posterior(recipe(pv.Posterior)())


def test_likelihood():
    testing.check_likelihood(recipe(pv.Likelihood)())


def test_schedule():
    assert train(make_vae(), beta=recipe(pv.Schedule)())["beta"] > 3


def test_objective():
    train(make_vae(), objective=recipe(pv.TensorELBO)())


def test_model(x):
    parts = make_vae(latent_dim=3)
    vae = recipe(pv.Model)(
        parts.encoder, parts.posterior, parts.decoder, parts.likelihood, latent_dim=3
    )
    train(vae)
    assert vae.latent_dim == 3
    assert vae.sample(5).shape == vae.sample_mean(5).shape == (5, 1, 4, 4)
    assert vae.reconstruct_mean(x).shape == x.shape
    assert pv.log_weights(vae.model, vae.guide, x, num_samples=4).shape == (4, 6)
    score = pv.evaluate(vae, pv.Split((255 * x).byte()), num_samples=4)["log_likelihood"]["mean"]
    assert torch.tensor(score).isfinite()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_experiments(file, few):
    """Up to the dry run of the first step, with few images."""
    options = [
        "--data",
        str(few),
        "--validation_size",
        "10",
        "--batch_size",
        "20",
        "--engine",
        "eager",
    ]
    vae, _, training = build_training(parse_training(["--config", str(file), *options]).recipe)
    assert training.epochs >= 3
    y = torch.zeros(2, dtype=torch.int64) if vae.needs_labels else None
    assert vae.sample(2, y).shape == (2, 1, 28, 28)
