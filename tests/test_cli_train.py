"""The command line, end to end: what a run leaves, and what can be made of it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyro
import pytest
import torch
import yaml
from endings import WHOLE, ending
from families import make_conditional
from processes import heeding_ctrl_c

import pyro_vae as pv
from pyro_vae import networks
from pyro_vae.cli.main import main
from pyro_vae.train import main as train

ROOT = Path(__file__).parents[1]


def metrics(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def test_what_a_run_leaves(run_dir):
    files = {"config.yaml", "metrics.jsonl", "checkpoint.pt", "best.pt", "results.json", "figures"}
    assert {path.name for path in run_dir.iterdir()} >= files
    pictures = {path.name for path in (run_dir / "figures").iterdir()}
    assert pictures >= {
        f"{name}.png" for name in ("curves", "reconstructions", "samples", "latent", "manifold")
    }
    assert [line["epoch"] for line in metrics(run_dir)] == [1, 2]
    results = json.loads((run_dir / "results.json").read_text())
    assert set(results) >= {
        "elbo",
        "reconstruction",
        "kl",
        "log_likelihood",
        "k_curve",
        "active_units",
    }
    assert all(
        {"mean", "standard_error"} <= set(results[name])
        for name in ("elbo", "reconstruction", "kl", "log_likelihood")
    )
    assert results["log_likelihood"]["num_samples"] == 1000
    assert (
        results["elbo"]["mean"]
        < results["log_likelihood"]["mean"] + 3 * results["log_likelihood"]["standard_error"]
    )


def test_its_config_repeats_the_run(run_dir, tmp_path, complete):
    assert (
        main(
            [
                "train",
                "--config",
                str(run_dir / "config.yaml"),
                "--run_dir",
                str(tmp_path / "again"),
            ]
        )
        == 0
    )
    assert metrics(tmp_path / "again") == metrics(run_dir)
    for name in ("results.json", "config.yaml"):
        assert (tmp_path / "again" / name).read_text() == (run_dir / name).read_text()


def test_another_seed_is_another_run(run_dir, tmp_path):
    argv = [
        "--config",
        str(run_dir / "config.yaml"),
        "--seed",
        "1",
        "--run_dir",
        str(tmp_path / "other"),
    ]
    assert train(argv) == 0
    assert metrics(tmp_path / "other") != metrics(run_dir)


def _standard(data):
    encoder, decoder = pv.MLP(data.shape, (2, 3)), pv.MLP((3,), (1, *data.shape))
    return pv.VAE(pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())


def _mixture(data):
    prior, encoder = pv.GaussianMixture(3, components=4), pv.MLP(data.shape, (2, 3))
    return pv.VAE(
        prior, encoder, pv.DiagonalNormal(), pv.MLP((3,), (1, *data.shape)), pv.Bernoulli()
    )


def _flow(data):
    num_params = pv.FlowPosterior(3).num_params
    pyro.set_rng_seed(5)
    prior, encoder = pv.StandardNormal(3), pv.MLP(data.shape, (num_params, 3))
    return pv.VAE(
        prior, encoder, pv.FlowPosterior(3), pv.MLP((3,), (1, *data.shape)), pv.Bernoulli()
    )


def _vamp(data):
    encoder, posterior = pv.MLP(data.shape, (2, 3)), pv.DiagonalNormal()
    prior = pv.VampPrior(encoder, posterior, data.shape, components=4, start="data")
    return pv.VAE(prior, encoder, posterior, pv.MLP((3,), (1, *data.shape)), pv.Bernoulli())


def _hierarchical(data):
    prior, encoder = pv.StandardNormal(2), networks.Gated(data.shape, (2, 3))
    decoder = networks.Gated((3,), (1, *data.shape))
    return pv.HierarchicalVAE(
        prior, encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli(), 3, prior_dim=2
    )


EQUAL = {
    "": _standard,
    "--prior GaussianMixture --prior.components 4": _mixture,
    "--posterior FlowPosterior": _flow,
    "--prior VampPrior --prior.components 4 --prior.start data": _vamp,
    "--model HierarchicalVAE --model.prior_dim 2 --encoder Gated --decoder Gated": _hierarchical,
}


@pytest.mark.parametrize("flags", EQUAL)
def test_python_and_the_command_line_train_the_same_model(images, tmp_path, flags):
    """Parts constructed in the order of VAE's parameters: equal parameters, bit for bit."""
    argv = [
        "--data",
        str(images),
        "--epochs",
        "2",
        "--batch_size",
        "20",
        "--latent_dim",
        "3",
        "--seed",
        "5",
        "--device",
        "cpu",
    ]
    assert train([*argv, *flags.split(), "--run_dir", str(tmp_path / "r")]) == 0
    data = pv.load_data(str(images))
    pyro.set_rng_seed(5)
    vae = EQUAL[flags](data)
    records = list(pv.fit(vae, data, epochs=2, batch_size=20, seed=5))
    saved = pv.load_run(tmp_path / "r").state_dict()
    assert saved.keys() == vae.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in vae.state_dict().items())
    assert [record["validation_elbo"] for record in records] == [
        line["validation_elbo"] for line in metrics(tmp_path / "r")
    ]


