"""Graphs compute what the programs do, with the same random numbers."""

import copy
from itertools import cycle

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import LIKELIHOODS, POSTERIORS, PRIORS, SHAPE, make_hierarchical, make_vae
from pyro.infer import RenyiELBO, Trace_ELBO, TraceEnum_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.poutine import block
from torch import nn
from torch.optim import Adam

import pyro_vae as pv
from pyro_vae.data.split import to_pixels
from pyro_vae.engine.graphs import (
    Graph,
    dry_run,
    has_compiler,
    operations_that_wait,
    pick_engine,
    trace,
)


def trained(vae, engine, make=Trace_ELBO, steps=30, gaps=False):
    """Train on batches of six, every ninth of four; beta and learning rate change at every step.

    The second batch of four is the first to be traced, the third the first to be replayed.
    """
    twin, objective = copy.deepcopy(vae).double(), make()
    pyro.set_rng_seed(7)
    x = to_pixels(torch.randint(0, 256, (6, *SHAPE), dtype=torch.uint8), vae.pixels).double()
    # Reals are standardized, as in `fit`: where a decoder's units are all dead, a VampPrior has
    # directions without a gradient, along which Adam enlarges rounding.
    twin.likelihood.initialize(x)
    if gaps:
        x[:, :, ::2, 0] = torch.nan
    annealed = isinstance(objective, Trace_ELBO)
    beta = torch.tensor(1.0, dtype=torch.float64)
    svi = pv.SVI(
        twin.model,
        twin.guide,
        lambda params: Adam(params, lr=0.01),
        objective,
        mean=True,
        prepare=lambda x: (x, None, beta),
        engine=engine,
    )
    losses = []
    for step in range(steps):
        beta.fill_(0.5 + step / steps if annealed else 1.0)
        losses.append(svi.step(x[:4] if step % 9 == 8 else x))
        svi.optimizer.param_groups[0]["lr"] *= 0.99
    assert svi.engine == engine
    return losses, twin


def assert_the_same(vae, engine, make=Trace_ELBO, steps=30, gaps=False):
    (losses, eager), (others, other) = (
        trained(vae, "eager", make, steps, gaps),
        trained(vae, engine, make, steps, gaps),
    )
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(others), rtol=1e-5, atol=1e-8)
    for (name, a), b in zip(eager.state_dict().items(), other.state_dict().values(), strict=True):
        assert (a.double() - b.double()).norm() <= 1e-5 * a.double().norm(), name
    for before, after in zip(vae.parameters(), other.parameters(), strict=True):
        assert not torch.equal(after, before.double())


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "Trace_ELBO, 3": lambda: Trace_ELBO(num_particles=3),
    "Trace_ELBO, vectorized": lambda: Trace_ELBO(
        num_particles=3, vectorize_particles=True, max_plate_nesting=1
    ),
    "TraceMeanField_ELBO": TraceMeanField_ELBO,
    "ImportanceWeightedELBO": pv.ImportanceWeightedELBO,
    "ImportanceWeightedELBO, sequential": lambda: pv.ImportanceWeightedELBO(
        3, vectorize_particles=False
    ),
    "DReGELBO": pv.DReGELBO,
    "StickingTheLandingELBO": pv.StickingTheLandingELBO,
    "FreeBitsELBO": lambda: pv.FreeBitsELBO(0.01),
    "CapacityELBO": lambda: pv.CapacityELBO(10.0, pv.Constant(2.0)),
}


