"""What Pyro's own library builds on SVI computes the same with `pv.SVI`, at equal seeds."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import contrib, poutine
from pyro.contrib import gp
from pyro.contrib.cevae import CEVAE
from pyro.contrib.forecast import Forecaster, ForecastingModel
from pyro.infer import Trace_ELBO, autoguide, reparam
from pyro.infer.autoguide import AutoNormal

import pyro_vae as pv

traced = partial(pv.SVI, engine="traced")

# In float32: Pyro adds the parts of its loss as Python's floats.
TOLERANCE = 1e-6


def losses_of(make, model, guide, *args):
    svi = make(model, guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    return [svi.step(*args) for _ in range(6)]


def compare(steps):
    """Both SVIs take the steps of a function, from equal seeds."""
    losses = []
    for make in (pyro.infer.SVI, traced):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        losses.append(steps(make))
    assert losses[1] == pytest.approx(losses[0], rel=TOLERANCE)


def groups(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("groups", 3):
        mean = pyro.sample("mean", dist.Normal(loc, 1.0))
        with pyro.plate("rows", 4):
            pyro.sample("x", dist.Normal(mean, scale), obs=x)


STRUCTURED = partial(
    autoguide.AutoStructured,
    conditionals={"loc": "normal", "scale": "delta", "mean": "mvn"},
    dependencies={"scale": {"loc": "linear"}, "mean": {"loc": "linear"}},
)


@pytest.mark.parametrize(
    "guide",
    [
        autoguide.AutoDelta,
        autoguide.AutoNormal,
        autoguide.AutoMultivariateNormal,
        partial(autoguide.AutoLowRankMultivariateNormal, rank=2),
        partial(autoguide.AutoIAFNormal, hidden_dim=[8], num_transforms=2),
        autoguide.AutoLaplaceApproximation,
        autoguide.AutoGaussian,
        STRUCTURED,
        autoguide.AutoNormalMessenger,
        autoguide.AutoHierarchicalNormalMessenger,
        autoguide.AutoRegressiveMessenger,
    ],
)
def test_automatic_guides(guide):
    x = torch.linspace(-1, 2, 12).reshape(4, 3)
    compare(lambda make: losses_of(make, groups, guide(groups), x))


LATENTS = {
    "LocScaleReparam": (lambda: dist.Normal(0.3, 2.0), reparam.LocScaleReparam),
    "TransformReparam": (lambda: dist.LogNormal(0.0, 1.0), reparam.TransformReparam),
    "DiscreteCosineReparam": (
        lambda: dist.Normal(torch.zeros(8), 1.0).to_event(1),
        partial(reparam.DiscreteCosineReparam, dim=-1),
    ),
    "HaarReparam": (
        lambda: dist.Normal(torch.zeros(8), 1.0).to_event(1),
        partial(reparam.HaarReparam, dim=-1),
    ),
    "SplitReparam": (
        lambda: dist.Normal(torch.zeros(8), 1.0).to_event(1),
        partial(reparam.SplitReparam, [3, 5], -1),
    ),
    "StudentTReparam": (lambda: dist.StudentT(3.0, 0.0, 1.0), reparam.StudentTReparam),
    "GumbelSoftmaxReparam": (
        lambda: dist.RelaxedOneHotCategorical(torch.tensor(0.7), logits=torch.zeros(3)),
        reparam.GumbelSoftmaxReparam,
    ),
    # Their distributions look at values: eager, after a warning.
    "ProjectedNormalReparam": (
        lambda: dist.ProjectedNormal(torch.ones(3)),
        reparam.ProjectedNormalReparam,
    ),
    "LatentStableReparam": (
        lambda: dist.Stable(1.5, 0.2, 1.0, 0.0),
        reparam.LatentStableReparam,
    ),
}


@pytest.mark.parametrize("name", LATENTS)
def test_reparameterized_sites(name):
    latent, reparameterize = LATENTS[name]

    def model(x):
        z = pyro.sample("z", latent())
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z.sum(), 1.0), obs=x)

    def steps(make):
        changed = poutine.reparam(model, {"z": reparameterize()})
        return losses_of(make, changed, AutoNormal(changed), torch.linspace(0, 2, 8))

    compare(steps)


X = torch.linspace(0, 1, 10)
Y = torch.sin(6 * X)


def regression():
    kernel = gp.kernels.RBF(1)
    kernel.lengthscale = pyro.nn.PyroSample(dist.LogNormal(0.0, 1.0))
    kernel.autoguide("lengthscale", dist.Normal)
    return gp.models.GPRegression(X, Y, kernel)


def sparse_regression():
    return gp.models.SparseGPRegression(X, Y, gp.kernels.RBF(1), Xu=X[::3].clone(), jitter=1e-4)


def classification():
    likelihood = gp.likelihoods.Binary()
    return gp.models.VariationalGP(X, (Y > 0).float(), gp.kernels.RBF(1), likelihood)


def sparse_variational():
    inducing, likelihood = X[::3].clone(), gp.likelihoods.Gaussian()
    kernel = gp.kernels.RBF(1)
    return gp.models.VariationalSparseGP(X, Y, kernel, inducing, likelihood, jitter=1e-4)


def latent_variables():
    kernel = gp.kernels.RBF(2)
    inducing = torch.randn(3, 2)
    outputs = torch.stack([Y, Y**2])
    return gp.models.GPLVM(
        gp.models.SparseGPRegression(torch.zeros(10, 2), outputs, kernel, inducing, jitter=1e-3)
    )


@pytest.mark.parametrize(
    "process",
    [regression, sparse_regression, classification, sparse_variational, latent_variables],
)
def test_gaussian_processes(process):
    def steps(make):
        made = process()
        return losses_of(make, made.model, made.guide)

    compare(steps)


class RandomWalk(ForecastingModel):
    def model(self, zero_data, covariates):
        start = pyro.sample("start", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(-1.0, 1.0))
        with self.time_plate:
            steps = pyro.sample("steps", dist.Normal(0.0, scale))
        self.predict(dist.Normal(0.0, 1.0), (start + steps.cumsum(-1)).unsqueeze(-1))


def fit_forecaster():
    data = torch.randn(15, 1).cumsum(0)
    forecaster = Forecaster(RandomWalk(), data, torch.zeros(15, 0), num_steps=6, log_every=0)
    return forecaster(data, torch.zeros(20, 0), num_samples=3)


def fit_cevae():
    x = torch.randn(40, 4)
    treated, outcome = torch.bernoulli(torch.full((2, 40), 0.5))
    cevae = CEVAE(4, latent_dim=2, hidden_dim=8, num_layers=2, num_samples=4)
    cevae.fit(x, treated, outcome, num_epochs=2, batch_size=10, log_every=100)
    return cevae.ite(x)


@pytest.mark.parametrize(
    ("fit", "module"),
    [(fit_forecaster, contrib.forecast.forecaster), (fit_cevae, contrib.cevae)],
)
def test_classes_that_make_an_svi(fit, module, monkeypatch):
    results = []
    for make in (pyro.infer.SVI, traced):
        monkeypatch.setattr(module, "SVI", make)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        results.append(fit())
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)
