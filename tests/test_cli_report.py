"""The report of saved runs: its numbers are those of results.json and of exact integration."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pyro
import pytest
from endings import REPORTED, ending
from pages import HOSTILE, TINY, document_in, opened_run

from pyro_vae.cli.main import main
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting.overview import overview
from pyro_vae.runs.folder import Run

pytest.importorskip("bokeh", reason="Bokeh is not installed")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.report.FULL", TINY)


@pytest.fixture
def report(run_dir, tmp_path):
    """Write a report and return its text."""

    def make(*paths, run=None) -> str:
        out = tmp_path / "page.html"
        assert (
            main(["report", *map(str, paths or [run_dir]), "--out", str(out), "--device", "cpu"])
            == 0
        )
        return out.read_text()

    return make


@pytest.fixture
def reported():
    """Training writes its report."""
    with ending(REPORTED):
        yield


def test_training_writes_the_report(run_dir):
    file = run_dir / "report.html"
    assert 1e6 < file.stat().st_size < 3e6


def test_training_can_leave_it_out(tmp_path, reported):
    options = [
        "--data",
        "digits",
        "--epochs",
        "1",
        "--report",
        "false",
        "--run_dir",
        str(tmp_path / "r"),
        "--device",
        "cpu",
    ]
    assert main(["train", *options]) == 0
    assert not (tmp_path / "r" / "report.html").exists()


def test_training_goes_on_without_the_libraries(tmp_path, monkeypatch, capfd, reported):
    monkeypatch.setitem(__import__("sys").modules, "bokeh", None)
    assert (
        main(
            [
                "train",
                "--data",
                "digits",
                "--epochs",
                "1",
                "--run_dir",
                str(tmp_path / "r"),
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert "pyro_vae[report]" in capfd.readouterr().out
    assert (tmp_path / "r" / "results.json").exists()


def test_the_command_needs_the_libraries(run_dir, monkeypatch, refused):
    monkeypatch.setitem(__import__("sys").modules, "jinja2", None)
    assert "pyro_vae[report]" in refused("report", run_dir)


def test_metrics_are_those_of_the_results(report, run_dir):
    text, results = report(), json.loads((run_dir / "results.json").read_text())
    for name in ("elbo", "reconstruction", "kl", "log_likelihood"):
        assert f"{results[name]['mean']:.2f} ± {results[name]['standard_error']:.2f}<" in text


def test_the_explorer_shows_the_quadrature_and_parts_that_add_up(report, run_dir):
    run = Run.open(run_dir)
    vae, data = opened_run(run)
    x, _ = scored(vae, data.test.subset(40)[:3])
    (snapshot,) = document_in(report())["snapshots"]
    for state, log_p in zip(snapshot["images"], quadrature_log_likelihood(vae, x), strict=True):
        assert state["text"]["log_p"] == f"{log_p:.2f}"
        values = {name: float(value) for name, value in state["text"].items()}
        approximation = values["log_p"] - values["best_elbo"]
        assert values["approximation"] == pytest.approx(approximation, abs=1e-9)
        total = values["approximation"] + values["amortization"]
        assert values["total"] == pytest.approx(total, abs=1e-9)


def test_strings_of_a_run_folder_are_escaped(run_dir, tmp_path):
    run = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(run_dir, run)
    (run / "results.json").write_text(
        json.dumps({"elbo": {"mean": HOSTILE}, "k_curve": {HOSTILE: {"mean": 1}}})
    )
    for paths in ([run], [run, run_dir]):
        out = tmp_path / "page.html"
        assert main(["report", *map(str, paths), "--out", str(out), "--device", "cpu"]) == 0
        text = out.read_text()
        assert "<script>hacked" not in text
        assert "<img src=x" not in text


ODD = """
{"elbo": 1e999, "kl": [], "k_curve": {"1": {"mean": NaN}, "x": {"mean": 1}},
 "active_units": {"count": "<b>"}}
