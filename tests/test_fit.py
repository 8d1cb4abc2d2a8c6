import copy
import io
import itertools
import json
import logging
from dataclasses import replace
from functools import partial
from itertools import cycle

import pyro
import pytest
import torch
from families import (
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    POSTERIORS,
    PRIORS,
    SHAPE,
    Normalized,
    build,
    make_conditional,
)
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import nn
from torch.optim import SGD, Adam
from tqdm import tqdm

import pyro_vae as pv
from pyro_vae.data.host import on_host
from pyro_vae.engine.graphs import has_compiler
from pyro_vae.engine.importance import terms
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.networks import Linear
from pyro_vae.testing import probabilistic_pca
from pyro_vae.training import fit as fit_module

ENGINES = [
    "eager",
    "traced",
    pytest.param("compiled", marks=pytest.mark.skipif(not has_compiler(), reason="no compiler")),
]


def metrics(record):
    """A record without its times."""
    return {key: value for key, value in record.items() if "second" not in key}


def assert_equal(vae, other):
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), other.parameters(), strict=True))


def test_one_record_per_epoch(digits):
    records = list(pv.fit(build(digits), digits, epochs=3, batch_size=100, beta=pv.Constant(2.0)))
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [14, 28, 42]
    for record in records:
        json.dumps(record)
        assert set(record) == set(pv.Record.__annotations__)
        assert record["beta"] == 2.0
        assert record["elbo"] == pytest.approx(record["reconstruction"] - record["kl"])
        assert record["loss"] == pytest.approx(
            2 * record["kl"] - record["reconstruction"], rel=1e-5
        )
        assert record["validation_loss"] == pytest.approx(
            2 * record["validation_kl"] - record["validation_reconstruction"], rel=1e-5
        )


def test_it_learns(digits):
    encoder, decoder = (
        pv.MLP(digits.shape, (2, 3), hidden=(64,)),
        pv.MLP((3,), (1, *digits.shape), hidden=(64,)),
    )
    vae = build(digits, encoder=encoder, decoder=decoder)
    *_, last = pv.fit(vae, digits, epochs=15, optimizer=lambda params: Adam(params, lr=0.003))
    assert last["validation_elbo"] > -25.8
    assert last["kl"] > 1


def test_the_validation_metrics_are_the_terms_of_the_validation_set(digits):
    vae = build(digits)
    *_, last = pv.fit(vae, digits, epochs=1)
    t = terms(vae.model, vae.guide, Batch(digits.validation.scored("binary")), num_samples=200)
    for name, values in (("reconstruction", t.reconstruction), ("kl", t.kl)):
        error = values.mean(1).std()
        assert abs(last[f"validation_{name}"] - values.mean()) < 6 * error


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_equal_seeds_give_equal_parameters(digits, engine):
    twins, records = [build(digits) for _ in range(3)], []
    for vae, seed, noise in zip(twins, (3, 3, 4), range(3), strict=True):
        torch.rand(noise)
        records.append(
            [metrics(record) for record in pv.fit(vae, digits, epochs=2, seed=seed, engine=engine)]
        )
    assert_equal(*twins[:2])
    assert records[0] == records[1] != records[2]


def test_checks_for_nan_within_the_epoch_have_no_effect(digits, monkeypatch):
    records = []
    for seconds in (0.0, 1e9):
        monkeypatch.setattr(fit_module, "CHECK_SECONDS", seconds)
        records.append(
            [
                metrics(record)
                for record in pv.fit(build(digits), digits, epochs=2, batch_size=100, seed=0)
            ]
        )
    assert records[0] == records[1]


def test_the_test_set_is_not_used(digits):
    blind = pv.Data(
        "digits",
        digits.train,
        digits.validation,
        test=digits.test.with_x(torch.full(digits.test.x.shape, torch.nan)),
    )
    record = next(iter(pv.fit(build(digits), blind, epochs=1)))
    assert metrics(record) == metrics(next(iter(pv.fit(build(digits), digits, epochs=1))))


