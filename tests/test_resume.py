"""Whatever happens to a run, nothing that was learned is lost, and nothing is accepted that is not what was written."""

from __future__ import annotations

import errno
import json
import os
import pickle
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

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.runs import store as files
from pyro_vae.runs.folder import Run

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

engines = pytest.mark.parametrize("whole", ["eager", "traced"], indirect=True)

SCHEDULE = ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "4"]


@pytest.fixture(scope="module")
def flags(images):
    """A run of three steps per epoch."""
    return [
        "train",
        "--data",
        str(images),
        "--epochs",
        "5",
        "--batch_size",
        "20",
        "--device",
        "cpu",
        "--latent_dim",
        "2",
    ]


def equal(one, other):
    """Whether two values of checkpoints are the same, to the last bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


def contents(folder):
    """All that a run leaves but its times and pictures."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if "second" not in key} for line in lines]
    states = [files.load_checkpoint(folder / name) for name in ("checkpoint.pt", "best.pt")]
    return [
        metrics,
        states,
        (folder / "results.json").read_text(),
        (folder / "config.yaml").read_text(),
    ]


def epochs(folder):
    return [
        json.loads(line)["epoch"] for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]


def trained(*argv):
    assert main([*map(str, argv)]) == 0


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
    """By SIGKILL while it starts, steps or writes; the same command continues it each time, until it is done."""
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


def test_more_epochs_do_not_move_a_warm_up_backwards(flags, tmp_path):
    """By default it takes half of the epochs that the run was started with: 2 of 4."""
    run = tmp_path / "run"
    trained(*flags, "--epochs", 4, "--beta", "Linear", "--run_dir", run)
    for more in (6, 8):
        trained("train", "--run_dir", run, "--resume", "--epochs", more)
    lines = (run / "metrics.jsonl").read_text().splitlines()
    betas = [json.loads(line)["beta"] for line in lines]
    assert betas == [0.5, *[1.0] * 7]


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
    checkpoint = Run(tmp_path / "run").load_checkpoint("last")
    assert checkpoint.content["training"]["epoch"] == 1
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
    seen, save = [], Run.save_checkpoint

    def spy(self, which, training, data):
        seen.append((which, training.epoch))
        save(self, which, training, data)

    monkeypatch.setattr(Run, "save_checkpoint", spy)
    trained(*flags, "--epochs", 7, "--checkpoint_every", 3, "--run_dir", tmp_path / "run")
    assert [epoch for which, epoch in seen if which == "last"] == [0, 3, 6, 7]


@engines
def test_another_engine_goes_on(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (other,) = {"eager", "traced"} - {engine_of(whole)}
    trained("train", "--run_dir", tmp_path / "run", "--resume", "--epochs", 6, "--engine", other)
    assert engine_of(tmp_path / "run") == other


def test_two_processes_in_one_folder(stopped, refused):
    with Run(stopped).lock():
        assert "another process" in refused(
            "train", "--run_dir", stopped, "--resume", "--epochs", 9
        )
    trained("train", "--run_dir", stopped, "--resume", "--epochs", 3)


# metrics.jsonl

GARBAGE = {
    "text": lambda lines: ["what?", *lines],
    "an empty line": lambda lines: ["", *lines],
    "a NUL": lambda lines: ["\0", *lines],
    "bytes": lambda lines: ["\udcff", *lines],
    "a list": lambda lines: ["[1]", *lines],
    "other types": lambda lines: ['{"epoch": "one"}', *lines],
    "missing keys": lambda lines: ['{"epoch": 1}', *lines],
    "NaN": lambda lines: [lines[0].replace('"epoch": 1', '"epoch": NaN'), *lines],
    "a long integer": lambda lines: [
        lines[0].replace('"epoch": 1', f'"epoch": {"9" * 5000}'),
        *lines,
    ],
    "a huge number": lambda lines: [
        lines[0].replace('"epoch": 1', f'"epoch": {"9" * 400}'),
        *lines,
    ],
    "brackets": lambda lines: ["[" * 100_000, *lines],
    "later epochs": lambda lines: [*lines, lines[1].replace('"epoch": 2', '"epoch": 3')],
    "half a line": lambda lines: [*lines, lines[1][:50]],
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_damaged_metrics_do_not_stop_a_run(run_dir, tmp_path, garbage):
    """Records up to the checkpoint are kept; the weights decide, not the log."""
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    lines = GARBAGE[garbage]((run_dir / "metrics.jsonl").read_text().splitlines())
    (path / "metrics.jsonl").write_text(
        "\n".join(lines) + "\n" * (garbage != "half a line"), errors="surrogateescape"
    )
    trained("train", "--run_dir", path, "--resume", "--epochs", 3)
    assert epochs(path) == [1, 2, 3]


@pytest.mark.parametrize("kind", ["missing", "a directory", "a FIFO", "empty"])
def test_metrics_that_are_no_file_do_not_stop_a_run(run_dir, tmp_path, kind):
    path = tmp_path / "run"
    shutil.copytree(run_dir, path)
    file = path / "metrics.jsonl"
    file.unlink()
    {
        "missing": lambda: None,
        "a directory": file.mkdir,
        "a FIFO": lambda: os.mkfifo(file),
        "empty": file.touch,
    }[kind]()
    trained("train", "--run_dir", path, "--resume", "--epochs", 3)
    assert epochs(path) == [3]


# Disks

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


# Checkpoints


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "checkpoint.pt"
    vae = {"weight": torch.arange(40.0), "bias": torch.ones(3)}
    files.save_checkpoint(path, {"shape": [1, 2], "training": {"epoch": 3, "vae": vae}})
    return path


def test_a_checkpoint_is_read_as_it_was_written(saved):
    content = files.load_checkpoint(saved)
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
            content = files.load_checkpoint(damaged)
        except pv.RequestError:
            continue
        assert equal(content, files.load_checkpoint(saved)), position


def test_every_truncation_is_found(saved, tmp_path):
    whole, damaged = saved.read_bytes(), tmp_path / "damaged.pt"
    for length in range(0, len(whole), 7):
        damaged.write_bytes(whole[:length])
        with pytest.raises(pv.RequestError, match="damaged"):
            files.load_checkpoint(damaged)


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


@pytest.fixture
def changed(run_dir, tmp_path):
    """A copy of a run whose checkpoint has other content and a valid digest."""

    def make(change):
        path = tmp_path / "run"
        shutil.copytree(run_dir, path)
        content = files.load_checkpoint(path / "checkpoint.pt")
        change(content)
        files.save_checkpoint(path / "checkpoint.pt", content)
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


def test_a_last_step_that_breaks_the_parameters(tmp_path, capfd):
    """The loss of the step is finite: only the validation after it finds what it did."""
    flags = "--data digits --batch_size 1349 --latent_dim 3 --optimizer torch.optim.SGD --optimizer.lr 1e38 --epochs 1"
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
    content = files.load_checkpoint(path / "checkpoint.pt")
    content["training"]["optimizer"]["param_groups"][0]["lr"] = 5e-4
    files.save_checkpoint(path / "checkpoint.pt", content)
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
            files.load_checkpoint(tmp_path / run / "epochs" / name) for run in ("whole", "parts")
        )
        assert equal(whole["training"], parts["training"])
    assert len(list((tmp_path / "parts" / "epochs").iterdir())) == 3


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


def test_resumed_equals_uninterrupted(tmp_path):
    options = ["--data", "digits", "--model", "ConditionalVAE", "--latent_dim", "2"]
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
