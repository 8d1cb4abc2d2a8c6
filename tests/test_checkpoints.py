"""Checkpoints come back bit for bit; damage and a stranger's values are refused in one line."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import warnings
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import equal, trained

import pyro_vae as pv
from pyro_vae.runs.checkpoints import DIGEST, read_content, write_content


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoint.pt"
    vae = {"weight": torch.arange(40.0), "bias": torch.ones(3)}
    write_content(path, {"shape": [1, 2], "training": {"epoch": 3, "vae": vae}})
    return path


def test_a_checkpoint_is_read_as_it_was_written(saved):
    content = read_content(saved)
    assert content["training"]["epoch"] == 3
    assert torch.equal(content["training"]["vae"]["weight"], torch.arange(40.0))
    assert torch.load(saved, weights_only=True)["versions"]["torch"] == torch.__version__


def test_every_flipped_bit_is_found(saved, tmp_path):
    """In each byte of the file."""
    whole, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    for position in range(len(whole)):
        damaged.write_bytes(
            whole[:position]
            + bytes([whole[position] ^ (1 << position % 8)])
            + whole[position + 1 :]
        )
        try:
            content = read_content(damaged)
        except pv.RequestError:
            continue
        assert equal(content, read_content(saved)), position


def test_every_truncation_is_found(saved, tmp_path):
    whole, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    for length in range(0, len(whole), 7):
        damaged.write_bytes(whole[:length])
        with pytest.raises(pv.RequestError, match="damaged"):
            read_content(damaged)


@pytest.mark.parametrize("name", ["checkpoint.pt", "config.yaml"])
def test_files_that_cannot_be_read(run_dir, tmp_path, refused, monkeypatch, name):
    """The line says so; it does not say that the file is damaged."""
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    read = Path.read_bytes

    def forbidden(self):
        if self.name == name:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return read(self)

    monkeypatch.setattr(Path, "read_bytes", forbidden)
    for argv in (["evaluate", path], ["train", "--run_dir", path, "--resume"]):
        line = refused(*argv)
        assert os.strerror(errno.EACCES) in line
        assert "damaged" not in line


class Hostile:
    def __reduce__(self):
        return (open, ("ran", "w"))


def _keyed(part, key, value):
    """A change of one entry of a part of the state; without a value, its removal."""

    def change(content):
        state = content["training"] if part is None else content["training"][part]
        state.pop(key) if value is ... else state.__setitem__(key, value)

    return change


def _of_tensors(function):
    def change(content):
        vae = content["training"]["vae"]
        name = next(iter(vae))
        vae[name] = function(vae[name])

    return change


def _of_moments(function):
    def change(content):
        state = content["training"]["optimizer"]["state"]
        state[0]["exp_avg"] = function(state[0]["exp_avg"])

    return change


CHANGES = {
    "nothing of a training": lambda content: content.clear(),
    "another format": lambda content: content.update(format=2),
    "no shape": lambda content: content.pop("shape"),
    "a shape of text": lambda content: content.update(shape="1x8x8"),
    "a negative shape": lambda content: content.update(shape=[1, -8, 8]),
    "another shape": lambda content: content.update(shape=[1, 9, 9]),
    "a shape without images": lambda content: content.update(shape=[]),
    "no state": lambda content: content.pop("training"),
    "a state of text": lambda content: content.update(training="state"),
    "no parameters": _keyed(None, "vae", ...),
    "null parameters": _keyed(None, "vae", None),
    "a list of parameters": _keyed(None, "vae", [1, 2]),
    "a parameter too many": _keyed("vae", "more", torch.ones(3)),
    "a parameter of text": _of_tensors(lambda tensor: "text"),
    "a number as a parameter": _of_tensors(lambda tensor: 1.0),
    "a null parameter": _of_tensors(lambda tensor: None),
    "a parameter of another shape": _of_tensors(lambda tensor: tensor[1:]),
    "a parameter of another type": _of_tensors(lambda tensor: tensor.double()),
    "a parameter that is NaN": _of_tensors(lambda tensor: tensor * torch.nan),
    "a hostile object": lambda content: content.update(more=Hostile()),
}


# These concern only those who resume.
STATES = {
    "other data": lambda content: content.update(data="0"),
    "no data": lambda content: content.pop("data"),
    "no optimizer": _keyed(None, "optimizer", ...),
    "null optimizer": _keyed(None, "optimizer", None),
    "an optimizer of text": _keyed(None, "optimizer", "Adam"),
    "no groups": _keyed("optimizer", "param_groups", ...),
    "groups of text": _keyed("optimizer", "param_groups", "groups"),
    "no moments": _keyed("optimizer", "state", {0: {}}),
    "moments of text": _keyed("optimizer", "state", {0: "text"}),
    "moments of other parameters": _keyed("optimizer", "state", {99: {}}),
    "moments of another shape": _of_moments(lambda tensor: tensor[1:]),
    "a number for a moment": _of_moments(lambda tensor: 1.0),
    "moments that are NaN": _of_moments(lambda tensor: tensor * torch.nan),
    "a step of text": _keyed(None, "step", "one"),
    "no epoch": _keyed(None, "epoch", ...),
    "an epoch of text": _keyed(None, "epoch", "one"),
    "a negative epoch": _keyed(None, "epoch", -1),
    "an epoch that is NaN": _keyed(None, "epoch", float("nan")),
    "a later epoch": _keyed(None, "epoch", 99),
    "a scheduler": _keyed(None, "lr_scheduler", {"last_epoch": 1}),
    "more": _keyed(None, "more", 1),
    "no random state": _keyed(None, "random", ...),
    "a random state of text": _keyed(None, "random", "random"),
    "a random state of other bytes": _keyed("random", "torch", torch.zeros(3, dtype=torch.uint8)),
    "no random state of Python": _keyed("random", "python", ...),
    "a short random state of Python": _keyed("random", "python", (3, (1, 2), None)),
    "a short random state of NumPy": _keyed("random", "numpy", [torch.zeros(3), 1, 0, 0.0]),
}


def _groups(key, value):
    def change(content):
        content["training"]["optimizer"]["param_groups"][0][key] = value

    return change


# What `torch.load(weights_only=True)` returns, but training does not write.
TENSORS = {
    "meta": _of_tensors(lambda tensor: tensor.to("meta")),
    "sparse": _of_tensors(lambda tensor: tensor.to_sparse()),
    "compressed": _of_tensors(lambda tensor: tensor.reshape(len(tensor), -1).to_sparse_csr()),
    "quantized": _of_tensors(lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)),
    "nested": _of_tensors(lambda tensor: torch.nested.nested_tensor([tensor, tensor])),
    "complex": _of_tensors(lambda tensor: tensor.to(torch.complex64)),
    "half": _of_tensors(lambda tensor: tensor.half()),
    "expanded": _of_tensors(lambda tensor: tensor.flatten()[:1].expand(tensor.shape)),
    "a parameter": _of_tensors(lambda tensor: torch.nn.Parameter(tensor)),
    "a scalar": _of_tensors(lambda tensor: torch.tensor(1.0)),
    "a bool": _of_tensors(lambda tensor: True),
}

VALUES = {
    "a huge shape": lambda content: content.update(shape=[10**30, 8, 8]),
    "a shape of a huge product": lambda content: content.update(shape=[2**20, 2**20, 2**20]),
    "a shape of true": lambda content: content.update(shape=[True, 8, 8]),
    "a long shape": lambda content: content.update(shape=[1] * 1000),
    "a shape of tensors": lambda content: content.update(shape=torch.tensor([1, 8, 8])),
    "label_dim of true": lambda content: content.update(label_dim=True),
    "a label_dim of a tensor": lambda content: content.update(label_dim=torch.ones(3)),
    "no label_dim": lambda content: content.update(label_dim=None),
    "data of tensors": lambda content: content.update(data=torch.ones(3)),
    "surrogates in versions": lambda content: content.update(versions={"torch": "\ud800"}),
    "long versions": lambda content: content.update(versions={"torch": "9" * 10**6}),
    "a list of versions": lambda content: content.update(versions=["2.0"]),
    "a format of tensors": lambda content: content.update(format=torch.ones(3)),
    "an epoch of true": _keyed(None, "epoch", True),
    "a fractional epoch": _keyed(None, "epoch", 1.5),
    "an epoch of a tensor": _keyed(None, "epoch", torch.ones(3)),
    "an epoch of null": _keyed(None, "epoch", None),
    "a huge step": _keyed(None, "step", 2**70),
    "a negative step": _keyed(None, "step", -1),
    "negative rewinds": _keyed(None, "rewinds", -1),
    "rewinds of text": _keyed(None, "rewinds", "0"),
    "waited of true": _keyed(None, "waited", True),
    "best of text": _keyed(None, "best", "best"),
    "best that is NaN": _keyed(None, "best", float("nan")),
    "best of a tensor": _keyed(None, "best", torch.ones(3)),
}

OPTIMIZERS = {
    "betas of null": _groups("betas", [None, None]),
    "betas over 1": _groups("betas", (0.9, 5.0)),
    "three betas": _groups("betas", (0.9, 0.9, 0.9)),
    "amsgrad": _groups("amsgrad", True),
    "amsgrad of text": _groups("amsgrad", "no"),
    "differentiable": _groups("differentiable", True),
    "maximize": _groups("maximize", 1),
    "foreach": _groups("foreach", True),
    "capturable of text": _groups("capturable", "yes"),
    "another eps": _groups("eps", 0.0),
    "a negative rate": _groups("lr", -1.0),
    "a rate of a vector": _groups("lr", torch.ones(3)),
    "a rate of true": _groups("lr", True),
    "an infinite rate": _groups("lr", float("inf")),
    "other parameters": _groups("params", [0, 0, 0, 0]),
    "expanded moments": _of_moments(lambda tensor: tensor.flatten()[:1].expand(tensor.shape)),
    "sparse moments": _of_moments(lambda tensor: tensor.to_sparse()),
    "moments on no device": _of_moments(lambda tensor: tensor.to("meta")),
    "shared moments": lambda content: content["training"]["optimizer"]["state"][0].update(
        exp_avg_sq=content["training"]["optimizer"]["state"][0]["exp_avg"]
    ),
    "a negative count of steps": lambda content: content["training"]["optimizer"]["state"][
        0
    ].update(step=torch.tensor(-1.0)),
    "a place in NumPy's random state": lambda content: content["training"]["random"][
        "numpy"
    ].__setitem__(1, 10**6),
    "words of Python's random state": _keyed("random", "python", (3, (-1,) * 625, None)),
    "a random state of CUDA": _keyed("random", "cuda", "state"),
}


@pytest.fixture
def changed(run_dir, tmp_path):
    """A copy of a run whose checkpoint has other content and a valid digest."""

    def make(change):
        path = tmp_path / "run"
        shutil.copytree(run_dir, path)
        content = read_content(path / "checkpoint.pt")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # some kinds of tensors are prototypes or deprecated
            change(content)
            write_content(path / "checkpoint.pt", content)
        return path

    return make


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_checkpoints_of_other_content(changed, refused, monkeypatch, tmp_path, change):
    monkeypatch.chdir(tmp_path)
    path = changed(change)
    if change is not CHANGES["nothing of a training"]:
        assert "checkpoint.pt" in refused("evaluate", path, "--num_samples", 2)
    refused("generate", path, "samples")
    refused("train", "--run_dir", path, "--resume", "--epochs", 3)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("change", STATES.values(), ids=STATES)
def test_checkpoints_of_other_states(changed, refused, change):
    path = changed(change)
    before = (path / "metrics.jsonl").read_bytes()
    refused("train", "--run_dir", path, "--resume", "--epochs", 3)
    assert (path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
def test_tensors_that_are_not_dense(changed, refused, change):
    path = changed(change)
    with pytest.raises(pv.RequestError, match=r"checkpoint\.pt"):
        pv.load_run(path)
    refused("train", "--run_dir", path, "--resume", "--epochs", 3)


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
def test_values_of_other_types(changed, refused, change):
    path = changed(change)
    with pytest.raises(pv.RequestError, match=r"checkpoint\.pt"):
        pv.load_run(path)
    refused("train", "--run_dir", path, "--resume", "--epochs", 3)


@pytest.mark.parametrize("change", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_states_of_optimizers_that_training_does_not_write(changed, refused, change):
    path = changed(change)
    refused("train", "--run_dir", path, "--resume", "--epochs", 3)


SCHEDULERS = {
    "step_size of 0": {"step_size": 0},
    "gamma of null": {"gamma": None},
    "a later epoch": {"last_epoch": 10**9},
    "a negative epoch": {"last_epoch": -3},
    "rates of text": {"base_lrs": ["1"]},
    "no rates": {"base_lrs": []},
}


@pytest.fixture(scope="module")
def scheduled(flags, tmp_path_factory):
    path = tmp_path_factory.mktemp("scheduled") / "run"
    options = ["--lr_scheduler", "StepLR", "--lr_scheduler.step_size", 2, "--epochs", 1]
    trained(*flags, *options, "--run_dir", path)
    return path


@pytest.mark.parametrize("change", SCHEDULERS.values(), ids=SCHEDULERS)
def test_states_of_schedulers_that_training_does_not_write(scheduled, tmp_path, refused, change):
    shutil.copytree(scheduled, tmp_path / "run")
    content = read_content(scheduled / "checkpoint.pt")
    content["training"]["lr_scheduler"].update(change)
    write_content(tmp_path / "run" / "checkpoint.pt", content)
    assert "fit" in refused("train", "--run_dir", tmp_path / "run", "--resume", "--epochs", 2)


def _rewritten(path, change):
    """Write the archive of a checkpoint anew, with a valid digest."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(buffer, "w") as new:
        for record in old.infolist():
            change(new, record.filename, old.read(record))
    archive = buffer.getvalue()
    digest = sha256(archive).digest()
    path.write_bytes(archive[:-2] + DIGEST.to_bytes(2, "little") + digest)


