"""Checkpoints come back bit for bit; damage and a stranger's values are refused in one line."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import zipfile
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from run_folders import Hostile, equal, trained

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
