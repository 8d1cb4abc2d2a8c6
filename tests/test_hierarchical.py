import json

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO
from torch.distributions import Bernoulli, Normal

import pyro_vae as pv
from pyro_vae.generate import main as generate
from pyro_vae.inference.importance import log_weights
from pyro_vae.train import main as train


@pytest.fixture
def hvae():
    posterior, decoder = pv.DiagonalNormal(pv.MLP((1, 4, 4), (2, 6))), pv.MLP((6,), (1, 1, 4, 4))
    return pv.HierarchicalVAE(pv.StandardNormal(3), posterior, decoder, pv.Bernoulli(), 6, prior_dim=3, hidden=(8,))


def normal(params):
    loc, log_scale = params.unbind(-2)
    return Normal(loc, log_scale.exp())


def densities(hvae, x, z1, z2):
    """log p(x, z1, z2) - log q(z1, z2 | x) by hand."""
    p = Normal(0.0, 1.0).log_prob(z2).sum(-1) + normal(hvae.down(z2)).log_prob(z1).sum(-1)
    p = p + Bernoulli(logits=hvae.decoder(z1).squeeze(1)).log_prob(x).sum((1, 2, 3))
    return p - normal(hvae.posterior.encoder(x)).log_prob(z1).sum(-1) - normal(hvae.up(z1)).log_prob(z2).sum(-1)


def test_the_programs_by_hand(hvae, x):
    pyro.set_rng_seed(1)
    guide = poutine.trace(hvae.guide).get_trace(x)
    by_hand = densities(hvae, x, guide.nodes["z1"]["value"], guide.nodes["z2"]["value"])
    pyro.set_rng_seed(1)
    assert -Trace_ELBO().loss(hvae.model, hvae.guide, x) == pytest.approx(by_hand.sum().item(), rel=1e-5)


def test_samples_broadcast_through_both_layers(hvae, x):
    def frozen(x):
        with pyro.plate("images", len(x)):
            z1 = pyro.sample("z1", pyro.distributions.Delta(torch.ones(len(x), 6)).to_event(1))
            pyro.sample("z2", pyro.distributions.Delta(z1[..., :3]).to_event(1))

    weights = log_weights(hvae.model, frozen, x, 4)
    torch.testing.assert_close(weights, weights[:1].expand(4, -1))


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_beta_weighs_both_layers(hvae, x, beta):
    def loss(beta):
        pyro.set_rng_seed(1)
        return Trace_ELBO().loss(hvae.model, hvae.guide, x, beta)

    assert loss(beta) - loss(1.0) == pytest.approx((beta - 1) * (loss(2.0) - loss(1.0)), rel=1e-3)


def test_methods(hvae, x):
    assert hvae.latent_dim == 6
    assert hvae.encode(x).event_shape == (6,)
    assert hvae.sample(5).shape == (5, 1, 4, 4)
    assert hvae.reconstruct(x).shape == x.shape


def test_the_prior_must_fit(hvae):
    with pytest.raises(ValueError, match="prior_dim = 4"):
        pv.HierarchicalVAE(pv.StandardNormal(3), hvae.posterior, hvae.decoder, hvae.likelihood, 6, prior_dim=4)


@pytest.mark.parametrize("prior", ["StandardNormal", "GaussianMixture", "FlowPrior"])
def test_by_flag(tmp_path, prior):
    argv = ["--model", "HierarchicalVAE", "--model.prior_dim", "4", "--latent_dim", "8", "--prior", prior]
    assert train([*argv, "--data", "digits", "--epochs", "2", "--run_dir", str(tmp_path / "r")]) == 0
    records = [json.loads(line) for line in (tmp_path / "r" / "metrics.jsonl").read_text().splitlines()]
    assert all(torch.tensor(record["validation_elbo"]).isfinite() for record in records)
    for kind in ("samples", "reconstructions", "interpolations", "traversals", "codes"):
        assert generate([str(tmp_path / "r"), kind]) == 0
    assert pv.load_run(tmp_path / "r").latent_dim == 8
