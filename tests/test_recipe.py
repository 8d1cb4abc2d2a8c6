"""Recipes: of the docstrings of the base classes, of the experiments, and as plain values."""

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
from pyro_vae.runs.build import build_model, build_training, make
from pyro_vae.runs.parts import Choice
from pyro_vae.runs.recipe import Recipe

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


def plain_values():
    yield Recipe()
    yield Recipe(data="digits", latent_dim=3, epochs=2, clip_grad_norm=1.5, report=False)
    capacity = {"class_path": "Linear", "init_args": {"end": 3.0}}
    yield Recipe(
        prior=Choice("VampPrior", {"components": 5}),
        encoder=Choice("pyro_vae.MLP", {"hidden": [8], "activation": "torch.nn.Tanh"}),
        objective=Choice("CapacityELBO", {"capacity": capacity, "gamma": 10.0}),
        posterior=Choice("DiagonalNormal", {"log_scale_limits": [-3.0, 3.0]}),
        lr_scheduler=Choice("LambdaLR", {"lr_lambda": "torch.nn.init.ones_"}),
    )


@pytest.mark.parametrize("given", [*plain_values()], ids=["default", "values", "parts"])
def test_a_recipe_is_what_its_yaml_says(given):
    given.check()
    assert Recipe.from_yaml(given.to_yaml()) == given


def test_nested_classes_are_built_by_their_annotations():
    *_, given = plain_values()
    assert make(given, "objective").schedule.end == 3.0
    assert make(given, "posterior").log_scale_limits == (-3.0, 3.0)
    encoder = make(given, "encoder", in_shape=(1, 4, 4), out_shape=(2, 3))
    assert any(isinstance(layer, torch.nn.Tanh) for layer in encoder.modules())


def test_parts_are_constructed_once(monkeypatch, digits):
    """In particular a posterior that learns its number of parameters from its options."""
    made = []
    for cls in (pv.LowRankNormal, pv.FlowPosterior, pv.Bernoulli, pv.DiscretizedLogistic):
        before = cls.__init__

        def spy(self, *args, before=before, **options):
            made.append(type(self).__name__)
            before(self, *args, **options)

        spy.__wrapped__ = before
        monkeypatch.setattr(cls, "__init__", spy)
    for posterior, likelihood in (
        ("LowRankNormal", "DiscretizedLogistic"),
        ("FlowPosterior", "Bernoulli"),
    ):
        made.clear()
        recipe = Recipe(posterior=Choice(posterior), likelihood=Choice(likelihood))
        build_model(recipe, (1, 8, 8))
        assert sorted(made) == sorted([posterior, likelihood])


def test_a_class_that_contradicts_itself(monkeypatch):
    monkeypatch.setattr(pv.LowRankNormal, "num_params", 2, raising=False)
    with pytest.raises(pv.RequestError, match="declares num_params = 2"):
        build_model(Recipe(posterior=Choice("LowRankNormal")), (1, 8, 8))


def test_only_known_classes_are_known():
    assert Recipe().is_known()
    assert not Recipe(prior=Choice("my_module.MyPrior")).is_known()
    assert not Recipe(data="my_module.my_data").is_known()
    with pytest.raises(pv.RequestError, match="there is no class"):
        Recipe(prior=Choice("no_such_module.MyPrior")).check(trust=True)
