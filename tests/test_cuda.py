"""On a GPU: engines take the same steps, which replay as CUDA graphs and wait for nothing."""

import copy
import json
import warnings
from contextlib import contextmanager
from itertools import cycle

import pyro
import pytest
import torch
from families import LIKELIHOODS, POSTERIORS, PRIORS, SHAPE, make_vae
from pyro.infer import Trace_ELBO
from torch.optim import SGD, Adam

import pyro_vae as pv
from pyro_vae.data.split import to_pixels
from pyro_vae.engine.graphs import Graph
from pyro_vae.vae import default_batch_size

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def cuda_vae(*parts, dtype=torch.float64):
    return make_vae(*parts).to("cuda", dtype)


def of_digits(data):
    return make_vae(latent_dim=3, shape=data.shape)


def trained(vae, engine, objective=Trace_ELBO, steps=60):
    twin = copy.deepcopy(vae)
    pyro.set_rng_seed(7)
    images = torch.randint(0, 256, (40, *SHAPE), dtype=torch.uint8, device="cuda")
    beta = torch.tensor(1.0, dtype=torch.float64, device="cuda")

    def prepare(index):
        return to_pixels(images[index], vae.pixels).double(), None, beta

    svi = pv.SVI(
        twin.model, twin.guide, adam, objective(), mean=True, prepare=prepare, engine=engine
    )
    losses = []
    for step in range(steps):
        beta.fill_(0.5 + step / steps if objective is Trace_ELBO else 1.0)
        index = torch.randperm(40, device="cuda")[: 4 if step % 9 == 8 else 6]
        losses.append(svi.step(index))
        for group in svi.optimizer.param_groups:
            group["lr"] *= 0.99
    assert svi.engine == engine
    return losses, twin, svi


def adam(params):
    return Adam(params, lr=0.01, capturable=True)


@pytest.mark.parametrize("engine", ["traced", "compiled"])
@pytest.mark.parametrize(
    "objective", [Trace_ELBO, pv.DReGELBO, pv.StickingTheLandingELBO, pv.FreeBitsELBO]
)
def test_engines_take_the_same_steps(engine, objective):
    """Without replay the noise is the same; the learning rate and beta change at every step."""
    vae = cuda_vae()
    (losses, eager, _), (others, other, _) = (
        trained(vae, "eager", objective, 3),
        trained(vae, engine, objective, 3),
    )
    torch.testing.assert_close(torch.tensor(losses), torch.tensor(others), rtol=1e-6, atol=1e-9)
    for a, b in zip(eager.parameters(), other.parameters(), strict=True):
        assert (a - b).norm() <= 1e-5 * a.norm()


@pytest.mark.parametrize("engine", ["traced", "compiled"])
def test_replayed_steps_train_as_well(engine):
    vae = cuda_vae()
    (losses, _, _), (others, other, svi) = (
        trained(vae, "eager", steps=200),
        trained(vae, engine, steps=200),
    )
    assert len(svi._replay.graphs) == 2
    assert sum(others[-50:]) == pytest.approx(sum(losses[-50:]), rel=0.02)
    assert all(param.isfinite().all() for param in other.parameters())


class Still(pv.DiagonalNormal):
    """A guide without noise, so that replays can be compared."""

    def forward(self, params):
        return pyro.distributions.Delta(params[..., 0, :]).to_event(1)


def still(engine, optimizer=adam, prepare=None):
    torch.manual_seed(1)
    vae = make_vae()
    vae.posterior = Still()
    vae.cuda()
    return vae, pv.SVI(
        vae.model, vae.guide, optimizer, Trace_ELBO(), mean=True, prepare=prepare, engine=engine
    )


