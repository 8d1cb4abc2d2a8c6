"""Classes of the user's own, and run folders from strangers, which must not run code."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.reporting import views

TRAIN = ["train", "--data", "digits", "--epochs", "1", "--device", "cpu", "--run_dir", "r"]


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
