"""The optimizers of `pyro.optim` do in one torch optimizer what they do in Pyro."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from torch import optim as torch_optim

import pyro_vae as pv
from pyro_vae.engine.optimizers import Joint


def schedule(name, **options):
    """One of Pyro's schedulers."""
    adam = {"optimizer": torch_optim.Adam, "optim_args": {"lr": 0.1}}
    return getattr(pyro.optim, name)({**adam, **options})


OPTIMIZERS = {
    "torch": lambda: partial(torch_optim.Adam, lr=0.01),
    "Pyro": lambda: pyro.optim.Adam({"lr": 0.01}),
    "clipped": lambda: pyro.optim.ClippedAdam({"lr": 0.01, "lrd": 0.9, "clip_norm": 0.1}),
    "norms": lambda: pyro.optim.SGD({"lr": 0.01, "momentum": 0.5}, {"clip_norm": 0.3}),
    "values": lambda: pyro.optim.SGD({"lr": 0.01}, {"clip_value": 0.3}),
    "clipped by name": lambda: pyro.optim.SGD(
        {"lr": 0.01}, lambda module, name: {"clip_norm": 0.3} if "scale" in name else {}
    ),
    "per parameter": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if "scale" in name else 0.01}),
    "per module and parameter": lambda: pyro.optim.Adam(
        lambda module, name: {"lr": 0.1 if "scale" in name else 0.01}
    ),
    "options of some": lambda: pyro.optim.SGD(
        lambda name: {"lr": 0.01} | ({"momentum": 0.9} if "scale" in name else {})
    ),
    "Pyro's own": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
    "exponential": lambda: schedule("ExponentialLR", gamma=0.5),
    "plateau": lambda: schedule("ReduceLROnPlateau", patience=1),
    "one cycle": lambda: schedule("OneCycleLR", max_lr=0.5, total_steps=20),
}


def hierarchy(x, *, y=None):
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z * x, 1.0), obs=y)


def trained(make, optim, x, y, steps=12):
    """The losses of the steps, between which a scheduler steps."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    svi = make(hierarchy, AutoNormal(hierarchy), optim, loss=Trace_ELBO())
    losses = []
    for _ in range(steps):
        losses.append(svi.step(x, y=y))
        if isinstance(getattr(optim, "pt_scheduler_constructor", None), type):
            metric = [5.0] * (optim.pt_scheduler_constructor.__name__ == "ReduceLROnPlateau")
            optim.step(*metric)
    losses.append(svi.evaluate_loss(x, y=y))
    return losses


@pytest.mark.parametrize(
    ("name", "engine"), [*((name, "eager") for name in OPTIMIZERS), ("clipped", "traced")]
)
def test_it_replaces_pyros_svi(name, engine):
    """The same call with the same optimizer has the same losses; arguments by keyword."""
    x, y = torch.randn(2, 7, dtype=torch.float64)
    ours = trained(partial(pv.SVI, engine=engine), OPTIMIZERS[name](), x, y)
    pyros = OPTIMIZERS["Pyro" if name == "torch" else name]()
    assert ours == pytest.approx(trained(pyro.infer.SVI, pyros, x, y), rel=1e-5)


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


@pytest.mark.parametrize("makes", [(pv.SVI, pv.SVI), (pv.SVI, pyro.infer.SVI)])
def test_a_saved_state_is_loaded(makes, tmp_path):
    """Also by Pyro's SVI: the momentum of each parameter goes on."""
    x, y = torch.randn(2, 7)
    through = trained(makes[1], pyro.optim.Adam({"lr": 0.1}), x, y, steps=10)
    first = pyro.optim.Adam({"lr": 0.1})
    losses = trained(makes[0], first, x, y, steps=5)[:-1]
    first.save(tmp_path / "optimizer")
    second = pyro.optim.Adam({"lr": 0.1})
    second.load(tmp_path / "optimizer")
    pyro.set_rng_seed(1)
    svi = makes[1](hierarchy, AutoNormal(hierarchy), second, loss=Trace_ELBO())
    assert losses == pytest.approx(through[:5], rel=1e-5)
    svi.step(x, y=y)
    steps = [state["state"][0]["step"].item() for state in second.get_state().values()]
    assert steps == [6] * 4


def test_a_learning_rate_may_be_changed_on_either_side():
    """In Pyro's optimizer of one parameter, or in the joint one for all."""
    params = [torch.zeros(2, requires_grad=True) for _ in range(3)]
    for number, param in enumerate(params):
        pyro.get_param_store()[f"param {number}"] = param
        param.grad = torch.ones(2)
    optim = pyro.optim.SGD({"lr": 0.1})
    joint = Joint(optim)
    optimizer = joint(params)
    assert len(optimizer.param_groups) == 1
    optim.optim_objs[params[1]].param_groups[0]["lr"] = 0.2
    joint.sync(optimizer)
    optimizer.step()
    assert [param[0].item() for param in params] == pytest.approx([-0.1, -0.2, -0.1])
    for group in optimizer.param_groups:
        group["lr"] = 1.0
    joint.sync(optimizer)
    assert [own.param_groups[0]["lr"] for own in optim.optim_objs.values()] == [1.0] * 3


def test_a_state_of_the_joint_optimizer_is_loaded():
    x, y = torch.randn(2, 7)
    optim = pyro.optim.Adam({"lr": 0.1})
    svi = pv.SVI(hierarchy, AutoNormal(hierarchy), optim, Trace_ELBO())
    for _ in range(3):
        svi.step(x, y=y)
    state = svi.optimizer.state_dict()
    other = pyro.optim.Adam({"lr": 0.5})
    svi = pv.SVI(hierarchy, svi.guide, other, Trace_ELBO())
    svi.dry_run(x, y=y)
    svi.load_optimizer(state)
    svi.step(x, y=y)
    for own in other.optim_objs.values():
        assert own.param_groups[0]["lr"] == 0.1
        assert [entry["step"].item() for entry in own.state.values()] == [4]
