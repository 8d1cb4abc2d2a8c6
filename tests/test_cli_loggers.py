"""TensorBoard's event files hold every epoch once, and logging does not change the training."""

from __future__ import annotations

import sys

import pytest

from pyro_vae.cli.main import main
from pyro_vae.runs.checkpoints import read_content
from pyro_vae.runs.folder import Run
from pyro_vae.runs.log import read_records

pytest.importorskip("tensorboard", reason="tensorboard is not installed")


def train(images, path, *options):
    flags = [
        "--data",
        images,
        "--run_dir",
        path,
        "--device",
        "cpu",
        "--checkpoint_every",
        "2",
        *options,
    ]
    return main(["train", *map(str, flags)])


def events(path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(path / "tensorboard"), size_guidance={"images": 0, "scalars": 0})
    return found.Reload()


def test_each_epoch_has_its_metrics_and_pictures(images, tmp_path):
    for name, options in (("plain", []), ("logged", ["--logger", "tensorboard"])):
        assert train(images, tmp_path / name, "--epochs", 3, *options) == 0
    found, records = events(tmp_path / "logged"), read_records(Run(tmp_path / "logged"))
    for tag, key in (
        ("elbo/training", "elbo"),
        ("elbo/validation", "validation_elbo"),
        ("active_units", "active_units"),
    ):
        scalars = found.Scalars(tag)
        assert [scalar.step for scalar in scalars] == [1, 2, 3]
        assert [scalar.value for scalar in scalars] == pytest.approx(
            [record[key] for record in records], rel=1e-5
        )
    for tag, size in (
        ("samples", (10 * 6 + 1, 4 * 7 + 1)),
        ("reconstructions", (5 * 6 + 1, 2 * 7 + 1)),
    ):
        assert [(image.step, image.width, image.height) for image in found.Images(tag)] == [
            (n, *size) for n in (1, 2, 3)
        ]
    states = [
        read_content(tmp_path / name / "checkpoint.pt")["training"]["vae"]
        for name in ("plain", "logged")
    ]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


def test_a_resumed_run_has_each_epoch_once(images, tmp_path):
    assert train(images, tmp_path / "run", "--epochs", 2, "--logger", "tensorboard") == 0
    assert train(images, tmp_path / "run", "--epochs", 3, "--resume") == 0
    assert [scalar.step for scalar in events(tmp_path / "run").Scalars("kl/training")] == [1, 2, 3]


def test_labels_are_used(images, tmp_path):
    options = ["--epochs", 1, "--logger", "tensorboard", "--model", "ConditionalVAE"]
    assert train(images, tmp_path / "run", *options) == 0
    assert len(events(tmp_path / "run").Images("samples")) == 1


def test_a_missing_package_is_one_line_before_training(images, tmp_path, monkeypatch, refused):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert "pip install" in refused(
        "train", "--data", images, "--logger", "tensorboard", "--run_dir", tmp_path / "run"
    )
    assert not (tmp_path / "run").exists()
    assert "logger" in refused("train", "--data", images, "--logger", "wandb")
