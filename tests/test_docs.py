"""The commands and Python of README and GUIDE, and the examples of CONTRIBUTING, run."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np

from pyro_vae import priors
from pyro_vae.cli.main import main
from pyro_vae.testing import check_prior

ROOT = Path(__file__).parents[1]

QUICK = {
    "train": ["--data", "digits", "--epochs", "1"],
    "evaluate": ["--num_samples", "5", "--check_images", "1"],
    "generate": [],
    "report": [],
}


def blocks(name: str) -> list[tuple[str, str]]:
    return re.findall(r"```(sh|python)\n(.*?)```", (ROOT / name).read_text(), re.DOTALL)


def command(line: str) -> list[str] | None:
    """The arguments of a line that runs pyro_vae."""
    match = re.match(r"(?:pyro-vae|python -m pyro_vae\.(?=train)) ?(.*)", line)
    return shlex.split(match[1], comments=True) if match else None


def test_readme_and_guide(tmp_path, monkeypatch):
    """All blocks in order, in one folder, on the digits for one epoch."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    np.savez(tmp_path / "new.npz", images=np.zeros((4, 8, 8), np.uint8))
    names: dict[str, object] = {}
    ran = set()
    for language, text in blocks("README.md") + blocks("GUIDE.md"):
        if language == "python":
            exec(
                text.replace("epochs=20", "epochs=1").replace("num_samples=1000", "num_samples=5"),
                names,
            )
            continue
        for argv in filter(None, map(command, text.splitlines())):
            assert main([argv[0], *argv[1:], *QUICK[argv[0]]]) == 0, argv
            ran.add(argv[0])
    assert ran == set(QUICK)
    assert "MyPrior" in names


def test_contributing():
    names = dict(vars(priors))
    for language, text in blocks("CONTRIBUTING.md"):
        assert language == "python"
        exec(text, names)
    check_prior(names["Logistic"](2))
