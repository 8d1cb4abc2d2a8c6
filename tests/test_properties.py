"""Whatever is asked for either runs a step or is refused in one line: never a traceback, never a warning."""

from __future__ import annotations

import contextlib
import io
import sys

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import pyro_vae as pv
from pyro_vae.cli.build import build_training
from pyro_vae.cli.main import run
from pyro_vae.cli.options import parse_training
from pyro_vae.cli.run_folder import Run

few = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))

NUMBERS = st.sampled_from(
    ["-1", "0", "1", "2", "3", "7", "0.5", "1e-300", "1e300", "nan", "inf", "x", "[]", "[3]", "null", "true"]
)


def option(part, names):
    return st.tuples(st.sampled_from(names), NUMBERS).map(lambda pair: f"--{part}.{pair[0]}={pair[1]}")


def a_part(part, options):
    """A class, perhaps, and perhaps some of its options, with any values."""
    named = st.sampled_from(list(options)).flatmap(
        lambda name: (
            st.lists(option(part, options[name]), max_size=2).map(lambda given: [f"--{part}={name}", *given])
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
        "FlowPosterior": ["transforms", "hidden"],
    },
    "likelihood": {
        "Bernoulli": ["relaxed"],
        "ContinuousBernoulli": [],
        "pyro_vae.likelihoods.Normal": ["scale", "learned"],
        "Beta": [],
        "DiscretizedLogistic": ["components"],
    },
    "encoder": {"MLP": ["hidden", "activation"], "Conv": ["channels", "kernel_sizes", "strides"], "Gated": ["hidden"]},
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
    "optimizer": {"Adam": ["lr", "betas", "eps"], "SGD": ["lr", "momentum"], "LBFGS": [], "Adagrad": ["lr"]},
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
PLAIN = ["latent_dim", "batch_size", "seed", "patience", "clip_grad_norm", "checkpoint_every", "image_size"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.npz"
    np.savez(path, images=np.random.default_rng(0).integers(0, 256, (24, 6, 5), dtype=np.uint8))
    return path


def a_step(argv):
    """The first batches of what is asked for."""
    next(build_training(parse_training(argv))[2])


@few
@given(
    parts=st.tuples(*(a_part(part, options) for part, options in PARTS.items())),
    plain=st.lists(st.tuples(st.sampled_from(PLAIN), NUMBERS).map(lambda pair: f"--{pair[0]}={pair[1]}"), max_size=2),
    chosen=st.sets(st.sampled_from(list(PARTS)), max_size=3),
)
def test_any_options(tiny, parts, plain, chosen):
    flags = [flag for part, given in zip(PARTS, parts, strict=True) if part in chosen for flag in given]
    argv = [f"--data={tiny}", "--epochs=1", "--device=cpu", "--batch_size=10", "--engine=eager", *flags, *plain]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(a_step, argv)
    lines = err.getvalue().splitlines()
    assert "Traceback" not in err.getvalue()
    if code == 0:
        assert lines == []
    else:
        assert code == 2 or (code == 1 and "not finite" in lines[0]), argv
        assert len(lines) == 1, argv
        assert lines[0].startswith("error: ")


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A small run, and a module beside it that no run folder may import."""
    from pyro_vae.cli.train import train

    path = tmp_path_factory.mktemp("saved")
    (path / "evil.py").write_text("open('ran', 'w')\nclass P: pass\ndef f(*args): return 1\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pyro_vae.cli.train.TEST_SAMPLES", 10)
        patch.setattr("pyro_vae.cli.train.draw", lambda *args: [])
        assert run(train, [f"--data={tiny}", "--epochs=1", "--latent_dim=2", f"--run_dir={path / 'run'}"]) == 0
    return path


SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(
        ["evil.P", "evil.f", "evil", "evil.py", "auto", "MLP", "pyro_vae.MLP", "torch.nn.ReLU", "os.getcwd", "1e9"]
    ),
)
KEYS = st.sampled_from(["class_path", "init_args", "hidden", "lr", "value", "dict_kwargs", "help", "evil.P", "x"])
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=6
)


@settings(few, max_examples=120)
@given(data=st.data())
def test_any_configuration_in_a_run_folder(saved, monkeypatch, data):
    """A value anywhere is replaced: the run is loaded or refused in one line, and nothing that it names is imported."""
    monkeypatch.chdir(saved)
    file = saved / "run" / "config.yaml"
    original = file.read_text()
    content = yaml.safe_load(original)
    place = content
    while isinstance(place.get(key := data.draw(st.sampled_from([*place]))), dict) and data.draw(st.booleans()):
        place = place[key]
    place[data.draw(st.sampled_from([key, f"{key}.class_path", "more"]))] = data.draw(VALUES)
    if place is content and (data_dim := place.get("latent_dim")) and not isinstance(data_dim, str | list | dict):
        place["latent_dim"] = min(data_dim, 50)  # a wide model only takes time
    try:
        file.write_text(yaml.safe_dump(content))
        with contextlib.suppress(pv.RequestError):
            pv.load_run("run")
    finally:
        file.write_text(original)
    assert not list(saved.rglob("ran"))
    assert "evil" not in sys.modules


@settings(few, max_examples=40)
@given(name=st.sampled_from(["config.yaml", "metrics.jsonl", "checkpoint.pt"]), data=st.data())
def test_any_byte_of_a_run_folder(saved, name, data):
    """Truncated, or with other bytes in one place."""
    file = saved / "run" / name
    original = file.read_bytes()
    start = data.draw(st.integers(0, len(original) - 1))
    rest = data.draw(st.sampled_from([b"", original[start + 1 :]]))
    file.write_bytes(original[:start] + data.draw(st.binary(max_size=4)) + rest)
    err = io.StringIO()
    try:
        with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
            code = run(lambda _: pv.load_run(saved / "run") and Run(saved / "run").records(), [])
    finally:
        file.write_bytes(original)
    assert code in (0, 2)
    assert len(err.getvalue().splitlines()) <= 1


SHAPES = st.lists(st.integers(0, 15), min_size=0, max_size=5).map(tuple)
DTYPES = st.one_of(
    arrays.boolean_dtypes(),
    arrays.integer_dtypes(),
    arrays.unsigned_integer_dtypes(),
    arrays.floating_dtypes(),
    arrays.complex_number_dtypes(),
    arrays.byte_string_dtypes(),
)


@few
@given(array=arrays.arrays(DTYPES, SHAPES), labels=st.none() | arrays.arrays(DTYPES, SHAPES))
def test_any_array(tmp_path_factory, array, labels):
    path = tmp_path_factory.mktemp("any") / "a.npz"
    np.savez(path, images=array, **({} if labels is None else {"labels": labels}))
    assert_usable_or_refused(path)


@few
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
    assert data.train.images.min() >= 0
    assert len(data.shape) == 3
