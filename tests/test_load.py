"""A stranger's run folder is loaded or refused in one line, and nothing happens outside it."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import yaml
from run_folders import trained

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.runs.checkpoints import read_content, write_content
from pyro_vae.runs.load import open_run
from pyro_vae.runs.log import read_records

watched: list[str] | None = None
PROCESSES = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"}


def hook(event, args):
    """Note processes, connections, modules that are not installed, and files that are written."""
    if watched is None:
        return
    if event in PROCESSES or event.startswith("socket."):
        watched.append(event)
    elif event == "open" and isinstance(args[2], int):
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and args[0] != os.devnull:
            watched.append(f"write {args[0]}")
        elif str(args[0]).endswith("evil.py"):
            watched.append(f"read {args[0]}")


sys.addaudithook(hook)


@contextmanager
def watching() -> Iterator[list[str]]:
    global watched
    watched = seen = []
    try:
        yield seen
    finally:
        watched = None


def config(**changes):
    """A change of config.yaml; None removes the option."""

    def change(folder):
        file = folder / "config.yaml"
        content = yaml.safe_load(file.read_text()) | changes
        kept = {name: value for name, value in content.items() if value is not ...}
        file.write_text(yaml.safe_dump(kept))

    return change


def checkpoint(**changes):
    def change(folder):
        content = read_content(folder / "checkpoint.pt")
        write_content(folder / "checkpoint.pt", content | changes)

    return change


def parameter(function):
    def change(folder):
        content = read_content(folder / "checkpoint.pt")
        vae = content["training"]["vae"]
        name = next(iter(vae))
        vae[name] = function(vae[name])
        write_content(folder / "checkpoint.pt", content)

    return change


def replaced(name, make):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


HOSTILE = {
    "an unknown class": config(prior={"class_path": "evil.P"}),
    "a known class of another part": config(prior={"class_path": "subprocess.Popen"}),
    "a bare name": config(objective="TraceTMC_ELBO"),
    "a module beside it": config(data="evil.data"),
    "another option": config(trust=True),
    "a wide model": config(latent_dim=10**7),
    "a deep model": config(encoder={"class_path": "MLP", "init_args": {"hidden": [1] * 10**5}}),
    "a huge number": config(epochs=10**400),
    "another model": config(latent_dim=3),
    "labels": config(model="ConditionalVAE"),
    "no configuration": lambda folder: (folder / "config.yaml").unlink(),
    "a configuration of tags": lambda folder: (folder / "config.yaml").write_text(
        "!!python/object/apply:os.system ['touch ran']"
    ),
    "a huge shape": checkpoint(shape=[2**20, 2**20, 2**20]),
    "label_dim of true": checkpoint(label_dim=True),
    "versions of bytes": checkpoint(versions={"torch": b"2"}),
    "no state": checkpoint(training=None),
    "a parameter on no device": parameter(lambda tensor: tensor.to("meta")),
    "an expanded parameter": parameter(lambda tensor: tensor.flatten()[:1].expand(tensor.shape)),
    "a complex parameter": parameter(lambda tensor: tensor.to(torch.complex64)),
    "a number as a parameter": parameter(lambda tensor: 2**70),
    "a checkpoint that is a folder": replaced("checkpoint.pt", lambda file: file.mkdir()),
    "a checkpoint without an end": replaced("checkpoint.pt", os.mkfifo),
    "an empty checkpoint": replaced("checkpoint.pt", lambda file: file.touch()),
    "a checkpoint elsewhere": replaced("checkpoint.pt", lambda file: file.symlink_to("/etc/hosts")),
    "metrics elsewhere": replaced("metrics.jsonl", lambda file: file.symlink_to("/etc/hosts")),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_folder_is_one_line(run_dir, tmp_path, monkeypatch, change):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    (folder / "evil.py").write_text("raise SystemExit\n")
    change(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    with watching() as seen, pytest.raises(pv.RequestError) as caught:
        pv.load_run(".")
    assert "\n" not in str(caught.value)
    assert not seen
    assert "evil" not in sys.modules


HARMLESS = {
    "nothing": lambda folder: None,
    "metrics that are a folder": replaced("metrics.jsonl", lambda file: file.mkdir()),
    "metrics of newlines": replaced("metrics.jsonl", lambda file: file.write_bytes(b"\n" * 2**22)),
    "metrics of brackets": replaced("metrics.jsonl", lambda file: file.write_text("[" * 10**6)),
    "metrics without an end": replaced("metrics.jsonl", os.mkfifo),
    "modules of known names": lambda folder: [
        (folder / f"{name}.py").write_text("open('ran', 'w')\n")
        for name in ("json", "yaml", "torch", "sklearn", "evil")
    ],
}


@pytest.mark.parametrize("change", HARMLESS.values(), ids=HARMLESS)
def test_what_does_not_matter_to_the_model(run_dir, tmp_path, monkeypatch, change):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    change(folder)
    monkeypatch.chdir(folder)
    with watching() as seen:
        saved = open_run(".")
        read_records(saved.run)
    assert isinstance(saved.vae, pv.VAE)
    assert not seen


def test_the_hook_sees(tmp_path):
    with watching() as seen:
        (tmp_path / "file").write_text("text")
        (tmp_path / "evil.py").touch()
    assert len(seen) == 2


def test_epochs_before_the_checkpoint(run_dir, tmp_path):
    """At most five, evenly spaced; files of other names are not looked at."""
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    (folder / "epochs").mkdir()
    content = read_content(folder / "checkpoint.pt")
    for epoch in range(1, 13):
        content["training"]["epoch"] = epoch
        write_content(folder / "epochs" / f"{epoch:04}.pt", content)
    write_content(folder / "checkpoint.pt", content)
    for name in ("1.pt", "last.pt", "00001.pt", "0000.pt"):
        (folder / "epochs" / name).touch()
    names = [name for name, _ in open_run(folder).earlier()]
    assert names == ["epoch 1", "epoch 4", "epoch 7", "epoch 10"]


def test_a_run_folder_whose_model_was_changed_to_one_with_labels(run_dir, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("pyro_vae.VAE", "pyro_vae.ConditionalVAE"))
    assert main(["generate", str(folder), "samples"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(
    "command", [["train", "--run_dir", "r", "--resume"], ["evaluate", "r", "--num_samples", "3"]]
)
def test_a_run_folder_downloads_nothing_by_itself(folder, run_dir, refused, monkeypatch, command):
    shutil.copytree(run_dir, folder / "r")
    lines = (run_dir / "config.yaml").read_text().splitlines()
    changed = {"data": "data: mnist", "data_dir": f"data_dir: {folder / 'elsewhere'}"}
    (folder / "r" / "config.yaml").write_text(
        "\n".join(changed.get(line.split(":")[0], line) for line in lines)
    )
    (folder / "elsewhere" / "MNIST").mkdir(parents=True)
    monkeypatch.setattr(
        "pyro_vae.data.datasets._download", lambda *args: pytest.fail("it was about to download")
    )
    assert "mnist" in refused(*command)
    assert [path.name for path in (folder / "elsewhere").rglob("*")] == ["MNIST"]


def test_labels_of_other_data_are_classes_of_training(tmp_path):
    """Not positions among the labels of the other data."""
    generator = torch.Generator().manual_seed(0)
    images = (torch.rand(40, 4, 4, generator=generator) < 0.5).numpy()
    names = np.array(["ant", "cat", "dog"])[np.arange(40) % 3]
    np.savez(tmp_path / "train.npz", images=images, labels=names)
    np.savez(tmp_path / "new.npz", images=images, labels=np.where(names == "ant", "dog", names))
    np.savez(tmp_path / "unknown.npz", images=images, labels=np.where(names == "ant", "cow", names))
    run = tmp_path / "run"
    options = "--model ConditionalVAE --epochs 1 --latent_dim 2 --report false --test_samples 2"
    trained("train", "--data", tmp_path / "train.npz", "--run_dir", run, *options.split())
    saved = open_run(run)
    new = saved.images(data=str(tmp_path / "new.npz")).split
    assert new.classes == ("ant", "cat", "dog")
    assert new.labels.unique().tolist() == [1, 2]
    with pytest.raises(ValueError, match="labels of unknown classes: cow"):
        saved.images(data=str(tmp_path / "unknown.npz"))
