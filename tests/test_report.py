"""The report: its numbers are those of results.json and of exact integration, and the page works in a browser."""

from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pyro
import pytest
import torch
from endings import REPORTED, ending
from families import SHAPE, make_hierarchical, make_vae

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.data.split import Split
from pyro_vae.engine.importance import log_likelihood
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.codes import scored
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood
from pyro_vae.reporting import explorer
from pyro_vae.reporting.explorer import Effort
from pyro_vae.runs.folder import Run
from pyro_vae.testing import LinearGaussianVAE
from pyro_vae.vae import ConditionalVAE

pytest.importorskip("bokeh", reason="Bokeh is not installed")

TINY = Effort(scored=40, samples=10, explored=3, several=2, steps=20)
CHROMIUM, DRIVER = (
    shutil.which("chromium") or shutil.which("chromium-browser"),
    shutil.which("chromedriver"),
)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.report.FULL", TINY)


@pytest.fixture(scope="module")
def exact():
    """A model whose posterior is exact, its images, and their posteriors in the explorer."""
    pyro.set_rng_seed(0)
    vae = LinearGaussianVAE(SHAPE, 2)
    x = vae.sample(3)
    return vae, x, explorer.posteriors(vae, Batch(x, None))


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


def split(n=40, labels=True):
    images = torch.bernoulli(torch.full((n, *SHAPE), 0.4))
    return Split(images, torch.arange(n) % 3 if labels else None)


def log_area(grid):
    return ((grid.z0[1] - grid.z0[0]) * (grid.z1[1] - grid.z1[0])).double().log()


# --- what is computed -------------------------------------------------------------------------------------------------


def test_the_exact_posterior_is_that_of_the_closed_form(exact):
    vae, x, posteriors = exact
    for n, posterior in enumerate(posteriors):
        assert posterior.log_likelihood == pytest.approx(vae.log_p(x)[n].item(), abs=2e-3)
        expected = (
            vae.exact_posterior(x[n : n + 1]).log_prob(posterior.grid.points[:, None]).squeeze(1)
        )
        torch.testing.assert_close(
            (posterior.exact - posterior.log_likelihood).float(), expected, atol=5e-3, rtol=1e-3
        )


def test_densities_integrate_to_one_on_the_grid_that_is_shown(exact):
    for posterior in exact[2]:
        for density in (
            posterior.exact - posterior.log_likelihood,
            posterior.guide,
            posterior.best,
        ):
            assert (
                density.double().logsumexp(0) + log_area(posterior.grid)
            ).exp().item() == pytest.approx(1, abs=0.03)


def test_the_elbos_are_those_of_the_closed_form_and_below_log_p(exact):
    vae, x, posteriors = exact
    for n, posterior in enumerate(posteriors):
        error = posterior.draws.log_weights.std().item() / 1000**0.5
        assert posterior.elbo == pytest.approx(vae.elbo(x)[n].item(), abs=5 * error)
        assert posterior.elbo - 5 * error < posterior.best_elbo < posterior.log_likelihood + 0.05


def test_the_first_draws_have_their_own_bound_and_weights(exact):
    draws = exact[2][0].draws
    first = draws.first(16)
    assert first["bound"] == pytest.approx(log_likelihood(draws.log_weights[:16, None]).item())
    assert first["weights"].sum().item() == pytest.approx(1)
    assert first["effective"] == pytest.approx(1 / first["weights"].square().sum().item())
    assert list(draws.curve) == [2**i for i in range(9)]


def test_log_weights_are_of_the_draws_that_are_shown(exact):
    vae, x, posteriors = exact
    draws = posteriors[0].draws
    prior, likelihood = explorer.log_joint(vae, Batch(x[:1], None), draws.z)
    expected = prior + likelihood - vae.q_z(x[:1]).log_prob(draws.z[:, None]).squeeze(1)
    torch.testing.assert_close(draws.log_weights.float(), expected, atol=1e-3, rtol=1e-4)


def test_kl_per_dimension_adds_up_to_the_closed_form():
    vae = make_vae(latent_dim=3)
    x = split().scored(vae.pixels)
    loc, scale = vae.q_z(x).mean, vae.q_z(x).stddev
    expected = (0.5 * (loc**2 + scale**2 - 1) - scale.log()).mean(0)
    torch.testing.assert_close(
        explorer.kl_per_dimension(vae, Batch(x, None)), expected, atol=0.15, rtol=0
    )


