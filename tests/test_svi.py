import copy
import random
from functools import partial

import numpy
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import (
    JitTrace_ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceMeanField_ELBO,
)
from pyro.infer.autoguide import (
    AutoDelta,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoNormal,
)
from torch import nn
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


def layers(*sizes):
    inputs, hidden, outputs = sizes
    return nn.Sequential(
        nn.Linear(inputs, hidden),
        nn.BatchNorm1d(hidden),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(hidden, outputs),
    )


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_batch_normalization_and_dropout_with_several_particles(engine, vectorized):
    """Comparisons with the graph update no running mean.

    With SGD: the gradient of the bias before batch normalization is zero up to rounding, and Adam
    would make it as large as any other.
    """
    torch.manual_seed(0)
    encoder = layers(5, 8, 4).double()
    decoder = nn.Linear(2, 5).double()
    x = torch.randn(16, 5, dtype=torch.float64)
    before = copy.deepcopy([encoder.state_dict(), decoder.state_dict()])

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(len(x), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, log_scale = encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    results = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        encoder.load_state_dict(before[0])
        decoder.load_state_dict(before[1])
        objective = Trace_ELBO(3, vectorize_particles=vectorized, max_plate_nesting=1)
        svi = make(model, guide, pyro.optim.SGD({"lr": 0.01}), objective)
        pyro.set_rng_seed(1)
        losses = [svi.step(x) for _ in range(20)]
        results.append(copy.deepcopy([losses, encoder.state_dict(), decoder.state_dict()]))
    assert svi.engine == engine
    torch.testing.assert_close(*results, rtol=1e-10, atol=1e-13)


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


@pytest.mark.parametrize("optim", [Trace_ELBO(), Adam([torch.zeros(1)])])
def test_what_makes_no_optimizer_is_refused(vae, optim):
    with pytest.raises(pv.RequestError, match="optim must be a function"):
        pv.SVI(vae.model, vae.guide, optim, Trace_ELBO())


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


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_arguments_may_be_arrays(engine, caplog):
    """They run eagerly, because a graph would keep their values."""

    def model(x):
        line(torch.from_numpy(x))

    svi = pv.SVI(model, lambda x: None, partial(SGD, lr=0.0), Trace_ELBO(), engine=engine)
    losses = [svi.step(numpy.full(3, value, "float32")) for value in (0, 0, 0, 2)]
    assert losses[3] - losses[0] == pytest.approx(6)
    assert caplog.text.count("pass tensors") == (engine == "traced")


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


def regression(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 8, subsample_size=5) as rows:
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, scale.sum()), obs=x[rows])


def without_plate(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", 8):
        pyro.sample("x", dist.Normal(loc, scale.sum()), obs=x)


def both_losses(model, make_guide, make_objective, engine, *args):
    """The losses of Pyro's SVI and of ours, from the first step."""
    losses = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, make_guide(model), pyro.optim.Adam({"lr": 0.1}), make_objective())
        losses.append([svi.step(*args) for _ in range(6)])
    return losses


GUIDES = [(regression, AutoNormal), (regression, AutoDelta)]
GUIDES += [(without_plate, guide) for guide in (AutoLowRankMultivariateNormal, AutoIAFNormal)]


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize(("model", "guide"), GUIDES)
def test_the_first_step_draws_as_pyros_does(model, guide, engine):
    """Also for guides whose first call draws their start, in subsampled plates, or a network."""
    pyros, ours = both_losses(model, guide, Trace_ELBO, engine, torch.randn(8))
    assert ours == pytest.approx(pyros, rel=1e-5)


