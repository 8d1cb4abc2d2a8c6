"""Pages of models work in a browser, and say what their numbers are."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from endings import REPORTED, ending
from families import SHAPE, make_hierarchical, make_vae
from pages import (
    HOSTILE,
    TINY,
    document_in,
    make_conditional,
    make_relaxed,
    opened_run,
    random_split,
)

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.data.split import Split
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting import figures
from pyro_vae.reporting.overview import overview
from pyro_vae.reporting.subject import Subject, why_not_comparable
from pyro_vae.runs.folder import Run

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from pyro_vae.reporting import plots
from pyro_vae.reporting.page import comparison, metrics, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.mark.parametrize(
    ("prior", "latent_dim"),
    [("GaussianMixture", 2), ("VampPrior", 2), ("StudentT", 2), ("VampPrior", 3)],
)
def test_every_prior_has_a_page(prior, latent_dim):
    subject = Subject("run", make_vae(prior, latent_dim=latent_dim), random_split())
    assert 'id="explorer"' in page(subject, TINY)


def hierarchical():
    return make_hierarchical(latent_dim=2)


def flow():
    return make_vae(posterior="FlowPosterior", latent_dim=2)


@pytest.mark.parametrize("make", [hierarchical, make_conditional, flow])
def test_every_model_has_a_page(make):
    text = page(Subject("run", make(), random_split()), TINY)
    assert ("Posterior explorer" in text) == (make is not hierarchical)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("latent_dim", [2, 3])
def test_few_images_have_a_page(count, latent_dim):
    assert page(Subject("run", make_vae(latent_dim=latent_dim), random_split(count)), TINY)


def record(epoch):
    names = ("elbo", "validation_elbo", "kl", "validation_kl", "active_units", "beta")
    return {"epoch": epoch, **dict.fromkeys(names, 1.0)}


def test_long_curves_are_thinned_and_end_at_the_last_epoch():
    records = [record(epoch) for epoch in range(1, 2001)]
    text = page(Subject("run", make_vae(latent_dim=3), random_split(), records=records), TINY)
    assert ",1998,2000]" in text
    assert ",1997," not in text


def test_curves_have_the_colours_of_the_pictures():
    """Validation was blue on the page and orange in curves.png, training the reverse."""
    subject = Subject("run", make_vae(latent_dim=3), random_split(), records=[record(1), record(2)])
    plot = plots.curves([subject])["ELBO"]
    on_page = {}
    for item in plot.legend[0].items:
        on_page[item.label.value] = item.renderers[0].glyph.line_color
    lines = (
        figures.curves(
            [{**record(1), "loss": -1.0, "reconstruction": 0.0, "validation_reconstruction": 0.0}]
        )
        .axes[0]
        .lines
    )
    assert on_page == {line.get_label(): line.get_color() for line in lines}


def test_classes_have_the_users_names():
    test = random_split()
    named = Split(test.x, test.labels, classes=("cat", "<b>dog</b>", "$x^{$"))
    text = page(Subject("run", make_vae(latent_dim=3), named), TINY)
    assert '"cat"' in text
    assert "<b>dog" not in text


def results(images=100, subset=100, density=True):
    value = {"mean": -90.0, "standard_error": 1.0, "num_samples": 1000, "num_images": images}
    of_subset = {**value, "mean": -89.0, "num_images": subset}
    found = {
        "elbo": value,
        "kl": value,
        "log_likelihood": {**of_subset, "elbo_same_images": of_subset},
        "active_units": {"count": 2, "latent_dim": 2},
    }
    if subset < images:
        found["log_likelihood_all_images"] = {**value, "mean": -88.0}
    return found


def test_metrics_say_how_many_images_they_are_of():
    rows = {row.name: row for row in metrics(results(100, 30))}
    assert "100 images" in rows["ELBO"].meaning
    assert "30 images, 1,000 samples" in rows["log p(x)"].meaning
    assert "ELBO, same images" in rows
    assert "ELBO, same images" not in {row.name for row in metrics(results(100, 100))}


def test_a_relaxed_bernoulli_has_no_bound_on_log_p():
    text = page(Subject("run", make_relaxed(), random_split(), results=results()), TINY)
    assert "Lower bound on log p(x)" not in text
    assert "not log-probabilities" in text
    text = page(Subject("run", make_vae(latent_dim=3), random_split(), results=results()), TINY)
    assert "Lower bound on log p(x)" in text
    assert "not log-probabilities" not in text


def test_a_model_that_uses_labels_says_so():
    text = page(Subject("run", make_conditional(3), random_split(), results=results()), TINY)
    assert "log p(x) stands for log p(x | y)" in text


# --- several --------------------------------------------------------------------------------------


def test_the_comparison_has_elbo_and_log_p_of_the_same_images():
    test = random_split()
    subjects = []
    for name in ("first", "second"):
        subjects.append(Subject(name, make_vae(), test, results=results(100, 30)))
    text = comparison(subjects, TINY)
    assert "-88.00 ± 1.00" in text
    assert "-89.00" not in text
    assert '<td class="number">100</td>' in text
    assert '<td class="number">1,000</td>' in text


OTHERS = {
    "its test images": lambda test: (make_vae(), random_split()),
    "log-probabilities of byte values": lambda test: (make_vae(likelihood="Categorical"), test),
    "log-densities of dequantized values": lambda test: (make_vae(likelihood="Beta"), test),
    "cross-entropies of unit values": lambda test: (make_relaxed(), test),
    "given the labels": lambda test: (make_conditional(), test),
}


@pytest.mark.parametrize("reason", OTHERS)
def test_models_that_cannot_be_compared_are_listed_with_the_reason(reason, monkeypatch):
    """Before anything is scored, and without their numbers."""
    test = Split(torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8), torch.arange(40) % 3)
    vae, split = OTHERS[reason](test)
    scored_models = []

    def spy(vae, *args):
        scored_models.append(vae)
        return overview(vae, *args)

    monkeypatch.setattr("pyro_vae.reporting.page.overview", spy)
    first = Subject("first", make_vae(), test, results=results())
    other = Subject("other", vae, split, results={"elbo": {"mean": -77.77}}, records=[record(1)])
    third = Subject("third", make_vae(), test)
    text = comparison([first, other, third], TINY)
    assert reason in text
    assert "-77.77" not in text
    assert vae not in scored_models
    assert len(scored_models) == 2
    assert "Differences from first" in text


def test_relaxed_values_are_not_set_beside_densities():
    test = Split(torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8))
    normal = Subject("normal", make_vae(likelihood="Normal"), test)
    relaxed = Subject("relaxed", make_relaxed(), test)
    assert "cross-entropies" in why_not_comparable(relaxed, normal)
    assert why_not_comparable(relaxed, relaxed) == ""


def test_models_given_other_labels_are_not_compared():
    test = random_split()
    relabelled = Split(test.x, (test.labels + 1) % 3)
    first = Subject("first", make_conditional(), test)
    assert "labels" in why_not_comparable(Subject("b", make_conditional(), relabelled), first)
    assert why_not_comparable(Subject("c", make_conditional(), test), first) == ""


# --- in a browser ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip(
            "chromium and chromedriver were not found; install chromium and chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


READY = """
return document.body.dataset.ready
  || (!document.getElementById("data") && window.Bokeh && Bokeh.documents.length)