def test_kl_per_dimension_needs_independent_dimensions():
    vae = make_vae("VampPrior")
    assert explorer.kl_per_dimension(vae, scored(vae, split())) is None


def test_contours_hold_the_mass_that_they_say():
    from pyro_vae.reporting.page import _density

    normal = torch.distributions.MultivariateNormal(
        torch.zeros(2), torch.tensor([[1.0, 0.7], [0.7, 1.0]])
    )
    draws = normal.sample((20_000,))
    grid = explorer.grid_around(draws, 150, tail=0)
    log_density = normal.log_prob(grid.points)
    for mass, level in zip((0.9, 0.5), _density(grid, log_density, (0.9, 0.5))[1], strict=True):
        inside = normal.log_prob(draws) > log_density.max() + torch.tensor(level).log()
        assert inside.double().mean().item() == pytest.approx(mass, abs=0.015)


def test_the_plane_decodes_its_codes():
    vae = make_vae(latent_dim=2)
    plane = explorer.plane(vae, scored(vae, split()))
    assert plane.images.shape == (21 * 21, *SHAPE)
    z = torch.stack([plane.grid.z0[4], plane.grid.z1[7]])[None]
    with torch.no_grad():
        torch.testing.assert_close(plane.images[7 * 21 + 4], vae.p_x(z).mean[0])
    torch.testing.assert_close(plane.log_prior, vae.prior().log_prob(plane.fine.points))


def test_traversals_and_interpolations_are_of_the_chosen_images():
    vae = make_vae(latent_dim=3)
    x = split().scored(vae.pixels)[:4]
    made = explorer.traversals(vae, Batch(x, None), torch.tensor([0.5, 0.0, 2.0]))
    assert made.dimensions == [2, 0]
    z = vae.q_z(x).mean.detach().clone()
    z[:, 2] = 3.0
    with torch.no_grad():
        torch.testing.assert_close(made.traversals[:, 0, -1], vae.p_x(z).mean)
        place = made.pairs.index((1, 3))
        ends = vae.p_x(vae.q_z(x[[1, 3]]).mean).mean
    torch.testing.assert_close(made.interpolations[place, [0, -1]], ends)


@pytest.mark.parametrize(
    ("prior", "latent_dim"),
    [("GaussianMixture", 2), ("VampPrior", 2), ("StudentT", 2), ("VampPrior", 3)],
)
def test_every_prior_has_a_page(prior, latent_dim):
    from pyro_vae.reporting.page import RunReport, page

    shown = explorer.view(make_vae(prior, latent_dim=latent_dim), split(), TINY)
    facts = {"seconds of training": "1"}
    assert "explorer" in page([RunReport("run", {}, facts, [], {}, shown.overview, shown)])


def hierarchical():
    return make_hierarchical(latent_dim=2)


def conditional():
    encoder, decoder = pv.MLP(SHAPE, (2, 2), hidden=(8,)), pv.MLP((5,), (1, *SHAPE), hidden=(8,))
    parts = pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    return ConditionalVAE(*parts, data_shape=SHAPE, label_dim=3)


def flow():
    return make_vae(posterior="FlowPosterior", latent_dim=2)


@pytest.mark.parametrize("make", [hierarchical, conditional, flow])
def test_every_model_has_a_page(make):
    from pyro_vae.reporting.page import RunReport, page

    shown = explorer.view(make(), split(), TINY)
    assert bool(shown.posteriors) == (make is not hierarchical)
    assert page([RunReport("run", {}, {}, [], {}, shown.overview, shown)])


def test_long_curves_are_thinned_and_end_at_the_last_epoch():
    from pyro_vae.reporting.page import RunReport, page

    names = ("elbo", "validation_elbo", "kl", "validation_kl", "active_units", "beta")
    records = [{"epoch": epoch, **dict.fromkeys(names, 1.0)} for epoch in range(1, 2001)]
    shown = explorer.view(make_vae(latent_dim=2), split(), TINY)
    text = page([RunReport("run", {}, {}, records, {}, shown.overview, shown)])
    assert ",1998,2000]" in text
    assert ",1997," not in text


# --- the page ---------------------------------------------------------------------------------------------------------


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
    for state, log_p in zip(
        page_data(report())["images"], quadrature_log_likelihood(vae, x), strict=True
    ):
        text = state["text"]
        assert text["log-p"] == f"{log_p:.2f}"
        values = {name: float(value) for name, value in text.items()}
        assert values["approximation"] == pytest.approx(
            values["log-p"] - values["best-elbo"], abs=1e-9
        )
        assert values["total"] == pytest.approx(
            values["approximation"] + values["amortization"], abs=1e-9
        )


