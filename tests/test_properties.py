"""Any options and any arrays either run a step or are rejected in one line: no traceback, no warning."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import pyro_vae as pv
from pyro_vae.cli.build import build_training
from pyro_vae.cli.main import run
from pyro_vae.cli.options import parse_training

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
    """The first epoch of the requested training."""
    _, _, training = build_training(parse_training(argv))
    next(training)


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