def test_an_interrupted_epoch_does_not_enter_the_next_record(digits):
    training = pv.fit(build(digits), digits, epochs=2)
    update, calls = training.loop.svi.update, iter([False, False, True])

    def interrupted(*args):
        if next(calls, False):
            raise KeyboardInterrupt
        update(*args)

    training.loop.svi.update = interrupted
    with pytest.raises(KeyboardInterrupt):
        next(training)
    record = next(training)
    assert record["step"] == 13
    assert record["loss"] == pytest.approx(record["validation_loss"], rel=0.05)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 0},
        {"batch_size": 0},
        {"batch_size": 1350},
        {"patience": 0},
        {"clip_grad_norm": 0.0},
        {"clip_grad_norm": float("nan")},
        {"engine": "turbo"},
        {"precision": "float8"},
        {"on_nan": "go on"},
        {"beta": 4.0},
    ],
)
def test_impossible_arguments_are_refused_by_name(digits, options):
    with pytest.raises(pv.RequestError, match=next(iter(options))):
        pv.fit(build(digits), digits, **options)


class Breaking(nn.Module):
    """A decoder whose outputs are NaN from a step of training on."""

    def __init__(self, shape, step=10):
        super().__init__()
        self.layer, self.step = pv.MLP((3,), (1, *shape)), step
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, z):
        self.calls.add_(self.training)
        return self.layer(z) / (self.calls < self.step).to(z)


LOSSES = {
    "Trace_ELBO": Trace_ELBO,
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "TraceGraph_ELBO": pyro.infer.TraceGraph_ELBO,
    "RenyiELBO": lambda: RenyiELBO(num_particles=2),
    **OBJECTIVES,
}


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("objective", LOSSES)
def test_nan_is_one_error_without_warnings(digits, objective, engine, caplog):
    """Warnings are errors in these tests, so that one of Pyro's would end the training instead."""
    vae = build(digits, decoder=Breaking(digits.shape))
    with pytest.raises(pv.NotFiniteError, match="epoch 1/3"):
        list(pv.fit(vae, digits, epochs=3, objective=LOSSES[objective](), engine=engine))


@pytest.mark.parametrize("family", [pv.LowRankNormal, pv.FullRankNormal, pv.FlowPosterior])
@pytest.mark.parametrize("engine", ENGINES[:2])
def test_diverging_parameters_are_one_error(digits, engine, family):
    posterior = family(3)
    vae = build(
        digits, posterior=posterior, encoder=pv.MLP(digits.shape, (posterior.num_params, 3))
    )
    with pytest.raises(pv.NotFiniteError):
        list(
            pv.fit(
                vae, digits, epochs=3, engine=engine, optimizer=lambda params: Adam(params, lr=1e30)
            )
        )
    vae.decoder.layers[1].bias.data.fill_(torch.nan)
    with pytest.raises(pv.RequestError, match="parameters that are NaN"):
        pv.fit(vae, digits)


def test_an_impossible_beta_is_refused_with_its_step(digits):
    class Falling(pv.Schedule):
        def __call__(self, step):
            return 3.0 - step

    with pytest.raises(pv.RequestError, match=r"beta is .* at step 3"):
        list(pv.fit(build(digits), digits, epochs=1, beta=Falling()))


def test_dropout_is_off_for_validation_and_on_in_training(digits):
    modes = []

    class Spy(torch.nn.Dropout):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    training = pv.fit(
        build(digits, encoder=pv.MLP(digits.shape, (2, 3), activation=Spy)), digits, epochs=2
    )
    modes.clear()
    list(training)
    assert [mode for mode, _ in itertools.groupby(modes)] == [True, False, True, False]


def test_mnist_reaches_the_elbo_of_the_literature(mnist):
    """In 100 steps: the files, the pixels and the units are right."""
    small = pv.Data("mnist", mnist.train[:6400], mnist.validation[:500], mnist.test)
    assert (mnist.shape, len(mnist.train), len(mnist.validation), len(mnist.test)) == (
        (1, 28, 28),
        55_000,
        5_000,
        10_000,
    )
    assert mnist.train.x.float().mean().item() / 255 == pytest.approx(0.1307, abs=5e-4)
    networks = {
        "encoder": pv.MLP(small.shape, (2, 3), hidden=(16,)),
        "decoder": pv.MLP((3,), (1, *small.shape), hidden=(16,)),
    }
    *_, last = pv.fit(
        build(small, **networks), small, epochs=2, optimizer=lambda params: Adam(params, lr=3e-3)
    )
    assert -195 < last["validation_elbo"] < -150


