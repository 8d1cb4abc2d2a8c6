"""What an import brings with it: each room only the rooms below it."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("jsonargparse", "matplotlib", "sklearn", "torchvision")
SCRIPT = f"""
import json, sys

def loaded(*names):
    return [name for name in names if name in sys.modules]

import pyro_vae.engine.svi
engine = loaded("pyro_vae.vae", *{HEAVY!r})
ours = [name for name in sys.modules if name.startswith("pyro_vae.")]
import pyro_vae as pv
assert pv.VAE.__name__ == "VAE"
print(json.dumps([engine, ours, loaded("pyro_vae.cli", *{HEAVY!r}), loaded("pyro_vae.vae")]))
"""


def test_engine_and_model_bring_only_what_they_need():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    engine, ours, of_the_model, vae = json.loads(done.stdout)
    assert engine == []
    assert {name.split(".")[1] for name in ours} == {"engine", "errors"}
    assert of_the_model == []
    assert vae == ["pyro_vae.vae"]