def opened_run(run):
    config, checkpoint = run.config(), run.load_checkpoint("last")
    return run.model(config, checkpoint), run.data(config, checkpoint)


def page_data(text):
    return json.loads(
        text.split('<script type="application/json" id="data">')[1].split("</script>")[0]
    )


HOSTILE = "</script><script>hacked=1</script><img src=x onerror=hacked=1>$$x$$"


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


ODD = '{"elbo": 1e999, "kl": [], "k_curve": {"1": {"mean": NaN}, "x": {"mean": 1}}, "active_units": {"count": "<b>"}}'


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


def test_runs_on_different_data_are_not_compared(run_dir, tmp_path, images, refused):
    other = tmp_path / "other"
    assert (
        main(
            [
                "train",
                "--data",
                str(images),
                "--epochs",
                "1",
                "--report",
                "false",
                "--run_dir",
                str(other),
            ]
        )
        == 0
    )
    # before the third is looked at: scoring a run takes seconds
    assert "cannot be compared" in refused(
        "report", run_dir, other, tmp_path / "none", "--out", tmp_path / "page.html"
    )
    assert not (tmp_path / "page.html").exists()


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
        scores.append(explorer.overview(model, data.test, TINY).scores)
    difference = scores[1].elbo - scores[0].elbo
    assert f"{difference.mean():+.2f} ± {difference.std() / 40**0.5:.2f}" in text
    assert '<th scope="col">epochs' in text
    assert '<th scope="col">latent_dim' not in text


def test_large_colour_images_fit_the_page():
    from pyro_vae.reporting.pictures import atlas

    state = atlas(torch.rand(500, 3, 64, 64))
    assert len(state["atlas"]) < 1.6e6
    assert state["tile"]["width"] == state["tile"]["height"] < 64


# --- in a browser -----------------------------------------------------------------------------------------------------


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
    states = page_data((run_dir / "report.html").read_text())["images"]
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
    states = page_data((run_dir / "report.html").read_text())["images"]
    browser.find_element(By.CSS_SELECTOR, "input[name=image]").send_keys(Keys.ARROW_RIGHT)
    assert shown(browser, "log-p") == states[1]["text"]["log-p"]


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
    data, run = page_data((kept / "report.html").read_text()), Run.open(kept)
    assert [state["text"]["epoch-name"] for state in (*data["earlier"], data)] == [
        "epoch 1",
        "epoch 2",
        "last epoch",
    ]
    (vae, images), config = opened_run(run), run.config()
    x, _ = scored(vae, images.test.subset(40))
    for state, epoch in zip((*data["earlier"], data), (1, 2, 3), strict=True):
        vae = run.model(config, run.load_checkpoint(epoch))
        expected = [f"{value:.2f}" for value in quadrature_log_likelihood(vae, x[:2])]
        assert [image["text"]["log-p"] for image in state["images"]] == expected
        codes = pv.codes(vae, x).loc[:, 0].tolist()
        assert state["models"]["points"]["data"]["x"] == pytest.approx(codes, abs=1e-3)


def test_the_slider_over_epochs_moves_plane_posterior_and_bars(opened, kept):
    browser = opened(kept / "report.html")
    data, seen = page_data((kept / "report.html").read_text()), []
    source = "return [...Bokeh.documents.map((one) => one.get_model_by_name(arguments[0])).find(Boolean).data[arguments[1]]]"
    for n, state in enumerate((*data["earlier"], data)):
        set_slider(browser, "epoch", n)
        assert shown(browser, "epoch-name") == state["text"]["epoch-name"]
        assert shown(browser, "log-p") == state["images"][0]["text"]["log-p"]
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
    assert shown(browser, "log-p") == data["images"][1]["text"]["log-p"]


def test_a_hostile_folder_runs_no_script(opened, run_dir, tmp_path):
    run = tmp_path / HOSTILE.replace("/", "")
    shutil.copytree(run_dir, run)
    out = tmp_path / "page.html"
    assert main(["report", str(run), str(run_dir), "--out", str(out), "--device", "cpu"]) == 0
    browser = opened(out)
    assert browser.execute_script("return typeof hacked") == "undefined"
