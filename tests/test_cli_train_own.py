"""Classes of the user's own, and run folders from strangers, which must not run code."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.reporting import views

MINE = '''
import pyro.distributions as dist
import torch
import pyro_vae as pv

print("imported")

class MyPrior(pv.Prior):
    """A prior with tails.

    Arguments:
        latent_dim: Number of latent dimensions.
        params: Degrees of freedom of the tails.
    """

    def __init__(self, latent_dim: int, params: float = 3.0) -> None:
        super().__init__()
        self.df = params
        self.log_scale = torch.nn.Parameter(torch.zeros(latent_dim))

    def forward(self):
        return dist.StudentT(self.df, 0.0, self.log_scale.exp()).to_event(1)

class MyPosterior(pv.Posterior):
    num_params = 2

    def __init__(self, encoder: float = 1.0, data_shape: int = 2) -> None:
        super().__init__()
        self.options = encoder, data_shape

    def forward(self, params):
        loc, log_scale = params.unbind(-2)
        return dist.Laplace(loc, log_scale.exp()).to_event(1)

class MyLikelihood(pv.Likelihood):
    num_params = 1
    pixels = "dequantized"

    def forward(self, params):
        return dist.Cauchy(params.squeeze(-4), 0.1).to_event(3)

class MyEncoder(torch.nn.Module):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...], width: int = 7):
        super().__init__()
        self.layers = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(in_shape[1] * in_shape[2], width), torch.nn.Tanh(),
            torch.nn.Linear(width, out_shape[0] * out_shape[1]), torch.nn.Unflatten(1, out_shape),
        )

    def forward(self, x):
        return self.layers(x)

class MyDecoder(MyEncoder):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        torch.nn.Module.__init__(self)
        size = out_shape[0] * out_shape[1] * out_shape[2] * out_shape[3]
        linear = torch.nn.Linear(in_shape[0], size)
        self.layers = torch.nn.Sequential(linear, torch.nn.Unflatten(1, out_shape))

class MyBeta(pv.Schedule):
    def __init__(self, steps: int = 10) -> None:
        self.steps = steps

    def __call__(self, step: int) -> float:
        return min(1.0, (step + 1) / self.steps)

class MyVAE(pv.VAE):
    pass

class MyError(Exception):
    pass

class BadConstructor(MyPrior):
    def __init__(self, latent_dim: int) -> None:
        raise ValueError("no such luck")

class BadForward(MyPrior):
    def forward(self):
        raise MyError("no such luck")

class BadLater(MyPrior):
    def forward(self):
        if self.training and self.log_scale.abs().sum() > 0:
            raise MyError("no such luck")
        return super().forward()

class BadNetwork(MyEncoder):
    def __init__(self, in_shape: tuple[int, ...], out_shape: tuple[int, ...]):
        super().__init__(in_shape, out_shape)
        torch.nn.Linear("a", "b")

class BadOptimizer(torch.optim.SGD):
    def step(self, closure=None):
        raise MyError("no such luck")

class BadScheduler(torch.optim.lr_scheduler.LRScheduler):
    def get_lr(self):
        if self.last_epoch > 0:
            raise MyError("no such luck")
        return self.base_lrs
'''

TRAIN = ["train", "--data", "digits", "--epochs", "1", "--device", "cpu", "--run_dir", "r"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder with a module of the user's own, which is not yet on the path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    sys.modules.pop("mine", None)
    (tmp_path / "mine.py").write_text(MINE)
    yield tmp_path
    sys.modules.pop("mine", None)


FLAGS = [
    "--prior mine.MyPrior --prior.params 4",
    "--posterior mine.MyPosterior --posterior.encoder 2 --posterior.data_shape 7",
    "--encoder mine.MyEncoder --encoder.width 5 --decoder mine.MyDecoder",
    "--likelihood pyro_vae.likelihoods.Normal --beta mine.MyBeta --beta.steps 3",
    "--model mine.MyVAE --latent_dim 2",
]


@pytest.mark.parametrize("flags", FLAGS)
def test_by_flag_and_from_the_saved_run(folder, capfd, refused, flags):
    assert main([*TRAIN, *flags.split()]) == 0, capfd.readouterr().err
    sys.modules.pop("mine")
    assert "--trust" in refused("evaluate", "r")
    assert "mine" not in sys.modules
    assert main(["evaluate", "r", "--num_samples", "3", "--check_images", "0", "--trust"]) == 0
    assert main(["generate", "r", "codes", "--trust"]) == 0


def test_parameters_that_other_parts_are_supplied_with_stay_flags(folder):
    assert main([*TRAIN, *FLAGS[0].split(), *FLAGS[1].split()]) == 0
    vae = pv.load_run("r", trust=True)
    assert (vae.prior.df, vae.posterior.options) == (4.0, (2.0, 7))


def test_resuming_by_the_runs_own_command_needs_no_trust(folder, capfd, refused):
    argv = [*TRAIN, *FLAGS[0].split(), "--resume", "auto"]
    assert main(argv) == 0
    assert "--trust" in refused("train", "--run_dir", "r", "--resume", "--epochs", "2")
    assert main([*argv, "--epochs", "2"]) == 0, capfd.readouterr().err
    assert main(["train", "--run_dir", "r", "--resume", "--epochs", "3", "--trust"]) == 0


def test_resuming_by_the_runs_own_configuration_file(folder, capfd):
    (folder / "c.yaml").write_text(
        "prior:\n  class_path: mine.MyPrior\n  init_args:\n    params: 5.0\n"
    )
    argv = [*TRAIN, "--config", "c.yaml", "--resume", "auto"]
    assert main(argv) == 0
    assert pv.load_run("r", trust=True).prior.df == 5.0
    assert main([*argv, "--epochs", "2"]) == 0, capfd.readouterr().err
    assert main(["train", "--config", "r/config.yaml", "--run_dir", "again"]) == 0


def test_its_docstring_is_its_help(folder, capfd):
    assert main(["train", "--prior.help", "mine.MyPrior"]) == 0
    out = capfd.readouterr().out
    assert "Degrees of freedom of the tails" in out
    assert "latent_dim" not in out


def test_a_module_that_is_gone(folder, refused):
    assert main([*TRAIN, "--prior", "mine.MyPrior"]) == 0
    sys.modules.pop("mine")
    (folder / "mine.py").unlink()
    assert "mine" in refused("evaluate", "r", "--trust")


BAD = [
    "--prior mine.BadConstructor",
    "--prior mine.BadForward",
    "--prior mine.BadLater",
    "--encoder mine.BadNetwork",
    "--optimizer mine.BadOptimizer",
    "--lr_scheduler mine.BadScheduler",
]


@pytest.mark.parametrize("flags", BAD)
def test_an_error_in_the_users_class_keeps_its_traceback(folder, flags):
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of any class)
        main([*TRAIN, *flags.split()])
    assert not isinstance(caught.value, pv.RequestError)
    assert any("mine.py" in str(entry.path) for entry in caught.traceback)


def test_an_error_in_the_users_class_as_a_process(folder):
    argv = [sys.executable, "-m", "pyro_vae", *TRAIN, "--prior", "mine.BadForward"]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 1
    for text in ("Traceback", "mine.py", "MyError: no such luck"):
        assert text in done.stderr


@pytest.mark.parametrize(
    "text", ["1 / 0", "import no_such_module", "def f(:", "raise ValueError('no such luck')"]
)
def test_a_module_that_cannot_be_imported(folder, text):
    (folder / "mine.py").write_text(text)
    argv = [*TRAIN, "--prior", "mine.MyPrior"]
    with pytest.raises((ZeroDivisionError, ImportError, SyntaxError, ValueError)) as caught:
        main(argv)
    assert not isinstance(caught.value, pv.RequestError)


EVIL = "open('ran', 'w')\nimport torch\ndef f(*args): return 1\nclass P(torch.nn.ReLU): pass\n"
STEP = (
    "lr_scheduler:\n  class_path: torch.optim.lr_scheduler.LambdaLR\n  init_args:\n    lr_lambda: "
)
PRIOR = "prior:\n  class_path: "
ENCODER = "encoder:\n  class_path: pyro_vae.MLP\n  init_args:\n    activation:"
OBJECTIVE = "objective:\n  class_path: pyro_vae.CapacityELBO\n  init_args:\n    capacity:"

# What a stranger's config.yaml may hold; each would create a file if the code that it names ran.
HOSTILE = {
    "a class": PRIOR + "evil.P",
    "a function": PRIOR + "evil.f",
    "a module": PRIOR + "evil",
    "a short form": "prior: evil.P",
    "a list": "prior:\n- evil.P",
    "every part": "beta:\n  class_path: evil.P",
    "nested": ENCODER + " evil.P",
    "nested class": ENCODER + "\n      class_path: evil.P",
    "a schedule of an objective": OBJECTIVE + " evil.P",
    "a callable": STEP + "evil.f",
    "a set": STEP + "!!set {evil.f}",
    "an ordered mapping": STEP + "!!omap [evil.f: 1]",
    "a list of callables": STEP + "[evil.f]",
    "dict_kwargs": PRIOR + "pyro_vae.StandardNormal\n  dict_kwargs:\n    a: evil.f",
    "a dotted key": "prior.class_path: evil.P",
    "a key of help": "prior.help: evil.P",
    "a merge": "lr_scheduler:\n  <<: {class_path: evil.P}",
    "an alias": "a: &a evil.P\nprior: *a",
    "another configuration": "config: evil.yaml",
    "a file for a part": "prior: evil",
    "a YAML file for a part": "prior: evil.yaml",
    "a path": PRIOR + "./evil.P",
    "a folder above": PRIOR + "../evil.P",
    "a Python object": "seed: !!python/object/apply:evil.f []",
    "a Python name": STEP + "!!python/name:evil.f",
    "a trusted package's import": PRIOR + "torch.os.system",
    "a trusted package's function": PRIOR + "torch.hub.load",
    "a module of code": "encoder:\n  class_path: torch.fx.GraphModule",
    "a module that is not an activation": "encoder:\n  class_path: torch.nn.Bilinear",
    "trust": "trust: true\n" + PRIOR + "evil.P",
    "white space": PRIOR + "' evil.P'",
    "another alphabet": PRIOR + "ｅvil.P",
}


@pytest.fixture
def stranger(folder, run_dir):
    """Make a run folder as a stranger would, and go into it."""

    def make(text):
        shutil.copytree(run_dir, folder / "r")
        os.chdir(folder / "r")
        replaced = {line.split(":")[0] for line in text.splitlines() if line[0].isalpha()}
        kept = []
        is_kept = True
        for line in (run_dir / "config.yaml").read_text().splitlines():
            if line[0].isalpha():
                is_kept = line.split(":")[0] not in replaced
            if is_kept:
                kept.append(line)
        (folder / "r" / "config.yaml").write_text("\n".join([*kept, text, ""]))
        for place in (folder, folder / "r"):
            (place / "evil.py").write_text(EVIL)
            (place / "evil").write_text("class_path: evil.P\n")
            (place / "evil.yaml").write_text("prior:\n  class_path: evil.P\n")
        return folder

    return make


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_a_strangers_configuration_runs_nothing(stranger, refused, text):
    folder = stranger(text)
    with pytest.raises(pv.RequestError) as caught:
        pv.load_run(".")
    assert "\n" not in str(caught.value)
    refused("train", "--run_dir", ".", "--resume")
    assert not list(folder.rglob("ran"))
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "command",
    [["evaluate", "r"], ["generate", "r", "samples"], ["train", "--run_dir", "r", "--resume"]],
)
def test_every_command_asks_for_trust(stranger, refused, command):
    folder = stranger(PRIOR + "evil.P")
    os.chdir(folder)
    assert "--trust" in refused(*command)
    assert not list(folder.rglob("ran"))


def test_evaluating_inside_a_strangers_folder_imports_nothing_of_it(stranger):
    """Modules with the names of libraries that are imported late; `-P` is as in a script."""
    folder = stranger("seed: 0")
    for name in (
        "sklearn",
        "matplotlib",
        "scipy",
        "arviz_stats",
        "PIL",
        "yaml",
        "evil",
        "no_such_module",
    ):
        (folder / "r" / f"{name}.py").write_text("open('ran', 'w')\n")
    argv = [
        sys.executable,
        "-P",
        "-m",
        "pyro_vae",
        "evaluate",
        ".",
        "--num_samples",
        "3",
        "--check_images",
        "0",
    ]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("ran"))


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


KNOWN = [
    "--prior GaussianMixture",
    "--beta Linear",
    "--optimizer AdamW",
    "--encoder.activation torch.nn.ELU",
]


@pytest.mark.parametrize("flags", [*KNOWN, "--lr_scheduler StepLR --lr_scheduler.step_size 2"])
def test_known_classes_need_no_trust(folder, images, flags):
    assert (
        main(["train", "--data", str(images), "--epochs", "1", "--run_dir", "r", *flags.split()])
        == 0
    )
    assert pv.load_run("r") is not None
    assert main(["train", "--run_dir", "r", "--resume", "--epochs", "2"]) == 0


OWN = '''
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyro_vae as pv


class ClassPrior(pv.Model):
    """Each class has a prior of its own; the likelihood does not see the class."""

    needs_labels = True

    def __init__(self, encoder, posterior, decoder, likelihood, latent_dim: int, label_dim: int):
        super().__init__(encoder, posterior, decoder, likelihood)
        self.latent_dim = latent_dim
        self.loc = torch.nn.Parameter(torch.randn(label_dim, latent_dim))

    def model(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(self.loc[y], 1.0).to_event(1))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x))
'''


def test_a_model_of_the_users_own_with_a_prior_per_class(tmp_path, monkeypatch):
    """One class with two programs trains, is evaluated, generates and comes back."""
    (tmp_path / "classprior.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run = str(tmp_path / "r")
    options = ["--model", "classprior.ClassPrior", "--latent_dim", "2", "--epochs", "2"]
    assert main(["train", "--data", "digits", "--run_dir", run, *options]) == 0
    assert main(["evaluate", run, "--trust", "--num_samples", "50", "--classify_images", "20"]) == 0
    for kind in ("samples", "analogies", "manifold --label 3"):
        assert main(["generate", run, "--trust", *kind.split()]) == 0
    vae = pv.load_run(run, trust=True)
    assert vae.latent_dim == 2
    assert torch.allclose(
        vae.sample_codes(4000, torch.full((4000,), 3)).mean(0), vae.loc[3], atol=0.1
    )
    assert main(["generate", run, "--trust", "samples", "--label", "-1"]) == 2
    rows = views.analogies(vae, torch.arange(10), 3)
    assert not torch.equal(rows[0], rows[1])
