"""Options, their help, and wrong ones: exit code 2, one line that names the option."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pyro_vae.cli.main import main
from pyro_vae.cli.options import parse_training
from pyro_vae.runs.annotations import parameters
from pyro_vae.runs.parts import PARTS, known_classes

TRAIN = ["train", "--data", "digits", "--epochs", "1", "--device", "cpu"]

CAPACITY = "--objective CapacityELBO --objective.capacity Linear --objective.capacity"
ONE_CYCLE = "--lr_scheduler OneCycleLR --lr_scheduler.max_lr 0.01"

# Flags of `train`, and what the line must name.
BAD_TRAIN = {
    "--foo 3": "--foo",
    "--epoch 3": "--epochs",
    "--optimiser SGD": "--optimizer",
    "extra": "extra",
    "--keep_every 0": "a positive integer",
    "--prior Foo": "StandardNormal",
    "--prior my_module.Foo": "my_module",
    "--prior own.Missing": "own",
    "--prior torch.nn.Linear": "torch.nn.Linear",
    "--prior.foo 3": "StandardNormal has no option foo",
    "--prior.latent_dim 3": "latent_dim",
    "--prior null": "prior",
    "--model null": "model",
    "--optimizer null": "optimizer",
    "--encoder Foo": "MLP",
    "--encoder.hidden x": "a list",
    "--encoder.hidden [0]": "hidden",
    "--encoder.hidden null": "encoder.hidden",
    "--encoder.activation null": "encoder.activation",
    "--optimizer.lr null": "optimizer.lr",
    f"{CAPACITY}.end null": "capacity",
    "--encoder Conv --encoder.kernel_sizes [3]": "encoder",
    "--encoder.activation Foo": "encoder.activation",
    "--encoder Network": "encoder",
    "--optimizer Foo": "optimizer",
    "--optimizer.lr x": "optimizer.lr",
    "--optimizer.lr -1": "optimizer",
    "--optimizer.betas [2,3]": "optimizer",
    "--beta 4": "beta",
    "--beta.value 0": "value",
    "--beta.value 1e308": "beta",
    "--likelihood pyro_vae.likelihoods.Normal --likelihood.scale 0": "scale",
    "--latent_dim 0": "latent_dim",
    "--latent_dim x": "latent_dim",
    "--epochs 0": "epochs",
    "--epochs 1.5": "epochs",
    "--batch_size 0": "batch_size",
    "--batch_size 1350": "batch_size",
    "--seed -1": "seed",
    "--seed 5000000000": "seed",
    "--device tpu": "device",
    "--binarization none": "binarization",
    "--binarization sometimes": "binarization",
    "--likelihood.relaxed true --binarization dynamic": "binarization",
    "--likelihood Beta --binarization static": "binarization",
    "--data nowhere": "nowhere",
    "--config nowhere.yaml": "nowhere.yaml",
    "--image_size 0": "image_size",
    "--image_size 1000000": "image_size",
    "--objective pyro.infer.JitTrace_ELBO": "JitTrace_ELBO",
    f"{CAPACITY}.epochs x": "capacity",
    "--objective DReGELBO --posterior own.Coin": "reparameterized",
    "--model Foo": "HierarchicalVAE",
    "--model.prior_dim 3": "prior_dim",
    "--model HierarchicalVAE --model.prior_dim 0": "prior_dim",
    "--prior GaussianMixture --prior.components 0": "components",
    "--prior GaussianMixture --prior.components many": "prior.components",
    "--prior VampPrior --prior.components 1350 --prior.start data": "components",
    "--prior VampPrior --prior.start here": "prior.start",
    "--prior StudentT --prior.df 0": "df",
    "--prior FlowPrior --prior.flow NICE": "prior.flow",
    "--prior StandardNormal --prior.components 3": "components",
    "--posterior LowRankNormal --posterior.rank 21": "rank",
    "--posterior VampPrior": "DiagonalNormal",
    "--posterior pyro_vae.VampPrior": "pyro_vae.VampPrior",
    "--likelihood DiscretizedLogistic --likelihood.components 0": "components",
    "--optimizer LBFGS": "LBFGS",
    "--optimizer SparseAdam": "SparseAdam",
    "--encoder own.make_network": "own.make_network",
    "--likelihood own.NoPixels": "NoPixels",
    "--prior own.NoPrior": "own.NoPrior",
    "--beta own.Zero": "beta",
    "--beta Linear --beta.epochs 2 --beta.steps 3": "epochs",
    "--beta Linear --beta.epochs x": "beta.epochs",
    "--beta Linear --beta.value 3": "value",
    "--beta Cyclical --beta.epochs 2 --beta.rise 3": "rise",
    "--objective Foo": "DReGELBO",
    "--objective torch.nn.Linear": "torch.nn.Linear",
    "--objective.num_particles 0": "num_particles",
    "--objective.num_particles many": "num_particles",
    "--objective DReGELBO --objective.num_particles 0": "num_particles",
    "--objective DReGELBO --objective.num_particles many": "objective.num_particles",
    "--objective DReGELBO --beta.value 2": "DReGELBO",
    "--objective RenyiELBO --beta Linear --beta.epochs 3": "RenyiELBO",
    "--objective RenyiELBO --objective.alpha x": "objective",
    "--objective RenyiELBO --objective.alpha 1": "objective",
    "--objective CapacityELBO --beta.value 2": "CapacityELBO",
    "--objective CapacityELBO --objective.gamma -1": "gamma",
    "--objective CapacityELBO --objective.capacity Foo": "capacity",
    "--objective FreeBitsELBO --objective.floor 0": "floor",
    "--objective FreeBitsELBO --objective.groups 3": "groups",
    "--objective FreeBitsELBO --prior FlowPrior": "groups",
    "--objective TraceMeanField_ELBO --prior GaussianMixture": "closed-form",
    "--objective TraceMeanField_ELBO --model HierarchicalVAE": "TraceMeanField_ELBO",
    "--lr_scheduler Foo": "StepLR",
    "--lr_scheduler StepLR": "lr_scheduler",
    "--lr_scheduler StepLR --lr_scheduler.step_size 0": "lr_scheduler",
    "--lr_scheduler torch.optim.Adam": "lr_scheduler",
    f"{ONE_CYCLE} --lr_scheduler.total_steps 1 --epochs 5": "lr_scheduler",
    "--patience 0": "patience",
    "--clip_grad_norm 0": "clip_grad_norm",
    "--clip_grad_norm x": "clip_grad_norm",
    "--checkpoint_every 0": "checkpoint_every",
    "--engine fast": "engine",
    "--precision float16": "precision",
    "--on_nan ignore": "on_nan",
    "--resume": "run_dir",
    "--resume auto": "run_dir",
    "--resume sometimes": "resume",
    "--resume --run_dir nowhere": "nowhere",
    "--run_dir own.py": "own.py",
    "--run_dir .": "exists",
    "--run_dir /": "exists",
}

OWN = """
import pyro.distributions as dist
import torch
import pyro_vae as pv

