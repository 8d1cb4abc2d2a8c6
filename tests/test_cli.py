import re
import subprocess
import sys

import pytest
import torch

from pyro_vae import evaluate, generate, train

COMMANDS = {"train": train.main, "evaluate": sys.modules["pyro_vae.evaluate"].main, "generate": generate.main}

TRAIN = ["--data", "digits", "--epochs", "1", "--device", "cpu"]

BAD_TRAIN = {
    "--foo 3": "unrecognized arguments: --foo 3",
    "--epoch 3": "unrecognized arguments: --epoch 3",
    "--prior Foo": "prior: there is no class Foo; choose from",
    "--prior my_module.Foo": "prior: there is no module my_module",
    "--prior torch.nn.Linear": "prior: torch.nn.Linear is not a Prior",
    "--prior.foo 3": "prior: pyro_vae.StandardNormal has no option foo",
    "--prior.latent_dim 3": "prior: pyro_vae.StandardNormal has no option latent_dim",
    "--encoder Foo": "encoder: there is no class Foo; choose from Conv, Gated, Linear, MLP",
    "--encoder.hidden x": "encoder.hidden: expected Sequence, but got x",
    "--encoder.hidden [0]": "encoder: hidden must be positive, but is [0]",
    "--encoder Conv --encoder.kernel_sizes [3]": "encoder: channels, kernel_sizes and strides need one entry a layer",
    "--decoder torch.nn.Identity": "the parts do not fit together",
    "--optimizer Foo": "optimizer: there is no class Foo",
    "--optimizer.lr x": "optimizer.lr: expected float or Tensor, but got x",
    "--optimizer.lr -1": "optimizer: Invalid learning rate: -1.0",
    "--beta 4": "beta: there is no class 4; choose from Constant",
    "--beta.value 0": "beta: value must be positive",
    "--likelihood pyro_vae.likelihoods.Normal --likelihood.scale 0": "likelihood: scale must be positive",
    "--latent_dim 0": "latent_dim: ",
    "--latent_dim x": "latent_dim: ",
    "--epochs 0": "epochs: ",
    "--epochs 1.5": "epochs: ",
    "--batch_size 0": "batch_size: ",
    "--batch_size 1350": "batch_size is 1350, but there are 1349 training images",
    "--seed -1": "seed: ",
    "--device tpu": "device: ",
    "--binarization none": "binarization: Bernoulli scores binary pixels, and with none they stay grey",
    "--binarization sometimes": "binarization: ",
    "--likelihood.relaxed true --binarization dynamic": "binarization: Bernoulli scores unit pixels: drop",
    "--data nowhere": "there is no data set or path nowhere",
    "--config nowhere.yaml": "config: ",
    "--image_size 0": "image_size: ",
    "--image_size 1000000": "image_size must be 1 to 1024, but is 1000000",
    "--lr_scheduler LambdaLR --lr_scheduler.lr_lambda math.exp": "lr_scheduler: ",
    "--objective pyro.infer.JitTrace_ELBO": "JitTrace_ELBO does not go with this training: use Trace_ELBO",
    "--objective CapacityELBO --objective.capacity Linear --objective.capacity.epochs 5": "objective: expected Schedule",
    "--objective DReGELBO --posterior own.Coin": "site z has no reparameterized draws",
    "--objective ImportanceWeightedELBO --posterior own.Coin": "site z has no reparameterized draws",
    "--seed 5000000000": "seed: must be an integer from 0 to 2**32 - 1, but is 5000000000",
    "--model Foo": "model: there is no class Foo; choose from HierarchicalVAE, VAE",
    "--model.prior_dim 3": "model: pyro_vae.VAE has no option prior_dim",
    "--model HierarchicalVAE --model.prior_dim 0": "prior_dim",
    "--prior GaussianMixture --prior.components 0": "prior: components must be positive, but is 0",
    "--prior GaussianMixture --prior.components many": "prior.components: expected int, but got many",
    "--prior VampPrior --prior.components 1350": "prior: components must be at most 1349, the number of training images",
    "--prior VampPrior --prior.start here": "prior.start: choose from 'noise', 'data', not here",
    "--prior StudentT --prior.df 0": "prior: df must be positive",
    "--prior FlowPrior --prior.flow NICE": "prior.flow: choose from 'MAF', 'NSF', 'coupling', not NICE",
    "--prior StandardNormal --prior.components 3": "prior: pyro_vae.StandardNormal has no option components",
    "--posterior LowRankNormal --posterior.rank 21": "posterior: rank must be 1 to 20, the number of latent",
    "--posterior VampPrior": "posterior: there is no class VampPrior",
    "--posterior pyro_vae.VampPrior": "posterior: pyro_vae.VampPrior is not a Posterior",
    "--likelihood DiscretizedLogistic --likelihood.components 0": "likelihood: components must be positive",
    "--likelihood Beta --binarization static": "binarization: Beta scores dequantized pixels: drop --binarization static",
    "--optimizer LBFGS": "optimizer: ",
    "--optimizer SparseAdam": "optimizer: ",
    "--encoder own.make_network": "encoder: own.make_network is not a Network",
    "--likelihood own.NoPixels": "likelihood: NoPixels must declare its pixels, one of binary, unit, dequantized, byte",
    "--posterior own.Careless": "posterior: cannot assign module before Module.__init__() call",
    "--prior own.Failing": "prior: no such luck",
    "--prior own.NoPrior": "prior: own.NoPrior is not a Prior",
    "--beta own.Zero": "beta is 0 at step 0",
    "--beta Linear": "beta: give the length either in epochs or in steps",
    "--beta Linear --beta.epochs 2 --beta.steps 3": "beta: give the length either in epochs or in steps",
    "--beta Linear --beta.epochs x": "beta.epochs: expected float",
    "--beta Linear --beta.value 3": "beta: pyro_vae.schedules.Linear has no option value",
    "--beta Cyclical --beta.epochs 2 --beta.rise 3": "beta: cycles, rise and end must be positive, and rise at most 1",
    "--beta Linear --beta.epochs 2 --beta.steps_per_epoch 3": "beta: pyro_vae.schedules.Linear has no option steps_per_epoch",
    "--objective Foo": "objective: there is no class Foo; choose from CapacityELBO, DReGELBO, FreeBitsELBO",
    "--objective torch.nn.Linear": "objective: torch.nn.Linear is not a ELBO",
    "--objective.num_particles 0": "objective: num_particles must be a positive integer, but is 0",
    "--objective.num_particles many": "objective: num_particles must be a positive integer, but is many",
    "--objective DReGELBO --objective.num_particles 0": "objective: num_particles must be positive, but is 0",
    "--objective DReGELBO --objective.num_particles many": "objective.num_particles: expected int, but got many",
    "--objective DReGELBO --beta.value 2": "DReGELBO cannot be annealed",
    "--objective RenyiELBO --beta Linear --beta.epochs 3": "RenyiELBO cannot be annealed",
    "--objective RenyiELBO --objective.alpha x": "objective: ",
    "--objective RenyiELBO --objective.alpha 1": "objective: The order alpha should not be equal to 1",
    "--objective CapacityELBO --beta.value 2": "CapacityELBO takes the place of beta",
    "--objective CapacityELBO --objective.gamma -1": "objective: gamma must be positive",
    "--objective CapacityELBO --objective.capacity Foo": "objective.capacity: expected Schedule, but got Foo",
    "--objective FreeBitsELBO --objective.floor 0": "objective: floor must be positive",
    "--objective FreeBitsELBO --objective.groups 3": "objective: 20 latent dimensions do not make 3 equal groups",
    "--objective FreeBitsELBO --prior FlowPrior": "use --objective.groups 1",
    "--objective TraceMeanField_ELBO --prior GaussianMixture": "needs a closed form of the KL",
    "--objective TraceMeanField_ELBO --model HierarchicalVAE": "wrong for a guide of several stochastic layers",
    "--objective TraceMeanField_ELBO --posterior FlowPosterior": "needs a closed form of the KL",
    "--lr_scheduler Foo": "lr_scheduler: expected LRScheduler, but got Foo; choose from ConstantLR, Cosine",
    "--lr_scheduler StepLR": "lr_scheduler: ",
    "--lr_scheduler StepLR --lr_scheduler.step_size 0": "lr_scheduler: ",
    "--lr_scheduler torch.optim.Adam": "lr_scheduler: expected LRScheduler, but got torch.optim.Adam",
    "--patience 0": "patience: expected a positive integer",
    "--clip_grad_norm 0": "clip_grad_norm: ",
    "--clip_grad_norm x": "clip_grad_norm: ",
    "--checkpoint_every 0": "checkpoint_every: must be a positive integer",
    "--engine fast": "engine: choose from 'auto', 'eager', 'traced', 'compiled', not fast",
    "--precision float16": "precision: choose from 'float32', 'tf32', 'bf16', not float16",
    "--on_nan ignore": "on_nan: choose from 'stop', 'rewind', not ignore",
    "--resume": "--resume goes on with the run in --run_dir: name its folder",
    "--resume --run_dir nowhere": "nowhere is no run folder",
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

class Careless(pv.DiagonalNormal):
    def __init__(self, encoder):
        self.encoder = encoder

class Failing(pv.Prior):
    def __init__(self, latent_dim: int):
        raise RuntimeError("no such luck")

    def forward(self):
        raise NotImplementedError

class NoPrior(torch.nn.Module):
    pass

class Coin(pv.Posterior):
    num_params = 1

    def distribution(self, params):
        return dist.Bernoulli(logits=params[..., 0, :]).to_event(1)

class Zero(pv.Schedule):
    def __call__(self, step: int) -> float:
        return 0
"""


def refused(capfd, command, argv):
    """The one line that a refused request prints."""
    code = COMMANDS[command](argv)
    out, err = capfd.readouterr()
    assert code == 2, err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err + out
    return err


@pytest.mark.parametrize("flags", BAD_TRAIN)
def test_bad_training_options(capfd, tmp_path, monkeypatch, flags):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own", None)
    (tmp_path / "own.py").write_text(OWN)
    assert BAD_TRAIN[flags] in refused(capfd, "train", [*TRAIN, *flags.split()])
    assert [path.name for path in tmp_path.iterdir()] == ["own.py"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_cuda_where_there_is_none(capfd):
    assert "use --device cpu" in refused(capfd, "train", [*TRAIN, "--device", "cuda"])


def test_a_loss_that_is_not_finite(capfd, tmp_path):
    assert train.main([*TRAIN, "--optimizer.lr", "1e30", "--run_dir", str(tmp_path / "r")]) == 1
    said = (
        r"error: the loss is not finite in epoch 1, at step \d+, first in z of the guide; try a lower learning rate.*--resume\n"
    )
    assert re.fullmatch(said, capfd.readouterr().err)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epochs: [1", "config"),
        ("epoch: 3", "epoch"),
        ("prior: {class_path: Foo}", "prior: there is no class Foo"),
        ("- 3", ""),
        ("data: 5", "data: "),
        (b"\xff\xfe", ""),
    ],
)
def test_bad_config_files(capfd, tmp_path, text, message):
    (tmp_path / "c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
    assert message in refused(capfd, "train", ["--config", str(tmp_path / "c.yaml")])


def test_a_run_folder_is_never_overwritten(capfd, run_dir):
    before = (run_dir / "metrics.jsonl").read_text()
    assert "exists already" in refused(capfd, "train", [*TRAIN, "--run_dir", str(run_dir)])
    assert (run_dir / "metrics.jsonl").read_text() == before


def test_a_run_folder_that_cannot_be_made(capfd, tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be made" in refused(capfd, "train", [*TRAIN, "--run_dir", str(tmp_path / "file" / "run")])
    assert "exists already" in refused(capfd, "train", [*TRAIN, "--run_dir", str(tmp_path / "file")])


@pytest.mark.parametrize("command", ["evaluate", "generate"])
def test_folders_that_hold_no_run(capfd, tmp_path, command):
    kind = ["samples"] if command == "generate" else []
    for path in (tmp_path, tmp_path / "nowhere"):
        assert "is no run folder" in refused(capfd, command, [str(path), *kind])
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    assert "has no checkpoint.pt" in refused(capfd, command, [str(tmp_path), *kind])
    (tmp_path / "config.yaml").write_text("nonsense: 3\n")
    assert "cannot be read" in refused(capfd, command, [str(tmp_path), *kind])


@pytest.mark.parametrize("damage", ["empty", "truncated", "text", "foreign", "format", "shape"])
def test_damaged_checkpoints(capfd, run_dir, tmp_path, damage):
    content = (run_dir / "checkpoint.pt").read_bytes()
    (tmp_path / "config.yaml").write_text((run_dir / "config.yaml").read_text())
    file = tmp_path / "checkpoint.pt"
    checkpoint = torch.load(run_dir / "checkpoint.pt", weights_only=True)
    if damage in ("empty", "truncated", "text"):
        file.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"hello"}[damage])
    else:
        torch.save(
            {"foreign": [1], "format": {**checkpoint, "format": 99}, "shape": {**checkpoint, "shape": [1, 9, 9]}}[damage], file
        )
    line = refused(capfd, "evaluate", [str(tmp_path)])
    assert re.search("damaged|format 99|does not belong", line)


BAD_SAVED = {
    "evaluate --num_samples 0": "num_samples: ",
    "evaluate --num_images 0": "num_images: ",
    "evaluate --num_images 300": "300 images were asked for, but there are 299",
    "evaluate --checkpoint middle": "checkpoint: ",
    "evaluate --split all": "split: ",
    "evaluate --method magic": "method: choose from 'is', 'ais', not magic",
    "evaluate --memory_mb 0": "memory_mb: ",
    "evaluate --memory_mb 0.00001": "memory_mb is 1e-05, but the smallest pass takes",
    "evaluate --num_chains 0": "num_chains: ",
    "evaluate --num_temperatures 0": "num_temperatures: ",
    "evaluate --gap_images -1": "gap_images: ",
    "evaluate --per_image scores.csv": "per_image must end in .npz, but is scores.csv",
    "evaluate --per_image /dev/null/scores.npz": "per_image cannot be written to",
    "evaluate --engine fast": "engine: choose from",
    "generate": "kind",
    "generate paintings": "kind: ",
    "generate samples --count 0": "count: ",
    "generate reconstructions --count 300": "count asks for 300 images, but the split has 299",
    "generate traversals --dimension 2": "there is no latent dimension 2: choose 0 to 1",
    "generate samples --format gif": "format: ",
    "generate samples --out /dev/null/x.png": "cannot be written",
    "generate samples --out x.gif": "out must end in .png or .npz, but is x.gif",
    "generate samples --format npz --out x.png": "out must end in .npz, but is x.png",
}


@pytest.mark.parametrize("line", BAD_SAVED)
def test_bad_options_on_a_saved_run(capfd, run_dir, line):
    command, *flags = line.split()
    before = sorted(path for path in run_dir.rglob("*"))
    assert BAD_SAVED[line] in refused(capfd, command, [str(run_dir), *flags])
    assert sorted(path for path in run_dir.rglob("*")) == before


def test_the_function_and_the_module_of_one_name():
    import pyro_vae as pv

    assert pv.evaluate is evaluate
    assert callable(pv.evaluate)
    assert sys.modules["pyro_vae.evaluate"].main is COMMANDS["evaluate"]


def test_importing_leaves_torchs_validation_alone():
    """zuko switches it off for everybody."""
    ask = "from torch.distributions import Distribution as D; import pyro; before = D._validate_args; import pyro_vae"
    argv = [sys.executable, "-c", f"{ask}; print(before, D._validate_args)"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.stdout == "True True\n", done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_help_as_a_process(command):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", f"pyro_vae.{command}", "--help"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"usage: python -m pyro_vae.{command}")
    assert not done.stderr


def test_a_mistake_as_a_process():
    done = subprocess.run([sys.executable, "-m", "pyro_vae.train", "--foo"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: unrecognized arguments: --foo\n")


@pytest.mark.parametrize("flag", ["--prior.help", "--encoder.help=MLP", "--print_config"])
def test_help_on_a_part(capfd, flag):
    with pytest.raises(SystemExit) as stop:
        COMMANDS["train"]([flag])
    assert stop.value.code == 0
    out, _ = capfd.readouterr()
    assert {"--prior.help": "prior", "--encoder.help=MLP": "Width of each hidden layer", "--print_config": "latent_dim: 20"}[
        flag
    ] in out
