import copy
import logging
from collections import Counter

import pyro
import pytest
import torch
from families import make_conditional, make_semi_supervised, make_vae
from torch import Tensor, nn

import pyro_vae as pv
from pyro_vae.engine.graphs import Graph
from pyro_vae.engine.precision import ROUNDING, pick_precision, products, rounded

CPU = torch.device("cpu")


@pytest.fixture
def with_bf16(monkeypatch):
    """As on a processor that has bf16; others compute the same, but slowly."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})


@pytest.fixture
def without_bf16(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": False})


def test_float32_is_exact_to_rounding():
    """With every library: the error of bf16 is 3e-3, that of tf32 is 3e-4."""
    with products("float32"):
        for rows, inner, columns in [(128, 784, 400), (1, 50, 400), (300, 400, 784), (777, 33, 5)]:
            a, b = torch.randn(rows, inner), torch.randn(inner, columns)
            exact = a.double() @ b.double()
            assert (a @ b - exact).norm() < 2 * ROUNDING * exact.norm()


@pytest.mark.parametrize("before", ["highest", "high", "medium"])
def test_the_users_setting_is_restored(before):
    torch.set_float32_matmul_precision(before)
    try:
        for name, inside in {
            "float32": ("highest", "medium"),
            "tf32": ("high",),
            "bf16": ("highest", "medium"),
        }.items():
            with products(name):
                assert torch.get_float32_matmul_precision() in inside
                assert torch.backends.cudnn.allow_tf32 == (name != "float32")
            assert torch.get_float32_matmul_precision() == before
            assert torch.backends.cudnn.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.fixture
def few(digits):
    return pv.Data("few", digits.train[:300], digits.validation, digits.test)


def test_the_precision_applies_to_training_only(few, with_bf16):
    seen = {True: set(), False: set()}

    class Spy(nn.Linear):
        def forward(self, x):
            found = super().forward(x)
            exact = x.double() @ self.weight.double().T + self.bias.double()
            is_exact = (found - exact).norm() < 10 * ROUNDING * exact.norm()
            seen[self.training].add((torch.get_float32_matmul_precision(), bool(is_exact)))
            return found

    encoder = nn.Sequential(nn.Flatten(), Spy(64, 6), nn.Unflatten(1, (2, 3)))
    decoder = pv.MLP((3,), (1, *few.shape))
    vae = pv.VAE(pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    with products("float32"):
        accurate = torch.get_float32_matmul_precision()
    for name, expected in {"tf32": ("high", True), "bf16": (accurate, False)}.items():
        training = pv.fit(vae, few, epochs=1, precision=name)
        for modes in seen.values():
            modes.clear()
        (record,) = training
        assert seen == {True: {expected}, False: {(accurate, True)}}
    assert record["validation_elbo"] == pytest.approx(-28, abs=3)


LAYERS = {
    "linear": (lambda: nn.Linear(40, 30), (5, 7, 40)),
    "without a bias": (lambda: nn.Linear(40, 30, bias=False), (5, 40)),
    "convolution": (lambda: nn.Conv2d(6, 8, 3, stride=2, padding=1), (5, 6, 9, 9)),
    "of one dimension": (lambda: nn.Conv1d(6, 8, 3, groups=2), (5, 6, 9)),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 3, stride=2, output_padding=1), (5, 6, 9, 9)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layers_in_bf16_are_exact_products_of_rounded_numbers(name, with_bf16):
    """Against float64. The results are rounded again; the bias and its gradient are not."""
    make, shape = LAYERS[name]
    layer = make()
    x = torch.randn(shape, requires_grad=True)
    direction = torch.randn(layer(x).shape)

    def results(layer, x, direction):
        """The output and the gradients."""
        y = layer(x)
        return [y.detach(), *torch.autograd.grad(y, [x, *layer.parameters()], direction)]

    with products("bf16"):
        found = Graph(lambda: results(layer, x, direction), "eager")()
    exact = copy.deepcopy(layer).double()
    exact.weight.data = layer.weight.bfloat16().double()
    rounded_x = x.detach().bfloat16().double().requires_grad_()
    expected = results(exact, rounded_x, direction.bfloat16().double())
    if layer.bias is not None:
        expected[-1] = results(exact, rounded_x, direction.double())[-1]
        torch.testing.assert_close(found[-1].double(), expected[-1], rtol=1e-5, atol=1e-5)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.float32
        assert (one - other).norm() < 2**-8 * other.norm()
    assert (found[0] - layer(x)).norm() > 2**-10 * found[0].norm()


MODELS = {
    "convolutions": lambda: make_conditional(network="Conv"),
    "gates, enumerated labels": lambda: make_semi_supervised(network="Gated"),
    "mixture": lambda: make_vae("VampPrior"),
    "factors": lambda: make_vae(posterior="LowRankNormal", likelihood="Categorical"),
    "flow": lambda: make_vae("FlowPrior", "FlowPosterior"),
}
# What is computed in bf16, besides changes of type and shape.
IN_BF16 = {"mm", "convolution", "convolution_backward"}
RESHAPES = {"t", "transpose", "permute", "view", "_unsafe_view", "expand", "detach", "alias"}


@pytest.mark.parametrize("name", MODELS)
def test_only_the_products_of_layers_are_in_bf16(name, with_bf16):
    """Each weight is rounded once in a step, unless a layer is used more than once."""
    vae = MODELS[name]()
    args = [torch.rand(6, 1, 4, 4).round()]
    if isinstance(vae, pv.ConditionalVAE):
        args.append(torch.tensor([0, 1, 2, 0, 1, 2]))
    svi = pv.SVI(vae.model, vae.guide, torch.optim.Adam, vae.default_objective(), engine="traced")
    with products("bf16"):
        for _ in range(2):
            svi.step(*args)
    assert svi.engine == "traced"
    (traced,) = svi._graph._traces.values()
    found = Counter()
    for node in traced.graph.graph.nodes:
        values = [one.meta.get("val") for one in node.all_input_nodes]
        if any(isinstance(one, Tensor) and one.dtype == torch.bfloat16 for one in values):
            found[node.target._schema.name.removeprefix("aten::")] += 1
    assert found.keys() <= {*IN_BF16, *RESHAPES, "_to_copy"}
    assert found.keys() & IN_BF16
    weights = [node for node in traced.graph.graph.nodes if node.op == "placeholder"]
    for node in weights:
        casts = [user for user in node.users if user.meta["val"].dtype == torch.bfloat16]
        assert len(casts) <= 2


def test_each_precision_has_a_graph_of_its_own(with_bf16):
    layer = nn.Linear(40, 30)
    x = torch.randn(5, 40)
    graph = Graph(lambda x: [layer(x).detach()], "traced")
    for name in ("float32", "bf16") * 2:
        with products(name):
            (expected,) = rounded(lambda: [layer(x)])()
            for _ in range(2):
                assert torch.equal(graph(x)[0], expected)
    assert len(graph._graphs) == 2
    assert not torch.equal(expected, layer(x))


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_a_resumed_training_in_bf16_is_equal(few, engine, with_bf16):
    """Bit for bit; and parameters, gradients and the optimizer's state are float32."""

    def start(seed):
        pyro.set_rng_seed(seed)
        vae = make_vae(shape=few.shape)
        return vae, pv.fit(vae, few, epochs=2, seed=seed, engine=engine, precision="bf16")

    whole, training = start(1)
    next(training)
    state = copy.deepcopy(training.state_dict())
    expected = next(training)
    resumed, training = start(2)
    training.load_state_dict(state)
    found = next(training)
    assert {**found, "seconds": 0, "images_per_second": 0} == {
        **expected,
        "seconds": 0,
        "images_per_second": 0,
    }
    for param, other in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(param, other)
        moments = training.loop.optimizer.state[other]
        assert {tensor.dtype for tensor in (other, other.grad, *moments.values())} == {
            torch.float32
        }


def test_bf16_is_for_processors_that_have_it(few, without_bf16, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    records = []
    for name in ("float32", "bf16", "auto"):
        pyro.set_rng_seed(0)
        vae = make_vae(shape=few.shape)
        (record,) = pv.fit(vae, few, epochs=1, seed=0, precision=name)
        records.append({**record, "seconds": 0, "images_per_second": 0})
    assert records[0] == records[1] == records[2]
    assert [line.getMessage() for line in caplog.records if "bf16" in line.getMessage()] == [
        "training in float32: the processor has no instructions for bf16 (AVX512_BF16 or AMX)"
    ] * 2


def test_auto_says_what_it_picks(with_bf16, caplog):
    caplog.set_level(logging.INFO, "pyro_vae")
    assert pick_precision("bf16", CPU) == "bf16"
    assert pick_precision("float32", CPU) == "float32"
    assert not caplog.records
    assert pick_precision("auto", CPU) == "bf16"
    assert pick_precision("auto", torch.device("cuda")) == "float32"
    assert pick_precision("bf16", torch.device("cuda")) == "bf16"
    assert [line.getMessage() for line in caplog.records] == [
        "training in bf16: the processor has instructions for bf16",
        "training in float32: auto is float32 on CUDA",
    ]