def test_traces_and_deprecated_arguments():
    """`run` takes the steps and collects the traces, as Pyro's does."""
    traces = []
    for make in (pyro.infer.SVI, pv.SVI):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        programs = without_plate, AutoNormal(without_plate)
        optim = pyro.optim.Adam({"lr": 0.1})
        with pytest.warns(FutureWarning, match="deprecated") as warned:
            svi = make(*programs, optim, Trace_ELBO(), num_samples=3, num_steps=4)
        assert len(warned) == 2
        with pytest.warns(FutureWarning, match="deprecated"):
            svi.run(torch.ones(8))
        traces.append([trace.nodes["loc"]["value"].item() for trace in svi.exec_traces])
    assert isinstance(svi, pyro.infer.SVI)
    assert traces[0] == pytest.approx(traces[1])


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_each_kind_of_arguments_is_validated(engine):
    """The guide lacks a site of the model in later steps; other shapes do not fit."""

    def model(x, deep):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            if deep:
                pyro.sample("top", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x, deep):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(3)), 1.0))

    svi = pv.SVI(model, guide, partial(SGD, lr=0.01), Trace_ELBO(), engine=engine)
    for _ in range(3):
        svi.step(torch.zeros(3), False)
    with pytest.warns(UserWarning, match="Found vars in model but not guide"):
        svi.step(torch.zeros(3), True)
    for _ in range(2):
        with pytest.raises(ValueError, match="invalid log_prob shape"):
            svi.step(torch.zeros(4, 3), False)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_a_parameter_without_a_gradient_keeps_its_momentum(engine):
    """Pyro keeps gradients of zeros."""

    def model(x, used):
        a, b = (pyro.param(name, torch.tensor(0.0)) for name in "ab")
        pyro.sample("x", dist.Normal(a + b if used else a, 1.0), obs=x)

    locs = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        optim = pyro.optim.SGD({"lr": 0.1, "momentum": 0.9})
        svi = make(model, lambda x, used: None, optim, Trace_ELBO())
        for used in (True, True, True, False, False, False):
            svi.step(torch.tensor(1.0), used)
        locs.append([pyro.param(name).item() for name in "ab"])
    assert locs[0] == pytest.approx(locs[1])