def make_network(in_shape, out_shape):
    return pv.MLP(in_shape, out_shape)

class NoPixels(pv.Likelihood):
    def forward(self, params):
        raise NotImplementedError

class NoPrior(torch.nn.Module):
    pass

class Coin(pv.Posterior):
    num_params = 1

    def forward(self, params):
        return dist.Bernoulli(logits=params[..., 0, :]).to_event(1)

class Zero(pv.Schedule):
    def __call__(self, step: int) -> float:
        return 0
"""


@pytest.mark.parametrize("flags", BAD_TRAIN)
def test_bad_training_options(refused, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own", None)
    (tmp_path / "own.py").write_text(OWN)
    assert BAD_TRAIN[flags] in refused(*TRAIN, *flags.split())
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--data", "x" * 5000),
        ("--data", "a\0b"),
        ("--data", "line\nbreak"),
        ("--run_dir", "a\0b"),
        ("--config", "a\0b"),
        ("--config", "x" * 5000),
        ("--prior", "a\0b"),
        ("--prior", "line\nbreak"),
        ("--prior", "[" * 3000),
        ("--seed", "9" * 5000),
        ("--encoder.hidden", "[" * 3000),
        ("--foo\nbar", "3"),
        ("--latent_dim", "&a [*a]"),
    ],
)
def test_values_that_no_file_or_class_can_have(refused, tmp_path, monkeypatch, flag, value):
    monkeypatch.chdir(tmp_path)
    assert len(refused(*TRAIN, flag, value)) < 1000
    assert not any(tmp_path.iterdir())


BAD_CONFIGS = {
    "no mapping": "- 3",
    "brackets": "epochs: [1",
    "an unknown key": "epoch: 3",
    "an unknown class": "prior: {class_path: Foo}",
    "a number": "data: 5",
    "null": "prior: null",
    "bytes": b"\xff\xfe",
    "nested deeply": "prior: " + "[" * 3000 + "]" * 3000,
    "nested very deeply": "prior: " + "[" * 90_000 + "]" * 90_000,
    "a long integer": "seed: " + "9" * 5000,
    "an alias of itself": "encoder: &a {class_path: *a}",
    "a billion laughs": "a0: &a0 [x, x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 30)),
    "a tag": "seed: !!python/object/apply:os.getpid []",
    "too large": "data: x\n" + "#" * 2**20,
}


@pytest.mark.parametrize("text", BAD_CONFIGS.values(), ids=BAD_CONFIGS)
def test_bad_config_files(refused, tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    assert len(refused(*TRAIN, "--config", file)) < 1000


def test_config_files_that_are_no_files(refused, tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("fifo", "loop", "", "missing"):
        refused(*TRAIN, "--config", tmp_path / name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none(refused):
    assert "device" in refused(*TRAIN, "--device", "cuda")


def test_a_run_folder_is_never_overwritten(refused, run_dir):
    before = (run_dir / "metrics.jsonl").read_text()
    assert str(run_dir) in refused(*TRAIN, "--run_dir", run_dir)
    assert (run_dir / "metrics.jsonl").read_text() == before


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_folders_that_hold_no_run(refused, tmp_path, command):
    kind = ["samples"] if command == "generate" else []
    for path in (tmp_path, tmp_path / "nowhere", "a\0b", "x" * 5000):
        assert "config.yaml" in refused(command, path, *kind)
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    assert "checkpoint.pt" in refused(command, tmp_path, *kind)
    (tmp_path / "config.yaml").write_text("nonsense: 3\n")
    assert "nonsense" in refused(command, tmp_path, *kind)


BAD_SAVED = {
    "evaluate --num_samples 0": "an integer from 1",
    "evaluate --num_samples 10000000000000": "num_samples",
    "evaluate --num_images 0": "num_images",
    "evaluate --num_images 300": "300",
    "evaluate --checkpoint middle": "checkpoint",
    "evaluate --split all": "split",
    "evaluate --method magic": "method",
    "evaluate --batch_size 0": "batch_size",
    "evaluate --num_chains 0": "num_chains",
    "evaluate --method ais --num_chains 1000000000000": "num_chains",
    "evaluate --num_temperatures 0": "num_temperatures",
    "evaluate --method ais --num_temperatures 1000000000000": "num_temperatures",
    "evaluate --gap_images -1": "gap_images",
    "evaluate --check_images -1": "check_images",
    "evaluate --per_image scores.csv": "per_image",
    "evaluate --per_image /dev/null/scores.npz": "per_image",
    "evaluate --engine fast": "engine",
    "evaluate --seed -1": "seed",
    "evaluate --data_dir": "data_dir",
    "evaluate --epochs 3": "epochs",
    "evaluate --num_sample 3": "--num_samples",
    "generate": "kind",
    "generate paintings": "kind",
    "generate samples --count 0": "count",
    "generate samples --count 1000000000": "count",
    "generate reconstructions --count 300": "count",
    "generate interpolations --count 200": "count",
    "generate interpolations --count 1000000000": "count",
    "generate manifold --columns 1000000000": "columns",
    "generate traversals --dimension 2": "dimension",
    "generate traversals --dimension -1": "dimension",
    "generate samples --format gif": "format",
    "generate samples --mean perhaps": "mean",
    "generate samples --out x.gif": "x.gif",
    "generate samples --format npz --out x.png": "x.png",
    "generate samples --out .": "out",
    "generate samples --out /": "out",
    "generate samples --out ..": "out",
}


@pytest.mark.parametrize("line", BAD_SAVED)
def test_bad_options_on_a_saved_run(refused, run_dir, line):
    command, *flags = line.split()
    before = sorted(run_dir.rglob("*"))
    assert BAD_SAVED[line] in refused(command, run_dir, *flags)
    assert sorted(run_dir.rglob("*")) == before


@pytest.mark.parametrize("out", ["a\0b", "line\nbreak.gif"])
def test_output_files_that_cannot_be_named(refused, run_dir, out):
    assert len(refused("generate", run_dir, "samples", "--out", out)) < 1000


@pytest.mark.parametrize("flag", ["--help", "--prior.help", "--encoder.help=MLP", "--print_config"])
def test_help(capfd, flag):
    assert main(["train", flag]) == 0
    out, err = capfd.readouterr()
    assert not err
    assert "<class" not in out
    expected = {
        "--encoder.help=MLP": "Width of each hidden layer",
        "--print_config": "latent_dim: 20",
    }
    assert expected.get(flag, "prior") in out


PARTS_AND_CLASSES = [(name, cls.__name__) for name, part in PARTS.items() for cls in part.known()]


# Classes of torch with ten options and more.
LONG = ("Adam", "AdamW", "CyclicLR", "OneCycleLR", "ReduceLROnPlateau", "RMSprop", "NAdam", "RAdam")


@pytest.mark.parametrize(("name", "cls"), PARTS_AND_CLASSES)
def test_help_of_a_class_is_short_and_without_markup(capfd, name, cls):
    assert main(["train", f"--{name}.help", cls]) == 0
    out = capfd.readouterr().out
    lines = out.splitlines()
    assert len(lines) <= (50 if cls in LONG else 30)
    assert max(map(len, lines)) <= 80 or "COLUMNS" in os.environ
    for markup in (":math:", ":class:", "<class", "subclass", "typing."):
        assert markup not in out
    options = parameters(known_classes(name)[cls], PARTS[name].supplied)
    assert all(f"--{name}.{option} " in out for option in options)


def test_help_of_a_class_that_does_not_exist(refused):
    said = refused("train", "--prior.help", "Foo")
    assert "there is no class Foo; choose from FlowPrior, " in said


@pytest.mark.parametrize(
    ("part", "cls", "text"),
    [
        ("beta", "Linear", "Length of the ramp in steps, instead of epochs."),
        (
            "likelihood",
            "ZeroInflatedNegativeBinomial",
            "Take the total of each row as an exposure.",
        ),
    ],
)
def test_help_describes_the_options_of_base_classes(capfd, part, cls, text):
    assert main(["train", f"--{part}.help", cls]) == 0
    assert text in " ".join(capfd.readouterr().out.split())


def test_sentences_of_help_are_whole(capfd):
    assert main(["train", "--encoder.help", "Conv"]) == 0
    words = " ".join(capfd.readouterr().out.split())
    assert "starting at the image. (default: (32, 64))" in words


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        ("evaluate r --split tests", "split: must be one of train, validation, test\n"),
        ("evaluate r --checkpoint first", "checkpoint: must be one of last, best"),
        ("evaluate r --device gpu", "device: must be one of auto, cpu, cuda\n"),
        ("train --resume sometimes", "resume: must be one of never, always, auto\n"),
        ("generate r movie", "kind: must be one of samples, reconstructions, "),
        ("generate r samples --format jpg", "format: must be one of png, pdf, svg, npz\n"),
        ("generate r samples --mean maybe", "mean: must be true or false\n"),
        ("generate r", "required: kind; --help"),
    ],
)
def test_choices_are_named_without_types(refused, argv, said):
    assert said in refused(*argv.split())


def test_printed_options_are_a_configuration(capfd, tmp_path):
    argv = ["--latent_dim", "3", "--prior", "VampPrior", "--optimizer.lr", "0.01"]
    assert main(["train", *argv, "--print_config"]) == 0
    file = tmp_path / "c.yaml"
    file.write_text(capfd.readouterr().out)
    assert parse_training(["--config", str(file)]) == parse_training(argv)


def test_without_options_all_have_their_defaults():
    asked = parse_training([])
    assert asked.run_dir is None
    assert asked.recipe.data == "auto"
    assert asked.recipe.epochs is None
    assert asked.recipe.model.class_path == "pyro_vae.VAE"


MESSAGES = {
    "--latent_dim x": "latent_dim must be an integer, but is 'x'",
    "--latent_dim 0": "latent_dim must be an integer from 1 to 16384, but is 0",
    "--device tpu": "device must be one of auto, cpu, cuda, but is 'tpu'",
    "--optimizer.lr x": "optimizer.lr must be a number or Tensor, but is 'x'",
    "--encoder.hidden [a]": "encoder.hidden must be a list such as [2, 3], but is ['a']",
    "--prior.foo 3": "prior: StandardNormal has no option foo; its options are: none",
    "--likelihood.relaxed 2": "likelihood.relaxed must be true or false, but is 2",
    "--lr_scheduler StepLR": "lr_scheduler: the following arguments are required: step_size",
    "--prior pyro_vae.MLP": "prior: pyro_vae.MLP is not a subclass of Prior; choose from",
    "--epoch 3": "unrecognized arguments: --epoch 3; did you mean --epochs?",
}


@pytest.mark.parametrize("flags", MESSAGES)
def test_messages_are_written_for_the_user(refused, flags):
    assert refused("train", *flags.split()).startswith(f"error: {MESSAGES[flags]}")


def test_help_lists_what_works(capfd):
    assert main(["train", "--help"]) == 0
    out = capfd.readouterr().out
    for name in ("JitTrace_ELBO", "LBFGS", "ChainedScheduler"):
        assert name not in out
    for name in ("VampPrior", "DReGELBO", "AdamW", "CosineAnnealingLR", "Cyclical"):
        assert name in out
    assert max(map(len, out.splitlines())) <= 80 or "COLUMNS" in os.environ


def pyro_vae(*argv, **options):
    """A command as a real process."""
    return subprocess.run(
        [sys.executable, *map(str, argv)], capture_output=True, text=True, timeout=120, **options
    )


MISTAKES = """
import gc, json, os, sys
from pyro_vae.cli.main import main