class Normalized(nn.Module):
    """An encoder whose training changes its buffers and draws random numbers."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 3, 3),
            nn.BatchNorm2d(3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(0.3),
            nn.Linear(12, 4),
            nn.Unflatten(1, (2, 2)),
        )

    def forward(self, x):
        return self.layers(x)


def make_normalized():
    mixture, decoder = pv.GaussianMixture(2, components=3), pv.MLP((2,), (1, *SHAPE), hidden=(8,))
    return pv.VAE(mixture, Normalized(), pv.DiagonalNormal(), decoder, pv.Bernoulli())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_objective_traced(objective):
    assert_the_same(make_vae(), "traced", OBJECTIVES[objective])


PARTS = list(zip(cycle(PRIORS), cycle(POSTERIORS), LIKELIHOODS, strict=False))


@pytest.mark.parametrize("parts", PARTS, ids=" x ".join)
def test_every_part_traced(parts):
    assert_the_same(make_vae(*parts), "traced")


# Their steps on CUDA run without a CUDA graph.
WAITING = {
    "LowRankNormal",
    "LowRankNormal, full",
    "FlowPrior, coupling",
    "FlowPosterior, coupling",
}


@pytest.mark.parametrize(
    ("parts", "objective"),
    list(zip(PARTS, cycle(["Trace_ELBO", "DReGELBO", "StickingTheLandingELBO"]), strict=False)),
)
def test_no_operation_waits_for_the_host(parts, objective):
    vae = make_vae(*parts)
    images = torch.randint(0, 256, (9, *SHAPE), dtype=torch.uint8)
    svi = pv.SVI(
        vae.model,
        vae.guide,
        Adam,
        OBJECTIVES[objective](),
        prepare=lambda i: (to_pixels(images[i], vae.pixels),),
    )
    svi.dry_run(torch.arange(6))
    graph = trace(svi._tensor_gradients, (torch.arange(6),), {}).graph
    assert bool(operations_that_wait(graph)) == (not WAITING.isdisjoint(parts))


@pytest.mark.parametrize("objective", ["Trace_ELBO", "DReGELBO", "StickingTheLandingELBO"])
def test_two_layers_traced(objective):
    assert_the_same(make_hierarchical(), "traced", OBJECTIVES[objective])


def test_batch_normalization_and_dropout_traced():
    assert_the_same(make_normalized(), "traced")


@pytest.mark.skipif(not has_compiler(), reason="there is no C++ compiler")
def test_compiled():
    """On data with gaps; in as few steps as compile batches of six alone, which is slow."""
    assert_the_same(make_normalized(), "compiled", steps=17, gaps=True)


def test_a_graph_draws_torchs_own_random_numbers():
    """It also leaves the generator in the same state."""
    states = []
    for engine in ("eager", "traced"):
        pyro.set_rng_seed(0)
        graph = Graph(lambda x: [x + torch.randn(3)], engine)
        drawn = [graph(torch.zeros(3))[0] for _ in range(3)]
        states.append((*drawn, torch.rand(2)))
    for a, b in zip(*states, strict=True):
        assert torch.equal(a, b)


def test_other_shapes_run_eagerly_until_they_repeat():
    runs = []

    def function(x):
        runs.append(len(x))
        return [2 * x]

    graph = Graph(function, "traced")
    for size in (3, 3, 2, 3, 2, 2, 2):
        assert torch.equal(graph(torch.ones(size))[0], 2 * torch.ones(size))
    assert runs == [3, 3, 3, 2, 2, 2, 2]


def test_control_flow_on_values_runs_eagerly_with_one_warning(caplog):
    graph = Graph(lambda x: [x if x.sum() > 0 else -x], "traced")
    assert [graph(torch.full((1,), value))[0].item() for value in (1.0, -2.0, 3.0)] == [
        1.0,
        2.0,
        3.0,
    ]
    assert graph.engine == "eager"
    assert caplog.text.count("value of a tensor") == 1


def test_arguments_that_keep_changing_are_reported_once(caplog):
    graph = Graph(lambda x, scale: [scale * x], "traced")
    results = [graph(torch.ones(1), step / 2)[0].item() for step in range(300)]
    assert results == [step / 2 for step in range(300)]
    assert caplog.text.count("as tensors") == 1


def test_values_that_decide_about_shapes_run_eagerly(caplog):
    """Of a random mask: the graph would keep the number of rows of its first call."""
    graph = Graph(lambda x: [x[torch.rand(4) < 0.5].sum() * 1.0], "traced")
    for _ in range(5):
        graph(torch.ones(4))
    assert graph.engine == "eager"
    assert caplog.text.count("decide about shapes (aten.index.Tensor)") == 1


def test_a_constant_mask_is_traced():
    mask = torch.tensor([True, False, True])
    rows = torch.tensor([2, 0])
    graph = Graph(lambda x: [x[mask].sum(), x[rows][x.argsort()[:2] % 2]], "traced")
    for _ in range(3):
        total, picked = graph(torch.tensor([1.0, 2.0, 3.0]))
    assert (total, picked.tolist()) == (4.0, [3.0, 1.0])
    assert graph.engine == "traced"


def branch(x):
    loc = pyro.param("loc", torch.tensor(0.0))
    if loc > 1:  # steers
        loc = -loc
    pyro.sample("x", dist.Normal(loc, 1.0), obs=x)


def test_a_fallback_names_the_line_of_the_program(caplog):
    svi = pv.SVI(branch, lambda x: None, Adam, Trace_ELBO(), engine="traced")
    for _ in range(3):
        svi.step(torch.tensor(1.0))
    (record,) = [record for record in caplog.records if record.name == "pyro_vae"]
    line = branch.__code__.co_firstlineno + 2
    assert record.levelname == "WARNING"
    assert f"{__file__}:{line}: if loc > 1:" in record.getMessage()


def test_without_a_compiler_it_is_traced(monkeypatch, caplog):
    monkeypatch.setattr("pyro_vae.engine.graphs._compiled", lambda *args: 1 / 0)
    graph = Graph(lambda x: [x + 1], "compiled")
    assert [graph(torch.ones(2))[0].sum().item() for _ in range(2)] == [4.0, 4.0]
    assert graph.engine == "traced"
    assert caplog.text.count("division by zero") == 1


def test_an_objective_without_a_tensor_loss_runs_eagerly(vae, x, caplog):
    svi = pv.SVI(vae.model, vae.guide, Adam, RenyiELBO(num_particles=2), engine="traced")
    svi.step(x)
    assert svi.engine == "eager"
    assert "RenyiELBO" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_a_dry_run_has_no_side_effects(fails):
    tensor, view = torch.zeros(4), torch.arange(4.0)
    norm = nn.BatchNorm1d(2)
    before = copy.deepcopy(norm.state_dict())

    def function():
        tensor.add_(torch.rand(4))
        view[1:3] *= 5
        norm(torch.rand(5, 2))
        if fails:
            raise ValueError("on purpose")

    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    if fails:
        with pytest.raises(ValueError, match="on purpose"):
            dry_run(function)
    else:
        dry_run(function)
    assert torch.equal(tensor, torch.zeros(4))
    assert torch.equal(view, torch.arange(4.0))
    assert all(torch.equal(before[name], value) for name, value in norm.state_dict().items())
    assert torch.equal(torch.rand(1), expected)


def test_programs_that_are_not_vaes():
    """With constrained parameters, an automatic guide and an argument that is not a tensor."""

    def model(x, y, degree):
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        weight = pyro.sample("weight", dist.Normal(torch.zeros(degree + 1), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            mean = sum(weight[..., i] * x**i for i in range(degree + 1))
            pyro.sample("y", dist.Normal(mean, scale), obs=y)

    x = torch.linspace(-1, 1, 50)
    y = 1 + 2 * x + 0.1 * torch.randn(50)
    results = []
    for engine in ("eager", "traced"):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(model)
        svi = pv.SVI(
            model, guide, lambda params: Adam(params, lr=0.03), Trace_ELBO(), engine=engine
        )
        losses = [svi.step(x, y, 1) for _ in range(400)]
        results.append((losses[-1], pyro.param("scale").item(), guide.median()["weight"]))
        assert isinstance(svi.evaluate_loss(x, y, 1), float)
    assert results[0][:2] == pytest.approx(results[1][:2], rel=1e-3)
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-3, atol=1e-3)
    assert results[1][1] == pytest.approx(0.1, abs=0.05)
    torch.testing.assert_close(results[1][2], torch.tensor([1.0, 2.0]), atol=0.1, rtol=0)


def same_losses(model, make_guide, objective, *args):
    """The losses of Pyro's SVI and ours, traced."""
    losses = []
    for make in (pyro.infer.SVI, lambda *args: pv.SVI(*args, engine="traced")):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = make_guide()
        objective.loss(model, guide, *args)
        pyro.set_rng_seed(0)
        svi = make(model, guide, pyro.optim.Adam({"lr": 0.05}), objective)
        losses.append([svi.step(*args) for _ in range(12)])
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert svi.engine == "traced"


