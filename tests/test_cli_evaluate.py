"""`pyro-vae evaluate`: what it prints and writes."""

import errno
import json
import re
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from families import make_vae
from PIL import Image
from sklearn.metrics import roc_auc_score

import pyro_vae as pv
from pyro_vae.cli import evaluate as command
from pyro_vae.cli.evaluate import _marked, _worst
from pyro_vae.cli.main import main
from pyro_vae.train import main as train

SCORE = [
    "--num_samples",
    "20",
    "--num_images",
    "30",
    "--split",
    "validation",
    "--check_images",
    "0",
    "--calibration_images",
    "0",
]


def written(out):
    """The files whose paths were printed."""
    return [Path(line.strip()) for line in out.splitlines() if Path(line.strip()).is_file()]


def evaluated(capfd, *argv):
    """The results of an evaluation, and what it printed."""
    capfd.readouterr()
    assert main(["evaluate", *map(str, argv)]) == 0
    out = capfd.readouterr().out
    (file,) = [file for file in written(out) if file.suffix == ".json"]
    return json.loads(file.read_text()), out


def test_labels_of_the_least_likely_images_do_not_overlap():
    vae = make_vae(shape=(1, 8, 8))
    split = pv.Split(torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8))
    scores = pv.score_images(vae, split, 30)
    figure = _worst(vae, split, scores._replace(log_likelihood=scores.log_likelihood - 12_345))
    figure.draw_without_rendering()
    (axes,) = figure.axes
    boxes = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert len(boxes) == 10
    assert all(one.x1 < other.x0 for one, other in pairwise(boxes))


def test_evaluate(run_dir, capfd):
    results, out = evaluated(capfd, run_dir, *SCORE)
    assert "validation set, last checkpoint" in out
    assert (results["log_likelihood"]["num_samples"], results["log_likelihood"]["num_images"]) == (
        20,
        30,
    )
    assert results["elbo"]["num_images"] == 149
    assert "linear_probe" in results
    assert all(file.stat().st_size > 0 for file in written(out))


def test_evaluate_overwrites_no_results_of_other_settings(run_dir, capfd, monkeypatch):
    monkeypatch.setattr("pyro_vae.reporting.figures.png", lambda figure: b"")
    others = [
        "",
        "--num_samples 21",
        "--num_images 31",
        "--split test",
        "--checkpoint best",
        "--seed 1",
        "--method ais",
    ]
    argv = [run_dir, *SCORE, "--num_chains", "2", "--num_temperatures", "2"]
    files = [
        file for other in others for file in written(evaluated(capfd, *argv, *other.split())[1])
    ]
    assert len(files) == len({*files}) == 3 * len(others)  # no calibration was asked for


def test_evaluate_repeats_itself(run_dir, capfd):
    assert (
        evaluated(capfd, run_dir, *SCORE, "--checkpoint", "best")[0]
        == evaluated(capfd, run_dir, *SCORE, "--checkpoint", "best")[0]
    )


def test_evaluate_says_how_far_to_trust_it(run_dir, tmp_path, capfd):
    file = tmp_path / "a" / "scores.npz"
    argv = [
        "--num_samples",
        "60",
        "--num_images",
        "40",
        "--gap_images",
        "2",
        "--check_images",
        "2",
        "--calibration_images",
        "30",
        "--normal",
        *range(5),
        "--per_image",
        file,
    ]
    results, out = evaluated(capfd, run_dir, *argv)
    for said in (
        "active units",
        "mutual information",
        "linear probe",
        "inference gap",
        "effective samples",
        "ELBO, same",
        "calibration",
        "AUROC",
    ):
        assert said in out
    gap = results["inference_gap"]
    assert gap["total"]["num_images"] == 2
    assert gap["total"]["mean"] == pytest.approx(
        gap["approximation"]["mean"] + gap["amortization"]["mean"], rel=1e-5
    )
    assert results["check"]["num_images"] == 2
    assert results["calibration"]["num_images"] == 30
    assert sum(results["calibration"]["histograms"]["z[1]"]) == 30
    assert results["linear_probe"]["num_images"] == 299
    assert list(results["k_curve"]) == ["1", "2", "4", "8", "16", "32", "60"]
    data = pv.load_data("digits")
    with np.load(file) as arrays:
        assert {
            "elbo",
            "log_likelihood",
            "monte_carlo_error",
            "effective_sample_size",
            "pareto_k",
            "typicality",
            "likelihood_regret",
        } <= set(arrays)
        anomalous = arrays["labels"] > 4
        for name, found in results["anomalies"].items():
            sign = -1 if name.startswith("minus_") else 1
            values = sign * arrays[name.removeprefix("minus_")]
            assert found["auroc"] == pytest.approx(roc_auc_score(anomalous, values))
        assert all(len(arrays[name]) == 40 for name in arrays)
        assert arrays["log_likelihood"].mean() == pytest.approx(results["log_likelihood"]["mean"])
        np.testing.assert_array_equal(arrays["labels"], data.test.labels[arrays["index"]])
        assert len({*arrays["index"].tolist()}) == 40
    for picture in (file for file in written(out) if file.suffix == ".png"):
        with Image.open(picture) as image:
            assert min(image.size) > 200


