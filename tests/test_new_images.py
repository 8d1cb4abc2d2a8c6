"""Images that a run never saw: scored and encoded as in Python, under names of their own."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli.main import main

QUICK = ("--num_samples", "20", "--check_images", "0", "--classify_images", "10")


@pytest.fixture(scope="module")
def drawn():
    return np.random.default_rng(0).integers(0, 256, (30, 8, 8), dtype=np.uint8)


@pytest.fixture
def new(tmp_path, drawn):
    path = tmp_path / "test.npz"
    np.savez(path, images=drawn)
    return path


def run(*argv):
    assert main([str(arg) for arg in argv]) == 0


def test_their_scores_are_those_in_python_and_have_a_name_of_their_own(
    run_dir, new, tmp_path, capfd
):
    own = {file.name for file in run_dir.iterdir()}
    scores = tmp_path / "scores.npz"
    run("evaluate", run_dir, "--data", new, *QUICK, "--per_image", scores)
    assert "test.npz, last checkpoint: 30 images" in capfd.readouterr().out
    (written,) = {file.name for file in run_dir.iterdir()} - own
    assert re.fullmatch(r"results-data-test_npz-\w{6}-last-K20-N30-seed0\.json", written)
    results = json.loads((run_dir / written).read_text())
    assert "linear_probe" not in results
    elbo = pv.score_images(pv.load_run(run_dir), pv.load_images(new), 1000).elbo.mean().item()
    assert results["elbo"]["mean"] == pytest.approx(elbo, rel=0.02)
    assert results["elbo"]["mean"] == pytest.approx(np.load(scores)["elbo"].mean(), rel=1e-5)


def test_the_data_of_the_run_are_not_needed(tmp_path, images):
    from shutil import copy

    data = copy(images, tmp_path / "data.npz")
    run("train", "--data", data, "--epochs", 1, "--run_dir", tmp_path / "run", "--device", "cpu")
    data.unlink()
    run("evaluate", tmp_path / "run", "--data", images, *QUICK)


def test_the_data_of_the_run_are_not_new(tmp_path, images, capfd):
    run("train", "--data", images, "--epochs", 1, "--run_dir", tmp_path / "run", "--device", "cpu")
    run("generate", tmp_path / "run", "codes", "--data", images)
    assert "was trained on" in capfd.readouterr().err


def test_a_named_set_without_test_images_is_not_new(run_dir, capfd):
    run("generate", run_dir, "codes", "--data", "digits")
    assert "was trained on" in capfd.readouterr().err


def test_one_image_is_enough(run_dir, tmp_path, drawn, refused):
    (tmp_path / "one").mkdir()
    Image.fromarray(np.kron(drawn[0], np.ones((3, 3), np.uint8))).save(tmp_path / "one" / "a.png")
    run("evaluate", run_dir, "--data", tmp_path / "one", "--image_size", 8, "--num_samples", 50)
    run("generate", run_dir, "codes", "--data", tmp_path / "one", "--image_size", 8)
    assert "two images" in refused(
        "generate", run_dir, "interpolations", "--data", tmp_path / "one", "--image_size", 8
    )


def test_what_does_not_fit_is_one_line(run_dir, new, images, tmp_path, refused):
    assert "(1, 8, 8)" in refused("evaluate", run_dir, "--data", images)
    assert "--split" in refused("generate", run_dir, "codes", "--data", new, "--split", "train")
    assert "nowhere" in refused("generate", run_dir, "codes", "--data", tmp_path / "nowhere.npz")
    (tmp_path / "empty").mkdir()
    refused("evaluate", run_dir, "--data", tmp_path / "empty")
    assert "use no images" in refused("generate", run_dir, "samples", "--data", new)


def test_a_model_of_labels_needs_those_that_it_knows(tmp_path, images, refused):
    path = tmp_path / "run"
    run(
        "train",
        "--data",
        images,
        "--model",
        "ConditionalVAE",
        "--epochs",
        1,
        "--run_dir",
        path,
        "--device",
        "cpu",
    )
    pixels = np.zeros((20, 6, 5), np.uint8)
    np.savez(tmp_path / "without.npz", images=pixels)
    np.savez(tmp_path / "unknown.npz", images=pixels, labels=np.arange(20))
    np.savez(tmp_path / "known.npz", images=pixels, labels=np.zeros(20, int))
    assert "labels" in refused("evaluate", path, "--data", tmp_path / "without.npz", *QUICK)
    assert "0 to 2" in refused("generate", path, "codes", "--data", tmp_path / "unknown.npz")
    run("evaluate", path, "--data", tmp_path / "known.npz", *QUICK)
    (results,) = (json.loads(file.read_text()) for file in path.glob("results-data-known_npz*"))
    assert results["bayes_classifier"]["num_images"] == 10