def test_an_archive_that_was_written_anew_is_read(run_dir, tmp_path):
    """So that the next tests fail for the reason that they state."""
    shutil.copytree(run_dir, tmp_path / "run")
    _rewritten(tmp_path / "run" / "checkpoint.pt", lambda new, name, data: new.writestr(name, data))
    assert isinstance(pv.load_run(tmp_path / "run"), pv.VAE)


def test_a_compressed_archive_is_not_opened(run_dir, tmp_path):
    """It could take any memory."""
    shutil.copytree(run_dir, tmp_path / "run")
    _rewritten(
        tmp_path / "run" / "checkpoint.pt",
        lambda new, name, data: new.writestr(name, data + bytes(10**6), zipfile.ZIP_DEFLATED),
    )
    with pytest.raises(pv.RequestError, match="not a checkpoint"):
        pv.load_run(tmp_path / "run")


def test_a_file_of_a_terabyte_is_not_read(run_dir, tmp_path):
    shutil.copytree(run_dir, tmp_path / "run")
    with (tmp_path / "run" / "checkpoint.pt").open("r+b") as file:
        file.truncate(2**40)
    with pytest.raises(pv.RequestError, match="bytes"):
        pv.load_run(tmp_path / "run")


VERSION_02 = Path(__file__).parent / "run-0.2"


