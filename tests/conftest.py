"""Shared by all tests: seeds, a clean parameter store, small data, one trained run."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
from endings import QUICK, WHOLE, ending
from families import make_vae
from hypothesis import HealthCheck, settings

import pyro_vae as pv
from pyro_vae.cli import evaluate
from pyro_vae.cli.main import main

torch.set_num_threads(1)
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # of the processes that tests start: their threads would compete for the cores

suite = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
settings.register_profile("suite", suite)
settings.register_profile("long", suite, max_examples=2000, derandomize=False)
settings.load_profile("suite")

MNIST = [Path(__file__).parents[1] / "data", Path(__file__).parents[2] / "shared" / "data"]


@pytest.fixture(autouse=True)
def _seeded():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)


@pytest.fixture(scope="session", autouse=True)
def _quick():
    """Training ends with scores of few samples, without figures and report.

    `evaluate` calibrates with few images.
    """
    with ending(QUICK), pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate, "CALIBRATION_IMAGES", 50)
        yield


@pytest.fixture
def complete():
    """Training ends as it does for users."""
    with ending(WHOLE):
        yield


@pytest.fixture(scope="session")
def digits() -> pv.Data:
    return pv.load_data("digits")


@pytest.fixture(scope="session")
def mnist_or_none(tmp_path_factory) -> pv.Data | None:
    """MNIST, if its files were found; they are copied, because the folder may be read-only."""
    for folder in MNIST:
        if (folder / "MNIST" / "raw" / "train-images-idx3-ubyte.gz").exists():
            copy = tmp_path_factory.mktemp("data")
            raw = copy / "MNIST" / "raw"
            raw.mkdir(parents=True)
            for file in (folder / "MNIST" / "raw").glob("*.gz"):
                (raw / file.name).write_bytes(file.read_bytes())
            return pv.load_data("mnist", copy)
    return None


@pytest.fixture(scope="session")
def mnist(mnist_or_none) -> pv.Data:
    return mnist_or_none or pytest.skip("the MNIST files were not found")


@pytest.fixture(scope="session")
def few(mnist_or_none, tmp_path_factory) -> Path:
    """A file of 120 images of 28x28: from MNIST if it was found, otherwise from the digits."""
    data = mnist_or_none or pv.load_data("digits", image_size=28)
    path = tmp_path_factory.mktemp("few") / "few.npz"
    np.savez(path, images=data.train.x[:120].numpy(), labels=data.train.labels[:120].numpy())
    return path


@pytest.fixture
def vae() -> pv.VAE:
    """4x4 images, 3 latent dimensions."""
    return make_vae(latent_dim=3)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.bernoulli(torch.full((6, 1, 4, 4), 0.3))


@pytest.fixture(scope="session")
def images(tmp_path_factory) -> Path:
    """A user's own array of 60 images with labels."""
    path = tmp_path_factory.mktemp("own") / "images.npz"
    generator = np.random.default_rng(0)
    np.savez(
        path,
        images=generator.integers(0, 256, (60, 6, 5), dtype=np.uint8),
        labels=np.arange(60) % 3,
    )
    return path


@pytest.fixture
def refused(capfd):
    """Run a command that must be refused; the one line that it prints."""

    def run(*argv: object) -> str:
        capfd.readouterr()
        code = main([str(arg) for arg in argv])
        _, err = capfd.readouterr()
        assert code == 2, err
        assert err.startswith("error: ")
        assert err.count("\n") == 1, err
        return err

    return run


@pytest.fixture(scope="session")
def run_dir(tmp_path_factory) -> Path:
    """A run of two epochs on digits, two latent dimensions."""
    path = tmp_path_factory.mktemp("runs") / "run"
    argv = [
        "train",
        "--data",
        "digits",
        "--latent_dim",
        "2",
        "--epochs",
        "2",
        "--run_dir",
        str(path),
        "--device",
        "cpu",
    ]
    with ending(WHOLE):
        assert main(argv) == 0
    return path


@pytest.fixture(scope="session")
def flags(images):
    """A run of three steps per epoch."""
    return [
        "train",
        "--data",
        str(images),
        "--epochs",
        "5",
        "--batch_size",
        "20",
        "--device",
        "cpu",
        "--latent_dim",
        "2",
    ]


@pytest.fixture(scope="session")
def run_of_classes(tmp_path_factory):
    """A trained run with a two-dimensional code."""
    folder = tmp_path_factory.mktemp("classes") / "run"
    options = [
        "--model",
        "ConditionalVAE",
        "--latent_dim",
        "2",
        "--encoder.hidden",
        "[16]",
        "--decoder.hidden",
        "[16]",
    ]
    with ending(WHOLE):
        assert (
            main(["train", "--data", "digits", "--epochs", "3", "--run_dir", str(folder), *options])
            == 0
        )
    return folder


@pytest.fixture(scope="session")
def run_of_few_labels(tmp_path_factory, images):
    """A run of a model that infers labels: nine training labels of three classes are known."""
    folder = tmp_path_factory.mktemp("few_labels") / "run"
    options = ["--model", "SemiSupervisedVAE", "--labels", "9", "--latent_dim", "2"]
    options += ["--classifier", "MLP", "--classifier.hidden", "[8]", "--encoder.hidden", "[8]"]
    with ending(WHOLE):
        argv = ["train", "--data", str(images), "--epochs", "2", "--run_dir", str(folder)]
        assert main([*argv, *options]) == 0
    return folder


@pytest.fixture(scope="session")
def drawn():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)


@pytest.fixture
def new(tmp_path, drawn):
    path = tmp_path / "test.npz"
    np.savez(path, images=drawn)
    return path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with a module of the user's own, which is not yet on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    sys.modules.pop("mine", None)
    shutil.copy(Path(__file__).with_name("own_classes.py"), tmp_path / "mine.py")
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def offline(monkeypatch):
    """Nothing can be downloaded; the timeouts of the attempts."""
    timeouts = []

    def refuse(*args, **kwargs):
        timeouts.append(socket.getdefaulttimeout())
        raise urllib.error.URLError("no\nnetwork")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return timeouts
