"""Pages of models work in a browser, and say what their numbers are."""

from __future__ import annotations

import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from endings import REPORTED, ending
from families import make_vae
from pages import (
    HOSTILE,
    TINY,
    document_in,
    opened_run,
    random_split,
    record,
)

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.evaluation.batch import scored
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting.subject import Subject
from pyro_vae.runs.folder import Run

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from pyro_vae.reporting.page import page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")


def test_long_curves_are_thinned_and_end_at_the_last_epoch():
    records = [record(epoch) for epoch in range(1, 2001)]
    text = page(Subject("run", make_vae(latent_dim=3), random_split(), records=records), TINY)
    assert ",1998,2000]" in text
    assert ",1997," not in text


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


def width(browser, name):
    """The width of a bar, in per cent."""
    script = "return parseFloat(document.getElementById(arguments[0]).style.width)"
    return browser.execute_script(script, name)


def press(browser, key):
    from selenium.webdriver.common.by import By

    browser.find_element(By.TAG_NAME, "body").send_keys(key)


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
    plot = browser.find_element(By.CSS_SELECTOR, "#plane .square")
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


def test_keys_choose_image_and_k_and_show_a_panel_alone(opened, run_dir):
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.wait import WebDriverWait

    browser = opened(run_dir / "report.html")
    states = document_in((run_dir / "report.html").read_text())["snapshots"][-1]["images"]
    panel = browser.find_element(By.ID, "posteriors")
    browser.execute_script("arguments[0].scrollIntoView()", panel)
    for key, image, k in (
        (Keys.ARROW_RIGHT, 1, "16"),
        (Keys.ARROW_UP, 1, "32"),
        (Keys.ARROW_LEFT, 0, "32"),
        (Keys.ARROW_LEFT, -1, "32"),
        (Keys.ARROW_DOWN, -1, "16"),
    ):
        press(browser, key)
        assert shown(browser, "log_p") == states[image]["text"]["log_p"]
        assert shown(browser, "k") == k
    ActionChains(browser).move_to_element(panel).perform()
    press(browser, "f")
    script = "return document.fullscreenElement && document.fullscreenElement.id"
    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(script) == "posteriors")
    press(browser, "f")
    WebDriverWait(browser, 10).until(lambda driver: driver.execute_script(script) is None)


def test_a_click_on_the_plane_chooses_the_nearest_image(opened, run_dir):
    browser = opened(run_dir / "report.html")
    states = document_in((run_dir / "report.html").read_text())["snapshots"][-1]
    for n in (2, 0):
        x, y = (states["models"]["plane_points"]["data"][axis][n] for axis in "xy")
        tap(browser, "plane", x, y)
        assert shown(browser, "log_p") == states["images"][n]["text"]["log_p"]
        sizes = browser.execute_script("return [...model('plane_rings').data.size]")
        assert sizes.index(max(sizes)) == n


def tap(browser, plot, x, y):
    """A click at a place of a plot."""
    script = """
    const [plot, x, y] = arguments;
    model(plot).trigger_event({event_name: "tap", x, y});
    """
    browser.execute_script(script, plot, x, y)


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
        assert state["models"]["plane_points"]["data"]["x"] == pytest.approx(codes, abs=1e-3)


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
            browser.execute_script(source, "plane_points", "x")
            == state["models"]["plane_points"]["data"]["x"]
        )
        assert shown(browser, "kl") == state["text"]["kl"]
        share = state["images"][0]["bars"]["amortization_bar"]
        assert width(browser, "amortization_bar") == pytest.approx(100 * share)
        assert len(browser.execute_script(source, "plane_points", "image")) == 40
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