def test_a_run_of_version_02_loads_and_resumes(tmp_path, digits):
    """Its codes are those that version 0.2 computed."""
    codes = [[0.29401, -0.17127], [0.16544, -0.50489], [0.15849, -0.40915], [0.18036, -0.54713]]
    vae = pv.load_run(VERSION_02)
    x = digits.test.scored("binary")[:4]
    assert vae.q_z(x).mean.tolist() == pytest.approx(np.array(codes), abs=1e-4)
    shutil.copytree(VERSION_02, tmp_path / "run")
    trained("train", "--run_dir", tmp_path / "run", "--resume", "--epochs", 3)
    assert read_content(tmp_path / "run" / "checkpoint.pt")["training"]["epoch"] == 3


@pytest.mark.parametrize("name", ["checkpoint.pt", "best.pt"])
def test_the_other_checkpoint_remains_usable(run_dir, tmp_path, refused, name):
    """Damage to one file does not matter to the commands that read the other."""
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    (path / name).write_bytes(b"damage")
    which = {"checkpoint.pt": ["last", "best"], "best.pt": ["best", "last"]}[name]
    assert name in refused("evaluate", path, "--checkpoint", which[0])
    trained("evaluate", path, "--checkpoint", which[1], "--num_samples", 2, "--check_images", 0)