def test_beta_follows_its_schedule(digits):
    records = list(
        pv.fit(build(digits), digits, epochs=3, batch_size=100, beta=pv.schedules.Linear(steps=28))
    )
    assert [record["beta"] for record in records] == pytest.approx([0.5, 1.0, 1.0])


def test_the_learning_rate_follows_its_scheduler(digits):
    schedulers = {
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5): [
            1e-3,
            5e-4,
            2.5e-4,
        ],
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=1e9, threshold_mode="abs"
        ): [1e-3, 1e-3, 1e-4],
    }
    for scheduler, rates in schedulers.items():
        records = list(pv.fit(build(digits), digits, epochs=3, lr_scheduler=scheduler))
        assert [record["learning_rate"] for record in records] == pytest.approx(rates)


def test_patience(digits):
    """With a negligible rate the ELBO is noise: training stops three epochs after the best."""
    training = pv.fit(
        build(digits),
        digits,
        epochs=500,
        patience=3,
        optimizer=lambda params: SGD(params, lr=1e-12),
    )
    elbos = [record["validation_elbo"] for record in training]
    best = max(elbos)
    assert len(elbos) == elbos.index(best) + 1 + 3 < 500
    assert training.best == best
    assert training.ended
    assert not training.improved


class FailingOnce(torch.nn.Module):
    """A decoder that gives NaN at a certain step of training."""

    def __init__(self, shape, step):
        super().__init__()
        self.layer, self.step, self.calls = pv.MLP((3,), (1, *shape)), step, 0

    def forward(self, z):
        self.calls += self.training
        return self.layer(z) * (float("nan") if self.training and self.calls == self.step else 1.0)


def failing(digits, step):
    return build(digits, decoder=FailingOnce(digits.shape, step))


@pytest.fixture
def calls(digits):
    """Number of times that the dry run calls the decoder in training."""
    vae = failing(digits, 0)
    pv.fit(vae, digits)
    return vae.decoder.calls


def test_rewind_goes_back_to_the_last_good_epoch(digits, calls, caplog):
    vae = failing(digits, calls + 11 + 4)
    records = list(pv.fit(vae, digits, epochs=4, on_nan="rewind"))
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records] == [11, 22, 33, 44]
    assert [record["rewinds"] for record in records] == [0, 1, 1, 1]
    assert [record["learning_rate"] for record in records] == pytest.approx(
        [1e-3, 5e-4, 5e-4, 5e-4]
    )
    assert caplog.text.count("rewinding to epoch 1 with learning rate 0.0005") == 1


def test_rewind_gives_up_after_three_times(digits, caplog):
    with pytest.raises(pv.NotFiniteError, match="epoch 1"):
        list(
            pv.fit(
                build(digits),
                digits,
                on_nan="rewind",
                optimizer=lambda params: Adam(params, lr=1e30),
            )
        )
    assert caplog.text.count("rewinding") == 3


def test_a_rewind_halves_the_initial_rate_of_a_scheduler(digits, calls):
    options = {
        "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda epoch: 1 / (1 + epoch)
        )
    }
    *_, last = pv.fit(failing(digits, calls + 5), digits, epochs=2, on_nan="rewind", **options)
    assert last["learning_rate"] == pytest.approx(1e-3 / 2 / 2)


@pytest.mark.parametrize("engine", ENGINES)
def test_resumed_training_equals_uninterrupted_training(digits, engine):
    few = pv.Data("few", digits.train[:400], digits.validation, digits.test)

    def start(vae):
        return pv.fit(
            vae,
            few,
            epochs=5,
            batch_size=100
            if engine == "compiled"
            else 90,  # a last batch of another size takes a second compilation
            engine=engine,
            beta=pv.schedules.Cosine(steps=15),
            lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
            clip_grad_norm=1.0,
            average=0.9,
        )

    whole = build(digits)
    expected = list(start(whole))
    training = start(build(digits))
    first = [next(training), next(training)]
    saved = io.BytesIO()
    torch.save(training.state_dict(), saved)
    saved.seek(0)
    resumed = build(digits, seed=9)
    training = start(resumed)
    training.load_state_dict(torch.load(saved, weights_only=True))
    assert [metrics(record) for record in [*first, *training]] == [
        metrics(record) for record in expected
    ]
    assert_equal(whole, resumed)