"""


@pytest.fixture
def opened(browser):
    """Open a page at a width, wait until its script has run, and check the console."""

    def load(file: Path, width: int = 1280):
        from selenium.webdriver.support.wait import WebDriverWait

        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        browser.get(file.absolute().as_uri())
        WebDriverWait(browser, 60).until(lambda driver: driver.execute_script(READY))
        bad = [
            entry for entry in browser.get_log("browser") if entry["level"] in ("WARNING", "SEVERE")
        ]
        assert not bad
        return browser

    return load


@pytest.fixture
def reported():
    """Training writes its report."""
    with ending(REPORTED):
        yield


def set_slider(browser, name, value):
    script = "const slider = document.getElementById(arguments[0]); slider.value = arguments[1];"
    browser.execute_script(
        script + "slider.dispatchEvent(new Event('input', {bubbles: true}))", name, value
    )


def shown(browser, name):
    return browser.execute_script("return document.getElementById(arguments[0]).textContent", name)


def drawn(browser, name):
    """The picture on a canvas, as a URL."""
    return browser.execute_script("return document.getElementById(arguments[0]).toDataURL()", name)


def test_the_plane_follows_the_pointer_and_the_sliders(opened, run_dir):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    browser = opened(run_dir / "report.html")
    before, place = drawn(browser, "decoded"), shown(browser, "place")
    set_slider(browser, "place0", 2)
    after = drawn(browser, "decoded")
    assert after != before
    assert shown(browser, "place") != place
    plot = browser.find_element(By.CSS_SELECTOR, "#latent .plots > div")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    ActionChains(browser).move_to_element_with_offset(plot, -40, 50).move_by_offset(5, 5).perform()
    assert drawn(browser, "decoded") != after


def test_choosing_an_image_and_k_shows_their_numbers(opened, run_dir):
    browser = opened(run_dir / "report.html")
    states = document_in((run_dir / "report.html").read_text())["snapshots"][-1]["images"]
    for n, k in [(0, 4), (1, 0), (2, 8)]:
        browser.execute_script(f"document.querySelectorAll('input[name=image]')[{n}].click()")
        set_slider(browser, "draws", k)
        expected = {**states[n]["text"], **states[n]["draws"][k]["text"]}
        assert {name: shown(browser, name) for name in expected} == expected
        source = browser.execute_script(
            "return [...Bokeh.documents[0].get_model_by_name('draws').data.x].length"
        )
        assert source == 2**k


def test_images_can_be_chosen_by_the_keyboard(opened, run_dir):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = opened(run_dir / "report.html")
    states = document_in((run_dir / "report.html").read_text())["snapshots"][-1]["images"]
    browser.find_element(By.CSS_SELECTOR, "input[name=image]").send_keys(Keys.ARROW_RIGHT)
    assert shown(browser, "log_p") == states[1]["text"]["log_p"]


def test_the_page_fits_a_telephone(opened, run_dir):
    browser = opened(run_dir / "report.html", width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390


def test_traversals_and_interpolation_follow_their_sliders(opened, tmp_path, reported):
    run = tmp_path / "run"
    options = [
        "--data",
        "digits",
        "--latent_dim",
        "4",
        "--epochs",
        "3",
        "--run_dir",
        str(run),
        "--device",
        "cpu",
    ]
    assert main(["train", *options]) == 0
    browser = opened(run / "report.html")
    pictures = []
    limits = document_in((run / "report.html").read_text())["paths"]["dimensions"][0]
    for share in (0, 0.5, 1):
        value = limits["low"] + share * (limits["high"] - limits["low"])
        set_slider(browser, "unit0", value)
        assert shown(browser, "at0") != "-0.0"
        assert float(shown(browser, "at0")) == pytest.approx(value, abs=0.051)
        set_slider(browser, "between", share)
        pictures.append((drawn(browser, "traversal0"), drawn(browser, "interpolated")))
    assert all(
        a != b for before, after in pairwise(pictures) for a, b in zip(before, after, strict=True)
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A run of three epochs, all of them kept."""
    run = tmp_path_factory.mktemp("kept") / "run"
    with pytest.MonkeyPatch.context() as patch, ending(REPORTED):
        patch.setattr("pyro_vae.cli.report.QUICK", TINY)
        options = [
            "--data",
            "digits",
            "--latent_dim",
            "2",
            "--epochs",
            "3",
            "--keep_every",
            "1",
            "--device",
            "cpu",
        ]
        assert main(["train", *options, "--run_dir", str(run)]) == 0
    return run


