"""Whatever happens to a run, nothing that was learned is lost, and nothing is accepted that is not what was written."""

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
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import pyro_vae as pv
from pyro_vae import checkpoints
from pyro_vae.generate import main as generate
from pyro_vae.train import main as train

evaluate = sys.modules["pyro_vae.evaluate"].main

RUN = ["--data", "digits", "--epochs", "6", "--device", "cpu", "--latent_dim", "2"]
posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


def contents(folder):
    """All that a run leaves but its times: parameters, figures and pictures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    sums = [torch.load(folder / name, weights_only=True)["checksum"] for name in ("checkpoint.pt", "best.pt")]
    pictures = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    return metrics, sums, pictures, (folder / "results.json").read_text(), (folder / "config.yaml").read_text()


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
    """Five times, while it starts, steps or writes; each time it is taken up again until it is done."""
    engine, path = yaml.safe_load((whole / "config.yaml").read_text())["engine"], tmp_path / "run"
    generator = random.Random(engine)
    start = [*RUN, "--engine", engine, "--run_dir", path]
    for _ in range(5):
        begun = (path / "checkpoint.pt").exists()
        if not begun:
            shutil.rmtree(path, ignore_errors=True)
        with subprocess.Popen(
            command(*(("--run_dir", path, "--resume") if begun else start)), stdout=subprocess.DEVNULL
        ) as process:
            until((path / "checkpoint.pt").exists, process)
            time.sleep(generator.uniform(0, 4 if begun else 0.2))
            process.kill()
    assert train(["--run_dir", str(path), "--resume"]) == 0
    assert contents(path) == contents(whole)
    assert not list(path.glob("*.tmp"))


def stopped(tmp_path, epochs=2, **changes):
    """A run that has ended after a few epochs, and may go on."""
    path = tmp_path / "run"
    flags = [flag for name, value in changes.items() for flag in (f"--{name}", value)]
    assert train([*RUN, "--epochs", str(epochs), *flags, "--run_dir", str(path)]) == 0
    return path


def test_more_epochs(whole, tmp_path, capfd):
    engine = yaml.safe_load((whole / "config.yaml").read_text())["engine"]
    path = stopped(tmp_path, engine=engine)
    assert train(["--run_dir", str(path), "--resume", "--epochs", "6"]) == 0
    assert "resuming after epoch 2 of 6" in capfd.readouterr().out
    assert contents(path) == contents(whole)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--latent_dim 3", "latent_dim differ"),
        ("--seed 1 --optimizer.lr 0.1", "optimizer.init_args.lr, seed differ"),
        ("--prior GaussianMixture", "prior.class_path, prior.init_args.components differ"),
        ("--data mnist", "data differ"),
        ("--epochs 1", "epochs is 1, but"),
    ],
)
def test_other_options_are_refused(tmp_path_factory, capfd, flags, message):
    path = tmp_path_factory.getbasetemp() / "kept" / "run"
    if not path.exists():
        stopped(path.parent)
    before = contents(path)
    capfd.readouterr()
    assert train(["--run_dir", str(path), "--resume", *flags.split()]) == 2
    assert message in capfd.readouterr().err
    assert contents(path) == before


def test_every_so_many_epochs(tmp_path, monkeypatch):
    """The first before the first epoch, then every third, and the last."""
    seen = []
    save = checkpoints.save
    monkeypatch.setattr(
        checkpoints, "save", lambda path, content: (seen.append((path.name, content["training"]["epoch"])), save(path, content))
    )
    stopped(tmp_path, epochs=7, checkpoint_every="3")
    assert [epoch for name, epoch in seen if name == "checkpoint.pt"] == [0, 3, 6, 7]


def test_metrics_without_a_checkpoint_are_trained_again(tmp_path):
    """A process that is killed between the two files, or within a line."""
    path = stopped(tmp_path)
    record = json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])
    with (path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({**record, "epoch": 3}) + "\n" + '{"epoch": 4, "st')
    assert train(["--run_dir", str(path), "--resume", "--epochs", "4"]) == 0
    assert [json.loads(line)["epoch"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4]


@posix
@pytest.mark.parametrize(("number", "code", "name"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_signals(tmp_path, number, code, name):
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
    assert err == f"stopped by {name}; to go on: python -m pyro_vae.train --run_dir {path} --resume\n"
    assert pv.load_run(path) is not None


def test_two_processes_in_one_folder(tmp_path, capfd):
    path = stopped(tmp_path)
    from pyro_vae.cli.run_folder import Run

    with Run(path).lock():
        assert train(["--run_dir", str(path), "--resume", "--epochs", "9"]) == 2
    assert "another process trains in" in capfd.readouterr().err
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
    assert f"cannot be written ({os.strerror(FAULTS[fault])}); to go on: " in err
    monkeypatch.undo()
    assert not list(path.glob("*.tmp"))
    assert train(["--run_dir", str(path), "--resume"]) == 0
    assert [json.loads(line)["epoch"] for line in (path / "metrics.jsonl").read_text().splitlines()] == [1, 2, 3, 4, 5, 6]


def test_a_folder_that_vanishes(tmp_path, monkeypatch, capfd):
    path, step = tmp_path / "run", pv.SVI.update

    def vanish(self, *args):
        shutil.rmtree(path, ignore_errors=True)
        return step(self, *args)

    monkeypatch.setattr(pv.SVI, "update", vanish)
    assert train([*RUN, "--run_dir", str(path)]) == 1
    assert "metrics.jsonl cannot be written (No such file or directory)" in capfd.readouterr().err


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
    checkpoints.save(
        path, {"shape": [1, 2], "training": {"epoch": 3, "vae": {"weight": torch.arange(40.0), "bias": torch.ones(3)}}}
    )
    return path


def test_a_checkpoint_is_read_as_it_was_written(saved):
    content = checkpoints.load(saved)
    assert content["training"]["epoch"] == 3
    assert torch.equal(content["training"]["vae"]["weight"], torch.arange(40.0))
    assert content["versions"]["torch"] == torch.__version__


def read_or_none(path):
    try:
        return checkpoints.load(path)
    except pv.RequestError:
        return None


def test_every_flipped_bit_is_found_or_harmless(saved, tmp_path):
    """In each byte of the file: either it is refused in words, or what is read is what was written."""
    whole, expected = saved.read_bytes(), checkpoints.load(saved)
    found = 0
    damaged = tmp_path / "damaged.pt"
    for position in range(len(whole)):
        damaged.write_bytes(whole[:position] + bytes([whole[position] ^ (1 << position % 8)]) + whole[position + 1 :])
        content = read_or_none(damaged)
        found += content is None
        assert content is None or checkpoints.checksum(content) == checkpoints.checksum(expected)
    assert found > 500


def test_every_truncation_is_found(saved, tmp_path):
    whole, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    for length in range(0, len(whole), 7):
        damaged.write_bytes(whole[:length])
        with pytest.raises(pv.RequestError, match="damaged"):
            checkpoints.load(damaged)


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
        torch.save(Hostile() if form == "torch" else {**torch.load(file, weights_only=True), "more": Hostile()}, file)
    for run in (
        lambda: evaluate(["r", "--checkpoint", which, "--num_samples", "2"]),
        lambda: generate(["r", "samples", "--checkpoint", which]),
        lambda: train(["--run_dir", "r", "--resume"]) if which == "last" else 2,
    ):
        assert run() == 2
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_the_first_format(run_dir, tmp_path, capfd):
    """It is scored and drawn, but training cannot go on from it."""
    path = tmp_path / "r"
    shutil.copytree(run_dir, path)
    content = checkpoints.load(path / "checkpoint.pt")
    old = {"format": 1, "epoch": 2, "shape": content["shape"], "vae": content["training"]["vae"]}
    torch.save(old, path / "checkpoint.pt")
    assert evaluate([str(path), "--num_samples", "2"]) == 0
    assert generate([str(path), "samples"]) == 0
    assert train(["--run_dir", str(path), "--resume", "--epochs", "3"]) == 2
    assert "is of an older version, which kept no state to go on from" in capfd.readouterr().err


def test_checksums_tell_types_and_nesting_apart():
    values = [
        1,
        1.0,
        "1",
        [1],
        [[1]],
        {"a": 1},
        {"b": 1},
        torch.ones(1),
        torch.ones(1).int(),
        torch.ones(1, 1),
        None,
        [1, 1],
        [[1], 1],
    ]
    assert len({checkpoints.checksum(value) for value in values}) == len(values)
    buffer = io.BytesIO()
    content = {"a": [torch.randn(2, 3).bfloat16(), (1, 2.5)], 3: {"x": True}}
    torch.save(content, buffer)
    buffer.seek(0)
    assert checkpoints.checksum(torch.load(buffer, weights_only=True)) == checkpoints.checksum(content)


def test_data_that_have_changed(tmp_path, capfd):
    file, run_dir = tmp_path / "a.npy", tmp_path / "r"
    generator = np.random.default_rng(0)
    np.save(file, generator.integers(0, 256, (90, 5, 5), dtype=np.uint8))
    assert train(["--data", str(file), "--epochs", "1", "--batch_size", "20", "--run_dir", str(run_dir)]) == 0
    np.save(file, generator.integers(0, 256, (90, 5, 5), dtype=np.uint8))
    capfd.readouterr()
    assert train(["--run_dir", str(run_dir), "--resume", "--epochs", "2"]) == 2
    assert "a.npy has changed since" in capfd.readouterr().err
    assert evaluate([str(run_dir), "--num_samples", "3", "--gap_images", "0"]) == 0
    assert "warning: " in capfd.readouterr().out
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
    out, err = capfd.readouterr()
    assert out.count("back to the end of epoch 0") == 3
    assert "on the validation images after epoch 1" in err