@pytest.mark.parametrize(("before", "after"), [("eager", "traced"), ("traced", "eager")])
def test_another_engine_can_resume(digits, before, after):
    training = pv.fit(build(digits), digits, epochs=2, engine=before)
    next(training)
    state = copy.deepcopy(training.state_dict())
    expected = next(training)
    resumed = pv.fit(build(digits), digits, epochs=2, engine=after)
    resumed.load_state_dict(state)
    assert next(resumed)["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_a_model_can_be_saved_while_and_after_it_is_trained(digits):
    vae = build(digits)
    training = pv.fit(vae, digits, epochs=3)
    next(training)
    saved = io.BytesIO()
    torch.save(vae, saved)
    next(training)
    saved.seek(0)
    loaded = torch.load(saved, weights_only=False)
    list(pv.fit(loaded, digits, epochs=1))
    list(training)
    torch.save(vae, io.BytesIO())


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_the_dry_run_is_in_training_mode_and_has_no_side_effects(digits, engine):
    """The model is in evaluation mode before, as it is after training."""
    vae = build(
        digits,
        encoder=Normalized(digits.shape, (2, 3)),
        decoder=Normalized((3,), (1, *digits.shape)),
    ).eval()
    vae.initialize = lambda x: None
    modes, before = [], copy.deepcopy(vae.state_dict())
    vae.encoder.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    training = pv.fit(vae, digits, epochs=1, engine=engine)
    assert modes[-1]
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())
    assert next(training)["validation_elbo"] > -60


class MissingError(KeyError):
    """An exception of a user's own."""


def raising(base, *args):
    def forward(self, *inputs):
        if self.training:
            raise MissingError("on purpose")
        return super(cls, self).forward(*inputs)

    cls = type("Raising", (base,), {"forward": forward})
    return cls(*args)


@pytest.mark.parametrize(
    "parts",
    [
        {"prior": raising(pv.StandardNormal, 3)},
        {"encoder": raising(pv.MLP, (1, 8, 8), (2, 3))},
        {"posterior": raising(pv.DiagonalNormal)},
        {"decoder": raising(pv.MLP, (3,), (1, 1, 8, 8))},
        {"likelihood": raising(pv.Bernoulli)},
    ],
    ids=lambda parts: next(iter(parts)),
)
def test_exceptions_of_user_classes_pass_through(digits, parts):
    with pytest.raises(MissingError, match="on purpose") as caught:
        pv.fit(build(digits, **parts), digits)
    assert "dry run" in "".join(caught.value.__notes__)
    assert "forward" in [entry.name for entry in caught.traceback]


def test_a_trained_model_is_not_initialized_again(digits):
    """Neither by a second fit nor after loading a state_dict."""
    vae = build(digits)
    list(pv.fit(vae, digits, epochs=1, seed=0))
    bias = [param for name, param in vae.decoder.named_parameters() if name.endswith("bias")][-1]
    before = bias.clone()
    pv.fit(vae, digits, epochs=1)
    assert torch.equal(bias, before)
    other = build(digits)
    other.load_state_dict(vae.state_dict())
    pv.fit(other, digits, epochs=1)
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", ["epochs", "batch_size", "patience"])
def test_counts_are_integers(digits, name):
    with pytest.raises(pv.RequestError, match=name):
        pv.fit(build(digits), digits, **{name: 2.5})


def test_the_bar_shows_metrics_and_the_time_left(digits, monkeypatch):
    text = io.StringIO()
    options = {
        "file": text,
        "disable": False,
        "dynamic_ncols": False,
        "ncols": 80,
        "mininterval": 0,
    }
    monkeypatch.setattr(
        "pyro_vae.engine.progress.tqdm", lambda **given: tqdm(**{**given, **options})
    )
    monkeypatch.setattr(fit_module, "CHECK_SECONDS", 0)
    first, _ = pv.fit(build(digits), digits, epochs=2, seed=0)
    lines = [line for line in text.getvalue().split("\r") if line.strip()]
    assert all(len(line) <= 80 and "left" in line for line in lines)
    assert lines[-1].startswith("epoch 2/2: ")
    (before,) = [line for line in lines if "50%" in line and "active" in line][:1]
    shown = f"ELBO {first['elbo']:.1f}, KL {first['kl']:.1f}, {first['active_units']} active"
    assert before.endswith(shown)