sys.path[:] = [path for path in sys.path if path not in ("", os.getcwd())]
lines = json.load(sys.stdin)
main(lines[0])  # imports what is imported late
gc.freeze()  # the collector would copy the memory that the processes share
for argv in lines:
    if not (pid := os.fork()):
        os._exit(main(argv))
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_mistakes_as_processes(tmp_path, run_dir):
    """Some lines of the tables, each in a process of its own, forked after the imports."""
    (tmp_path / "own.py").write_text(OWN)
    lines = [
        [*TRAIN, *flags.split()]
        for flags in ["--objective CapacityELBO --beta.value 2", *[*BAD_TRAIN][::6]]
    ]
    lines += [
        ["tain"],
        *([command, str(run_dir), *flags] for command, *flags in map(str.split, [*BAD_SAVED][::5])),
    ]
    # One thread: those of OpenMP do not survive a fork, and the child would wait for them.
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
    }
    done = pyro_vae("-B", "-c", MISTAKES, input=json.dumps(lines), cwd=tmp_path, env=environment)
    assert done.stdout == "2\n" * len(lines)
    assert len(lines) >= 25
    assert [line for line in done.stderr.splitlines() if not line.startswith("error: ")] == []
    assert done.stderr.count("\n") == 1 + len(lines)
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]
