"""The wheel holds all that the commands need: it is run without the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("pyproject.toml", "setup.cfg", "LICENSE", "docs/pypi.md")

# All commands in one process, because each import of torch takes seconds.
COMMANDS = """
import sys
from pathlib import Path

import pyro_vae
from pyro_vae.cli.main import main

assert Path(pyro_vae.__file__).parents[1] == Path(sys.argv[1])
for command in (
    "train --data digits --epochs 1 --latent_dim 2 --test_samples 5 --run_dir run",
    "evaluate run --num_samples 5 --check_images 0 --calibration_images 0",
    "generate run samples",
    "report run",
):
    assert main(command.split()) == 0, command
assert Path("run/report.html").stat().st_size > 100_000
"""


def run(*command: str, **options) -> None:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr


def test_the_wheel_runs_without_the_checkout(tmp_path):
    source = tmp_path / "source"
    shutil.copytree(ROOT / "pyro_vae", source / "pyro_vae")
    for name in SOURCES:
        (source / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, source / name)
    pip = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")
    alone = ("--no-deps", "--no-index", "--no-cache-dir")
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    run(*pip, "wheel", "--no-build-isolation", *alone, "--wheel-dir", str(wheels), str(source))
    (wheel,) = wheels.glob("*.whl")
    run(*pip, "install", *alone, "--target", str(site), str(wheel))
    environment = os.environ | {"PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    run(sys.executable, "-P", "-c", COMMANDS, str(site), cwd=tmp_path, env=environment)