# ---- Learning-rate schedulers that look at the ELBO


def flat(rate=1e-12):
    """An optimizer that changes nothing."""
    return lambda params: SGD(params, lr=rate)


@pytest.mark.parametrize("mode", ["min", "max"])
def test_a_plateau_scheduler_receives_a_metric_of_its_own_sense(digits, mode):
    """While the ELBO rises the rate stays, whatever the mode; where nothing is learned it falls."""
    plateau = partial(
        torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode, patience=0, threshold_mode="abs"
    )
    training = pv.fit(build(digits), digits, epochs=4, lr_scheduler=plateau, seed=0)
    rising = list(training)
    elbos = [record["validation_elbo"] for record in rising]
    assert elbos == sorted(elbos)
    assert [record["learning_rate"] for record in rising] == [1e-3] * 4
    sign = 1 if mode == "max" else -1
    assert training.loop.scheduler.best == sign * elbos[-1]
    demanding = partial(plateau, threshold=1e9)
    training = pv.fit(build(digits), digits, epochs=3, lr_scheduler=demanding, optimizer=flat(1.0))
    training.loop.svi.update = lambda *args: None
    assert [record["learning_rate"] for record in training] == pytest.approx([1.0, 1.0, 0.1])


# ---- More epochs than a training was started with


@pytest.mark.parametrize(
    ("options", "end"),
    [
        (lambda: {"beta": pv.schedules.Linear()}, [1.0]),
        (lambda: {"beta": pv.Cyclical(cycles=2)}, [1.0]),
        (lambda: {"objective": pv.CapacityELBO(10.0, pv.schedules.Linear(end=3.0))}, [1.0, 3.0]),
    ],
    ids=["Linear", "Cyclical", "capacity"],
)
def test_more_epochs_keep_the_length_of_a_schedule(digits, options, end):
    """Of half of the training by default: 2 of 4 epochs, also when 12 more follow in two parts."""

    def values(training, count):
        schedules = [training.loop.schedule]
        if hasattr(training.loop.objective, "schedule"):
            schedules.append(training.loop.objective.schedule)
        seen = []
        for _ in range(count):
            next(training)
            seen.append([schedule(training.loop.step - 1) for schedule in schedules])
        return seen

    few = pv.Data("few", digits.train[:100], digits.validation[:20], digits.test)
    first = pv.fit(build(few), few, epochs=4, batch_size=50, **options())
    assert values(first, 4)[-1] == end
    state = first.state_dict()
    for epochs in (10, 16):
        longer = pv.fit(build(few), few, epochs=epochs, batch_size=50, **options())
        longer.load_state_dict(state)
        assert values(longer, 6) == [end] * 6
        state = longer.state_dict()


# ---- Parameters that require no gradient


@pytest.mark.parametrize("engine", ENGINES[:2])
def test_frozen_parts_are_not_touched(digits, engine):
    """A pretrained decoder keeps its last bias, and a prior's frozen pseudo-inputs their values."""
    vae = build(digits)
    vae.prior = pv.VampPrior(vae.encoder, vae.posterior, digits.shape, components=5, start="data")
    vae.decoder.requires_grad_(False)
    vae.prior.inputs.requires_grad_(False)
    before = copy.deepcopy(vae.state_dict())
    list(pv.fit(vae, digits, epochs=1, engine=engine))
    for name, value in vae.state_dict().items():
        frozen = name.startswith("decoder") or name == "prior.inputs"
        assert torch.equal(value, before[name]) == frozen, name


def test_a_frozen_last_bias_does_not_pass_its_value_to_another(digits):
    vae = build(digits)
    *_, last = vae.decoder.parameters()
    last.requires_grad_(False)
    before = copy.deepcopy(vae.state_dict())
    pv.fit(vae, digits, epochs=1)
    assert all(torch.equal(value, before[name]) for name, value in vae.state_dict().items())


