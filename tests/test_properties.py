"""Whatever is asked for either runs or is refused in one line: never a traceback, never a warning.

`pytest tests/test_properties.py --hypothesis-profile=long` looks further than the suite does, for
about half an hour.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli.evaluate import evaluate
from pyro_vae.cli.generate import generate
from pyro_vae.cli.main import run
from pyro_vae.cli.options import parse_training
from pyro_vae.cli.train import train
from pyro_vae.runs.build import build_training
from pyro_vae.runs.checkpoints import read_content, write_content

NUMBERS = st.sampled_from(
    [
        "-1",
        "0",
        "1",
        "2",
        "3",
        "7",
        "0.5",
        "1e-300",
        "1e300",
        "nan",
        "inf",
        "x",
        "[]",
        "[3]",
        "null",
        "true",
    ]
)


def option(part, names):
    return st.tuples(st.sampled_from(names), NUMBERS).map(
        lambda pair: f"--{part}.{pair[0]}={pair[1]}"
    )


def a_part(part, options):
    """A class, perhaps, and perhaps some of its options, with any values."""
    named = st.sampled_from(list(options)).flatmap(
        lambda name: (
            st.lists(option(part, options[name]), max_size=2).map(
                lambda given: [f"--{part}={name}", *given]
            )
            if options[name]
            else st.just([f"--{part}={name}"])
        )
    )
    return st.one_of(st.just([]), named)


LENGTHS = ["epochs", "steps", "end"]
PARTS = {
    "prior": {
        "StandardNormal": [],
        "pyro_vae.priors.Normal": [],
        "GaussianMixture": ["components"],
        "VampPrior": ["components", "start"],
        "FlowPrior": ["flow", "transforms", "hidden"],
        "StudentT": ["df"],
        "Prior": [],
    },
    "posterior": {
        "DiagonalNormal": [],
        "LowRankNormal": ["rank"],
        "FullRankNormal": [],
        "FlowPosterior": ["transforms", "hidden", "flow"],
    },
    "likelihood": {
        "Bernoulli": ["relaxed"],
        "ContinuousBernoulli": [],
        "pyro_vae.likelihoods.Normal": ["scale", "learned"],
        "Beta": [],
        "DiscretizedLogistic": ["components"],
    },
    "encoder": {
        "MLP": ["hidden", "activation"],
        "Conv": ["channels", "kernel_sizes", "strides"],
        "Gated": ["hidden"],
    },
    "decoder": {"MLP": ["hidden"], "Conv": ["channels", "strides"], "pyro_vae.networks.Linear": []},
    "model": {"VAE": [], "HierarchicalVAE": ["prior_dim", "hidden"]},
    "objective": {
        "Trace_ELBO": ["num_particles", "vectorize_particles"],
        "TraceMeanField_ELBO": ["num_particles"],
        "RenyiELBO": ["alpha", "num_particles"],
        "DReGELBO": ["num_particles"],
        "FreeBitsELBO": ["floor", "groups"],
        "CapacityELBO": ["gamma"],
    },
    "optimizer": {
        "Adam": ["lr", "betas", "eps"],
        "SGD": ["lr", "momentum"],
        "LBFGS": [],
        "Adagrad": ["lr"],
    },
    "lr_scheduler": {
        "StepLR": ["step_size", "gamma"],
        "CosineAnnealingLR": ["T_max"],
        "ReduceLROnPlateau": ["factor", "patience"],
    },
    "beta": {
        "Constant": ["value"],
        "Linear": LENGTHS,
        "Sigmoid": [*LENGTHS, "steepness"],
        "Cyclical": [*LENGTHS, "rise", "cycles"],
    },
}
PLAIN = [
    "latent_dim",
    "batch_size",
    "seed",
    "patience",
    "clip_grad_norm",
    "average",
    "checkpoint_every",
    "image_size",
]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (24, 6, 5), dtype=np.uint8))
    return path


def a_step(argv):
    """The first batches of what is asked for."""
    next(build_training(parse_training(argv).recipe)[2])


@given(
    parts=st.tuples(*(a_part(part, options) for part, options in PARTS.items())),
    plain=st.lists(
        st.tuples(st.sampled_from(PLAIN), NUMBERS).map(lambda pair: f"--{pair[0]}={pair[1]}"),
        max_size=2,
    ),
    chosen=st.sets(st.sampled_from(list(PARTS)), max_size=3),
)
def test_any_options(tiny, parts, plain, chosen):
    flags = [
        flag for part, given in zip(PARTS, parts, strict=True) if part in chosen for flag in given
    ]
    argv = [
        f"--data={tiny}",
        "--epochs=1",
        "--device=cpu",
        "--batch_size=10",
        "--engine=eager",
        *flags,
        *plain,
    ]
    code, lines = outcome(a_step, argv)
    assert code in (0, 2) or "not finite" in lines[0], argv
    assert bool(lines) == bool(code), argv


def outcome(command, argv):
    """The exit code of a command, and the lines on stderr: at most one, besides warnings."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(command, argv)
    lines = err.getvalue().splitlines()
    errors = [line for line in lines if not line.startswith("warning: ")]
    assert code in (0, 1, 2)
    assert len(errors) == bool(code), err.getvalue()
    assert all(line.startswith("error: ") for line in errors)
    return code, lines


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A small run, and a module beside it that no run folder may import."""
    path = tmp_path_factory.mktemp("saved")
    (path / "evil.py").write_text("open('ran', 'w')\nclass P: pass\ndef f(*args): return 1\n")
    assert (
        run(train, [f"--data={tiny}", "--epochs=1", "--latent_dim=2", f"--run_dir={path / 'run'}"])
        == 0
    )
    return path


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        [
            "evil.P",
            "evil.f",
            "evil",
            "evil.py",
            "auto",
            "MLP",
            "pyro_vae.MLP",
            "torch.nn.ReLU",
            "os.getcwd",
            "1e9",
        ]
    ),
)
KEYS = st.sampled_from(
    ["class_path", "init_args", "hidden", "lr", "value", "dict_kwargs", "help", "evil.P", "x"]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_configuration_in_a_run_folder(saved, monkeypatch, data):
    """A value anywhere is replaced: the run loads, or is refused in one line.

    Nothing that it names is imported.
    """
    monkeypatch.chdir(saved)
    file = saved / "run" / "config.yaml"
    original = file.read_text()
    content = yaml.safe_load(original)
    place = content
    while isinstance(place.get(key := data.draw(st.sampled_from([*place]))), dict) and data.draw(
        st.booleans()
    ):
        place = place[key]
    place[data.draw(st.sampled_from([key, f"{key}.class_path", "more"]))] = data.draw(VALUES)
    if (
        place is content
        and (data_dim := place.get("latent_dim"))
        and not isinstance(data_dim, str | list | dict)
    ):
        place["latent_dim"] = min(data_dim, 50)  # a wide model only takes time
    try:
        file.write_text(yaml.safe_dump(content))
        with contextlib.suppress(pv.RequestError):
            pv.load_run("run")
    finally:
        file.write_text(original)
    assert not list(saved.rglob("ran"))
    assert "evil" not in sys.modules


def places(content, path=()):
    """The paths of all entries of nested containers."""
    entries = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content)
        if isinstance(content, list)
        else ()
    )
    return [
        place for key, value in entries for place in [(*path, key), *places(value, (*path, key))]
    ]


REPLACEMENTS = [
    ...,
    torch.ones(3),
    torch.tensor(torch.nan),
    -1,
    2**70,
    float("nan"),
    None,
    "x",
    [],
    {},
    "more",
]


def with_another_entry(draw, content):
    """Nested containers with one entry replaced, removed or added."""
    *outer, key = draw(st.sampled_from(places(content)))
    place = content
    for step in outer:
        place = place[step]
    value = draw(
        st.sampled_from(
            [
                ...,
                torch.ones(3),
                torch.tensor(torch.nan),
                -1,
                2**70,
                float("nan"),
                None,
                "x",
                [],
                {},
                "more",
            ]
        )
    )
    if value is ...:
        del place[key]
    elif value == "more" and isinstance(place, dict):
        place["more"] = 1
    else:
        place[key] = value
    return content


@st.composite
def damage(draw, folder):
    """Damage one file of a run folder: other bytes, no file, or an entry of a checkpoint."""
    file = draw(st.sampled_from(sorted(file for file in folder.rglob("*") if file.is_file())))
    original = file.read_bytes()
    start = draw(st.integers(0, max(0, len(original) - 1)))
    kind = draw(st.sampled_from(["entry", "cut", "flip", "insert", "replace", "remove"]))
    if kind == "entry" and file.suffix == ".pt":
        write_content(file, with_another_entry(draw, read_content(file)))
        return f"{file.name}: entry"
    file.unlink()
    if kind != "remove":
        flipped = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in original[start : start + 1])
        other = draw(st.binary(max_size=20))
        parts = {
            "cut": b"",
            "flip": flipped + original[start + 1 :],
            "insert": other + original[start:],
        }
        file.write_bytes(other if kind == "replace" else original[:start] + parts.get(kind, b""))
    return f"{file.name}: {kind} at {start}"


ON_A_RUN = {
    "resume": (train, ["--resume", "--epochs=1", "--run_dir", "run"]),
    "generate": (generate, ["run", "samples", "--count=2", "--format=npz"]),
    "evaluate": (evaluate, ["run", "--num_samples=2", "--check_images=0", "--checkpoint=best"]),
}


@given(data=st.data(), name=st.sampled_from([*ON_A_RUN]))
def test_any_damage_to_a_run_folder(saved, tmp_path_factory, monkeypatch, data, name):
    folder = tmp_path_factory.mktemp("damaged")
    monkeypatch.chdir(folder)
    shutil.copytree(saved / "run", "run")
    data.draw(damage(Path("run")))
    outcome(*ON_A_RUN[name])
    assert [path.name for path in folder.iterdir()] == ["run"]
    shutil.rmtree(folder)


TEXTS = st.text("{}[]:-,#&*!|>'\"%@ \n\tabc01.~<\\", max_size=40)


@given(
    text=TEXTS
    | VALUES.map(yaml.safe_dump)
    | st.tuples(st.sampled_from([*PARTS, *PLAIN]), TEXTS).map(": ".join)
)
def test_any_configuration_file(tmp_path_factory, text):
    file = tmp_path_factory.mktemp("any") / "c.yaml"
    file.write_text(text)
    outcome(parse_training, [f"--config={file}"])


IMAGE = io.BytesIO()
Image.new("RGB", (6, 5), "red").save(IMAGE, "PNG")


@given(data=st.data(), suffix=st.sampled_from([".png", ".gif", ".tif", ".ppm", ".npy", ".npz"]))
def test_any_file_of_images(tmp_path_factory, images, data, suffix):
    """A file of any bytes, or with some bytes changed, as an array or among twelve good images."""
    path, other = tmp_path_factory.mktemp("any"), data.draw(st.binary(max_size=20))
    good = images.read_bytes() if suffix[:2] == ".n" else IMAGE.getvalue()
    start = data.draw(st.integers(0, len(good) - 1))
    bad = data.draw(
        st.sampled_from([other, good[:start], good[:start] + other + good[start + len(other) :]])
    )
    (path / f"bad{suffix}").write_bytes(bad)
    for number in range(12):
        (path / f"{number}.png").write_bytes(IMAGE.getvalue())
    assert_usable_or_refused(path / f"bad{suffix}" if suffix[:2] == ".n" else path)


SHAPES = st.lists(st.integers(0, 15), min_size=0, max_size=5).map(tuple)
DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(),
    arrays.complex_number_dtypes(),
    arrays.byte_string_dtypes(),
)


@given(array=arrays.arrays(DTYPES, SHAPES), labels=st.none() | arrays.arrays(DTYPES, SHAPES))
def test_any_array(tmp_path_factory, array, labels):
    path = tmp_path_factory.mktemp("any") / "a.npz"
    np.savez(path, images=array, **({} if labels is None else {"labels": labels}))
    assert_usable_or_refused(path)


@given(
    count=st.integers(1, 30),
    size=st.integers(1, 9),
    channels=st.none() | st.integers(1, 4),
    high=st.sampled_from([1.0, 1.0 + 1e-6, 255.0]),
)
def test_any_images(tmp_path_factory, count, size, channels, high):
    path = tmp_path_factory.mktemp("any") / "a.npy"
    shape = (count, *([] if channels is None else [channels]), size, size + 1)
    np.save(path, np.linspace(0, high, int(np.prod(shape)), dtype=np.float32).reshape(shape))
    assert_usable_or_refused(path)


def assert_usable_or_refused(path):
    try:
        data = pv.load_data(str(path))
    except pv.RequestError as error:
        refusal = str(error)
    else:
        refusal = None
    assert refusal is None or "\n" not in refusal
    if refusal is not None:
        return
    assert min(len(split) for split in (data.train, data.validation, data.test)) > 0
    assert data.train.x.min() >= 0
    assert len(data.shape) == 3
