"""Interrupted runs continue bit for bit, and damaged files are rejected."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import random
import shutil
import signal
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils._pytree import tree_flatten

import pyro_vae as pv
from pyro_vae.cli import files
from pyro_vae.cli.main import main
from pyro_vae.cli.run_folder import Run
from pyro_vae.train import main as train

RUN = ["--data", "digits", "--epochs", "6", "--device", "cpu", "--latent_dim", "2"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def leaves(path):
    """The content of a checkpoint, comparable bit by bit."""
    values, tree = tree_flatten(torch.load(path, weights_only=True))
    return [value.numpy().tobytes() if isinstance(value, torch.Tensor) else value for value in values], str(tree)


def contents(folder):
    """The files of a run without its times."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    checkpoints = [leaves(folder / name) for name in ("checkpoint.pt", "best.pt")]
    pictures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    return metrics, checkpoints, pictures, (folder / "results.json").read_text(), (folder / "config.yaml").read_text()


def command(*argv):
    return [sys.executable, "-m", "pyro_vae.train", *map(str, argv)]


def until(condition, process, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.fixture(scope="module", params=["eager", "traced"])
def whole(request, tmp_path_factory):
    """A run that was never stopped."""
    path = tmp_path_factory.mktemp("whole") / "run"
    assert train([*RUN, "--engine", request.param, "--run_dir", str(path)]) == 0
    return path


@posix
def test_killed_at_any_moment(whole, tmp_path):
    """Five times, while it starts, trains or writes; the same command starts it again."""
    engine, path = yaml.safe_load((whole / "config.yaml").read_text())["engine"], tmp_path / "run"
    generator = random.Random(engine)
    argv = [*RUN, "--engine", engine, "--run_dir", str(path), "--resume", "auto"]
    for _ in range(5):
        begun = (path / "checkpoint.pt").exists()
        with subprocess.Popen(command(*argv), stdout=subprocess.DEVNULL) as process:
            until((path / "checkpoint.pt").exists, process)
            time.sleep(generator.uniform(0, 4 if begun else 0.2))
            process.kill()
    assert train(argv) == 0
    assert contents(path) == contents(whole)
    assert not list(path.glob(".*.tmp"))


def stopped(tmp_path, epochs=2, **changes):
    """A run of a few epochs."""
    path = tmp_path / "run"
    flags = [flag for name, value in changes.items() for flag in (f"--{name}", value)]
    assert train([*RUN, "--epochs", str(epochs), *flags, "--run_dir", str(path)]) == 0
    return path


def test_more_epochs(whole, tmp_path):
    engine = yaml.safe_load((whole / "config.yaml").read_text())["engine"]
    path = stopped(tmp_path, engine=engine)
    assert train(["--run_dir", str(path), "--resume", "--epochs", "6"]) == 0
    assert contents(path) == contents(whole)


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        ("--latent_dim 3", ["latent_dim"]),
        ("--seed 1 --optimizer.lr 0.1", ["optimizer", "seed"]),
        ("--prior GaussianMixture", ["prior"]),
        ("--data mnist", ["data"]),
        ("--epochs 1", ["epochs"]),
    ],
)
def test_other_options_are_rejected(tmp_path_factory, capfd, flags, names):
    path = tmp_path_factory.getbasetemp() / "kept" / "run"
    if not path.exists():
        stopped(path.parent)
    before = contents(path)
    capfd.readouterr()
    assert train(["--run_dir", str(path), "--resume", *flags.split()]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert all(name in err for name in names)
    assert contents(path) == before


def test_checkpoint_every(tmp_path, monkeypatch):
    """Before the first epoch, then every third, and after the last."""
    seen = []
    save = Run.save_checkpoint
    monkeypatch.setattr(
        Run,
        "save_checkpoint",
        lambda run, which, training, data: (seen.append((which, training.epoch)), save(run, which, training, data)),
    )
    stopped(tmp_path, epochs=7, checkpoint_every="3")
    assert [epoch for which, epoch in seen if which == "last"] == [0, 3, 6, 7]


def test_metrics_without_a_checkpoint_are_trained_again(tmp_path):
    """A process that is killed between the two files, or within a line."""
    path = stopped(tmp_path)
    record = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**record, "epoch": 3}) + "\n" + '{"epoch": 4, "st')
    assert train(["--run_dir", str(path), "--resume", "--epochs", "4"]) == 0
    assert [json.loads(line)["epoch"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


@posix
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals(tmp_path, number, code):
    path = tmp_path / "run"
    argv = command(*RUN, "--epochs", 100_000, "--engine", "eager", "--run_dir", path)
    heed = (lambda: signal.signal(signal.SIGINT, signal.default_int_handler)) if number == signal.SIGINT else None
    with subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        until(lambda: (path / "metrics.jsonl").exists(), process)
        process.send_signal(number)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == code
    assert err.count("\n") == 1
    assert f"python -m pyro_vae.train --run_dir {path} --resume" in err
    assert pv.load_run(path) is not None


def test_two_processes_in_one_folder(tmp_path, capfd):
    path = stopped(tmp_path)
    with Run(path).lock():
        assert train(["--run_dir", str(path), "--resume", "--epochs", "9"]) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert train(["--run_dir", str(path), "--resume", "--epochs", "3"]) == 0


FAULTS = {"full": errno.ENOSPC, "read-only": errno.EROFS, "gone": errno.ENOENT, "forbidden": errno.EACCES, "broken": errno.EIO}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_disk_that_fails_during_a_checkpoint(tmp_path, monkeypatch, capfd, fault, at):
    path, calls = tmp_path / "run", []

    def failing(real):
        def call(*args):
            calls.append(1)
            if len(calls) > 6:
                raise OSError(FAULTS[fault], os.strerror(FAULTS[fault]))
            return real(*args)

        return call

    monkeypatch.setattr(*((os, "fsync", failing(os.fsync)) if at == "fsync" else (Path, "replace", failing(Path.replace))))
    assert train([*RUN, "--run_dir", str(path)]) == 1
    _, err = capfd.readouterr()
    assert err.count("\n") == 1
    assert os.strerror(FAULTS[fault]) in err
    assert "--resume" in err
    monkeypatch.undo()
    assert not list(path.glob(".*.tmp"))
    assert train(["--run_dir", str(path), "--resume"]) == 0
    assert [json.loads(line)["epoch"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_vanishes(tmp_path, monkeypatch, capfd):
    path, step = tmp_path / "run", pv.SVI.update

    def vanish(self, *args):
        shutil.rmtree(path, ignore_errors=True)
        return step(self, *args)

    monkeypatch.setattr(pv.SVI, "update", vanish)
    assert train([*RUN, "--run_dir", str(path)]) == 1
    assert "metrics.jsonl" in capfd.readouterr().err


@pytest.mark.parametrize("when", ["results", "pictures"])
def test_the_figures_cannot_be_written(tmp_path, monkeypatch, capfd, when):
    path = stopped(tmp_path)
    shutil.rmtree(path / "figures")
    (path / "results.json").unlink()
    (path / "results.json" if when == "results" else path / "figures").mkdir() if when == "results" else (
        path / "figures"
    ).write_text("")
    assert train(["--run_dir", str(path), "--resume"]) == 1
    assert "cannot be written" in capfd.readouterr().err


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoint.pt"
    files.save_checkpoint(path, {"epoch": 3, "vae": {"weight": torch.arange(40.0), "bias": torch.ones(3)}})
    return path


def test_a_checkpoint_is_read_as_it_was_written(saved):
    content = files.load_checkpoint(saved)
    assert content["epoch"] == 3
    assert torch.equal(content["vae"]["weight"], torch.arange(40.0))
    assert content["versions"]["torch"] == torch.__version__


def test_torch_reads_a_checkpoint_too(saved):
    assert torch.load(saved, weights_only=True)["epoch"] == 3


def test_every_flipped_bit_and_every_truncation_is_found(saved, tmp_path):
    """torch itself does not notice a flipped bit in a tensor, although the archive holds CRCs."""
    whole, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    flipped = (whole[:i] + bytes([whole[i] ^ (1 << i % 8)]) + whole[i + 1 :] for i in range(len(whole)))
    for content in (*flipped, *(whole[:length] for length in range(0, len(whole), 7))):
        damaged.write_bytes(content)
        with pytest.raises(pv.RequestError):
            files.load_checkpoint(damaged)


class Hostile:
    def __reduce__(self):
        return (open, ("ran", "w"))


@pytest.mark.parametrize("form", ["pickle", "torch", "inside"])
@pytest.mark.parametrize("which", ["last", "best"])
def test_a_foreign_pickle_does_not_run(run_dir, tmp_path, monkeypatch, form, which):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run_dir, tmp_path / "r")
    file = tmp_path / "r" / ("checkpoint.pt" if which == "last" else "best.pt")
    if form == "pickle":
        file.write_bytes(pickle.dumps(Hostile()))
    else:
        content = Hostile() if form == "torch" else {**torch.load(file, weights_only=True), "more": Hostile()}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        archive = buffer.getvalue()
        file.write_bytes(archive[:-2] + (32).to_bytes(2, "little") + sha256(archive).digest())  # with a valid digest
    assert main(["evaluate", "r", "--checkpoint", which, "--num_samples", "2"]) == 2
    assert main(["generate", "r", "samples", "--checkpoint", which]) == 2
    assert which == "best" or train(["--run_dir", "r", "--resume"]) == 2
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_another_version(run_dir, tmp_path, capfd, monkeypatch):
    shutil.copytree(run_dir, tmp_path / "r")
    content = files.load_checkpoint(tmp_path / "r" / "checkpoint.pt")
    monkeypatch.setattr(files, "FORMAT", 2)
    files.save_checkpoint(tmp_path / "r" / "checkpoint.pt", {**content, "format": 2})
    monkeypatch.undo()
    capfd.readouterr()
    assert train(["--run_dir", str(tmp_path / "r"), "--resume", "--epochs", "3"]) == 2
    assert capfd.readouterr().err.count("\n") == 1


def test_data_that_have_changed(tmp_path, capfd):
    file, run_dir = tmp_path / "a.npy", tmp_path / "r"
    generator = np.random.default_rng(0)
    np.save(file, generator.integers(0, 256, (90, 5, 5), dtype=np.uint8))
    assert train(["--data", str(file), "--epochs", "1", "--batch_size", "20", "--run_dir", str(run_dir)]) == 0
    np.save(file, generator.integers(0, 256, (90, 5, 5), dtype=np.uint8))
    capfd.readouterr()
    assert train(["--run_dir", str(run_dir), "--resume", "--epochs", "2"]) == 2
    assert "a.npy" in capfd.readouterr().err
    assert main(["evaluate", str(run_dir), "--num_samples", "3", "--check_images", "0"]) == 0
    assert "warning: " in capfd.readouterr().err
    np.save(file, generator.integers(0, 256, (90, 5, 6), dtype=np.uint8))
    assert train(["--run_dir", str(run_dir), "--resume", "--epochs", "2"]) == 2


def test_another_engine_goes_on(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (other,) = {"eager", "traced"} - {yaml.safe_load((whole / "config.yaml").read_text())["engine"]}
    assert train(["--run_dir", str(tmp_path / "run"), "--resume", "--epochs", "7", "--engine", other]) == 0
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["engine"] == other


def test_a_last_step_that_breaks_the_parameters(tmp_path, capfd):
    """The loss of the step was finite: only the validation after it finds what it did."""
    flags = "--data digits --batch_size 1349 --latent_dim 3 --optimizer torch.optim.SGD --optimizer.lr 1e38 --epochs 1"
    flags += " --on_nan rewind"
    assert train([*flags.split(), "--run_dir", str(tmp_path / "r")]) == 1
    err = capfd.readouterr().err
    assert err.count("warning: ") == 3  # one for each rewind
    assert err.count("error: ") == 1
    assert err.count("\n") == 4