def assert_close(vae, other):
    for a, b in zip(vae.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def batches():
    torch.manual_seed(0)
    return torch.bernoulli(torch.full((20, 6, *SHAPE), 0.4, device="cuda"))


def test_replayed_steps_equal_eager_steps():
    """Parameters and sums after many steps."""
    twins = [still(engine) for engine in ("eager", "traced")]
    for _, svi in twins:
        for rows in batches():
            svi.update(rows)
    assert twins[0][1].total.item() == pytest.approx(twins[1][1].total.item(), rel=1e-5)
    assert twins[1][1]._replay.graphs
    assert_close(twins[0][0], twins[1][0])


def set_options(svi, step):
    group = svi.optimizer.param_groups[0]
    group["lr"] = 0.01 / (1 + step)
    if step == 10:
        group["betas"], group["weight_decay"] = (0.5, 0.9), 0.1


def test_replays_use_changed_optimizer_options():
    twins = [still(engine) for engine in ("eager", "traced")]
    for _, svi in twins:
        for step, rows in enumerate(batches()):
            svi.update(rows)
            set_options(svi, step)
    assert twins[1][1]._replay.graphs
    assert_close(twins[0][0], twins[1][0])


def test_arguments_that_are_not_tensors():
    twins = [
        still(engine, prepare=lambda x, power: (x, None, 2.0**power))
        for engine in ("eager", "traced")
    ]
    for _, svi in twins:
        for step, rows in enumerate(batches()):
            svi.update(rows, step % 2)
    assert twins[1][1]._replay.graphs
    assert_close(twins[0][0], twins[1][0])


def test_every_shape_that_occurs_again_is_replayed():
    """Batches of 6, every third of 4, one of 5."""
    twins = [still(engine) for engine in ("eager", "traced")]
    for _, svi in twins:
        for step, rows in enumerate(batches()):
            svi.update(rows[: 5 if step == 7 else 4 if step % 3 == 2 else 6])
    assert twins[0][1].total.item() == pytest.approx(twins[1][1].total.item(), rel=1e-5)
    assert len(twins[1][1]._replay.graphs) == 2
    assert_close(twins[0][0], twins[1][0])


def test_a_shape_is_traced_once():
    """When it occurs again. Each shape runs eagerly once, and is then traced in two calls.

    The shape 2 does not occur again at once.
    """
    runs = []

    def function(x):
        runs.append(len(x))
        return [2 * x]

    graph = Graph(function, "traced")
    for size in (3, 3, 2, 3, 2, 2, 2, 4, 4, 4, 4):
        assert torch.equal(graph(torch.ones(size, device="cuda"))[0].cpu(), 2 * torch.ones(size))
    assert runs == [3, 3, 3, 2, 2, 2, 4, 4, 4]


def test_an_optimizer_that_cannot_be_captured(caplog):
    twins = [
        still(engine, optimizer=lambda params: SGD(params, lr=0.01))
        for engine in ("eager", "traced")
    ]
    for _, svi in twins:
        for rows in batches():
            svi.update(rows)
    assert caplog.text.count("without a CUDA graph") == caplog.text.count("SGD") == 1
    assert_close(twins[0][0], twins[1][0])


def test_cpu_tensors_are_read_at_every_step(caplog):
    twins = []
    for engine in ("eager", "traced"):
        beta = torch.tensor(1.0)
        vae, svi = still(engine, prepare=lambda x, beta=beta: (x, None, beta))
        for step, rows in enumerate(batches()):
            beta.fill_(1 + step)
            svi.update(rows)
        twins.append(vae)
    assert_close(*twins)
    assert caplog.text.count("without a CUDA graph") == 1


@pytest.mark.parametrize("parts", [("StandardNormal", "LowRankNormal"), ("FlowPrior, coupling",)])
def test_operations_that_wait_for_the_host_are_not_replayed(parts, caplog):
    *_, svi = trained(cuda_vae(*parts), "traced", steps=8)
    assert caplog.text.count("without a CUDA graph") == (not svi._replay.graphs)


@contextmanager
def raising_waits():
    """Raise where the host waits for the device."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_replays_do_not_wait_for_the_host():
    vae = cuda_vae(dtype=torch.float32)
    x = torch.bernoulli(torch.full((6, *SHAPE), 0.4, device="cuda"))
    svi = pv.SVI(vae.model, vae.guide, adam, Trace_ELBO(), mean=True, engine="traced")
    # The graph is compared with the programs in steps 3, 4, 6, 10, 18 and 34, which waits.
    for _ in range(18):
        svi.update(x)
    with raising_waits():
        for _ in range(10):
            svi.update(x)
    assert svi.total.item() > 0


OBJECTIVES = {
    "Trace_ELBO": Trace_ELBO,
    "DReGELBO": pv.DReGELBO,
    "StickingTheLandingELBO": pv.StickingTheLandingELBO,
    "FreeBitsELBO": lambda: pv.FreeBitsELBO(groups=1),
    "CapacityELBO": lambda: pv.CapacityELBO(10.0, pv.Constant(2.0)),
    "ImportanceWeightedELBO": pv.ImportanceWeightedELBO,
}
PARTS = list(zip(cycle(PRIORS), cycle(POSTERIORS), LIKELIHOODS, cycle(OBJECTIVES), strict=False))


@pytest.mark.parametrize(("prior", "posterior", "likelihood", "objective"), PARTS)
def test_every_part(prior, posterior, likelihood, objective):
    """Replayed, unless an operation waits for the host."""
    *_, svi = trained(
        cuda_vae(prior, posterior, likelihood), "traced", OBJECTIVES[objective], steps=8
    )
    assert bool(svi._replay.graphs) == svi._graph.capturable


@pytest.mark.parametrize("engine", ["eager", "traced", "compiled"])
def test_a_run_from_the_command_line(tmp_path, engine):
    from pyro_vae.train import main as train

    argv = [
        "--data",
        "digits",
        "--epochs",
        "3",
        "--device",
        "cuda",
        "--engine",
        engine,
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert train(argv) == 0
    assert train(["--run_dir", str(tmp_path / "r"), "--resume", "--epochs", "4"]) == 0
    lines = [
        json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["epoch"] for line in lines] == [1, 2, 3, 4]
    assert lines[-1]["validation_elbo"] > -31


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_a_loss_that_is_not_finite_is_found_within_the_epoch(digits, engine):
    vae = of_digits(digits).cuda()
    with pytest.raises(pv.NotFiniteError, match="epoch 1"):
        list(
            pv.fit(
                vae, digits, epochs=2, engine=engine, optimizer=lambda params: Adam(params, lr=1e30)
            )
        )


def test_loading_a_state_captures_a_new_graph(digits):
    vae = of_digits(digits).cuda()
    training = pv.fit(vae, digits, epochs=3, engine="traced")
    next(training)
    state = copy.deepcopy(training.state_dict())
    next(training)
    training.load_state_dict(state)
    assert next(training)["epoch"] == 2
    assert next(training)["validation_elbo"] > -32


@pytest.mark.parametrize("engine", ["eager", "traced", "compiled"])
def test_evaluate(digits, engine):
    vae = of_digits(digits)
    on_cpu = pv.evaluate(vae, digits.test, num_samples=500)
    on_gpu = pv.evaluate(vae.cuda(), digits.test, num_samples=500, engine=engine)
    assert on_gpu["log_likelihood"]["mean"] == pytest.approx(
        on_cpu["log_likelihood"]["mean"], abs=0.02
    )
    assert on_gpu["active_units"] == on_cpu["active_units"]


def test_rows_per_pass_fill_the_device():
    vae, x = make_vae(shape=(1, 28, 28)), torch.zeros(3, 1, 28, 28)
    assert 4 * default_batch_size(vae, x) < default_batch_size(vae, x.cuda()) < 2**28 / 784


def test_what_the_pretended_device_has_in_common_with_a_real_one():
    here, there = torch.ones(2), torch.ones(2, device="cuda")
    with pytest.raises(RuntimeError, match="same device"):
        here + there
    for wait in (there.sum().item, there.cpu, there.nonzero, lambda: there[there > 0]):
        with raising_waits(), pytest.raises(RuntimeError, match="synchronizing"):
            wait()
    assert (there * 2.0).cpu().tolist() == [2.0, 2.0]
