"""Images that stay on disk or on the host: the same figures as in memory."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pyro
import pytest
import torch
from families import make_vae

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.data.host import HostSplit, on_host, prefetch


@pytest.fixture(params=["uint8", "float32"])
def file(request, tmp_path):
    grey = np.random.default_rng(0).integers(0, 256, (300, 1, 4, 4), dtype=np.uint8)
    np.save(
        tmp_path / "images.npy", grey if request.param == "uint8" else grey.astype(np.float32) / 255
    )
    return tmp_path / "images.npy"


@pytest.fixture
def small_memory(monkeypatch):
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 4_850)


def fitted(data: pv.Data, engine: str = "traced") -> list[torch.Tensor]:
    pyro.set_rng_seed(0)
    vae = make_vae(latent_dim=3)
    list(pv.fit(vae, data, epochs=2, batch_size=32, seed=0, engine=engine))
    return list(vae.parameters())


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_training_from_disk_equals_training_in_memory(file, engine, monkeypatch):
    whole = pv.load_data(str(file))
    monkeypatch.setattr("pyro_vae.data.files.BYTES", 4_850)
    mapped = pv.load_data(str(file))
    assert isinstance(mapped.train, HostSplit)
    assert not isinstance(mapped.test, HostSplit)
    everything = slice(None)
    for one, other in zip(whole.splits, mapped.splits, strict=True):
        assert torch.equal(one.x, other[everything].x)
    assert len(mapped.train) == len(whole.train)
    for param, other in zip(fitted(whole, engine), fitted(mapped, engine), strict=True):
        assert torch.equal(param, other)


def test_labels_of_images_on_the_host(digits, monkeypatch):
    few = pv.Data("few", digits.train[:100], digits.validation[:20], digits.test[:20])
    host = replace(few, train=on_host(few.train).only(torch.arange(99, -1, -1)))
    index = torch.tensor([3, 99])
    assert torch.equal(host.train[index].labels, few.train.labels[99 - index])
    assert torch.equal(host.train[2:5].x, few.train.x[[97, 96, 95]])
    assert host.to("cpu").train is host.train
    monkeypatch.setattr("pyro_vae.data.host.fits", lambda images, device: False)
    assert host.to("cpu").train is host.train
    assert isinstance(few.to("cpu").train, HostSplit)
    assert torch.equal(few.to("cpu").train[index].labels, few.train.labels[index])
    assert repr(host.train).startswith("Split(100 images of shape")


def test_the_fingerprint_covers_the_images_on_disk(file, small_memory):
    before = pv.load_data(str(file)).fingerprint
    images = np.load(file)
    images[7] = 1 - images[7]
    np.save(file, images)
    assert pv.load_data(str(file)).fingerprint != before


def test_images_held_out_fit_into_memory(file, small_memory, monkeypatch):
    monkeypatch.setattr("pyro_vae.data.datasets.HELD_OUT_PIXELS", 10 * 16)
    data = pv.load_data(str(file))
    assert [len(split) for split in data.splits] == [280, 10, 10]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((300, 4, 4), dtype=bool),
        np.zeros((300, 4, 4)),
        np.zeros((300, 8, 8, 3), dtype=np.uint8),
    ],
    ids=["bool", "float64", "channels last"],
)
def test_other_arrays_are_refused(tmp_path, small_memory, images):
    np.save(tmp_path / "images.npy", images)
    with pytest.raises(pv.RequestError, match="uint8 or float32"):
        pv.load_data(str(tmp_path / "images.npy"))


def test_what_needs_all_images_in_memory_is_refused(file, small_memory, tmp_path, refused):
    run = tmp_path / "run"
    assert (
        main(
            [
                "train",
                "--data",
                str(file),
                "--latent_dim",
                "2",
                "--epochs",
                "1",
                "--run_dir",
                str(run),
            ]
        )
        == 0
    )
    assert "memory" in refused("evaluate", run, "--split", "train")
    assert "memory" in refused(
        "train", "--data", file, "--binarization", "static", "--run_dir", tmp_path / "other"
    )
    assert "memory" in refused("evaluate", run, "--data", file)
    assert main(["train", "--run_dir", str(run), "--resume", "always", "--epochs", "2"]) == 0
    assert main(["evaluate", str(run), "--num_samples", "100"]) == 0


def test_prefetching_keeps_the_order_and_raises_errors():
    batches = torch.arange(6).split(2)
    assert torch.cat(list(prefetch(lambda batch: batch * 2, batches))).tolist() == [
        0,
        2,
        4,
        6,
        8,
        10,
    ]
    with pytest.raises(ZeroDivisionError):
        list(prefetch(lambda batch: 1 // int(batch[0]), batches))
