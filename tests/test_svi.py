import copy
from functools import partial

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.optim import SGD, Adam

import pyro_vae as pv


@pytest.mark.parametrize("objective", [Trace_ELBO, TraceMeanField_ELBO, RenyiELBO])
def test_steps_equal_those_of_pyros_svi(vae, x, objective):
    twin = copy.deepcopy(vae)
    vae, twin, x = vae.double(), twin.double(), x.double()
    ours = pv.SVI(
        vae.model, vae.guide, lambda params: Adam(params, lr=0.01), objective(num_particles=2)
    )
    pyros = pyro.infer.SVI(
        twin.model, twin.guide, pyro.optim.Adam({"lr": 0.01}), objective(num_particles=2)
    )
    for step in range(20):
        pyro.set_rng_seed(step)
        first = ours.step(x)
        pyro.set_rng_seed(step)
        assert first == pytest.approx(pyros.step(x), rel=1e-10)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_mean_divides_loss_and_gradient(vae, x):
    twin = copy.deepcopy(vae)
    for one, mean in ((vae, False), (twin, True)):
        pyro.set_rng_seed(0)
        one.loss = pv.SVI(
            one.model, one.guide, lambda params: SGD(params, lr=0.0), Trace_ELBO(), mean=mean
        ).step(x)
    assert vae.loss / len(x) == pytest.approx(twin.loss)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad / len(x), b.grad)


def test_existing_gradients_are_ignored(vae, x):
    twin = copy.deepcopy(vae)
    for param in vae.parameters():
        param.grad = torch.full_like(param, 100.0)
    for one in (vae, twin):
        pyro.set_rng_seed(0)
        pv.SVI(
            one.model, one.guide, lambda params: SGD(params, lr=0.1), Trace_ELBO(num_particles=2)
        ).step(x)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_evaluate_loss_takes_no_step(vae, x):
    svi = pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO(), mean=True)
    before = [param.clone() for param in vae.parameters()]
    pyro.set_rng_seed(5)
    loss = svi.evaluate_loss(x)
    pyro.set_rng_seed(5)
    assert loss == pytest.approx(svi.step(x))
    assert not all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))


def test_parameters_that_appear_late_are_trained():
    calls = []

    def model(x):
        calls.append(1)
        loc = pyro.param("loc", torch.tensor(0.0)) + (
            pyro.param("late", torch.tensor(0.0)) if len(calls) > 3 else 0
        )
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    svi = pv.SVI(model, lambda x: None, lambda params: SGD(params, lr=0.1), Trace_ELBO())
    for _ in range(6):
        svi.step(torch.ones(3))
    assert pyro.param("late").item() != 0


def test_constrained_parameters_are_trained_unconstrained():
    def model(x):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(0.0, scale), obs=x)

    svi = pv.SVI(model, lambda x: None, lambda params: Adam(params, lr=0.1), Trace_ELBO())
    for _ in range(300):
        svi.step(torch.tensor([-0.1, 0.1]))
    assert pyro.param("scale").item() == pytest.approx(0.1, rel=1e-3)


@pytest.mark.parametrize("enabled", [True, False])
def test_the_users_validation_setting_is_restored(vae, x, enabled):
    svi = pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO())
    with pyro.validation_enabled(enabled):
        for _ in range(2):
            svi.step(x)
            assert pyro.infer.util.is_validation_enabled() == enabled


def test_the_first_step_is_validated(vae, x):
    with pytest.raises(ValueError, match="within the support"):
        pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO()).step(x / 2)


def line(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


OPTIMIZERS = {
    "torch": lambda: partial(Adam, lr=0.01),
    "Pyro": lambda: pyro.optim.Adam({"lr": 0.01}),
    "Pyro, clipped": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.999, "clip_norm": 0.1}),
    "Pyro, norms": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}, {"clip_norm": 0.3}),
    "Pyro, per parameter": lambda: pyro.optim.Adam(
        lambda name: {"lr": 0.1 if "scale" in name else 0.01}
    ),
    "Pyro, options of some": lambda: pyro.optim.SGD(
        lambda name: {"lr": 0.01} | ({"momentum": 0.9} if "scale" in name else {})
    ),
}


