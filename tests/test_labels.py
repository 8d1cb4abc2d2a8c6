"""Every command for models of images with labels."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from endings import WHOLE, ending
from families import make_conditional

import pyro_vae as pv
from pyro_vae.cli.main import main


def test_data_without_labels_are_rejected(digits, tmp_path, capfd):
    unlabelled = digits.map(lambda split: replace(split, labels=None))
    with pytest.raises(pv.RequestError, match="labels"):
        pv.fit(make_conditional(10), unlabelled, epochs=1)
    np.save(tmp_path / "images.npy", digits.train.x[:50].numpy())
    argv = [
        "train",
        "--data",
        str(tmp_path / "images.npy"),
        "--model",
        "ConditionalVAE",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert main(argv) == 2
    _, err = capfd.readouterr()
    assert "labels" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


@pytest.fixture(scope="module")
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


def test_training_draws_analogies(run_of_classes):
    pictures = {file.stem for file in (run_of_classes / "figures").glob("*.png")}
    assert pictures >= {"curves", "reconstructions", "samples", "latent", "analogies"}
    assert "manifold" not in pictures  # it would need a label


KINDS = [
    "samples",
    "samples --label 7",
    "reconstructions --label 7",
    "reconstructions",
    "analogies",
    "interpolations",
]
KINDS += [
    "interpolations --label 3",
    "traversals",
    "traversals --label 3",
    "manifold --label 3",
    "codes",
]


@pytest.mark.parametrize("options", KINDS)
def test_generate(options, run_of_classes, tmp_path):
    for out in ("a.png", "a.npz"):
        argv = ["generate", str(run_of_classes), *options.split(), "--out", str(tmp_path / out)]
        assert main([*argv, *([] if "manifold" in options else ["--count", "4"])]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000
    if options == "analogies":
        assert np.load(tmp_path / "a.npz")["images"].shape == (10, 4, 1, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        "samples --label 10",
        "samples --label -1",
        "samples --label [0.5]",
        "samples --label x",
        "codes --label 1",
        "manifold",
    ],
)
def test_labels_that_cannot_be_decoded_are_rejected(options, run_of_classes, capfd):
    assert main(["generate", str(run_of_classes), *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("options", ["samples --label 1", "analogies"])
def test_a_model_without_labels_takes_none(options, run_dir, capfd):
    assert main(["generate", str(run_dir), *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_evaluate(run_of_classes, capfd):
    argv = [
        "evaluate",
        str(run_of_classes),
        "--num_samples",
        "100",
        "--classify_images",
        "50",
        "--gap_images",
        "2",
    ]
    assert main(argv) == 0
    out, _ = capfd.readouterr()
    assert "Bayes classifier" in out
    (file,) = run_of_classes.glob("results-*.json")
    results = json.loads(file.read_text())
    assert results["given"] == "labels"
    assert results["bayes_classifier"]["num_images"] == 50
    assert results["check"]["method"] == "quadrature"
    assert not results["check"]["disagree"]


def test_a_run_folder_whose_model_was_changed_to_one_with_labels(run_dir, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("pyro_vae.VAE", "pyro_vae.ConditionalVAE"))
    assert main(["generate", str(folder), "samples"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_covariates(tmp_path, capfd):
    """The brightness of an image as a covariate."""
    generator = np.random.default_rng(0)
    brightness = generator.uniform(size=(240, 1))
    images = (255 * brightness[:, :, None] * np.ones((1, 4, 4))).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(240) % 3, covariates=brightness)
    run = str(tmp_path / "r")
    options = ["--model", "ConditionalVAE", "--optimizer.lr", "0.01", "--latent_dim", "2"]
    assert (
        main(
            [
                "train",
                "--data",
                str(tmp_path / "data.npz"),
                "--epochs",
                "60",
                "--run_dir",
                run,
                *options,
            ]
        )
        == 0
    )
    vae = pv.load_run(run)
    dark, bright = (
        vae.sample_mean(20, torch.full((20, 1), value)).mean().item() for value in (0.2, 0.8)
    )
    assert dark == pytest.approx(0.2, abs=0.1)
    assert bright == pytest.approx(0.8, abs=0.1)
    assert main(["generate", run, "samples", "--label", "[0.3]"]) == 0
    assert main(["generate", run, "samples", "--label", "1"]) == 0
    assert main(["generate", run, "samples", "--label", "[1, 2]"]) == 2
    assert main(["generate", run, "samples"]) == 0
    assert main(["evaluate", run, "--num_samples", "50"]) == 0
    assert main(["generate", run, "analogies"]) == 2
