"""Checks before the first step: batch sizes, shapes of networks, and batch normalization."""

from __future__ import annotations

import copy
import logging

import numpy as np
import pyro
import pytest
import torch
from families import Normalized, build
from torch import nn

import pyro_vae as pv
from pyro_vae.engine import distributed


@pytest.mark.parametrize("batch_size", [1, 7, 1348, 1349])
def test_any_batch_size(digits, batch_size):
    few = pv.Data(
        "few",
        digits.train if batch_size > 100 else digits.train[:20],
        digits.validation[:3],
        digits.test,
    )
    rows = []
    vae = build(few)
    training = pv.fit(vae, few, epochs=1, batch_size=batch_size, engine="eager")
    vae.encoder.register_forward_hook(
        lambda module, args, out: rows.append(len(out) if module.training else 0)
    )
    (record,) = training
    assert sum(rows) == len(few.train)
    assert record["step"] == -(-len(few.train) // batch_size)


def test_the_default_batch_is_at_most_the_training_images(digits, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    few = pv.Data("few", digits.train[:45], digits.validation[:3], digits.test)
    (record,) = pv.fit(build(few), few, epochs=1)
    assert record["step"] == 1
    assert "45 training images" in caplog.text


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("encoder", pv.MLP((1, 8, 8), (3, 3))),
        ("encoder", pv.MLP((1, 8, 8), (2, 4))),
        ("encoder", pv.MLP((1, 8, 8), (6,))),
        ("decoder", pv.MLP((3,), (2, 1, 8, 8))),
        ("decoder", pv.MLP((3,), (1, 1, 7, 8))),
        ("decoder", pv.MLP((3,), (64,))),
    ],
)
def test_wrong_shapes_are_one_line_that_names_the_part(digits, name, network):
    with pytest.raises(pv.RequestError, match=f"^{name} returns") as caught:
        pv.fit(build(digits, **{name: network}), digits)
    assert "\n" not in str(caught.value)


class NormalizedImages(nn.Module):
    """Images with batch normalization over their positions."""

    def __init__(self, outputs):
        super().__init__()
        self.layers = nn.Sequential(
            nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, int(np.prod(outputs)))
        )
        self.outputs = outputs

    def forward(self, x):
        return self.layers(x).unflatten(1, self.outputs)


@pytest.mark.parametrize(
    ("rows", "batch_size", "processes"), [(21, 10, 1), (129, None, 1), (5, 1, 1), (22, 10, 2)]
)
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_one_image_cannot_be_normalized(digits, part, rows, batch_size, processes, monkeypatch):
    few = pv.Data("few", digits.train[:rows], digits.validation[:8], digits.test)
    networks = {
        "encoder": Normalized(digits.shape, (2, 3)),
        "decoder": Normalized((3,), (1, *digits.shape)),
    }
    vae = build(few, **{part: networks[part]})
    before = copy.deepcopy(vae.decoder.state_dict())
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    monkeypatch.setattr(distributed, "broadcast", lambda tensor: tensor)
    vae.initialized = True
    with pytest.raises(pv.RequestError, match=f"batch_size={batch_size or 128} leaves") as caught:
        pv.fit(vae, few, epochs=1, batch_size=batch_size)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(value, before[name]) for name, value in vae.decoder.state_dict().items())
    if processes > 1:
        return
    size = int(str(caught.value).rpartition(" ")[2])
    (record,) = pv.fit(vae, few, epochs=1, batch_size=size)
    assert record["elbo"] > -200


@pytest.mark.parametrize("kind", ["positions", "evaluated", "two images"])
def test_one_image_is_enough_without_statistics_of_it(digits, kind):
    class Evaluated(Normalized):
        def train(self, mode=True):
            super().train(mode)
            self.layers[1].eval()
            return self

    encoder = {
        "positions": lambda: NormalizedImages((2, 3)),
        "evaluated": lambda: Evaluated(digits.shape, (2, 3)),
        "two images": lambda: Normalized(digits.shape, (2, 3)),
    }[kind]()
    rows = 22 if kind == "two images" else 21
    few = pv.Data("few", digits.train[:rows], digits.validation[:8], digits.test)
    (record,) = pv.fit(build(few, encoder=encoder), few, epochs=1, batch_size=10)
    assert record["step"] == 3


class Undeclared(pv.Model):
    def model(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)):
            pyro.sample("z", self.encode(x))


class Renamed(Undeclared):
    latent_dim = 3

    def model(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)):
            code = pyro.sample("code", pyro.distributions.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", self.decode(code), obs=x)


@pytest.mark.parametrize(("model", "named"), [(Undeclared, "latent_dim"), (Renamed, "site z")])
def test_a_model_that_declares_too_little(digits, model, named):
    parts = build(digits)
    vae = model(parts.encoder, parts.posterior, parts.decoder, parts.likelihood)
    with pytest.raises(pv.RequestError, match=named) as caught:
        pv.fit(vae, digits, epochs=1)
    assert "\n" not in str(caught.value)


def test_other_data_models_objectives_and_seeds_are_refused(digits):
    vae = build(digits)
    x = digits.train.x[:20]
    for data in (x, digits.train, torch.utils.data.TensorDataset(x)):
        with pytest.raises(pv.RequestError, match="data must be Data"):
            pv.fit(vae, data, epochs=1)
    with pytest.raises(pv.RequestError, match="vae must be a model"):
        pv.fit(digits, vae, epochs=1)
    for objective in ("Trace_ELBO", pv.DReGELBO):
        with pytest.raises(pv.RequestError, match="objective must be an object"):
            pv.fit(vae, digits, epochs=1, objective=objective)
    for seed in (-1, 2**32, "a", 0.5):
        with pytest.raises(pv.RequestError, match="seed must be an integer from 0 to 4294967295"):
            pv.fit(vae, digits, epochs=1, seed=seed)
    pv.fit(vae, digits, epochs=np.int64(1), seed=np.int64(3))
