"""Recipes: of the docstrings of the base classes, of the experiments, and as plain values."""

import inspect
import textwrap
from itertools import takewhile

import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from families import make_vae
from pyro import poutine

import pyro_vae as pv
from pyro_vae import testing
from pyro_vae.runs.parts import Choice
from pyro_vae.runs.recipe import Recipe

PUBLIC = {name: getattr(pv, name) for name in pv.__all__}
NAMES = {"dist": dist, "nn": torch.nn, "poutine": poutine, "pyro": pyro, "torch": torch, **PUBLIC}


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


def test_only_known_classes_are_known():
    assert Recipe().is_known()
    assert not Recipe(prior=Choice("my_module.MyPrior")).is_known()
    assert not Recipe(data="my_module.my_data").is_known()
    with pytest.raises(pv.RequestError, match="there is no class"):
        Recipe(prior=Choice("no_such_module.MyPrior")).check(trust=True)


def test_the_recipe_of_the_previous_version(run_dir, tmp_path):
    """Without the options that it did not have, and without null values."""
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    for name in ("test_samples", "test_images"):
        del content[name]
    del content["encoder"]["init_args"]["initialization"]
    content["encoder"]["init_args"]["activation"] = {
        "class_path": "torch.nn.ReLU",
        "init_args": {"inplace": False},
    }
    recipe = Recipe.from_yaml(yaml.safe_dump(content))
    recipe.check()
    assert (recipe.test_samples, recipe.latent_dim) == (1000, 2)
