"""However a run is stopped, the same command continues it to the same result, bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from run_folders import contents, epochs, equal, trained

import pyro_vae as pv
from pyro_vae.cli import train
from pyro_vae.cli.main import main
from pyro_vae.runs.checkpoints import load_checkpoint, read_content, write_content
from pyro_vae.runs.folder import Run

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


engines = pytest.mark.parametrize("whole", ["eager", "traced"], indirect=True)


SCHEDULE = ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "4"]


@pytest.fixture(scope="module")
def whole(request, flags, tmp_path_factory):
    """A run that was never stopped, by the eager engine or another."""
    path = tmp_path_factory.mktemp("whole") / "run"
    trained(*flags, *SCHEDULE, "--engine", getattr(request, "param", "eager"), "--run_dir", path)
    return path


def engine_of(path):
    return yaml.safe_load((path / "config.yaml").read_text())["engine"]


@pytest.fixture
def stopped(whole, flags, tmp_path):
    """The same run, stopped after two epochs."""
    trained(
        *flags,
        *SCHEDULE,
        "--engine",
        engine_of(whole),
        "--epochs",
        2,
        "--run_dir",
        tmp_path / "run",
    )
    return tmp_path / "run"


KILLED = """
import sys
import pyro_vae.cli.train as train
from pyro_vae.cli.main import main

