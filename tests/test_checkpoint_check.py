"""What a checkpoint may hold: a stranger's values are refused in one line."""

from __future__ import annotations

import shutil
import warnings

import pytest
import torch
from run_folders import Hostile, trained

import pyro_vae as pv
from pyro_vae.runs.checkpoints import read_content, write_content


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