def hierarchy(x, *, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z * x, 1.0), obs=y)


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_replaces_pyros_svi(name, engine):
    """The same call with the same optimizer has the same losses; arguments by keyword."""
    x, y = torch.randn(2, 7, dtype=torch.float64)
    losses = []
    for make in (partial(pv.SVI, engine=engine), pyro.infer.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(hierarchy)
        guide(x, y=y)
        optim = OPTIMIZERS["Pyro" if name == "torch" and make is pyro.infer.SVI else name]()
        svi = make(hierarchy, guide, optim, loss=Trace_ELBO())
        losses.append([svi.step(x, y=y) for _ in range(15)] + [svi.evaluate_loss(x, y=y)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_late_parameters_have_options_of_their_own():
    def model(x):
        pyro.sample(
            "x", dist.Normal(sum(pyro.param(name, torch.tensor(0.0)) for name in names), 1.0), obs=x
        )

    names = ["a"]
    optim = pyro.optim.SGD(lambda name: {"lr": {"a": 0.0, "b": 0.1, "c": 0.2}[name]})
    svi = pv.SVI(model, lambda x: None, optim, Trace_ELBO(), engine="eager")
    svi.step(torch.tensor(1.0))
    names += "bc"
    svi.step(torch.tensor(1.0))
    assert [pyro.param(name).item() for name in names] == pytest.approx([0.0, 0.1, 0.2])


def test_pyros_schedulers_are_refused():
    schedule = pyro.optim.ExponentialLR(
        {"optimizer": Adam, "optim_args": {"lr": 0.1}, "gamma": 0.9}
    )
    with pytest.raises(pv.RequestError, match=r"svi\.optimizer"):
        pv.SVI(line, lambda x: None, schedule, Trace_ELBO())


def test_the_loss_may_be_a_function():
    def simple(model, guide, x):
        q = poutine.trace(guide).get_trace(x)
        return (
            q.log_prob_sum() - poutine.trace(poutine.replay(model, q)).get_trace(x).log_prob_sum()
        )

    losses = []
    for make in (partial(pv.SVI, engine="eager"), partial(pv.SVI, engine="traced"), pyro.infer.SVI):
        pyro.clear_param_store()
        svi = make(line, lambda x: None, pyro.optim.Adam({"lr": 0.1}), loss=simple)
        losses.append([svi.step(torch.ones(3)) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[2])
    assert losses[1] == pytest.approx(losses[2])


@pytest.mark.parametrize("optim", [Trace_ELBO(), Adam([torch.zeros(1)])])
def test_what_makes_no_optimizer_is_refused(vae, optim):
    with pytest.raises(pv.RequestError, match="optim must be a function"):
        pv.SVI(vae.model, vae.guide, optim, Trace_ELBO())


def test_a_loss_of_several_losses_is_refused(vae, x):
    with pytest.raises(pv.RequestError, match=r"pyro\.infer\.SVI"):
        pv.SVI(vae.model, vae.guide, Adam, ReweightedWakeSleep()).step(x)


def test_auto_moves_on_to_faster_engines(monkeypatch):
    monkeypatch.setattr("pyro_vae.engine.graphs.TRACED_STEPS", 3)
    monkeypatch.setattr("pyro_vae.engine.svi.TRACED_STEPS", 3)
    results = []
    for engine in ("auto", "eager"):
        pyro.clear_param_store()
        svi = pv.SVI(line, lambda x: None, partial(Adam, lr=0.1), Trace_ELBO(), engine=engine)
        engines, losses = zip(
            *((svi.engine, svi.step(torch.ones(3))) for _ in range(8)), strict=True
        )
        results.append(losses)
        assert engines == ("eager",) * 8 if engine == "eager" else ("eager",) * 4 + ("traced",) * 4
    assert results[0] == pytest.approx(results[1])


def test_arguments_may_be_nested():
    """Lists and dictionaries of tensors are read at every step."""

    def model(batch, power):
        with pyro.plate("data", 3):
            pyro.sample(
                "x",
                dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0),
                obs=batch["x"][0] ** power,
            )

    svi = pv.SVI(
        model,
        lambda batch, power: None,
        lambda params: SGD(params, lr=0.0),
        Trace_ELBO(),
        engine="traced",
    )
    losses = [
        svi.step({"x": [torch.full((3,), value)]}, power=power)
        for value, power in [(0.0, 1), (2.0, 1), (2.0, 2)]
    ]
    assert [loss - losses[0] for loss in losses] == pytest.approx([0.0, 6.0, 24.0])


def test_an_unknown_engine_is_refused(vae):
    with pytest.raises(pv.RequestError, match="turbo"):
        pv.SVI(vae.model, vae.guide, Adam, Trace_ELBO(), engine="turbo")


def test_a_graph_takes_no_arrays():
    with pytest.raises(pv.RequestError, match="pass tensors"):
        pv.SVI(lambda x: None, lambda x: None, Adam, Trace_ELBO(), engine="traced").step(
            numpy.ones(1)
        )


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("method", ["step", "update"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_in_a_later_batch_is_reported_once(engine, method, wrong, caplog):
    svi = pv.SVI(line, lambda x: None, partial(Adam, lr=0.1), Trace_ELBO(), engine=engine)
    for step in range(10):
        x = torch.tensor([1.0, wrong if step == 6 else 2.0])
        getattr(svi, method)(x)
        assert ("NaN or infinite" in caplog.text) == (step >= 6)
    (record,) = [record for record in caplog.records if record.name == "pyro_vae"]
    assert record.levelname == "WARNING"
    assert "at or before step 7;" in record.getMessage()


def test_losses_that_are_checked_elsewhere_are_not_reported(caplog):
    svi = pv.SVI(line, lambda x: None, partial(Adam, lr=0.1), Trace_ELBO(), check_losses=False)
    svi.step(torch.zeros(2))
    svi.step(torch.full((2,), torch.nan))
    assert not caplog.text


def make_regression(dim):
    def regression(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(dim), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    return regression


def train_guide(guide, model, steps=2):
    svi = pv.SVI(model, guide, partial(Adam, lr=0.1), Trace_ELBO())
    for _ in range(steps):
        svi.step(torch.ones(3))


def test_a_guide_that_starts_at_another_ones_values_is_reported(caplog):
    model = make_regression(2)
    train_guide(AutoNormal(model), model)
    assert not caplog.text
    second = AutoNormal(model)
    train_guide(second, model)
    assert caplog.text.count("pyro.clear_param_store()") == 1
    assert "AutoNormal.locs.z, AutoNormal.scales.z start at" in caplog.text
    # The same guide is trained further, and one that starts anew after the store is cleared.
    train_guide(second, model)
    pyro.clear_param_store()
    train_guide(AutoNormal(model), model)
    assert caplog.text.count("pyro.clear_param_store()") == 1


@pytest.mark.parametrize("make_guide", [AutoNormal, AutoMultivariateNormal])
def test_a_guide_that_does_not_fit_another_ones_values_names_the_store(make_guide):
    train_guide(make_guide(make_regression(2)), make_regression(2))
    model = make_regression(3)
    with pytest.raises(pv.RequestError, match=r"pyro\.clear_param_store\(\)") as raised:
        train_guide(make_guide(model), model)
    assert "\n" not in str(raised.value)
    assert raised.value.__cause__ is not None


def test_an_error_of_a_function_that_finds_stored_values_has_a_note():
    def wrong(x):
        pyro.param("loc", torch.zeros(3))
        raise ValueError("mine")

    pyro.param("loc", torch.zeros(2))
    with pytest.raises(ValueError, match=r"^mine") as raised:
        train_guide(lambda x: None, wrong)
    assert "pyro.clear_param_store()" in "".join(raised.value.__notes__)


@pytest.mark.parametrize("engine", ["eager", "traced", "auto"])
@pytest.mark.parametrize("turns", [1, 30])
def test_parameters_of_later_arguments_are_trained(engine, turns, monkeypatch):
    """An argument names the parameters; each has its graph. In turn, or in blocks."""
    monkeypatch.setattr("pyro_vae.engine.graphs.TRACED_STEPS", 10)
    monkeypatch.setattr("pyro_vae.engine.svi.TRACED_STEPS", 10)
    data = torch.tensor([1.0, 2.0, 3.0])

    def one_of_several(x, i):
        loc = pyro.param(f"loc_{i}", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=x[i])

    svi = pv.SVI(
        one_of_several, lambda x, i: None, partial(SGD, lr=0.2), Trace_ELBO(), engine=engine
    )
    for _ in range(30 // turns):
        for i in range(3):
            for _ in range(turns):
                svi.step(data, i)
    assert svi.engine == {"eager": "eager"}.get(engine, "traced")
    locs = [pyro.param(f"loc_{i}").item() for i in range(3)]
    assert locs == pytest.approx(data.tolist(), rel=0.01)
