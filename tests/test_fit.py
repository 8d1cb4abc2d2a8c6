import itertools
import json

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim import Adam

import pyro_vae as pv
from pyro_vae.importance import terms


def build(data, seed=0):
    pyro.set_rng_seed(seed)
    encoder, decoder = pv.MLP(data.shape, (2, 3), hidden=(16,)), pv.MLP((3,), (1, *data.shape), hidden=(16,))
    return pv.VAE(pv.StandardNormal(3), pv.DiagonalNormal(encoder), decoder, pv.Bernoulli())


def figures(record):
    return {key: value for key, value in record.items() if "second" not in key}


def test_one_record_an_epoch(digits):
    records = list(pv.fit(build(digits), digits, epochs=3, batch_size=100, beta=pv.Constant(2.0)))
    assert [record["epoch"] for record in records] == [1, 2, 3]
    assert [record["step"] for record in records] == [14, 28, 42]
    for record in records:
        json.dumps(record)
        assert set(record) == set(pv.Record.__annotations__)
        assert record["beta"] == 2.0
        assert record["elbo"] == pytest.approx(record["reconstruction"] - record["kl"])
        assert record["loss"] == pytest.approx(2 * record["kl"] - record["reconstruction"], rel=1e-5)
        assert record["validation_loss"] == pytest.approx(
            2 * record["validation_kl"] - record["validation_reconstruction"], rel=1e-5
        )


def test_it_learns(digits):
    vae = build(digits)
    vae.initialize(digits.train.scored("unit"))
    *_, last = pv.fit(vae, digits, epochs=50, optimizer=lambda params: Adam(params, lr=0.003))
    assert last["validation_elbo"] > -25.8
    assert last["kl"] > 1


def test_the_validation_figures_are_the_terms_of_the_validation_set(digits):
    vae = build(digits)
    *_, last = pv.fit(vae, digits, epochs=1)
    t = terms(vae.model, vae.guide, digits.validation.scored("binary"), 200)
    for name, values in (("reconstruction", t.reconstruction), ("kl", t.kl)):
        error = values.mean(1).std()
        assert abs(last[f"validation_{name}"] - values.mean()) < 6 * error


def test_equal_seeds_give_equal_figures(digits):
    first, second = ([figures(r) for r in pv.fit(build(digits), digits, epochs=2)] for _ in range(2))
    assert first == second
    assert first != [figures(r) for r in pv.fit(build(digits, seed=1), digits, epochs=2)]


def test_the_test_set_is_not_touched(digits):
    blind = pv.Data("digits", digits.train, digits.validation, test=pv.Split(torch.full((5, 1, 8, 8), float("nan"))))
    record = next(iter(pv.fit(build(digits), blind, epochs=1)))
    assert figures(record) == figures(next(iter(pv.fit(build(digits), digits, epochs=1))))


@pytest.mark.parametrize("batch_size", [1, 7, 1348, 1349])
def test_any_batch_size(digits, batch_size):
    few = pv.Data("few", digits.train if batch_size > 100 else digits.train[:20], digits.validation[:3], digits.test)
    seen = []
    (record,) = pv.fit(build(few), few, epochs=1, batch_size=batch_size, on_batch=seen.append)
    assert sum(seen) == len(few.train)
    assert record["step"] == len(seen)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be positive"),
        ({"batch_size": 0}, "batch_size must be 1 to 1349"),
        ({"batch_size": 1350}, "batch_size must be 1 to 1349"),
    ],
)
def test_refuses_before_the_first_record_is_drawn(digits, options, message):
    with pytest.raises(pv.RequestError, match=message):
        pv.fit(build(digits), digits, **options)


def test_nan_stops_training(digits):
    with pytest.raises(pv.NotFiniteError, match=r"not finite in epoch 1, at step \d+, first in [zx] of the (guide|model)"):
        list(pv.fit(build(digits), digits, epochs=3, optimizer=lambda params: Adam(params, lr=1e30)))


def test_vectorized_particles_are_counted_once(digits):
    objective = Trace_ELBO(num_particles=3, vectorize_particles=True)
    for record in pv.fit(build(digits), digits, epochs=2, objective=objective):
        assert record["loss"] == pytest.approx(-record["elbo"], rel=1e-5)


class Failing(pv.Schedule):
    def __init__(self, value):
        self.value = value

    def __call__(self, step):
        return 1.0 if step < 3 else self.value


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), float("inf"), "1"])
def test_a_schedule_that_fails(digits, value):
    with pytest.raises(pv.RequestError, match=r"beta is .* at step 3: a schedule must give positive"):
        list(pv.fit(build(digits), digits, epochs=1, beta=Failing(value)))


def test_dropout_is_off_for_validation_and_on_in_training(digits):
    modes = []

    class Spy(torch.nn.Dropout):
        def forward(self, x):
            modes.append(self.training)
            return super().forward(x)

    encoder = pv.MLP(digits.shape, (2, 3), activation=Spy)
    vae = pv.VAE(pv.StandardNormal(3), pv.DiagonalNormal(encoder), pv.MLP((3,), (1, *digits.shape)), pv.Bernoulli())
    list(pv.fit(vae, digits, epochs=2))
    assert [mode for mode, _ in itertools.groupby(modes)] == [True, False, True, False]


def test_evaluate_needs_no_more_memory_of_gradients(digits):
    vae = build(digits)
    results = pv.evaluate(vae, digits.test, num_samples=50, num_images=20)
    assert results["log_likelihood"]["num_images"] == 20
    assert results["log_likelihood"]["num_samples"] == 50
    assert results["elbo"]["num_images"] == len(digits.test)
    assert results["elbo"]["mean"] == pytest.approx(results["reconstruction"]["mean"] - results["kl"]["mean"], rel=1e-6)


def test_evaluate_refuses_more_images_than_there_are(digits):
    with pytest.raises(pv.RequestError, match="300 images were asked for"):
        pv.evaluate(build(digits), digits.test, num_samples=5, num_images=300)


def test_standard_errors_cover(digits):
    """The error of the ELBO is over images: half the images give about sqrt(2) of it."""
    vae = build(digits)
    whole, half = (pv.evaluate(vae, digits.test[:count], num_samples=2)["elbo"] for count in (298, 149))
    assert half["standard_error"] / whole["standard_error"] == pytest.approx(2**0.5, rel=0.15)
    assert abs(half["mean"] - whole["mean"]) < 4 * half["standard_error"]


def test_mnist_reaches_what_the_literature_does(mnist):
    """A tenth of an epoch on real MNIST: the cross-check that the files, the pixels and the units are right."""
    small = pv.Data("mnist", mnist.train[:6400], mnist.validation[:500], mnist.test)
    assert (mnist.shape, len(mnist.train), len(mnist.validation), len(mnist.test)) == ((1, 28, 28), 55_000, 5_000, 10_000)
    assert mnist.train.images.float().mean().item() / 255 == pytest.approx(0.1307, abs=5e-4)
    vae = build(small)
    vae.initialize(small.train.scored("unit"))
    *_, last = pv.fit(vae, small, epochs=2, optimizer=lambda params: Adam(params, lr=3e-3))
    assert -195 < last["validation_elbo"] < -150