OPTIMIZERS = {
    "--optimizer AdamW": torch.optim.AdamW,
    "--optimizer SGD --optimizer.lr 0.01": partial(torch.optim.SGD, lr=0.01),
    "--optimizer Adam": torch.optim.Adam,
    "--optimizer.lr 0.01": partial(torch.optim.Adam, lr=0.01, fused=True),
    "--optimizer torch.optim.RAdam": torch.optim.RAdam,
}


@pytest.mark.parametrize("flags", OPTIMIZERS)
def test_optimizers_of_python_and_of_the_command_line_are_the_same(images, tmp_path, flags):
    """An optimizer that is named has its own default options, not those of the default one."""
    argv = ["--data", str(images), "--epochs", "1", "--batch_size", "20", "--latent_dim", "3"]
    argv += ["--device", "cpu", *flags.split(), "--run_dir", str(tmp_path / "r")]
    assert train(argv) == 0
    data = pv.load_data(str(images))
    pyro.set_rng_seed(0)
    vae = _standard(data)
    list(pv.fit(vae, data, epochs=1, batch_size=20, seed=0, optimizer=OPTIMIZERS[flags]))
    saved = pv.load_run(tmp_path / "r").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in vae.state_dict().items())


def test_the_same_command_after_a_kill(run_dir, refused, monkeypatch):
    """It says how to go on, before any data are loaded."""
    monkeypatch.setattr("pyro_vae.runs.build.load_data", lambda *args: pytest.fail("it loads"))
    assert "--resume" in refused("train", "--data", "digits", "--run_dir", run_dir)


@pytest.mark.parametrize("samples", [0, 7])
def test_how_the_final_scoring_is_bounded(images, tmp_path, capfd, complete, samples):
    argv = ["--data", str(images), "--epochs", "1", "--report", "false", "--test_images", "4"]
    path = tmp_path / "r"
    assert train([*argv, "--test_samples", str(samples), "--run_dir", str(path)]) == 0
    out = capfd.readouterr().out
    assert ("scoring 4 test images, 7 samples each" in out) == bool(samples)
    assert (path / "results.json").exists() == bool(samples)
    if samples:
        results = json.loads((path / "results.json").read_text())
        assert results["log_likelihood"]["num_samples"] == 7
        assert results["log_likelihood"]["num_images"] == 4
        assert results["elbo"]["num_images"] == 10


def test_load_run(run_dir, digits):
    vae = pv.load_run(run_dir)
    assert not vae.training
    assert isinstance(vae.prior, pv.StandardNormal)
    elbo = json.loads((run_dir / "results.json").read_text())["elbo"]
    again = pv.evaluate(vae, digits.test, num_samples=5)["elbo"]
    assert abs(again["mean"] - elbo["mean"]) < 0.1 * elbo["standard_error"] + 0.05


def test_best_is_the_best(run_dir):
    best = torch.load(run_dir / "best.pt", weights_only=True)
    elbos = [line["validation_elbo"] for line in metrics(run_dir)]
    assert best["training"]["epoch"] == 1 + elbos.index(max(elbos))


def test_what_training_prints_without_a_terminal(tmp_path, capfd, complete):
    argv = [
        "--data",
        "digits",
        "--epochs",
        "2",
        "--run_dir",
        str(tmp_path / "r"),
        "--batch_size",
        "500",
    ]
    assert train(argv) == 0
    out, err = capfd.readouterr()
    assert re.search(r"epoch 1/2: ELBO -\d+\.\d\d.*KL \d", out)
    assert re.search(r"\n  ELBO +-\d+\.\d\d ± \d+\.\d\d\n", out)
    assert re.search(r"log p\(x\) +-\d+\.\d\d ± \d+\.\d\d +K = 1,000", out)
    assert str(tmp_path / "r" / "figures" / "samples.png") in out
    assert max(map(len, (line for line in out.splitlines() if str(tmp_path) not in line))) <= 80
    assert "\r" not in err
    assert all(line.startswith("warning: ") for line in err.splitlines())


