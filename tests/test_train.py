"""The command line, end to end: what a run leaves, and what can be made of it."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

import pyro_vae as pv
from pyro_vae.generate import main as generate
from pyro_vae.train import main as train

evaluate = sys.modules["pyro_vae.evaluate"].main

ROOT = Path(__file__).parents[1]


def figures(path):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def test_what_a_run_leaves(run_dir):
    assert {path.name for path in run_dir.iterdir()} >= {
        "config.yaml",
        "metrics.jsonl",
        "checkpoint.pt",
        "best.pt",
        "results.json",
        "figures",
    }
    assert {path.name for path in (run_dir / "figures").iterdir()} == {
        "curves.png",
        "reconstructions.png",
        "samples.png",
        "latent.png",
        "manifold.png",
    }
    assert [line["epoch"] for line in figures(run_dir)] == [1, 2]
    results = json.loads((run_dir / "results.json").read_text())
    assert set(results) == {"elbo", "reconstruction", "kl", "log_likelihood", "k_curve", "active_units"}
    assert all({"mean", "standard_error"} <= set(results[name]) for name in ("elbo", "reconstruction", "kl", "log_likelihood"))
    assert results["log_likelihood"]["num_samples"] == 1000
    assert results["elbo"]["mean"] < results["log_likelihood"]["mean"] + 3 * results["log_likelihood"]["standard_error"]


def test_its_config_repeats_the_run(run_dir, tmp_path):
    assert train(["--config", str(run_dir / "config.yaml"), "--run_dir", str(tmp_path / "again")]) == 0
    assert figures(tmp_path / "again") == figures(run_dir)
    assert (tmp_path / "again" / "results.json").read_text() == (run_dir / "results.json").read_text()
    assert (tmp_path / "again" / "config.yaml").read_text() == (run_dir / "config.yaml").read_text()


def test_another_seed_is_another_run(run_dir, tmp_path):
    assert train(["--config", str(run_dir / "config.yaml"), "--seed", "1", "--run_dir", str(tmp_path / "other")]) == 0
    assert figures(tmp_path / "other") != figures(run_dir)


def test_load_run(run_dir, digits):
    vae = pv.load_run(run_dir)
    assert not vae.training
    assert isinstance(vae.prior, pv.StandardNormal)
    elbo = json.loads((run_dir / "results.json").read_text())["elbo"]
    again = pv.evaluate(vae, digits.test, num_samples=5)["elbo"]
    assert abs(again["mean"] - elbo["mean"]) < 0.1 * elbo["standard_error"] + 0.05


def test_best_is_the_best(run_dir):
    best = torch.load(run_dir / "best.pt", weights_only=True)
    elbos = [line["validation_elbo"] for line in figures(run_dir)]
    assert best["training"]["epoch"] == 1 + elbos.index(max(elbos))


def test_progress_without_a_terminal(tmp_path, capfd):
    assert train(["--data", "digits", "--epochs", "2", "--run_dir", str(tmp_path / "r"), "--batch_size", "500"]) == 0
    out, err = capfd.readouterr()
    assert re.search(r"epoch 1/2: ELBO -\d+\.\d\d \(validation -\d+\.\d\d\), reconstruction -\d+\.\d\d, KL \d", out)
    assert re.search(r"\n  ELBO +-\d+\.\d\d ± \d+\.\d\d\n", out)
    assert re.search(r"log p\(x\) +-\d+\.\d\d ± \d+\.\d\d  K = 1,000, 299 images", out)
    assert str(tmp_path / "r" / "figures" / "samples.png") in out
    assert not err


def test_evaluate(run_dir, capfd):
    assert evaluate([str(run_dir), "--num_samples", "20", "--num_images", "30", "--split", "validation"]) == 0
    assert "validation set, last checkpoint" in capfd.readouterr().out
    results = json.loads((run_dir / "results-validation-last.json").read_text())
    assert (results["log_likelihood"]["num_samples"], results["log_likelihood"]["num_images"]) == (20, 30)
    assert results["elbo"]["num_images"] == 149


def test_evaluate_says_how_far_to_trust_it(run_dir, tmp_path, capfd):
    argv = [str(run_dir), "--num_samples", "60", "--num_images", "40", "--memory_mb", "1", "--gap_images", "7"]
    assert evaluate([*argv, "--per_image", str(tmp_path / "a" / "scores.npz")]) == 0
    out, _ = capfd.readouterr()
    for said in ("active units", "mutual information", "at most log N", "KL(q(z) || p(z))", "linear probe", "inference gap"):
        assert said in out
    assert "of approximation" in out
    results = json.loads((run_dir / "results-test-last.json").read_text())
    gap = results["inference_gap"]
    assert gap["total"]["num_images"] == 7
    parts = gap["approximation"]["mean"] + gap["amortization"]["mean"]
    assert gap["total"]["mean"] == pytest.approx(parts, rel=1e-5)
    assert results["linear_probe"]["num_images"] == 299
    assert list(results["k_curve"]) == ["1", "2", "4", "8", "16", "32", "60"]
    with np.load(tmp_path / "a" / "scores.npz") as arrays:
        names = {"elbo", "log_likelihood", "monte_carlo_error", "effective_sample_size", "pareto_k"}
        assert {name: arrays[name].shape for name in arrays} == dict.fromkeys(names, (40,))
        assert arrays["log_likelihood"].mean() == pytest.approx(results["log_likelihood"]["mean"])
    for picture in ("k_curve-test-last.png", "worst-test-last.png"):
        with Image.open(run_dir / "figures" / picture) as image:
            assert min(image.size) > 200


def test_evaluate_by_annealing(run_dir, capfd):
    argv = ["--method", "ais", "--num_images", "5", "--num_samples", "200", "--num_chains", "4", "--num_temperatures", "20"]
    assert evaluate([str(run_dir), *argv, "--gap_images", "0"]) == 0
    out, _ = capfd.readouterr()
    assert "log p(x), annealed" in out
    assert "sandwich" in out
    assert "inference gap" not in out
    results = json.loads((run_dir / "results-test-last.json").read_text())
    assert results["annealed"]["num_images"] == results["log_likelihood"]["num_images"] == 5
    difference = results["annealed"]["mean"] - results["log_likelihood"]["mean"]
    assert results["annealed_less_importance"]["mean"] == pytest.approx(difference, rel=1e-4)
    assert results["simulated"]["gap"]["mean"] > -1


@pytest.mark.parametrize("flags", ["", "--likelihood Binomial", "--model HierarchicalVAE --model.prior_dim 2 --latent_dim 3"])
def test_evaluate_images_without_labels(tmp_path, capfd, flags):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8))
    argv = [
        "--data",
        str(tmp_path / "a.npy"),
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--run_dir",
        str(tmp_path / "r"),
        *flags.split(),
    ]
    assert train(argv) == 0
    capfd.readouterr()
    assert evaluate([str(tmp_path / "r"), "--num_samples", "30"]) == 0
    out, _ = capfd.readouterr()
    assert "linear probe" not in out
    assert ("bits per dimension" in out) == ("Binomial" in flags)


def test_evaluate_repeats_itself(run_dir):
    argv = [str(run_dir), "--num_samples", "7", "--checkpoint", "best", "--split", "train", "--num_images", "50"]
    texts = []
    for _ in range(2):
        assert evaluate(argv) == 0
        texts.append((run_dir / "results-train-best.json").read_text())
    assert texts[0] == texts[1]


@pytest.mark.parametrize("kind", ["samples", "reconstructions", "interpolations", "traversals", "manifold", "codes"])
def test_generate_pictures(run_dir, tmp_path, kind):
    file = tmp_path / "a" / "picture.png"
    assert generate([str(run_dir), kind, "--format", "png", "--count", "9", "--out", str(file)]) == 0
    with Image.open(file) as image:
        assert min(image.size) > 100


@pytest.mark.parametrize(
    ("flags", "shapes"),
    [
        ("samples --count 25", {"images": (25, 1, 8, 8)}),
        ("samples", {"images": (64, 1, 8, 8)}),
        ("samples --count 1500", {"images": (1500, 1, 8, 8)}),
        ("reconstructions --count 7", {"images": (7, 1, 8, 8), "reconstructions": (7, 1, 8, 8), "labels": (7,)}),
        ("interpolations --count 3", {"images": (3, 10, 1, 8, 8)}),
        ("traversals --dimension 1 --count 4", {"images": (4, 10, 1, 8, 8)}),
        ("manifold --columns 6", {"images": (6, 6, 1, 8, 8)}),
        ("codes", {"loc": (299, 2), "scale": (299, 2), "labels": (299,)}),
        ("codes --split train", {"loc": (1349, 2), "scale": (1349, 2), "labels": (1349,)}),
    ],
)
def test_generate_arrays(run_dir, tmp_path, flags, shapes):
    file = tmp_path / "arrays.npz"
    assert generate([str(run_dir), *flags.split(), "--format", "npz", "--out", str(file)]) == 0
    with np.load(file) as arrays:
        assert {name: arrays[name].shape for name in arrays} == shapes
        assert all(arrays[name].dtype == np.uint8 for name in arrays if name in ("images", "reconstructions"))


def test_generated_images_are_data(run_dir, tmp_path):
    """For augmentation: what `generate` writes, `--data` reads."""
    file = tmp_path / "more.npz"
    assert generate([str(run_dir), "samples", "--format", "npz", "--count", "60", "--out", str(file)]) == 0
    assert pv.load_data(str(file)).shape == (1, 8, 8)


def test_what_generate_writes_is_what_the_model_says(run_dir, tmp_path, digits):
    vae = pv.load_run(run_dir)
    generate([str(run_dir), "codes", "--out", str(tmp_path / "codes.npz")])
    generate([str(run_dir), "traversals", "--format", "npz", "--count", "2", "--out", str(tmp_path / "t.npz")])
    generate([str(run_dir), "manifold", "--format", "npz", "--columns", "4", "--out", str(tmp_path / "m.npz")])
    q = vae.encode(digits.test.scored("binary"))
    with np.load(tmp_path / "codes.npz") as arrays, torch.no_grad():
        np.testing.assert_allclose(arrays["loc"], q.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(arrays["scale"], q.stddev.numpy(), atol=1e-6)
    with np.load(tmp_path / "t.npz") as arrays, torch.no_grad():
        z = vae.encode(digits.test.subset(2).scored("binary")).mean
        z[:, 0] = -3.0
        np.testing.assert_allclose(arrays["images"][:, 0], vae.decode(z).mean.numpy() * 255, atol=0.51)
    with np.load(tmp_path / "m.npz") as arrays, torch.no_grad():
        low, high = torch.special.ndtri(torch.tensor([0.125, 0.875]))
        corner = vae.decode(torch.stack([high, low])[None]).mean[0]
        np.testing.assert_allclose(arrays["images"][3, 3], corner.numpy() * 255, atol=0.51)


def test_the_manifold_needs_two_dimensions(tmp_path, capfd):
    assert train(["--data", "digits", "--epochs", "1", "--latent_dim", "3", "--run_dir", str(tmp_path / "r")]) == 0
    assert not (tmp_path / "r" / "figures" / "manifold.png").exists()
    assert generate([str(tmp_path / "r"), "manifold"]) == 2
    assert "train with --latent_dim 2" in capfd.readouterr().err


@pytest.mark.parametrize("latent_dim", ["1", "2", "5"])
@pytest.mark.parametrize("flags", ["", "--likelihood.relaxed true", "--binarization static", "--encoder Conv --decoder Conv"])
def test_own_images_of_any_shape(images, tmp_path, latent_dim, flags):
    argv = [
        "--data",
        str(images),
        "--epochs",
        "1",
        "--batch_size",
        "45",
        "--latent_dim",
        latent_dim,
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert train([*argv, *flags.split()]) == 0
    assert evaluate([str(tmp_path / "r"), "--num_samples", "3"]) == 0


def test_colour_images(tmp_path):
    np.save(tmp_path / "c.npy", np.random.default_rng(0).integers(0, 256, (30, 3, 8, 6), dtype=np.uint8))
    argv = ["--data", str(tmp_path / "c.npy"), "--epochs", "1", "--batch_size", "8", "--run_dir", str(tmp_path / "r")]
    assert train([*argv, "--likelihood", "pyro_vae.likelihoods.Normal", "--likelihood.scale", "0.1"]) == 0
    assert generate([str(tmp_path / "r"), "samples"]) == 0


def test_data_that_are_gone(tmp_path, capfd):
    np.save(tmp_path / "a.npy", np.zeros((30, 4, 4), dtype=np.uint8))
    argv = ["--data", str(tmp_path / "a.npy"), "--epochs", "1", "--batch_size", "8", "--run_dir", str(tmp_path / "r")]
    assert train(argv) == 0
    (tmp_path / "a.npy").unlink()
    capfd.readouterr()
    assert evaluate([str(tmp_path / "r")]) == 2
    assert "there is no data set or path" in capfd.readouterr().err
    assert generate([str(tmp_path / "r"), "samples"]) == 0


RECIPES = sorted(path for path in (ROOT / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_run(recipe, tmp_path, few):
    """Two steps of each recipe on a few real images; the whole runs are in experiments/README.md."""
    argv = ["--config", str(recipe), "--data", str(few), "--epochs", "1", "--batch_size", "45"]
    assert train([*argv, "--run_dir", str(tmp_path / "r")]) == 0
    assert figures(tmp_path / "r")[0]["step"] == 2
    asked = yaml.safe_load(recipe.read_text())
    assert yaml.safe_load((tmp_path / "r" / "config.yaml").read_text())["latent_dim"] == asked["latent_dim"]


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_readme_commands(tmp_path, monkeypatch):
    """Every `python -m pyro_vae` line of the README, in its order, in one folder, on digits for an epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pyro_vae.train.TEST_SAMPLES", 10)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    commands = {"train": train, "evaluate": evaluate, "generate": generate}
    lines = [line for block in blocks("sh") for line in block.splitlines() if line.startswith("python -m pyro_vae.")]
    assert {shlex.split(line)[2].removeprefix("pyro_vae.") for line in lines} == set(commands)
    for line in lines:
        _, _, module, *argv = shlex.split(line, comments=True)
        quick = ["--data", "digits", "--epochs", "1"] if module == "pyro_vae.train" else []
        quick = ["--num_samples", "5"] if module == "pyro_vae.evaluate" else quick
        assert commands[module.removeprefix("pyro_vae.")]([*argv, *quick]) == 0, line


