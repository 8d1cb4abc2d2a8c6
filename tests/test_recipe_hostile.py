"""What a stranger's config.yaml may hold: refused in one line, and nothing runs or is written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time

import pytest
import yaml

import pyro_vae as pv
from pyro_vae.runs.build import make
from pyro_vae.runs.folder import Run
from pyro_vae.runs.parts import Choice
from pyro_vae.runs.recipe import Recipe

# Events of Python's audit hooks that start another program or run code from a file.
PROGRAMS = {"subprocess.Popen", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn"}
OWN = ("pyro_vae", "torch", "pyro", "numpy", "sklearn", "scipy", "typeguard", "jsonargparse")

watched: list[tuple[str, str]] | None = None


def _watch(event, args):
    if watched is None:
        return
    if event in PROGRAMS:
        watched.append((event, str(args[0])))
    elif event == "import" and args[0].split(".")[0] in ("evil", "json2"):
        watched.append((event, args[0]))
    elif event == "open" and isinstance(args[0], str | bytes | os.PathLike):
        writes = isinstance(args[1], str) and set(args[1]) & set("wax+")
        flags = args[2] if isinstance(args[2], int) else 0
        if writes or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            watched.append((event, os.fsdecode(args[0])))


sys.addaudithook(_watch)


@pytest.fixture
def audit():
    """The programs that are started, and the files that are opened for writing, by a test."""
    global watched
    watched = []
    yield watched
    watched = None


def changed(content, path, value):
    """The content of a config.yaml with another value at a dotted path."""
    *parents, last = path.split(".")
    for key in parents:
        content = content.setdefault(key, {})
    content[last] = value


HUGE = 10**40
DIGITS = 10**4000
PRIOR, POSTERIOR = "prior.init_args", "posterior.init_args"
ACTIVATION = "encoder.init_args.activation"
FLOW = {"class_path": "pyro_vae.FlowPrior", "init_args": {}}


def mixture(components):
    return {"class_path": "pyro_vae.GaussianMixture", "init_args": {"components": components}}


def flow(**options):
    return {"class_path": "pyro_vae.FlowPrior", "init_args": options}


def capacity(**options):
    return {"class_path": "pyro_vae.CapacityELBO", "init_args": options}


def of_torch(name, **options):
    return {"class_path": f"torch.nn.{name}", "init_args": options}


# A path in config.yaml, its value, and what the message names.
CASES = {
    # Names
    "a bare name of a library": ("encoder.class_path", "PyroModule", "encoder"),
    "a bare activation": (ACTIVATION, "ColorJitter", "activation"),
    "a bare loss": (ACTIVATION, "TripletMarginWithDistanceLoss", "activation"),
    "a bare tensor": ("encoder.init_args.initialization", "DTensor", "initialization"),
    "an objective of Pyro": ("objective.class_path", "TraceEnum_ELBO", "objective"),
    "another objective of Pyro": ("objective.class_path", "TraceTMC_ELBO", "objective"),
    "an unsupported objective": ("objective.class_path", "pyro.infer.TraceGraph_ELBO", "objective"),
    "a class of another part": ("prior.class_path", "pyro_vae.DiagonalNormal", "prior"),
    "a bare class of another part": ("prior.class_path", "DiagonalNormal", "prior"),
    "an abstract class": ("encoder.class_path", "pyro_vae.Network", "encoder"),
    "a module of torch": ("encoder.class_path", "torch.nn.Bilinear", "encoder"),
    "an import path": ("prior.class_path", "evil.P", "--trust"),
    "an import path as data": ("data", "evil.make", "--trust"),
    "a relative file as data": ("data", "evil.npz", "--trust"),
    "a nested import path": ("objective", capacity(capacity="evil.P"), "--trust"),
    "a callable": (
        "lr_scheduler",
        {"class_path": "LambdaLR", "init_args": {"lr_lambda": "evil.f"}},
        "--trust",
    ),
    "dict_kwargs": ("prior.dict_kwargs", {"a": 1}, "prior"),
    # Keys
    "trust": ("trust", True, "trust"),
    "print_shtab": ("print_shtab", "bash", "print_shtab"),
    "print_config": ("print_config", True, "print_config"),
    "another config": ("config", "evil.yaml", "config"),
    "a number as a key": ("3", 3, "3"),
    "an unknown option": (f"{PRIOR}.evil", 3, "evil"),
    "a supplied parameter": (f"{PRIOR}.latent_dim", 3, "latent_dim"),
    # Types
    "data of null": ("data", None, "data"),
    "data_dir of null": ("data_dir", None, "data_dir"),
    "a list as data": ("data", ["a"], "data"),
    "a mapping as a number": ("latent_dim", {"a": 1}, "latent_dim"),
    "a bool as a number": ("latent_dim", True, "latent_dim"),
    "text as a number": ("latent_dim", "many", "latent_dim"),
    "a null number": ("latent_dim", None, "latent_dim"),
    "a fraction of epochs": ("epochs", 1.5, "epochs"),
    "another device": ("device", "tpu", "device"),
    "a number as a part": ("prior", 3, "prior"),
    "a null part": ("prior", None, "prior"),
    "a list as a part": ("prior", ["evil.P"], "prior"),
    "options in a list": (PRIOR, [1], "prior"),
    "text in a list": ("encoder.init_args.hidden", ["x"], "hidden"),
    "text as a list": ("encoder.init_args.hidden", "", "hidden"),
    "a number as an activation": (ACTIVATION, 3, "activation"),
    "NaN": ("beta.init_args.value", float("nan"), "value"),
    # What only the constructors know
    "a function with other arguments": (
        "encoder.init_args.initialization",
        "torch.nn.init.constant_",
        "initialization",
    ),
    "one more": ("encoder.init_args.initialization", "torch.nn.init.sparse_", "initialization"),
    "an initialization of images": (
        "encoder.init_args.initialization",
        "torch.nn.init.dirac_",
        "encoder",
    ),
    "an activation of images": (ACTIVATION, "torch.nn.Softmax2d", "activation"),
    "an activation that halves": (ACTIVATION, "torch.nn.GLU", "activation"),
    "an activation of three": (ACTIVATION, "torch.nn.MultiheadAttention", "activation"),
    "an unknown approximation": (ACTIVATION, of_torch("GELU", approximate="x"), "approximate"),
    "limits in the wrong order": (ACTIVATION, of_torch("Hardtanh", min_val=2.0), "activation"),
    # Sizes
    "no epochs": ("epochs", 0, "epochs"),
    "epochs": ("epochs", 10**400, "epochs"),
    "digits": ("latent_dim", DIGITS, "latent_dim"),
    "more digits than Python prints": ("seed", 10**5000, "config.yaml"),
    "latent dimensions": ("latent_dim", 10**7, "latent_dim"),
    "image size": ("image_size", HUGE, "image_size"),
    "widths": ("encoder.init_args.hidden", [HUGE], "hidden"),
    "many widths": ("encoder.init_args.hidden", [10] * 5_000, "hidden"),
    "large widths": ("encoder.init_args.hidden", [16_000] * 20, "checkpoint"),
    "components": ("prior", mixture(10**7), "components"),
    "many components": ("prior", mixture(HUGE), "components"),
    "transforms": ("prior", flow(transforms=10**7), "transforms"),
    "widths of flows": ("prior", flow(hidden=[10**7]), "hidden"),
    "particles": ("objective.init_args.num_particles", 10**9, "num_particles"),
    "prior_dim": (
        "model",
        {"class_path": "HierarchicalVAE", "init_args": {"prior_dim": HUGE}},
        "prior_dim",
    ),
    "a rank": ("posterior", {"class_path": "LowRankNormal", "init_args": {"rank": HUGE}}, "rank"),
}


@pytest.fixture
def stranger(run_dir, tmp_path, monkeypatch):
    """A run folder with another config.yaml, inside the current folder, which holds code."""

    def make(path, value):
        folder = tmp_path / "r"
        shutil.copytree(run_dir, folder)
        content = yaml.safe_load((folder / "config.yaml").read_text())
        changed(content, path, value)
        text = re.sub(r"\b1(0{4000,})\b", _hexadecimal, _dump(content))
        (folder / "config.yaml").write_text(text)
        for place in (tmp_path, folder):
            for name in ("evil.py", "json.py", "yaml.py"):
                (place / name).write_text("open('ran', 'w')\n")
        monkeypatch.chdir(folder)
        return folder

    return make


def _dump(content):
    before = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return yaml.safe_dump(content)
    finally:
        sys.set_int_max_str_digits(before)


def _hexadecimal(match):
    """Python reads no decimal integers of so many digits, but hexadecimal ones."""
    return hex(10 ** len(match[1]))


@pytest.mark.parametrize("name", CASES)
def test_it_is_refused(stranger, audit, name):
    path, value, named = CASES[name]
    folder = stranger(path, value)
    audit.clear()
    start = time.perf_counter()
    with pytest.raises(pv.RequestError) as caught:
        pv.load_run(".")
    assert time.perf_counter() - start < 20  # some were minutes, and some did not end
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert audit == []
    assert "evil" not in sys.modules
    assert not list(folder.parent.rglob("ran"))


def test_the_hook_sees_what_it_should(audit, tmp_path):
    (tmp_path / "file").write_text("")
    subprocess.run([sys.executable, "-c", ""], check=True)
    assert {event for event, _ in audit} >= {"open", "subprocess.Popen"}


def test_what_a_run_writes_is_accepted(stranger, audit):
    stranger("epochs", 7)
    audit.clear()
    pv.load_run(".")
    assert Recipe.load(Run.open(".").recipe_file).epochs == 7
    assert audit == []


COMMANDS = [
    ["generate", ".", "samples", "--out", "s.npz"],
    ["evaluate", ".", "--num_samples", "3", "--check_images", "0"],
    ["train", "--help"],
]

# Started by jsonargparse's search for stubs, which imported json.py of the current folder.
AUDITED = """
import sys
started = []
sys.addaudithook(lambda event, args: event == "subprocess.Popen" and started.append(str(args[1])))
from pyro_vae.cli.main import main
code = main(sys.argv[1:])
print("STARTED", [line for line in started if "json" in line or "-c" in line])
raise SystemExit(code)
"""


@pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: argv[0])
def test_commands_inside_a_strangers_folder(stranger, argv):
    """Modules with the names of Python's own are not imported, also not by another process."""
    folder = stranger("seed", 0)
    command = [sys.executable, "-P", "-c", AUDITED, *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "STARTED []" in done.stdout
    assert not list(folder.parent.rglob("ran"))


@pytest.mark.parametrize("value", [0, -1.0, float("inf")])
def test_what_is_built_only_to_resume(value):
    constant = {"class_path": "Constant", "init_args": {"value": value}}
    recipe = Recipe(objective=Choice("CapacityELBO", {"capacity": constant}))
    recipe.check()
    with pytest.raises(pv.RequestError, match="value must be positive"):
        make(recipe, "objective")


def test_the_recipe_of_the_previous_version(run_dir, tmp_path):
    """Without the options that it did not have, and without null values."""
    content = yaml.safe_load((run_dir / "config.yaml").read_text())
    for name in ("test_samples", "test_images"):
        del content[name]
    del content["encoder"]["init_args"]["initialization"]
    content["encoder"]["init_args"]["activation"] = of_torch("ReLU", inplace=False)
    recipe = Recipe.from_yaml(yaml.safe_dump(content))
    recipe.check()
    assert (recipe.test_samples, recipe.latent_dim) == (1000, 2)