# ---- Batch normalization


# ---- What a model must declare


# ---- Models of images with labels


def noisy_brightness(rows=300, scale=1.0, shift=0.0):
    """Images whose brightness is a covariate, in other units, and a constant one."""
    generator = torch.Generator().manual_seed(0)
    level = torch.rand(rows, 1, generator=generator)
    x = (level[:, :, None, None] * 255 * torch.ones(1, 1, 4, 4)).to(torch.uint8)
    constant = torch.full_like(level, 7.0)
    split = pv.Split(x, covariates=torch.cat([shift + scale * level, constant], 1))
    return pv.Data("brightness", split[:200], split[200:250], split[250:])


@pytest.mark.parametrize("host", [False, True])
def test_covariates_in_any_units_give_the_same_model(host, caplog):
    """They are standardized by the training images; the constants are saved with the model."""
    caplog.set_level(logging.INFO, "pyro_vae")
    elbos, models = [], []
    for scale, shift in ((1.0, 0.0), (8.0, -3.0)):
        data = noisy_brightness(scale=scale, shift=shift)
        if host:
            every = torch.arange(len(data.train))
            data = replace(data, train=on_host(data.train).only(every))
        pyro.set_rng_seed(0)
        vae = make_conditional(2, likelihood="Normal")
        elbos.append([record["validation_elbo"] for record in pv.fit(vae, data, epochs=4, seed=0)])
        models.append(vae)
    assert elbos[0] == pytest.approx(elbos[1], rel=1e-4)
    y = data.train.covariates
    assert models[1].label_mean.tolist() == pytest.approx([y[:, 0].mean().item(), 7.0])
    assert models[1].label_scale.tolist() == pytest.approx([y[:, 0].std(correction=0).item(), 1.0])
    lines = [line for line in caplog.messages if line.startswith("covariates: standardized")]
    assert len(lines) == 2
    other = make_conditional(2, likelihood="Normal")
    other.load_state_dict(models[1].state_dict())
    assert torch.equal(other.code(y), models[1].code(y))
    before = other.label_mean.clone()
    pv.fit(other, noisy_brightness(), epochs=1)
    assert torch.equal(other.label_mean, before)