@pytest.mark.parametrize("engine", ["eager", "traced"])
@pytest.mark.parametrize("change", ["clear", "load", "set"])
def test_parameters_that_are_replaced_are_trained(change, engine):
    """By clearing or loading Pyro's parameter store, or by setting one."""
    locs = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        store = pyro.get_param_store()
        svi = make(line, lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
        for step in range(12):
            if step == 3:
                state = copy.deepcopy(store.get_state())
            if step == 6 and change == "clear":
                pyro.clear_param_store()
            if step == 6 and change == "load":
                store.set_state(state)
            if step == 6 and change == "set":
                store["loc"] = torch.tensor(-5.0)
            svi.step(torch.ones(3))
        locs.append(pyro.param("loc").item())
    assert locs[0] == pytest.approx(locs[1])


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_an_optimizer_that_asks_for_the_subsample_gets_that_of_each_step(engine, caplog):
    """Eagerly: a graph would leave the rows of the step in which it was made."""
    data = torch.linspace(1.0, 2.0, 8)

    def model():
        with pyro.plate("data", 8, subsample_size=2) as rows:
            loc = pyro.param("loc", torch.zeros(8), event_dim=0)
            pyro.sample("x", dist.Normal(loc, 1.0), obs=data[rows])

    locs = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        optim = pyro.optim.DCTAdam({"lr": 0.1, "subsample_aware": True})
        svi = make(model, lambda: None, optim, Trace_ELBO())
        for _ in range(8):
            svi.step()
        locs.append(pyro.param("loc").tolist())
    assert locs[0] == pytest.approx(locs[1])
    assert caplog.text.count("DCTAdam asks which rows") == (engine == "traced")


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_handlers_around_a_step_apply_to_it(engine, caplog):
    losses = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        svi = make(line, lambda x: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        losses.append([])
        for scale in (1.0, 1.0, 1.0, 0.5, 0.25):
            with pyro.poutine.scale(scale=scale):
                losses[-1].append(svi.step(torch.ones(3)))
    assert losses[0] == pytest.approx(losses[1])
    assert caplog.text.count("effect handlers are around the step") == (engine == "traced")


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_parameters_can_be_frozen_and_trained_again(engine):
    weights = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        net = nn.Linear(1, 1).eval()  # or Pyro warns about frozen parameters
        nn.init.zeros_(net.weight)
        nn.init.zeros_(net.bias)

        def model(x, net=net):
            pyro.module("net", net)
            pyro.sample("x", dist.Normal(net(x[:, None])[:, 0], 1.0).to_event(1), obs=2 * x + 1)

        svi = make(model, lambda x: None, pyro.optim.SGD({"lr": 0.05}), Trace_ELBO())
        weights.append([])
        for trained in (True, False, True):
            net.bias.requires_grad_(trained)
            for _ in range(4):
                svi.step(torch.tensor([-1.0, 1.0, 2.0]))
            weights[-1] += [net.weight.item(), net.bias.item()]
    assert svi.engine == engine
    assert weights[0] == pytest.approx(weights[1])


def test_an_optimizer_of_pyro_with_steps_of_its_own_is_refused():
    class SignDescent(pyro.optim.PyroOptim):
        def __call__(self, params):
            for param in params:
                param.data -= 0.1 * param.grad.sign()

    with pytest.raises(pv.RequestError, match="SignDescent takes its steps in a __call__"):
        pv.SVI(line, lambda x: None, SignDescent(SGD, {"lr": 0.1}), Trace_ELBO())


def test_what_torch_jit_compiles_runs_eagerly(caplog):
    svi = pv.SVI(
        line, lambda x: None, partial(SGD, lr=0.1), JitTrace_ELBO(num_particles=2), engine="traced"
    )
    assert svi.engine == "eager"
    assert "JitTrace_ELBO is compiled by torch.jit; use Trace_ELBO" in caplog.text


@pytest.mark.parametrize("draw", [numpy.random.rand, random.random])
def test_random_numbers_of_numpy_and_python_are_those_of_each_step(draw, caplog):
    def model():
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=torch.tensor(draw()))

    losses = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine="traced")):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        svi = make(model, lambda: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
        losses.append([svi.step() for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1])
    assert caplog.text.count("random numbers of Python or NumPy") == 1


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_modules_switch_between_training_and_evaluation(engine, caplog):
    class Program(pyro.nn.PyroModule):
        def __init__(self):
            super().__init__()
            self.net = layers(3, 4, 1)

        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("y", dist.Normal(self.net(x).squeeze(-1), 1.0), obs=x.sum(-1))

    pyro.set_rng_seed(0)
    program = Program()
    twin = copy.deepcopy(program)
    x = torch.randn(6, 3)
    ours = pv.SVI(program.model, lambda x: None, partial(SGD, lr=0.1), Trace_ELBO(), engine=engine)
    pyros = pyro.infer.SVI(twin.model, lambda x: None, pyro.optim.SGD({"lr": 0.1}), Trace_ELBO())
    for trains in (True, False, True):
        program.train(trains)
        twin.train(trains)
        for step in range(4):
            pyro.get_param_store().clear()
            pyro.set_rng_seed(step)
            expected = pyros.step(x)
            pyro.get_param_store().clear()
            pyro.set_rng_seed(step)
            assert ours.step(x) == pytest.approx(expected, rel=1e-4)
    assert ours.engine == engine
    assert not caplog.messages


def observed_at(scale):
    def model(x):
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, scale), obs=x)

    return model


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_programs_can_be_replaced(engine, caplog):
    x = torch.arange(3.0)
    losses = []
    for make in (pyro.infer.SVI, partial(pv.SVI, engine=engine)):
        pyro.clear_param_store()
        optimizer = pyro.optim.Adam({"lr": 0.1})
        svi = make(observed_at(1.0), lambda x: None, optimizer, Trace_ELBO())
        losses.append([svi.step(x) for _ in range(4)])
        svi.model = observed_at(2.0)
        losses[-1] += [svi.step(x) for _ in range(4)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    assert svi.engine == engine
    assert not caplog.messages


def test_what_a_step_would_not_follow_is_refused():
    svi = pv.SVI(observed_at(1.0), lambda x: None, pyro.optim.Adam({"lr": 0.1}), Trace_ELBO())
    svi.step(torch.zeros(3))
    with pytest.raises(pv.RequestError, match="another SVI"):
        svi.optim = pyro.optim.SGD({"lr": 0.1})
    with pytest.raises(pv.RequestError, match="another SVI"):
        svi.loss_and_grads = TraceMeanField_ELBO().loss_and_grads
    with pytest.raises(pv.RequestError, match="make another"):
        copy.deepcopy(svi)