def test_distributions_that_were_expanded_before():
    """They keep the validation that was on when they were made."""
    module = PyroModule[nn.Linear](3, 1, bias=False)
    module.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))

    def model(x, y):
        mean = module(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=y)

    same_losses(model, lambda: AutoNormal(model), Trace_ELBO(), torch.randn(9, 3), torch.randn(9))


@config_enumerate
def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


def test_enumeration_in_the_model_traced():
    same_losses(
        mixture,
        lambda: AutoNormal(block(mixture, hide=["z"])),
        TraceEnum_ELBO(max_plate_nesting=1),
        torch.randn(9),
    )


@pytest.mark.parametrize("impossible", [False, True])
def test_enumeration_in_the_guide_traced(impossible):
    """A value that is impossible in guide and model has probability zero and an infinite cost."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample(
                "z", dist.Categorical(torch.tensor([0.5, 0.5, 0.0 if impossible else 0.1]))
            )
            pyro.sample("x", dist.Normal(pyro.param("loc", torch.arange(3.0))[z], 1.0), obs=x)

    @config_enumerate
    def guide(x):
        weights = pyro.param("weights", torch.ones(3)).softmax(-1)
        weights = torch.cat((weights[:2], weights[2:] * (not impossible)))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(weights))

    same_losses(model, lambda: guide, TraceEnum_ELBO(max_plate_nesting=1), torch.randn(9))


def test_nothing_to_enumerate_traced():
    def model(x):
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    same_losses(
        model,
        lambda: AutoNormal(model),
        TraceEnum_ELBO(strict_enumeration_warning=False),
        torch.randn(9),
    )


def test_pick_engine():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_engine("traced", cpu, 33) == "traced"
    assert pick_engine("auto", cpu, 33) == "eager"
    assert pick_engine("auto", cpu, 3000) == "traced"
    assert pick_engine("auto", cpu, 10**6) == ("compiled" if has_compiler() else "traced")
    assert pick_engine("auto", cuda, 10**6) == "compiled"


def test_a_parameter_that_is_made_while_tracing_is_an_input():
    """Otherwise Inductor would take its value at that time for a constant."""
    store = {}

    def function(x):
        if "weight" not in store:
            store["weight"] = torch.tensor(2.0).requires_grad_()
        return [(store["weight"] * x).detach()]

    captured = trace(function, (torch.ones(3),), {}).captured
    assert any(tensor is store["weight"] for tensor in captured)
