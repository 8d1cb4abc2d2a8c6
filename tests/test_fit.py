import copy
import io
import itertools
import json

import pyro
import pytest
import torch
from pyro.infer import Trace_ELBO
from torch.optim import SGD, Adam

import pyro_vae as pv
from pyro_vae.evaluation.diagnostics import activity
from pyro_vae.inference.importance import terms


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


def test_beta_follows_its_schedule(digits):
    records = list(pv.fit(build(digits), digits, epochs=3, batch_size=100, beta=pv.schedules.Linear(steps=28)))
    assert [record["beta"] for record in records] == pytest.approx([0.5, 1.0, 1.0])


def test_the_learning_rate_follows_its_scheduler(digits):
    schedulers = {
        lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5): [1e-3, 5e-4, 2.5e-4],
        lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, patience=0, threshold=1e9, threshold_mode="abs"
        ): [1e-3, 1e-3, 1e-4],
    }
    for scheduler, rates in schedulers.items():
        records = list(pv.fit(build(digits), digits, epochs=3, lr_scheduler=scheduler))
        assert [record["learning_rate"] for record in records] == pytest.approx(rates)


def test_gradients_are_clipped(digits):
    """Plain gradient descent moves by the learning rate times the norm at most."""
    vae = build(digits)
    before = torch.cat([param.detach().flatten().clone() for param in vae.parameters()])
    list(pv.fit(vae, digits, epochs=1, batch_size=1349, optimizer=lambda params: SGD(params, lr=0.5), clip_grad_norm=0.01))
    after = torch.cat([param.detach().flatten() for param in vae.parameters()])
    assert (after - before).norm().item() == pytest.approx(0.005, rel=1e-3)


def test_patience(digits):
    """With a learning rate of next to nothing the ELBO wanders: it stops at the first run of epochs without a better one."""
    training = pv.fit(build(digits), digits, epochs=500, patience=3, optimizer=lambda params: SGD(params, lr=1e-12))
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
    posterior = pv.DiagonalNormal(pv.MLP(digits.shape, (2, 3)))
    return pv.VAE(pv.StandardNormal(3), posterior, FailingOnce(digits.shape, step), pv.Bernoulli())


def test_rewind_goes_back_to_the_last_good_epoch(digits):
    said = []
    vae = failing(digits, 3 + 11 + 4)
    records = list(pv.fit(vae, digits, epochs=4, on_nan="rewind", say=said.append))
    assert [record["epoch"] for record in records] == [1, 2, 3, 4]
    assert [record["step"] for record in records] == [11, 22, 33, 44]
    assert [record["rewinds"] for record in records] == [0, 1, 1, 1]
    assert [record["learning_rate"] for record in records] == pytest.approx([1e-3, 5e-4, 5e-4, 5e-4])
    assert len(said) == 1
    assert "at step 15" in said[0]
    assert "back to the end of epoch 1, with the learning rate halved to 0.0005" in said[0]


def test_rewind_gives_up_after_three_times(digits):
    said = []
    with pytest.raises(pv.NotFiniteError, match="not finite in epoch 1"):
        list(pv.fit(build(digits), digits, on_nan="rewind", say=said.append, optimizer=lambda params: Adam(params, lr=1e30)))
    assert len(said) == 3


def test_a_rewind_with_a_scheduler_halves_what_it_starts_from(digits):
    options = {"lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1 / (1 + epoch))}
    *_, last = pv.fit(failing(digits, 3 + 5), digits, epochs=2, on_nan="rewind", **options)
    assert last["learning_rate"] == pytest.approx(1e-3 / 2 / 2)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_resumed_is_the_same_as_never_stopped(digits, engine):
    def options():
        return {
            "engine": engine,
            "beta": pv.schedules.Cosine(steps=30),
            "lr_scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 5),
            "clip_grad_norm": 1.0,
        }

    whole = build(digits)
    expected = list(pv.fit(whole, digits, epochs=5, **options()))
    stopped = build(digits)
    training = pv.fit(stopped, digits, epochs=5, **options())
    first = [next(training), next(training)]
    saved = io.BytesIO()
    torch.save(training.state_dict(), saved)
    saved.seek(0)
    resumed = build(digits, seed=9)
    state = torch.load(saved, weights_only=True)
    rest = list(pv.fit(resumed, digits, epochs=5, resume=state, **options()))
    assert [figures(record) for record in first + rest] == [figures(record) for record in expected]
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


@pytest.mark.parametrize(("before", "after"), [("eager", "traced"), ("traced", "eager")])
def test_one_engine_goes_on_from_another(digits, before, after):
    training = pv.fit(build(digits), digits, epochs=2, engine=before)
    next(training)
    state = copy.deepcopy(training.state_dict())
    expected = next(training)
    resumed = pv.fit(build(digits), digits, epochs=2, engine=after, resume=state)
    assert next(resumed)["loss"] == pytest.approx(expected["loss"], rel=1e-5)


@pytest.mark.parametrize("options", [{"patience": 0}, {"clip_grad_norm": 0.0}, {"clip_grad_norm": float("nan")}])
def test_impossible_numbers(digits, options):
    with pytest.raises(pv.RequestError, match=f"{next(iter(options))} must be positive"):
        pv.fit(build(digits), digits, **options)


def test_active_units(digits):
    """Of a posterior whose means are the pixels, and of one that knows nothing; by draws where there is no closed form."""

    class Means(torch.nn.Module):
        def forward(self, x):
            loc = x.flatten(1)[:, 18:22] * torch.tensor([1.0, 1.0, 0.0, 0.0])
            return torch.stack([loc, torch.full_like(loc, -1.0)], 1)

    class Opaque(pv.DiagonalNormal):
        def distribution(self, params):
            q = super().distribution(params)
            opaque = type("Opaque", (type(q),), {"mean": property(lambda self: (_ for _ in ()).throw(NotImplementedError))})
            q.__class__ = opaque
            return q

    x = digits.train.images[:1000].float() / 255
    for posterior in (pv.DiagonalNormal, Opaque):
        vae = pv.VAE(pv.StandardNormal(4), posterior(Means()), pv.MLP((4,), (1, *digits.shape)), pv.Bernoulli(relaxed=True))
        variances = activity(vae, x)
        exact = x.flatten(1)[:, 18:20].var(0).double()
        torch.testing.assert_close(variances[:2], exact, rtol=0.1, atol=0.01)
        assert (variances[2:].abs() < 1e-3).all()
