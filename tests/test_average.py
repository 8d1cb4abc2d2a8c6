"""Averaged weights: equal to a recursion by hand, and what is scored and saved."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
from families import Normalized, build
from run_folders import contents, equal, trained
from torch.optim import SGD

import pyro_vae as pv
from pyro_vae.cli import train
from pyro_vae.runs.checkpoints import read_content

SLOW = partial(SGD, lr=0.003)


def few(data):
    return pv.Data("few", data.train[:90], data.validation, data.test)


def normalized(data):
    """A VAE with batch normalization, whose buffers are averaged as well."""
    return build(data, encoder=Normalized(data.shape, (2, 3)))


def values(vae):
    """All numbers of a model that are averaged, in float64."""
    tensors = [*vae.parameters(), *vae.buffers()]
    floats = [tensor.detach().flatten() for tensor in tensors if tensor.is_floating_point()]
    return torch.cat(floats).double()


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_the_average_is_that_of_a_recursion(digits, engine):
    vae = normalized(digits)
    options = {"epochs": 3, "batch_size": 30, "seed": 0, "engine": engine, "optimizer": SLOW}
    training = pv.fit(vae, few(digits), average=0.6, **options)
    expected = [values(vae)]
    steps = 0

    def average(*_):
        nonlocal steps
        decay = min(0.6, (1 + steps) / (10 + steps))
        expected.append(decay * expected[-1] + (1 - decay) * values(vae))
        steps += 1

    training.loop.optimizer.register_step_post_hook(average)
    for epoch, _ in enumerate(training, 1):
        assert torch.allclose(values(vae), expected[3 * epoch], rtol=1e-5, atol=1e-6)
    assert steps == 9


def test_averaging_does_not_change_the_trained_weights(digits):
    vae = normalized(digits)
    other = copy.deepcopy(vae)
    options = {"epochs": 2, "batch_size": 30, "seed": 0, "optimizer": SLOW}
    training = pv.fit(vae, few(digits), average=0.9, **options)
    records = list(training)
    others = list(pv.fit(other, few(digits), **options))
    trained = training.state_dict()["trained"]
    for name, value in trained.items():
        assert torch.equal(value, other.state_dict()[name])
    assert [record["loss"] for record in records] == [record["loss"] for record in others]
    assert records[0]["validation_elbo"] != others[0]["validation_elbo"]
    assert not torch.equal(values(vae), values(other))


def test_an_interrupted_epoch_leaves_the_average(digits):
    vae = build(digits)
    training = pv.fit(vae, few(digits), epochs=2, batch_size=30, average=0.999)
    next(training)
    update = training.loop.svi.update

    def interrupted(*args):
        update(*args)
        raise KeyboardInterrupt

    training.loop.svi.update = interrupted
    before = values(vae)
    trained = copy.deepcopy(training.state_dict()["trained"])
    with pytest.raises(KeyboardInterrupt):
        next(training)
    assert torch.equal(values(vae), before)
    moved = training.state_dict()["trained"]
    assert any(not torch.equal(moved[name], trained[name]) for name in moved)


@pytest.mark.parametrize("average", [0.0, 1.0, -0.5, float("nan")])
def test_a_decay_out_of_range_is_refused(digits, average):
    with pytest.raises(pv.RequestError, match="average must be between 0 and 1"):
        pv.fit(build(digits), digits, average=average)


def test_a_run_scores_and_saves_the_average(tmp_path, images, monkeypatch):
    """One with an interruption like one without, bit for bit."""
    scored = []
    score = train.score

    def noted(vae, data, recipe):
        scored.append(values(vae))
        return score(vae, data, recipe)

    monkeypatch.setattr(train, "score", noted)
    flags = ["train", "--data", images, "--latent_dim", 2, "--average", 0.9, "--run_dir"]
    trained(*flags, tmp_path / "whole", "--epochs", 3)
    trained(*flags, tmp_path / "parts", "--epochs", 1)
    trained(*flags, tmp_path / "parts", "--epochs", 3, "--resume")
    assert equal(contents(tmp_path / "whole"), contents(tmp_path / "parts"))
    for name, average in (("whole", scored[0]), ("parts", scored[2])):
        assert torch.equal(values(pv.load_run(tmp_path / name)), average)
    state = read_content(tmp_path / "whole" / "checkpoint.pt")["training"]
    assert state["trained"].keys() <= state["vae"].keys()
    assert not equal(state["trained"], state["vae"])
