"""From a recipe to objects: each part is constructed once, from plain values."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.options import parse_training
from pyro_vae.runs.build import build_model, build_training, make
from pyro_vae.runs.parts import Choice
from pyro_vae.runs.recipe import Recipe

FOLDER = Path(__file__).parents[1] / "experiments"


FILES = [path for path in sorted(FOLDER.rglob("*.yaml")) if "results" not in path.parts]


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
    if "\nlabels:" in file.read_text():
        options += ["--labels", "10"]  # one of each class
    vae, _, training = build_training(parse_training(["--config", str(file), *options]).recipe)
    assert training.epochs >= 3
    y = torch.zeros(2, dtype=torch.int64) if vae.needs_labels else None
    assert vae.sample(2, y).shape == (2, 1, 28, 28)


def test_nested_classes_are_built_by_their_annotations():
    capacity = {"class_path": "Linear", "init_args": {"end": 3.0}}
    given = Recipe(
        posterior=Choice("DiagonalNormal", {"log_scale_limits": [-3.0, 3.0]}),
        encoder=Choice("pyro_vae.MLP", {"hidden": [8], "activation": "torch.nn.Tanh"}),
        objective=Choice("CapacityELBO", {"capacity": capacity, "gamma": 10.0}),
    )
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


@pytest.mark.parametrize("value", [0, -1.0, float("inf")])
def test_what_is_built_only_to_resume(value):
    constant = {"class_path": "Constant", "init_args": {"value": value}}
    recipe = Recipe(objective=Choice("CapacityELBO", {"capacity": constant}))
    recipe.check()
    with pytest.raises(pv.RequestError, match="value must be positive"):
        make(recipe, "objective")