"""


@pytest.mark.parametrize("results", ["[]", ODD])
def test_odd_results_are_left_out(run_dir, tmp_path, results):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    (run / "results.json").write_text(results)
    assert main(["report", str(run), "--device", "cpu"]) == 0


def test_the_folder_of_the_data_is_not_shown(report):
    assert "data_dir" not in report()


def test_wrong_requests_are_one_line(refused, run_dir, tmp_path):
    refused("report")
    refused("report", tmp_path)
    refused("report", run_dir, "--out", tmp_path / "page.pdf")
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    (run / "results.json").write_text("{")
    assert "results.json" in refused("report", run)


def train(path, *options):
    argv = ["--epochs", "1", "--report", "false", "--device", "cpu", "--run_dir", str(path)]
    assert main(["train", *map(str, options), *argv]) == 0
    return path


def test_runs_on_different_data_are_not_compared(run_dir, tmp_path, images, refused, monkeypatch):
    other = train(tmp_path / "other", "--data", images)
    results = json.loads((other / "results.json").read_text())
    # all are looked at before the first is scored, which takes seconds
    with monkeypatch.context() as patch:
        patch.setattr("pyro_vae.reporting.comparison.overview", pytest.fail)
        assert "none" in refused("report", run_dir, other, tmp_path / "none")
    out = tmp_path / "page.html"
    assert main(["report", str(run_dir), str(other), "--out", str(out)]) == 0
    text = out.read_text()
    assert f"its test images are not those of {run_dir}" in text
    assert f"{results['elbo']['mean']:.2f}" not in text
    assert "Differences from" not in text


def test_data_are_compared_by_content_and_not_by_name(tmp_path, images):
    """Files of one name may differ, and files of two names be equal."""
    paths = {}
    for name, change in {"a": 0, "b": 1, "c": 0}.items():
        (tmp_path / name).mkdir()
        with np.load(images) as arrays:
            x = arrays["images"] ^ np.uint8(change)
        paths[name] = tmp_path / name / ("other.npz" if name == "c" else "x.npz")
        np.savez(paths[name], images=x)
    runs = [train(tmp_path / f"run_{name}", "--data", path) for name, path in paths.items()]
    out = tmp_path / "page.html"
    assert main(["report", *map(str, runs), "--out", str(out), "--device", "cpu"]) == 0
    listed = out.read_text().split("Not compared")[1].split("</table>")[0]
    assert "run_b" in listed
    assert "run_c" not in listed


def test_a_run_whose_data_have_changed_is_not_compared(tmp_path, images):
    """Its results.json is of other images than those that would be scored now."""
    data = shutil.copy(images, tmp_path / "data.npz")
    run = train(tmp_path / "before", "--data", data)
    with np.load(images) as arrays:
        np.savez(data, images=255 - arrays["images"], labels=arrays["labels"])
    now = train(tmp_path / "now", "--data", data)
    out = tmp_path / "page.html"
    assert main(["report", str(now), str(run), "--out", str(out), "--device", "cpu"]) == 0
    assert "its data have changed since it was trained" in out.read_text()


def test_several_runs_are_compared_on_the_same_images(run_dir, tmp_path, report):
    other = tmp_path / "other"
    options = [
        "--data",
        "digits",
        "--latent_dim",
        "2",
        "--epochs",
        "1",
        "--seed",
        "1",
        "--report",
        "false",
    ]
    assert main(["train", *options, "--run_dir", str(other), "--device", "cpu"]) == 0
    text = report(run_dir, other)
    scores = []
    for path in (run_dir, other):
        run = Run.open(path)
        pyro.set_rng_seed(0)
        model, data = opened_run(run)
        pyro.set_rng_seed(0)
        scores.append(overview(model, data.test, TINY).scores)
    difference = scores[1].elbo - scores[0].elbo
    assert f"{difference.mean():+.2f} ± {difference.std() / 40**0.5:.2f}" in text
    assert '<th scope="col" class="number">epochs' in text
    assert 'class="number">latent_dim' not in text


def test_the_latest_check_of_evaluate_is_shown(run_dir, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(run_dir, run)
    for number, word in enumerate((False, True)):
        file = run / f"results-test-last-K{number}.json"
        file.write_text(json.dumps({"check": {"disagree": word}}))
        os.utime(file, (number, number))
    out = tmp_path / "page.html"
    argv = ["report", str(run), "--out", str(out), "--title", "A <title>", "--device", "cpu"]
    assert main(argv) == 0
    text = out.read_text()
    assert "A second method gives more." in text
    assert "A &lt;title&gt;" in text