def test_epochs_that_are_kept_have_a_moment_each(kept):
    assert sorted(file.name for file in (kept / "epochs").iterdir()) == [
        "0001.pt",
        "0002.pt",
        "0003.pt",
    ]
    assert (kept / "report.html").stat().st_size < 3e6
    snapshots = document_in((kept / "report.html").read_text())["snapshots"]
    run = Run.open(kept)
    assert [state["text"]["epoch_name"] for state in snapshots] == [
        "epoch 1",
        "epoch 2",
        "last epoch",
    ]
    vae, images = opened_run(run)
    x, _ = scored(vae, images.test.subset(40))
    for state, epoch in zip(snapshots, (1, 2, 3), strict=True):
        vae = pv.load_run(kept, epoch)
        expected = [f"{value:.2f}" for value in quadrature_log_likelihood(vae, x[:2])]
        assert [image["text"]["log_p"] for image in state["images"]] == expected
        codes = pv.codes(vae, x).loc[:, 0].tolist()
        assert state["models"]["points"]["data"]["x"] == pytest.approx(codes, abs=1e-3)


def test_the_slider_over_epochs_moves_plane_posterior_and_bars(opened, kept):
    browser = opened(kept / "report.html")
    snapshots = document_in((kept / "report.html").read_text())["snapshots"]
    seen = []
    source = "return [...model(arguments[0]).data[arguments[1]]]"
    for n, state in enumerate(snapshots):
        set_slider(browser, "epoch", n)
        assert shown(browser, "epoch_name") == state["text"]["epoch_name"]
        assert shown(browser, "log_p") == state["images"][0]["text"]["log_p"]
        assert shown(browser, "bound") == state["images"][0]["draws"][4]["text"]["bound"]
        assert (
            browser.execute_script(source, "points", "x") == state["models"]["points"]["data"]["x"]
        )
        assert (
            browser.execute_script(source, "dimensions", "top")
            == state["models"]["dimensions"]["data"]["top"]
        )
        assert (
            browser.execute_script(source, "gap", "left")
            == state["images"][0]["models"]["gap"]["data"]["left"]
        )
        assert len(browser.execute_script(source, "points", "image")) == 40
        seen.append(drawn(browser, "decoded"))
    assert len(set(seen)) == 3
    browser.execute_script("document.querySelectorAll('input[name=image]')[1].click()")
    assert shown(browser, "log_p") == snapshots[-1]["images"][1]["text"]["log_p"]


def test_a_hostile_folder_runs_no_script(opened, run_dir, tmp_path):
    run = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(run_dir, run)
    out = tmp_path / "page.html"
    assert main(["report", str(run), str(run_dir), "--out", str(out), "--device", "cpu"]) == 0
    browser = opened(out)
    assert browser.execute_script("return typeof hacked") == "undefined"