def test_a_loss_that_is_not_finite(capfd, tmp_path):
    """One line, without a hint how to continue: it would only become so again."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        argv = [
            "--data",
            "digits",
            "--epochs",
            "1",
            "--optimizer.lr",
            "1e30",
            "--run_dir",
            str(tmp_path / "r"),
        ]
        assert train(argv) == 1
    err = capfd.readouterr().err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "--resume" not in err
    assert not caught


@pytest.mark.parametrize("name", ["Cyclical", "Linear", "Cosine", "Sigmoid"])
def test_schedules_need_no_length(images, tmp_path, name):
    argv = [
        "--data",
        str(images),
        "--epochs",
        "3",
        "--beta",
        name,
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert train(argv) == 0
    assert all(0 < line["beta"] <= 1 for line in metrics(tmp_path / "r"))


def test_fewer_images_than_a_batch(images, tmp_path, capfd):
    """45 training images are one batch, and the run says so."""
    assert train(["--data", str(images), "--epochs", "1", "--run_dir", str(tmp_path / "r")]) == 0
    assert "45" in capfd.readouterr().out
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["batch_size"] == 45


@pytest.mark.parametrize("latent_dim", ["1", "5"])
@pytest.mark.parametrize(
    "flags",
    ["", "--likelihood.relaxed true", "--binarization static", "--encoder Conv --decoder Conv"],
)
def test_own_images_of_any_shape(images, tmp_path, capfd, latent_dim, flags):
    argv = [
        "--data",
        str(images),
        "--epochs",
        "1",
        "--latent_dim",
        latent_dim,
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert train([*argv, *flags.split()]) == 0
    assert main(["evaluate", str(tmp_path / "r"), "--num_samples", "3", "--check_images", "0"]) == 0


def test_colour_images(tmp_path, complete):
    np.save(
        tmp_path / "c.npy", np.random.default_rng(0).integers(0, 256, (30, 3, 8, 6), dtype=np.uint8)
    )
    argv = [
        "--data",
        str(tmp_path / "c.npy"),
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert (
        train([*argv, "--likelihood", "pyro_vae.likelihoods.Normal", "--likelihood.scale", "0.1"])
        == 0
    )
    assert main(["generate", str(tmp_path / "r"), "samples"]) == 0


def test_data_that_are_gone(tmp_path, refused):
    np.save(tmp_path / "a.npy", np.zeros((30, 4, 4), dtype=np.uint8))
    argv = [
        "--data",
        str(tmp_path / "a.npy"),
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert train(argv) == 0
    (tmp_path / "a.npy").unlink()
    assert "a.npy" in refused("evaluate", tmp_path / "r")
    assert main(["generate", str(tmp_path / "r"), "samples"]) == 0


RECIPES = sorted(path for path in (ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_run(recipe, tmp_path, few):
    """Two steps of each recipe on a few images; experiments/README.md has the whole runs."""
    argv = ["--config", str(recipe), "--data", str(few), "--epochs", "1", "--batch_size", "45"]
    assert train([*argv, "--run_dir", str(tmp_path / "r")]) == 0
    assert metrics(tmp_path / "r")[0]["step"] == 2
    asked = yaml.safe_load(recipe.read_text())
    assert (
        yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["latent_dim"]
        == asked["latent_dim"]
    )


def continued(err, path):
    """Run the command that the one line of an interruption gives, for one more epoch."""
    (line,) = [line for line in err.splitlines() if not line.startswith("warning: ")]
    words, epochs = shlex.split(line[line.index("python -m") :]), len(metrics(path))
    assert words[:3] == ["python", "-m", "pyro_vae.train"]
    assert train([*words[3:], "--epochs", str(epochs + 1)]) == 0
    assert len(metrics(path)) == epochs + 1


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c(images, tmp_path):
    path = tmp_path / "a run"
    flags = [
        "--data",
        str(images),
        "--epochs",
        "100000",
        "--engine",
        "eager",
        "--run_dir",
        str(path),
    ]
    pipe, argv = subprocess.PIPE, [sys.executable, "-m", "pyro_vae.train", *flags]
    with subprocess.Popen(
        argv, stdout=pipe, stderr=pipe, text=True, preexec_fn=heeding_ctrl_c
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("epoch 1/"):
                break
        process.send_signal(signal.SIGINT)
        try:
            _, err = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 130
    continued(err, path)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_sigterm(images, tmp_path, monkeypatch, capfd):
    path, step = tmp_path / "a run", pv.SVI.update

    def update(self, *args):
        step(self, *args)
        if (path / "metrics.jsonl").exists():
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(pv.SVI, "update", update)
    assert train(["--data", str(images), "--epochs", "9", "--run_dir", str(path)]) == 143
    monkeypatch.undo()
    continued(capfd.readouterr().err, path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_output_that_cannot_be_written(images, run_dir, tmp_path):
    """Training ends with its files whole; the exit code says that lines were lost."""
    argv = [
        sys.executable,
        "-m",
        "pyro_vae.train",
        "--data",
        str(images),
        "--epochs",
        "1",
        "--report",
        "false",
    ]
    argv += ["--run_dir", str(tmp_path / "r")]
    with open("/dev/full", "w") as full:
        done = subprocess.run(argv, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 1
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert (tmp_path / "r" / "figures" / "samples.png").exists()
    argv = [
        sys.executable,
        "-m",
        "pyro_vae",
        "generate",
        str(run_dir),
        "codes",
        "--out",
        str(tmp_path / "codes.npz"),
    ]
    closed = subprocess.run(
        ["sh", "-c", f"{shlex.join(argv)} >&- 2>&-"], capture_output=True, text=True
    )
    assert (closed.returncode, (tmp_path / "codes.npz").exists()) == (0, True)


def test_data_without_labels_are_rejected(digits, tmp_path, capfd):
    unlabelled = digits.map(lambda split: replace(split, labels=None))
    with pytest.raises(pv.RequestError, match="labels"):
        pv.fit(make_conditional(10), unlabelled, epochs=1)
    np.save(tmp_path / "images.npy", digits.train.x[:50].numpy())
    argv = [
        "train",
        "--data",
        str(tmp_path / "images.npy"),
        "--model",
        "ConditionalVAE",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert main(argv) == 2
    _, err = capfd.readouterr()
    assert "labels" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


def test_training_draws_analogies(run_of_classes):
    pictures = {file.stem for file in (run_of_classes / "figures").glob("*.png")}
    assert pictures >= {"curves", "reconstructions", "samples", "latent", "analogies"}
    assert "manifold" not in pictures  # it would need a label


def test_covariates(tmp_path, capfd):
    """The brightness of an image as a covariate."""
    generator = np.random.default_rng(0)
    brightness = generator.uniform(size=(240, 1))
    images = (255 * brightness[:, :, None] * np.ones((1, 4, 4))).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(240) % 3, covariates=brightness)
    run = str(tmp_path / "r")
    options = ["--model", "ConditionalVAE", "--optimizer.lr", "0.01", "--latent_dim", "2"]
    assert (
        main(
            [
                "train",
                "--data",
                str(tmp_path / "data.npz"),
                "--epochs",
                "60",
                "--run_dir",
                run,
                *options,
            ]
        )
        == 0
    )
    vae = pv.load_run(run)
    dark, bright = (
        vae.sample_mean(20, torch.full((20, 1), value)).mean().item() for value in (0.2, 0.8)
    )
    assert dark == pytest.approx(0.2, abs=0.1)
    assert bright == pytest.approx(0.8, abs=0.1)
    assert main(["generate", run, "samples", "--label", "[0.3]"]) == 0
    assert main(["generate", run, "samples", "--label", "1"]) == 0
    assert main(["generate", run, "samples", "--label", "[1, 2]"]) == 2
    assert main(["generate", run, "samples"]) == 0
    assert main(["evaluate", run, "--num_samples", "50"]) == 0
    assert main(["generate", run, "analogies"]) == 2


def test_figures_have_vector_twins_and_the_last_line_says_what_is_next(flags, tmp_path, capfd):
    run = tmp_path / "run"
    whole = {"draw": WHOLE["draw"]}
    with ending(whole):
        assert main([*flags, "--epochs", "1", "--figure_format", "pdf", "--run_dir", str(run)]) == 0
    names = {path.name for path in (run / "figures").iterdir()}
    assert {name.removesuffix(".pdf") for name in names if name.endswith(".pdf")} == {
        name.removesuffix(".png") for name in names if name.endswith(".png")
    }
    assert capfd.readouterr().out.splitlines()[-1] == (
        f"next: check the numbers: pyro-vae evaluate {run}"
    )
