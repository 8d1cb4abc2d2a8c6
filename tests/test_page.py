"""Pages of models work in a browser, and say what their numbers are."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from endings import REPORTED, ending
from families import make_hierarchical, make_vae
from pages import HOSTILE, TINY, document_in, make_conditional, make_relaxed, opened_run, random_split

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.evaluation.codes import scored
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting.subject import Subject
from pyro_vae.runs.folder import Run

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from pyro_vae.reporting.page import comparison, metrics, page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


@pytest.mark.parametrize(
    ("prior", "latent_dim"),
    [("GaussianMixture", 2), ("VampPrior", 2), ("StudentT", 2), ("VampPrior", 3)],
)
def test_every_prior_has_a_page(prior, latent_dim):
    from pyro_vae.reporting.page import RunReport, page

    shown = explorer.view(make_vae(prior, latent_dim=latent_dim), random_split(), TINY)
    facts = {"seconds of training": "1"}
    assert "explorer" in page([RunReport("run", {}, facts, [], {}, shown.overview, shown)])


def hierarchical():
    return make_hierarchical(latent_dim=2)


def flow():
    return make_vae(posterior="FlowPosterior", latent_dim=2)


@pytest.mark.parametrize("make", [hierarchical, conditional, flow])
def test_every_model_has_a_page(make):
    from pyro_vae.reporting.page import RunReport, page

    shown = explorer.view(make(), random_split(), TINY)
    assert bool(shown.posteriors) == (make is not hierarchical)
    assert page([RunReport("run", {}, {}, [], {}, shown.overview, shown)])


def test_long_curves_are_thinned_and_end_at_the_last_epoch():
    from pyro_vae.reporting.page import RunReport, page

    names = ("elbo", "validation_elbo", "kl", "validation_kl", "active_units", "beta")
    records = [{"epoch": epoch, **dict.fromkeys(names, 1.0)} for epoch in range(1, 2001)]
    shown = explorer.view(make_vae(latent_dim=2), random_split(), TINY)
    text = page([RunReport("run", {}, {}, records, {}, shown.overview, shown)])
    assert ",1998,2000]" in text
    assert ",1997," not in text


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="Selenium is not installed")
    if not CHROMIUM or not DRIVER:
        pytest.skip(
            "chromium and chromedriver were not found; install the packages chromium and chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


READY = "return document.body.dataset.ready || (!document.getElementById('data') && window.Bokeh && Bokeh.documents.length)"


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
    states = document_in((run_dir / "report.html").read_text())["images"]
    for n, k in [(0, 4), (1, 0), (2, 8)]:
        browser.execute_script(f"document.querySelectorAll('input[name=image]')[{n}].click()")
        set_slider(browser, "draws", k)
        expected = {**states[n]["text"], **states[n]["weighted"][k]["text"]}
        assert {name: shown(browser, name) for name in expected} == expected
        source = browser.execute_script(
            "return [...Bokeh.documents[0].get_model_by_name('draws').data.x].length"
        )
        assert source == 2**k


def test_images_can_be_chosen_by_the_keyboard(opened, run_dir):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser = opened(run_dir / "report.html")
    states = document_in((run_dir / "report.html").read_text())["images"]
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
    for value in (-3, 0, 3):
        set_slider(browser, "unit0", value)
        set_slider(browser, "between", (value + 3) / 6)
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
    data, run = document_in((kept / "report.html").read_text()), Run.open(kept)
    assert [state["text"]["epoch_name"] for state in (*data["earlier"], data)] == [
        "epoch 1",
        "epoch 2",
        "last epoch",
    ]
    (vae, images), config = opened_run(run), run.config()
    x, _ = scored(vae, images.test.subset(40))
    for state, epoch in zip((*data["earlier"], data), (1, 2, 3), strict=True):
        vae = run.model(config, run.load_checkpoint(epoch))
        expected = [f"{value:.2f}" for value in quadrature_log_likelihood(vae, x[:2])]
        assert [image["text"]["log_p"] for image in state["images"]] == expected
        codes = pv.codes(vae, x).loc[:, 0].tolist()
        assert state["models"]["points"]["data"]["x"] == pytest.approx(codes, abs=1e-3)


def test_the_slider_over_epochs_moves_plane_posterior_and_bars(opened, kept):
    browser = opened(kept / "report.html")
    data, seen = document_in((kept / "report.html").read_text()), []
    source = "return [...Bokeh.documents.map((one) => one.get_model_by_name(arguments[0])).find(Boolean).data[arguments[1]]]"
    for n, state in enumerate((*data["earlier"], data)):
        set_slider(browser, "epoch", n)
        assert shown(browser, "epoch_name") == state["text"]["epoch_name"]
        assert shown(browser, "log_p") == state["images"][0]["text"]["log_p"]
        assert shown(browser, "bound") == state["images"][0]["weighted"][4]["text"]["bound"]
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
    assert shown(browser, "log_p") == data["images"][1]["text"]["log_p"]


def test_a_hostile_folder_runs_no_script(opened, run_dir, tmp_path):
    run = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(run_dir, run)
    out = tmp_path / "page.html"
    assert main(["report", str(run), str(run_dir), "--out", str(out), "--device", "cpu"]) == 0
    browser = opened(out)
    assert browser.execute_script("return typeof hacked") == "undefined"