def test_readme_python(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block.replace("epochs=20", "epochs=1").replace("num_samples=5000", "num_samples=5"), names)


def heeding_ctrl_c():
    """A process started in the background of a shell ignores Ctrl-C, and so would its children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_ctrl_c_stops_with_130(tmp_path):
    argv = [sys.executable, "-m", "pyro_vae.train", "--data", "digits", "--epochs", "100000", "--run_dir", str(tmp_path / "r")]
    pipe = subprocess.PIPE
    with subprocess.Popen(argv, stdout=pipe, stderr=pipe, text=True, preexec_fn=heeding_ctrl_c) as process:
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
    assert err == f"stopped by Ctrl-C; to go on: python -m pyro_vae.train --run_dir {tmp_path / 'r'} --resume\n"
    assert pv.load_run(tmp_path / "r") is not None


def test_labels_of_one_class(tmp_path):
    file, run_dir = tmp_path / "a.npz", tmp_path / "r"
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5), dtype=np.uint8)
    np.savez(file, images=images, labels=np.zeros(40, dtype=np.int64))
    assert train(["--data", str(file), "--epochs", "1", "--batch_size", "8", "--run_dir", str(run_dir)]) == 0
    flags = ["--num_samples", "3", "--gap_images", "0", "--method", "ais", "--num_chains", "1", "--num_temperatures", "2"]
    assert evaluate([str(run_dir), "--split", "validation", "--num_images", "1", *flags]) == 0
    text = (run_dir / "results-validation-last.json").read_text()
    assert "NaN" not in text
    assert "linear_probe" not in json.loads(text)
