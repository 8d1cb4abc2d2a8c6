"""A model in hand becomes a run folder, however it was trained."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
import torch
from run_folders import equal, trained

import pyro_vae as pv
from pyro_vae.runs.load import open_run
from pyro_vae.runs.log import read_records

RECIPE = pv.Recipe(data="digits", latent_dim=2, device="cpu")


def build(data, latent_dim=2, likelihood=None):
    encoder = pv.MLP(data.shape, (2, latent_dim))
    decoder = pv.MLP((latent_dim,), (1, *data.shape))
    prior, posterior = pv.StandardNormal(latent_dim), pv.DiagonalNormal()
    return pv.VAE(prior, encoder, posterior, decoder, likelihood or pv.Bernoulli())


@pytest.fixture
def own(digits):
    """A model after steps of a loop of the user's own."""
    vae = build(digits)
    optimizer = torch.optim.SGD(vae.parameters(), lr=1e-3)
    svi = pv.SVI(vae.model, vae.guide, lambda params: optimizer, pv.DReGELBO(num_particles=2))
    for _ in range(2):
        svi.step(digits.train.scored("binary")[:50])
    return vae


def test_a_model_of_ones_own_loop(own, digits, tmp_path):
    """Every command takes it, except resuming."""
    path = pv.save_run(own, tmp_path / "run", RECIPE, digits)
    assert equal(pv.load_run(path).state_dict(), own.state_dict())
    assert equal(pv.load_run(path, "best").state_dict(), own.state_dict())
    trained("evaluate", path, "--num_samples", 2, "--check_images", 0)
    trained("generate", path, "samples", "--count", 4)
    trained("report", path)
    assert open_run(path).data().fingerprint == digits.fingerprint


def test_parameters_alone_are_not_resumed(own, digits, tmp_path, refused):
    path = pv.save_run(own, tmp_path / "run", RECIPE, digits)
    assert "new run_dir" in refused("train", "--run_dir", path, "--resume", "--epochs", 3)


def test_a_model_of_fit_is_resumed(digits, tmp_path):
    """As the command's own run, bit for bit."""
    flags = ["train", "--data", "digits", "--latent_dim", 2, "--device", "cpu", "--epochs", 2]
    trained(*flags, "--engine", "eager", "--run_dir", tmp_path / "whole")
    torch.manual_seed(1)
    vae = pv.load_run(tmp_path / "whole")
    training = pv.fit(vae, digits, epochs=1, seed=0, engine="eager")
    records = list(training)
    path = pv.save_run(vae, tmp_path / "run", RECIPE, digits, training=training, records=records)
    assert read_records(open_run(path).run) == records
    deque(again := pv.fit(vae, digits, epochs=1, seed=1, engine="eager"), 0)
    assert again.epoch == 1
    trained("train", "--run_dir", path, "--resume", "--epochs", 2)
    assert [record["epoch"] for record in read_records(open_run(path).run)] == [1, 2]


def test_without_a_recipe_the_weights_are_saved(own, digits, tmp_path, caplog):
    path = pv.save_run(own, tmp_path / "run")
    assert "recipe=" in caplog.text
    other = build(digits)
    other.load_state_dict(torch.load(path / "weights.pt"))
    assert equal(other.state_dict(), own.state_dict())
    with pytest.raises(pv.RequestError, match=r"config\.yaml"):
        pv.load_run(path)
    pv.save_run(own, tmp_path / "other", RECIPE)
    assert "data=" in caplog.text


PRIOR = pv.Choice("pyro_vae.GaussianMixture")


@pytest.mark.parametrize(
    ("recipe", "named"),
    [
        (replace(RECIPE, latent_dim=3), "another model"),
        (replace(RECIPE, prior=PRIOR), "another model"),
        (replace(RECIPE, model=pv.Choice("ConditionalVAE")), "ConditionalVAE"),
        (replace(RECIPE, likelihood=pv.Choice("Bernoulli", {"relaxed": True})), "other values"),
        (replace(RECIPE, data="nowhere.npz"), "nowhere"),
        (replace(RECIPE, image_size=9), "other data"),
        (replace(RECIPE, latent_dim=-1), "latent_dim"),
    ],
)
def test_a_recipe_of_another_model_is_refused(own, digits, tmp_path, recipe, named):
    with pytest.raises(pv.RequestError, match=named):
        pv.save_run(own, tmp_path / "run", recipe, digits)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("condition_on", ["labels", "covariates"])
def test_a_recipe_of_other_labels_is_refused(tmp_path, condition_on):
    """The images are equal, and so is the number of classes and of covariates."""
    images = np.random.default_rng(0).integers(0, 256, (36, 4, 4), dtype=np.uint8)
    path = tmp_path / "a.npz"
    datasets = []
    for order in (np.arange(36) % 3, 2 - np.arange(36) % 3):
        np.savez(path, images=images, labels=order, covariates=np.eye(3)[order])
        datasets.append(pv.load_data(str(path), condition_on=condition_on))
    other, data = datasets
    encoder, decoder = pv.MLP(data.shape, (2, 2)), pv.MLP((2 + 3,), (1, *data.shape))
    parts = (pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    vae = pv.ConditionalVAE(*parts, data.shape, label_dim=3)
    recipe = pv.Recipe(
        data=str(path),
        condition_on=condition_on,
        latent_dim=2,
        model=pv.Choice("ConditionalVAE"),
        device="cpu",
    )
    with pytest.raises(pv.RequestError, match="loads other labels than those of"):
        pv.save_run(vae, tmp_path / "run", recipe, other)
    assert not (tmp_path / "run").exists()
    pv.save_run(vae, tmp_path / "run", recipe, data)


def test_a_training_of_another_model_is_refused(own, digits, tmp_path):
    training = pv.fit(build(digits), digits, epochs=1, engine="eager")
    with pytest.raises(pv.RequestError, match="another model"):
        pv.save_run(own, tmp_path / "run", RECIPE, digits, training=training)


def test_nothing_is_overwritten(own, digits, tmp_path):
    pv.save_run(own, tmp_path / "run", RECIPE, digits)
    with pytest.raises(pv.RequestError, match="exists already"):
        pv.save_run(own, tmp_path / "run", RECIPE, digits)
    with pytest.raises(pv.RequestError, match="exists already"):
        pv.save_run(own, tmp_path / "run")
