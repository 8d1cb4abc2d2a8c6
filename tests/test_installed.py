"""The wheel holds all that the commands need: it is run without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.cfg", "LICENSE", "docs/pypi.md")
BUILD = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"

# All commands in one process, because each import of torch takes seconds. Training also writes
# figures and the report; without matplotlib, an evaluation goes on and a picture is refused.
COMMANDS = """
import sys
from pathlib import Path

import pyro_vae
from pyro_vae.cli.main import main

assert Path(pyro_vae.__file__).parents[1] == Path(sys.argv[1])
assert main("train --data digits --epochs 1 --test_samples 5 --run_dir run".split()) == 0
assert Path("run/report.html").stat().st_size > 100_000
figures = set(Path("run/figures").iterdir())
assert len(figures) > 2

sys.modules["matplotlib"] = None
evaluate = "evaluate run --num_samples 5 --num_images 9 --check_images 0 --calibration_images 0"
assert main(evaluate.split()) == 0
assert main("generate run samples".split()) == 2
assert set(Path("run/figures").iterdir()) == figures
"""


def run(*command: str, **options) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr
    return done


def test_the_wheel_runs_without_the_checkout(tmp_path):
    source, site = tmp_path / "source", tmp_path / "site"
    shutil.copytree(ROOT / "pyro_vae", source / "pyro_vae")
    for name in SOURCES:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    run(sys.executable, "-c", BUILD, str(tmp_path), cwd=source)
    (wheel,) = tmp_path.glob("*.whl")
    ZipFile(wheel).extractall(site)  # as pip does
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    done = run(sys.executable, "-P", "-c", COMMANDS, str(site), cwd=tmp_path, env=environment)
    assert "no figures: figures need matplotlib; install it with pip install" in done.stdout
    assert "error: figures need matplotlib; install it with" in done.stderr