def test_normal_labels_must_leave_anomalies(run_dir, refused, images):
    assert "0 of 30" in refused("evaluate", run_dir, *SCORE, "--normal", *range(10))
    assert "30 of 30" in refused("evaluate", run_dir, *SCORE, "--normal", 77)
    assert "classes 0, 1" in refused("evaluate", run_dir, *SCORE, "--normal", "cat")


def test_normal_classes_have_names_or_numbers():
    images = pv.Split(torch.rand(3, 1, 4, 4), labels=np.array(["cat", "dog", "7"]))
    for normal in (["cat", "dog"], ["1", "2"]):
        assert _marked(images, normal).tolist() == [False, False, True]
    unknown = pv.Split(torch.rand(2, 1, 4, 4), labels=torch.tensor([0, -1]))
    with pytest.raises(pv.RequestError, match="labels of all images"):
        _marked(unknown, ["0"])


def test_evaluate_by_annealing(run_dir, capfd):
    argv = [
        "--method",
        "ais",
        "--num_images",
        "5",
        "--num_samples",
        "200",
        "--num_chains",
        "4",
        "--num_temperatures",
        "20",
    ]
    results, out = evaluated(capfd, run_dir, *argv, "--check_images", "0")
    assert "AIS" in out
    assert "inference gap" not in out
    assert results["annealed"]["num_images"] == results["log_likelihood"]["num_images"] == 5
    difference = results["annealed"]["mean"] - results["log_likelihood"]["mean"]
    assert results["annealed_difference"]["mean"] == pytest.approx(difference, rel=1e-4)
    assert results["simulated"]["gap"]["mean"] > -1


@pytest.mark.parametrize(
    "flags",
    [
        "",
        "--likelihood Binomial",
        "--likelihood Normal --likelihood.learned scalar --latent_dim 2",
        "--model HierarchicalVAE --model.prior_dim 2 --latent_dim 3",
    ],
)
def test_evaluate_images_without_labels(tmp_path, capfd, flags):
    np.save(
        tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    )
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
    assert train([*argv, *flags.split()]) == 0
    results, out = evaluated(capfd, tmp_path / "r", "--num_samples", "30", "--check_images", "0")
    assert "linear_probe" not in results
    assert "bits per dimension" in out
    assert results["bits_per_dimension"]["mean"] > 0
    assert ("linear VAE: 2" in out) == ("Normal" in flags)