score = lambda vae, data, recipe: train.evaluate(vae, data.test, 10, min(1000, len(data.test)))
train.score, train.draw = score, lambda *args: []
print("imported", flush=True)
sys.exit(main(sys.argv[1:]))
"""


@posix
@engines
def test_killed_at_any_moment(whole, flags, tmp_path):
    """By SIGKILL while it starts, steps or writes; the same command continues it each time."""
    path, generator = tmp_path / "run", random.Random(engine_of(whole))
    argv = [
        *flags,
        *SCHEDULE,
        "--engine",
        engine_of(whole),
        "--run_dir",
        str(path),
        "--resume",
        "auto",
    ]
    for _ in range(2):
        with subprocess.Popen(
            [sys.executable, "-c", KILLED, *argv], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "imported\n"
            time.sleep(generator.uniform(0.1, 0.6))
            process.kill()
    trained(*argv)
    assert equal(contents(path), contents(whole))
    assert not list(path.rglob("*.tmp"))


class Killed(BaseException):
    """Stands in for SIGKILL: nothing catches it, and what was written so far stays."""


@pytest.mark.parametrize("number", [0, 1, 2, 3, 6, 9, 99])
def test_killed_between_any_two_writes(whole, flags, tmp_path, monkeypatch, number):
    path, calls, replace = tmp_path / "run", [], Path.replace

    def killed(self, target):
        calls.append(target)
        if len(calls) > number:
            raise Killed
        return replace(self, target)

    argv = [*flags, *SCHEDULE, "--engine", engine_of(whole), "--run_dir", path, "--resume", "auto"]
    monkeypatch.setattr(Path, "replace", killed)
    with suppress(Killed):
        main([*map(str, argv)])
    monkeypatch.setattr(Path, "replace", replace)
    trained(*argv)
    assert equal(contents(path), contents(whole))


@engines
def test_more_epochs(whole, stopped, capfd):
    trained("train", "--run_dir", stopped, "--resume", "--epochs", 5)
    assert "epoch 2 of 5" in capfd.readouterr().out
    assert equal(contents(stopped), contents(whole))


@pytest.mark.parametrize("resume", ["auto", "always"])
def test_the_runs_own_command_resumes_it(whole, stopped, flags, monkeypatch, resume):
    """With its data as a relative path, and with those that "auto" chose."""
    monkeypatch.chdir(Path(flags[2]).parent)
    argv = [Path(flag).name if flag == flags[2] else flag for flag in flags]
    trained(
        *argv, *SCHEDULE, "--engine", engine_of(whole), "--run_dir", stopped, "--resume", resume
    )
    assert equal(contents(stopped), contents(whole))


@pytest.mark.parametrize(
    ("more", "named"),
    [
        ("--latent_dim 3", "latent_dim"),
        ("--seed 1 --optimizer.lr 0.1", "optimizer, seed"),
        ("--prior GaussianMixture", "prior"),
        ("--data digits", "data"),
        ("--epochs 1", "epochs"),
        ("--batch_size 30", "batch_size"),
        ("--epochs null --data nowhere", "data"),
    ],
)
def test_other_options_are_refused(tmp_path_factory, flags, refused, more, named):
    path = tmp_path_factory.getbasetemp() / "kept" / "run"
    if not path.exists():
        trained(*flags, "--epochs", 2, "--run_dir", path)
    before = contents(path)
    assert named in refused("train", "--run_dir", path, "--resume", *more.split())
    assert equal(contents(path), before)


def test_epochs_by_default(flags, tmp_path):
    """`--epochs null` is the default number, not none."""
    trained(*flags, "--epochs", 1, "--batch_size", 45, "--run_dir", tmp_path / "run")
    assert load_checkpoint(Run(tmp_path / "run"), "last").epoch == 1
    assert (
        main(
            [
                "train",
                "--run_dir",
                str(tmp_path / "run"),
                "--resume",
                "--epochs",
                "null",
                "--patience",
                "1",
            ]
        )
        == 2
    )


def test_every_so_many_epochs(flags, tmp_path, monkeypatch):
    """The first before the first epoch, then every third, and the last."""
    seen, save = [], train.save_checkpoint

    def spy(run, which, training, data):
        seen.append((which, training.epoch))
        save(run, which, training, data)

    monkeypatch.setattr(train, "save_checkpoint", spy)
    trained(*flags, "--epochs", 7, "--checkpoint_every", 3, "--run_dir", tmp_path / "run")
    assert [epoch for which, epoch in seen if which == "last"] == [0, 3, 6, 7]


@engines
def test_another_engine_goes_on(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (other,) = {"eager", "traced"} - {engine_of(whole)}
    trained("train", "--run_dir", tmp_path / "run", "--resume", "--epochs", 6, "--engine", other)
    assert engine_of(tmp_path / "run") == other


FAULTS = {"full": errno.ENOSPC, "forbidden": errno.EACCES}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("at", ["fsync", "replace"])
def test_a_disk_that_fails_during_a_checkpoint(flags, tmp_path, monkeypatch, capfd, fault, at):
    path, calls = tmp_path / "run", []

    def failing(real):
        def call(*args):
            calls.append(1)
            if len(calls) > 6:
                raise OSError(FAULTS[fault], os.strerror(FAULTS[fault]))
            return real(*args)

        return call

    monkeypatch.setattr(
        *(
            (os, "fsync", failing(os.fsync))
            if at == "fsync"
            else (Path, "replace", failing(Path.replace))
        )
    )
    assert main([*flags, "--run_dir", str(path)]) == 1
    line = capfd.readouterr().err
    assert line.count("\n") == 1
    assert os.strerror(FAULTS[fault]) in line
    assert "--resume" in line
    monkeypatch.undo()
    assert not list(path.rglob("*.tmp"))
    trained("train", "--run_dir", path, "--resume")
    assert epochs(path) == [1, 2, 3, 4, 5]


def test_a_folder_that_vanishes(flags, tmp_path, monkeypatch, capfd):
    path, step = tmp_path / "run", pv.SVI.update

    def vanish(self, *args):
        shutil.rmtree(path, ignore_errors=True)
        return step(self, *args)

    monkeypatch.setattr(pv.SVI, "update", vanish)
    assert main([*flags, "--run_dir", str(path)]) == 1
    assert "metrics.jsonl" in capfd.readouterr().err


def test_results_that_cannot_be_written(run_dir, tmp_path, capfd):
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    (path / "results.json").unlink()
    (path / "results.json").mkdir()
    assert main(["train", "--run_dir", str(path), "--resume"]) == 1
    assert "results.json" in capfd.readouterr().err


def test_a_last_step_that_breaks_the_parameters(tmp_path, capfd):
    """The loss of the step is finite: only the validation after it finds what it did."""
    flags = "--data digits --batch_size 1349 --latent_dim 3 --epochs 1"
    flags += " --optimizer torch.optim.SGD --optimizer.lr 1e38"
    assert (
        main(["train", *flags.split(), "--on_nan", "rewind", "--run_dir", str(tmp_path / "r")]) == 1
    )
    err = capfd.readouterr().err
    assert err.count("rewinding") == 3
    assert err.count("error: ") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="the run is on the CPU")
def test_a_rewound_run_resumes(flags, tmp_path, monkeypatch):
    """With the learning rate that it was at."""
    path = tmp_path / "run"
    trained(*flags, "--epochs", 1, "--on_nan", "rewind", "--run_dir", path)
    content = read_content(path / "checkpoint.pt")
    content["training"]["optimizer"]["param_groups"][0]["lr"] = 5e-4
    write_content(path / "checkpoint.pt", content)
    trained("train", "--run_dir", path, "--resume", "--epochs", 2)
    assert (
        json.loads((path / "metrics.jsonl").read_text().splitlines()[-1])["learning_rate"] == 5e-4
    )


def test_epochs_that_are_kept_are_those_of_a_run_without_interruption(flags, tmp_path):
    """Also epochs after the last checkpoint, which are trained again."""
    options = ["--keep_every", 2, "--checkpoint_every", 3]
    trained(*flags, *options, "--epochs", 6, "--run_dir", tmp_path / "whole")
    trained(*flags, *options, "--epochs", 3, "--run_dir", tmp_path / "parts")
    trained(*flags, *options, "--epochs", 6, "--run_dir", tmp_path / "parts", "--resume")
    for name in ("0002.pt", "0004.pt", "0006.pt"):
        whole, parts = (
            read_content(tmp_path / run / "epochs" / name) for run in ("whole", "parts")
        )
        assert equal(whole["training"], parts["training"])
    assert len(list((tmp_path / "parts" / "epochs").iterdir())) == 3


@pytest.mark.parametrize(
    "options",
    [
        ["--data", "digits", "--model", "ConditionalVAE"],
        ["--model", "SemiSupervisedVAE", "--labels", "9"],
    ],
    ids=lambda options: options[-1],
)
def test_resumed_equals_uninterrupted(tmp_path, images, options):
    options = ["--data", str(images), *options, "--latent_dim", "2"]
    assert main(["train", *options, "--epochs", "2", "--run_dir", str(tmp_path / "whole")]) == 0
    assert main(["train", *options, "--epochs", "1", "--run_dir", str(tmp_path / "parts")]) == 0
    assert main(["train", "--resume", "--epochs", "2", "--run_dir", str(tmp_path / "parts")]) == 0
    whole, parts = (pv.load_run(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resuming_with_other_labels_is_rejected(tmp_path, capfd):
    images, labels = torch.randint(256, (40, 4, 4)).to(torch.uint8).numpy(), np.arange(40) % 2
    argv = [
        "train",
        "--data",
        str(tmp_path / "data.npz"),
        "--model",
        "ConditionalVAE",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    assert main([*argv, "--epochs", "1"]) == 0
    np.savez(tmp_path / "data.npz", images=images, labels=1 - labels)
    assert main([*argv, "--epochs", "2", "--resume"]) == 2
    assert "changed" in capfd.readouterr().err


def test_more_epochs_do_not_move_a_warm_up_backwards(flags, tmp_path):
    """By default it takes half of the epochs that the run was started with: 2 of 4."""
    run = tmp_path / "run"
    trained(*flags, "--epochs", 4, "--beta", "Linear", "--run_dir", run)
    for more in (6, 8):
        trained("train", "--run_dir", run, "--resume", "--epochs", more)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    betas = [json.loads(line)["beta"] for line in lines]
    assert betas == [0.5, *[1.0] * 7]
