"""What an import brings with it: each room only the rooms below it."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

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


PACKAGE = ROOT / "pyro_vae"
MODULES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.name != "__init__.py"]

# Modules whose tests have another name.
OTHER_TESTS = {
    "__main__.py": "test_main.py",  # Both front doors are the same few lines, and are tested as
    "train.py": "test_main.py",  # processes, each by the same tests.
}


def file_of_tests(module: Path) -> str:
    """The name of the file with the tests of a module."""
    path = module.relative_to(PACKAGE)
    if str(path) in OTHER_TESTS:
        return OTHER_TESTS[str(path)]
    room = "cli_" if path.parts[0] == "cli" else ""
    return f"test_{room}{path.name}"


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_every_module_has_tests(module):
    tests = (ROOT / "tests" / file_of_tests(module)).read_text()
    assert "\ndef test_" in tests


def test_no_two_modules_share_a_file_of_tests():
    files = [file_of_tests(module) for module in MODULES]
    shared = {file for file in files if files.count(file) > 1}
    assert shared == set(OTHER_TESTS.values())


def imported(module: Path) -> set[str]:
    """The libraries that a module imports anywhere."""
    names = set()
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add(str(node.module).partition(".")[0])
    return names


def test_one_module_knows_jsonargparse():
    users = [module for module in MODULES if "jsonargparse" in imported(module)]
    assert users == [PACKAGE / "cli" / "options.py"]
