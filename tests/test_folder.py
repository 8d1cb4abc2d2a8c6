"""Run folders are made, opened and locked, and a folder that cannot be written is told in time."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile

import pytest
from run_folders import trained

import pyro_vae as pv
from pyro_vae.cli import evaluate
from pyro_vae.cli.main import main
from pyro_vae.runs.folder import Run, check_writable


def test_a_new_folder_or_an_unfinished_one(tmp_path):
    run = Run.create(tmp_path / "a" / "run")
    (run.path / "checkpoint.pt").touch()
    assert not Run.create(run.path).exists()
    run.recipe_file.touch()
    with pytest.raises(pv.RequestError, match="exists already"):
        Run.create(run.path)


@pytest.mark.parametrize("name", ["file", "link", "a\0b"])
def test_what_is_no_folder(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(pv.RequestError, match="not a folder"):
        Run.create(tmp_path / name)
    with pytest.raises(pv.RequestError, match=r"config\.yaml"):
        Run.open(tmp_path / name)


def test_two_processes_in_one_folder(run_dir, tmp_path, refused):
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    with Run(path).lock():
        assert "another process" in refused("train", "--run_dir", path, "--resume", "--epochs", 9)
    trained("train", "--run_dir", path, "--resume", "--epochs", 3)


def test_a_folder_of_links_is_to_be_copied(run_dir, tmp_path, refused):
    """As the cache of a hub is."""
    path = tmp_path / "run"
    path.mkdir()
    for file in run_dir.iterdir():
        (path / file.name).symlink_to(file)
    assert f"cp -rL {path}" in refused("evaluate", path)


@pytest.fixture
def read_only(run_dir, tmp_path, monkeypatch):
    """A run folder in which no file can be written, also for root."""
    path, make = tmp_path / "run", tempfile.TemporaryFile
    shutil.copytree(run_dir, path)

    def refuse(*args, dir=None, **options):
        if dir == path:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return make(*args, dir=dir, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", refuse)
    return path


def test_a_read_only_folder_is_told_before_computing(read_only, refused, monkeypatch):
    monkeypatch.setattr(evaluate, "score_images", lambda *args: pytest.fail("it computes"))
    line = refused("evaluate", read_only, "--num_samples", 2)
    assert os.strerror(errno.EROFS) in line
    assert "cp -rL" in line
    with pytest.raises(pv.RequestError, match="use a copy"):
        check_writable(read_only)


def test_what_can_be_written_elsewhere_is_written(read_only, tmp_path, capfd):
    before = sorted(read_only.rglob("*"))
    file = tmp_path / "scores.npz"
    options = ["--num_samples", 2, "--check_images", 0, "--per_image", file]
    trained("evaluate", read_only, *options)
    assert "only printed" in capfd.readouterr().err
    assert file.exists()
    assert sorted(read_only.rglob("*")) == before


def test_a_folder_that_vanished(tmp_path):
    with pytest.raises(pv.RequestError, match="no file can be written"):
        check_writable(tmp_path / "gone")


@pytest.mark.parametrize("name", ["metrics.jsonl", "figures", "generated", ".lock", "results.json"])
def test_a_link_in_a_run_folder_is_not_written_through(folder, run_dir, refused, name):
    shutil.copytree(run_dir, folder / "r")
    precious, file = folder / "precious", folder / "r" / name
    precious.mkdir() if name in ("figures", "generated") else precious.write_text("precious")
    shutil.rmtree(file) if file.is_dir() else file.unlink(missing_ok=True)
    file.symlink_to(precious)
    assert "link" in refused("evaluate", "r", "--num_samples", "3")
    assert "link" in refused("train", "--run_dir", "r", "--resume")
    assert not any(precious.iterdir()) if precious.is_dir() else precious.read_text() == "precious"


def test_a_hard_link_in_a_run_folder_is_replaced(folder, run_dir, refused):
    shutil.copytree(run_dir, folder / "r")
    precious = {name: folder / f"precious-{number}" for number, name in enumerate(HARD)}
    for name, file in precious.items():
        file.write_bytes((folder / "r" / name).read_bytes())
        (folder / "r" / name).unlink()
        os.link(file, folder / "r" / name)
    before = {name: file.read_bytes() for name, file in precious.items()}
    assert main(["train", "--run_dir", "r", "--resume", "--epochs", "3"]) == 0
    assert main(["generate", "r", "samples", "--out", "r/figures/samples.png"]) == 0
    assert {name: file.read_bytes() for name, file in precious.items()} == before
    lock = folder / "r" / ".lock"
    lock.write_text("precious")
    os.link(lock, folder / "precious")
    assert "link" in refused("train", "--run_dir", "r", "--resume", "--epochs", "4")
    assert (folder / "precious").read_text() == "precious"


HARD = ("config.yaml", "metrics.jsonl", "checkpoint.pt", "results.json", "figures/samples.png")