def test_classes_are_not_standardized(digits, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    encoder, decoder = pv.MLP(digits.shape, (2, 2), (8,)), pv.MLP((12,), (1, *digits.shape), (8,))
    parts = (pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    vae = pv.ConditionalVAE(*parts, data_shape=digits.shape, label_dim=10)
    list(pv.fit(vae, digits, epochs=1))
    assert torch.equal(vae.code(torch.arange(10)), torch.eye(10))
    assert "standardized" not in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_covariates_must_be_finite(value):
    data = noisy_brightness()
    data.train.covariates[3, 0] = value
    with pytest.raises(pv.RequestError, match="covariates must be finite"):
        pv.fit(make_conditional(2, likelihood="Normal"), data, epochs=1)


def train_on_digits(data, model):
    """log p(x) or log p(x | y) of each test image after 30 epochs."""
    pyro.set_rng_seed(0)
    labels = 10 if model is pv.ConditionalVAE else 0
    networks = {
        "encoder": pv.MLP(data.shape, (2, 5), (64,)),
        "decoder": pv.MLP((5 + labels,), (1, *data.shape), (64,)),
    }
    parts = {
        "prior": pv.StandardNormal(5),
        "posterior": pv.DiagonalNormal(),
        "likelihood": pv.Bernoulli(),
        **networks,
    }
    vae = model(**parts, **({"data_shape": data.shape, "label_dim": 10} if labels else {}))
    list(
        pv.fit(
            vae, data, epochs=30, seed=0, optimizer=lambda params: torch.optim.Adam(params, 3e-3)
        )
    )
    return score_images(vae, data.test, 200).log_likelihood, vae


def test_labels_help_unless_they_are_shuffled(digits):
    def shuffled(split):
        return replace(split, labels=split.labels[torch.randperm(len(split))])

    plain, _ = train_on_digits(digits, pv.VAE)
    given, vae = train_on_digits(digits, pv.ConditionalVAE)
    given_noise, _ = train_on_digits(digits.map(shuffled), pv.ConditionalVAE)
    gain, no_gain = (given - plain), (given_noise - plain)
    assert gain.mean() > 0.3 + 3 * gain.std() / len(gain) ** 0.5
    assert no_gain.mean() < 3 * no_gain.std() / len(gain) ** 0.5
    accuracy = pv.bayes_classifier(vae, digits.test, 10, num_samples=20)
    assert accuracy.num_images == len(digits.test)
    assert accuracy.accuracy > 0.75


CLASSES = 3
PARTS = list(zip(cycle(PRIORS), cycle(POSTERIORS), LIKELIHOODS, cycle(NETWORKS), strict=False))


@pytest.mark.parametrize("parts", PARTS, ids=" x ".join)
def test_every_conditional_part_traced(parts):
    """One epoch with labels, the last batch smaller, by the traced engine as by the eager one."""
    images = (256 * torch.rand(20, *SHAPE)).clamp(max=255).to(torch.uint8)
    split = pv.Split(images, torch.arange(20) % CLASSES)
    data = pv.Data("noise", split, split[:6], split[:6])
    losses = []
    for engine in ("eager", "traced"):
        pyro.set_rng_seed(0)
        vae = make_conditional(CLASSES, *parts)
        losses += [
            record["loss"]
            for record in pv.fit(vae, data, epochs=1, batch_size=8, engine=engine, seed=1)
        ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_given_labels(name, digits):
    options = {"num_particles": 2} if "Capacity" not in name and "Free" not in name else {}
    encoder, decoder = pv.MLP(digits.shape, (2, 2), (8,)), pv.MLP((12,), (1, *digits.shape), (8,))
    parts = (pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    vae = pv.ConditionalVAE(*parts, data_shape=digits.shape, label_dim=10)
    (record,) = pv.fit(
        vae, digits, epochs=1, objective=OBJECTIVES[name](**options), engine="traced"
    )
    assert -60 < record["elbo"] < 0


@pytest.mark.parametrize(
    ("images", "codes", "said"),
    [
        (
            (1, 28, 28),
            2,
            r"encoder was built for inputs of shape \(1, 28, 28\), but gets \(1, 8, 8\)",
        ),
        ((1, 8, 8), 3, r"decoder was built for inputs of shape \(3,\), but gets \(2,\)"),
    ],
)
@pytest.mark.parametrize("network", [pv.MLP, pv.Conv, pv.Gated])
def test_networks_that_were_built_for_other_inputs(digits, network, images, codes, said):
    vae = pv.VAE(
        pv.StandardNormal(2),
        network(images, (2, 2)),
        pv.DiagonalNormal(),
        network((codes,), (1, *digits.shape)),
        pv.Bernoulli(),
    )
    with pytest.raises(pv.RequestError, match=said):
        pv.fit(vae, digits, epochs=1)


@pytest.mark.parametrize("latent_dim", [2, 5])
def test_a_linear_vae_reaches_probabilistic_pca(digits, latent_dim):
    """Dequantized pixels; their covariance includes the noise, 1 / 12 of a level squared.

    The closed form bounds the ELBO from above. Training comes within 0.5 nats of it, and within 2 %
    of its noise scale.
    """
    encoder, decoder = (
        Linear(digits.shape, (2, latent_dim)),
        Linear((latent_dim,), (1, *digits.shape)),
    )
    likelihood = pv.likelihoods.Normal(0.3, learned="scalar")
    vae = pv.VAE(pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, likelihood)
    data = pv.Data("digits", digits.train, digits.validation[:10], digits.test)
    options = {
        "epochs": 300,
        "batch_size": len(digits.train),
        "engine": "traced",
        "objective": TraceMeanField_ELBO(),
    }
    *_, last = pv.fit(vae, data, optimizer=lambda params: Adam(params, lr=0.05), **options)
    pixels = digits.train.x.flatten(1).double() / 256
    covariance = torch.cov(pixels.T, correction=0) + torch.eye(64) / 12 / 256**2
    exact = probabilistic_pca(covariance, latent_dim)
    assert exact.log_likelihood - 0.5 < -last["loss"] < exact.log_likelihood + 0.1
    assert 0.3 * vae.likelihood.log_factor.exp().item() == pytest.approx(exact.scale, rel=0.02)
