"""The commands and Python of README and docs, and the examples of CONTRIBUTING, run."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from pathlib import Path

import numpy as np
import pyro
import torch

import pyro_vae as pv
from pyro_vae import priors
from pyro_vae.cli import report
from pyro_vae.cli.main import main
from pyro_vae.testing import check_prior

ROOT = Path(__file__).parents[1]

QUICK = {
    "train": ["--data", "digits", "--epochs", "1"],
    "evaluate": [
        *("--num_samples", "5", "--num_images", "4", "--check_images", "1"),
        *("--num_temperatures", "9", "--classify_images", "9"),
    ],
    "generate": [],
    "report": [],
}
# In this order: later pages use the names and run folders of earlier ones.
GUIDE = (
    "trained_models",
    "data",
    "missing",
    "labels",
    "parts",
    "training_loop",
    "long_runs",
    "pyro_users",
)
PAGES = ("README.md", *(f"docs/guide/{name}.md" for name in GUIDE), "docs/tutorial.md")
# The lengths of the Python examples, and those in the tests.
SHORTER = {"epochs=20": "epochs=1", "num_samples=1000": "num_samples=5", "range(20)": "range(2)"}


def blocks(name: str) -> list[tuple[str, str]]:
    return re.findall(r"```(sh|python)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def shortened(text: str) -> str:
    for long, short in SHORTER.items():
        text = text.replace(long, short)
    return text


def command(line: str) -> list[str] | None:
    """The arguments of a line that runs pyro_vae."""
    match = re.match(r"(?:pyro-vae|python -m pyro_vae\.(?=train)) ?(.*)", line)
    return shlex.split(match[1], comments=True) if match else None


def test_every_chapter_is_tested():
    chapters = {path.stem for path in (ROOT / "docs" / "guide").glob("*.md")}
    without_code = {
        path.stem
        for path in (ROOT / "docs" / "guide").glob("*.md")
        if not re.search(r"```python|^(pyro-vae|python -m)", path.read_text(), re.MULTILINE)
    }
    assert chapters - without_code <= set(GUIDE)


def test_the_api_reference_lists_every_public_name():
    listed = re.findall(r"^   ([A-Za-z_.]+)$", (ROOT / "docs" / "api.rst").read_text(), re.M)
    modules = {"likelihoods", "networks", "objectives", "posteriors", "priors", "schedules"}
    assert set(pv.__all__) - modules - {"testing"} <= set(listed)
    assert len(listed) == len(set(listed))


def test_readme_and_guide(tmp_path, monkeypatch):
    """All blocks in order, in one folder, on the digits for one epoch."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(report, "FULL", report.QUICK)  # samples on the pages
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    np.savez(tmp_path / "new.npz", images=np.zeros((4, 8, 8), np.uint8))
    names: dict[str, object] = {}
    ran = set()
    for language, text in itertools.chain.from_iterable(map(blocks, PAGES)):
        if language == "python":
            exec(shortened(text), names)
            continue
        for argv in filter(None, map(command, text.splitlines())):
            assert main([argv[0], *argv[1:], *QUICK[argv[0]]]) == 0, argv
            ran.add(argv[0])
    assert ran == set(QUICK)
    assert "MyPrior" in names


def test_the_guides_loop_trains_what_fit_trains(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (loop,) = (text for _, text in blocks("docs/guide/training_loop.md") if "pv.SVI(" in text)
    names = {"pv": pv, "torch": torch}
    exec(shortened(loop), names)
    assert "epoch 2: validation ELBO" in capfd.readouterr().out

    data = names["data"]
    pyro.set_rng_seed(0)
    encoder, decoder = pv.MLP(data.shape, (2, 20)), pv.MLP((20,), (1, *data.shape))
    vae = pv.VAE(pv.StandardNormal(20), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    beta = pv.schedules.Linear(steps=1000)
    *_, last = pv.fit(vae, data, epochs=2, seed=0, beta=beta, engine="eager")
    assert last["step"] == names["step"]
    assert last["active_units"] == names["active"]
    found = names["vae"].state_dict()
    assert all(torch.equal(value, found[name]) for name, value in vae.state_dict().items())


def programs(text: str) -> dict[str, list[str]]:
    """The statements of the programs `model` and `guide`, without docstrings, at any depth."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef) and node.name in ("model", "guide"):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            found.setdefault(node.name, [ast.unparse(statement) for statement in body])
    return found


def test_the_readme_shows_the_programs_of_the_package():
    (shown,) = (text for _, text in blocks("README.md") if "def guide" in text)
    (vae,) = (
        node
        for node in ast.parse((ROOT / "pyro_vae" / "vae.py").read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "VAE"
    )
    assert programs(shown).keys() == {"model", "guide"}
    assert programs(shown) == programs(ast.unparse(vae))


def test_contributing():
    names = dict(vars(priors))
    for language, text in blocks("CONTRIBUTING.md"):
        assert language == "python"
        exec(text, names)
    check_prior(names["Logistic"](2))