def test_the_checkpoint_of_another_run(run_dir, flags, tmp_path, refused):
    path = tmp_path / "run"
    trained(*flags, "--epochs", 1, "--run_dir", path)
    shutil.copy(run_dir / "checkpoint.pt", path / "checkpoint.pt")
    refused("evaluate", path)
    refused("train", "--run_dir", path, "--resume")


@pytest.mark.parametrize("form", ["pickle", "torch", "first format"])
def test_files_without_a_digest(run_dir, tmp_path, monkeypatch, refused, form):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, tmp_path / "r")
    file = tmp_path / "r" / "checkpoint.pt"
    if form == "pickle":
        file.write_bytes(pickle.dumps(Hostile()))
    else:
        torch.save(
            Hostile()
            if form == "torch"
            else {"format": 1, "epoch": 2, "shape": [1, 8, 8], "vae": {}},
            file,
        )
    for argv in (
        ["evaluate", "r"],
        ["generate", "r", "samples"],
        ["train", "--run_dir", "r", "--resume"],
    ):
        assert "version" in refused(*argv)
    assert not (tmp_path / "ran").exists()


def test_data_that_have_changed(tmp_path, refused, capfd):
    file, run_dir = tmp_path / "a.npy", tmp_path / "r"
    generator = np.random.default_rng(0)
    np.save(file, generator.integers(0, 256, (90, 5, 5), dtype=np.uint8))
    trained("train", "--data", file, "--epochs", 1, "--batch_size", 20, "--run_dir", run_dir)
    np.save(file, generator.integers(0, 256, (90, 5, 5), dtype=np.uint8))
    assert "a.npy" in refused("train", "--run_dir", run_dir, "--resume", "--epochs", 2)
    trained("evaluate", run_dir, "--num_samples", 3, "--check_images", 0)
    assert "warning: " in capfd.readouterr().err
    np.save(file, generator.integers(0, 256, (90, 5, 6), dtype=np.uint8))
    for argv in (["evaluate", run_dir], ["train", "--run_dir", run_dir, "--resume", "--epochs", 2]):
        assert "a.npy" in refused(*argv)


def test_an_epoch_that_was_kept_is_scored(flags, tmp_path, refused):
    trained(*flags, "--keep_every", 1, "--epochs", 2, "--run_dir", tmp_path / "run")
    first, last = (
        pv.load_run(tmp_path / "run", checkpoint=checkpoint) for checkpoint in (1, "last")
    )
    assert not equal(first.state_dict(), last.state_dict())
    trained("evaluate", tmp_path / "run", "--checkpoint", 2, "--num_samples", 2)
    (results,) = (tmp_path / "run").glob("results-test-2-*.json")
    assert json.loads(results.read_text())["elbo"]["num_images"] == 10
    assert "0003.pt" in refused("evaluate", tmp_path / "run", "--checkpoint", 3)
    refused("evaluate", tmp_path / "run", "--checkpoint", "first")
