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
from pyro_vae.runs.folder import Run
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
    "an objective of Pyro": ("objective.class_path", "TraceTMC_ELBO", "objective"),
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
    "a bool in a list of integers": ("encoder.init_args.hidden", [True], "hidden"),
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
    """Modules with the names of Python's own are not imported, also not by another process.

    Nor are those with the names of libraries that are imported late; `-P` is as in a script.
    """
    folder = stranger("seed", 0)
    for name in ("sklearn", "matplotlib", "scipy", "arviz_stats", "PIL", "no_such_module"):
        (folder / f"{name}.py").write_text("open('ran', 'w')\n")
    command = [sys.executable, "-P", "-c", AUDITED, *argv]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "STARTED []" in done.stdout
    assert not list(folder.parent.rglob("ran"))


EVIL = "open('ran', 'w')\nimport torch\ndef f(*args): return 1\nclass P(torch.nn.ReLU): pass\n"


STEP = (
    "lr_scheduler:\n  class_path: torch.optim.lr_scheduler.LambdaLR\n  init_args:\n    lr_lambda: "
)


A_PRIOR = "prior:\n  class_path: "


ENCODER = "encoder:\n  class_path: pyro_vae.MLP\n  init_args:\n    activation:"


OBJECTIVE = "objective:\n  class_path: pyro_vae.CapacityELBO\n  init_args:\n    capacity:"


# What a stranger's config.yaml may hold; each would create a file if the code that it names ran.
STRANGERS = {
    "a class": A_PRIOR + "evil.P",
    "a function": A_PRIOR + "evil.f",
    "a module": A_PRIOR + "evil",
    "a short form": "prior: evil.P",
    "a list": "prior:\n- evil.P",
    "every part": "beta:\n  class_path: evil.P",
    "nested": ENCODER + " evil.P",
    "nested class": ENCODER + "\n      class_path: evil.P",
    "a schedule of an objective": OBJECTIVE + " evil.P",
    "a callable": STEP + "evil.f",
    "a set": STEP + "!!set {evil.f}",
    "an ordered mapping": STEP + "!!omap [evil.f: 1]",
    "a list of callables": STEP + "[evil.f]",
    "dict_kwargs": A_PRIOR + "pyro_vae.StandardNormal\n  dict_kwargs:\n    a: evil.f",
    "a dotted key": "prior.class_path: evil.P",
    "a key of help": "prior.help: evil.P",
    "a merge": "lr_scheduler:\n  <<: {class_path: evil.P}",
    "an alias": "a: &a evil.P\nprior: *a",
    "another configuration": "config: evil.yaml",
    "a file for a part": "prior: evil",
    "a YAML file for a part": "prior: evil.yaml",
    "a path": A_PRIOR + "./evil.P",
    "a folder above": A_PRIOR + "../evil.P",
    "a Python object": "seed: !!python/object/apply:evil.f []",
    "a Python name": STEP + "!!python/name:evil.f",
    "a trusted package's import": A_PRIOR + "torch.os.system",
    "a trusted package's function": A_PRIOR + "torch.hub.load",
    "a module of code": "encoder:\n  class_path: torch.fx.GraphModule",
    "a module that is not an activation": "encoder:\n  class_path: torch.nn.Bilinear",
    "trust": "trust: true\n" + A_PRIOR + "evil.P",
    "white space": A_PRIOR + "' evil.P'",
    "another alphabet": A_PRIOR + "ｅvil.P",
}


@pytest.fixture
def of_a_stranger(folder, run_dir):
    """Make a run folder as a stranger would, and go into it."""

    def make(text):
        shutil.copytree(run_dir, folder / "r")
        os.chdir(folder / "r")
        replaced = {line.split(":")[0] for line in text.splitlines() if line[0].isalpha()}
        kept = []
        is_kept = True
        for line in (run_dir / "config.yaml").read_text().splitlines():
            if line[0].isalpha():
                is_kept = line.split(":")[0] not in replaced
            if is_kept:
                kept.append(line)
        (folder / "r" / "config.yaml").write_text("\n".join([*kept, text, ""]))
        for place in (folder, folder / "r"):
            (place / "evil.py").write_text(EVIL)
            (place / "evil").write_text("class_path: evil.P\n")
            (place / "evil.yaml").write_text("prior:\n  class_path: evil.P\n")
        return folder

    return make


@pytest.mark.parametrize("text", STRANGERS.values(), ids=STRANGERS)
def test_a_strangers_configuration_runs_nothing(of_a_stranger, refused, text):
    folder = of_a_stranger(text)
    with pytest.raises(pv.RequestError) as caught:
        pv.load_run(".")
    assert "\n" not in str(caught.value)
    refused("train", "--run_dir", ".", "--resume")
    assert not list(folder.rglob("ran"))
    assert "evil" not in sys.modules


@pytest.mark.parametrize(
    "command",
    [["evaluate", "r"], ["generate", "r", "samples"], ["train", "--run_dir", "r", "--resume"]],
)
def test_every_command_asks_for_trust(of_a_stranger, refused, command):
    folder = of_a_stranger(A_PRIOR + "evil.P")
    os.chdir(folder)
    assert "--trust" in refused(*command)
    assert not list(folder.rglob("ran"))