def test_labels_of_one_class(tmp_path, capfd):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.zeros(40, dtype=np.int64))
    argv = [
        "--data",
        str(tmp_path / "a.npz"),
        "--epochs",
        "1",
        "--batch_size",
        "8",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert train(argv) == 0
    flags = [
        "--num_samples",
        "3",
        "--method",
        "ais",
        "--num_chains",
        "1",
        "--num_temperatures",
        "2",
        "--check_images",
        "1",
    ]
    results, _ = evaluated(
        capfd, tmp_path / "r", "--split", "validation", "--num_images", "1", *flags
    )
    assert "linear_probe" not in results
    assert "nan" not in json.dumps(results).lower()


def test_training_images_are_scored_on_fixed_pixels_and_not_probed(run_dir, capfd):
    """They have no fixed noise of their own; quadrature of other pixels would disagree."""
    argv = [run_dir, "--split", "train", "--num_samples", "300", "--num_images", "200"]
    results, _ = evaluated(capfd, *argv)
    assert results["check"]["method"] == "quadrature"
    assert not results["check"]["disagree"]
    assert abs(results["check"]["difference"]) < 0.1
    assert "linear_probe" not in results


def test_evaluate_with_one_sample(run_dir, capfd):
    results, out = evaluated(capfd, run_dir, *SCORE[2:4], "--num_samples", "1")
    assert "nan" not in out
    json.dumps(results, allow_nan=False)
    assert "agrees" not in out


def test_options_reach_everything_that_is_computed(run_dir, capfd, monkeypatch):
    """The engine and the batch size of the check, the information, the gap and the rest."""
    seen = {}
    names = ["score_images", "summarize", "check_log_likelihood", "inference_gap"]
    for name in [*names, "information"]:
        function = getattr(command, name)

        def spy(*args, name=name, function=function, **options):
            seen[name] = [*args, *options.values()]
            return function(*args, **options)

        monkeypatch.setattr(command, name, spy)
    argv = ["--engine", "eager", "--batch_size", "123", "--num_samples", "9", "--gap_images", "2"]
    evaluated(capfd, run_dir, "--num_images", "5", "--check_images", "2", *argv)
    for name in names:
        assert "eager" in [item for item in seen[name] if isinstance(item, str)], name
    for name, items in seen.items():
        assert 123 in [item for item in items if isinstance(item, int)], name


def test_names_of_classes_are_written_per_image(tmp_path, capfd):
    images = np.random.default_rng(0).integers(0, 256, (40, 5, 5), dtype=np.uint8)
    labels = np.array(["cat", "dog"])[np.arange(40) % 2]
    np.savez(tmp_path / "a.npz", images=images, labels=labels)
    argv = ["--data", str(tmp_path / "a.npz"), "--epochs", "1", "--batch_size", "8"]
    assert train([*argv, "--run_dir", str(tmp_path / "r")]) == 0
    file = tmp_path / "s.npz"
    evaluated(capfd, tmp_path / "r", "--num_samples", "3", "--per_image", file)
    with np.load(file) as arrays:
        assert set(arrays["classes"]) == {"cat", "dog"}
        assert (np.array(["cat", "dog"])[arrays["labels"]] == arrays["classes"]).all()


def test_a_folder_that_cannot_be_written(run_dir, tmp_path, refused, monkeypatch, capfd):
    """It is refused before anything is computed; scores of each image are written elsewhere."""
    make = tempfile.TemporaryFile

    def read_only(*args, **options):
        if options.get("dir") == run_dir:
            raise PermissionError(errno.EACCES, "Permission denied")
        return make(*args, **options)

    monkeypatch.setattr(tempfile, "TemporaryFile", read_only)
    with monkeypatch.context() as patch:
        patch.setattr(command, "score_images", None)
        assert "no file can be written" in refused("evaluate", run_dir)
    before = sorted(run_dir.rglob("*"))
    file = tmp_path / "scores.npz"
    argv = ["--num_samples", "3", "--check_images", "0", "--per_image", str(file)]
    assert main(["evaluate", str(run_dir), *argv]) == 0
    assert "log p(x)" in capfd.readouterr().out
    assert file.exists()
    assert sorted(run_dir.rglob("*")) == before


def test_evaluate_a_model_with_labels(run_of_classes, capfd):
    argv = [
        "evaluate",
        str(run_of_classes),
        "--num_samples",
        "100",
        "--classify_images",
        "50",
        "--gap_images",
        "2",
    ]
    assert main(argv) == 0
    out, _ = capfd.readouterr()
    assert "Bayes classifier" in out
    (file,) = run_of_classes.glob("results-*.json")
    results = json.loads(file.read_text())
    assert results["given"] == "labels"
    assert results["bayes_classifier"]["num_images"] == 50
    assert results["check"]["method"] == "quadrature"
    assert not results["check"]["disagree"]


def test_evaluate_a_model_that_infers_labels(run_of_few_labels, capfd):
    """log p(x) is scored without labels, and quadrature agrees with the sum over them."""
    argv = ("--num_samples", "100", "--num_images", "8", "--check_images", "3")
    results, out = evaluated(capfd, run_of_few_labels, *argv)
    assert "classifier q(y | x)" in out
    assert "log p(x, y)" in out
    assert results["classification"]["num_images"] == 10
    assert results["log_joint"]["num_images"] == 8
    assert results["log_joint"]["mean"] < results["log_likelihood"]["mean"]
    assert results["check"]["method"] == "quadrature"
    assert not results["check"]["disagree"]
    assert "given" not in results
    assert results["bayes_classifier"]["num_images"] == 10
    assert results["information"]["mutual_information"] > 0
    assert "calibration" in results
    assert [file for file in written(out) if file.name.startswith("reliability")]
    config = (run_of_few_labels / "config.yaml").read_text()
    assert "labels: 9" in config
    assert "TraceEnum_ELBO" in config
    assert (run_of_few_labels / "figures" / "reliability.png").exists()
    assert "accuracy of q(y | x)" in (run_of_few_labels / "report.html").read_text()


QUICK = ("--num_samples", "20", "--check_images", "0", "--classify_images", "10")


def run(*argv):
    assert main([str(arg) for arg in argv]) == 0


def test_their_scores_are_those_in_python_and_have_a_name_of_their_own(
    run_dir, new, tmp_path, capfd
):
    own = {file.name for file in run_dir.iterdir()}
    scores = tmp_path / "scores.npz"
    run("evaluate", run_dir, "--data", new, *QUICK, "--per_image", scores)
    assert "test.npz, last checkpoint: 30 images" in capfd.readouterr().out
    (written,) = {file.name for file in run_dir.iterdir()} - own
    assert re.fullmatch(r"results-data-test_npz-\w{6}-last-K20-N30-seed0\.json", written)
    results = json.loads((run_dir / written).read_text())
    assert "linear_probe" not in results
    elbo = pv.score_images(pv.load_run(run_dir), pv.load_images(new), 1000).elbo.mean().item()
    assert results["elbo"]["mean"] == pytest.approx(elbo, rel=0.02)
    assert results["elbo"]["mean"] == pytest.approx(np.load(scores)["elbo"].mean(), rel=1e-5)


def test_the_data_of_the_run_are_not_needed(tmp_path, images):
    from shutil import copy

    data = copy(images, tmp_path / "data.npz")
    run("train", "--data", data, "--epochs", 1, "--run_dir", tmp_path / "run", "--device", "cpu")
    data.unlink()
    run("evaluate", tmp_path / "run", "--data", images, *QUICK)


def test_one_image_is_enough(run_dir, tmp_path, drawn, refused):
    (tmp_path / "one").mkdir()
    Image.fromarray(np.kron(drawn[0], np.ones((3, 3), np.uint8))).save(tmp_path / "one" / "a.png")
    run("evaluate", run_dir, "--data", tmp_path / "one", "--image_size", 8, "--num_samples", 50)
    run("generate", run_dir, "codes", "--data", tmp_path / "one", "--image_size", 8)
    assert "two images" in refused(
        "generate", run_dir, "interpolations", "--data", tmp_path / "one", "--image_size", 8
    )


def test_what_does_not_fit_is_one_line(run_dir, new, images, tmp_path, refused):
    assert "(1, 8, 8)" in refused("evaluate", run_dir, "--data", images)
    assert "--split" in refused("generate", run_dir, "codes", "--data", new, "--split", "train")
    assert "nowhere" in refused("generate", run_dir, "codes", "--data", tmp_path / "nowhere.npz")
    (tmp_path / "empty").mkdir()
    refused("evaluate", run_dir, "--data", tmp_path / "empty")
    assert "use no images" in refused("generate", run_dir, "samples", "--data", new)


def test_a_model_of_labels_needs_those_that_it_knows(tmp_path, images, refused):
    path = tmp_path / "run"
    run(
        "train",
        "--data",
        images,
        "--model",
        "ConditionalVAE",
        "--epochs",
        1,
        "--run_dir",
        path,
        "--device",
        "cpu",
    )
    pixels = np.zeros((20, 6, 5), np.uint8)
    np.savez(tmp_path / "without.npz", images=pixels)
    np.savez(tmp_path / "unknown.npz", images=pixels, labels=np.arange(20))
    np.savez(tmp_path / "known.npz", images=pixels, labels=np.zeros(20, int))
    assert "labels" in refused("evaluate", path, "--data", tmp_path / "without.npz", *QUICK)
    said = refused("generate", path, "codes", "--data", tmp_path / "unknown.npz")
    assert "known are 0, 1, 2;" in said
    run("evaluate", path, "--data", tmp_path / "known.npz", *QUICK)
    (results,) = (json.loads(file.read_text()) for file in path.glob("results-data-known_npz*"))
    assert results["bayes_classifier"]["num_images"] == 10
