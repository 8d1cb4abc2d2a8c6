import copy

import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Bernoulli, Normal, kl_divergence

import pyro_vae as pv


def test_the_programs_are_p_and_q(vae, x):
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    z = guide.nodes["z"]["value"]
    loc, log_scale = vae.posterior.encoder(x).unbind(-2)
    torch.testing.assert_close(guide.nodes["z"]["fn"].log_prob(z), Normal(loc, log_scale.exp()).log_prob(z).sum(-1))
    torch.testing.assert_close(model.nodes["z"]["fn"].log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1))
    logits = vae.decoder(z).squeeze(1)
    torch.testing.assert_close(model.nodes["x"]["fn"].log_prob(x), Bernoulli(logits=logits).log_prob(x).sum((1, 2, 3)))


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0, torch.tensor(2.5)])
def test_beta_weighs_the_kl(vae, x, beta):
    """Trace_ELBO gives E log p(x | z) - beta KL; TraceMeanField_ELBO the same with the closed form of KL."""
    pyro.set_rng_seed(1)
    guide = poutine.trace(vae.guide).get_trace(x)
    z, q = guide.nodes["z"]["value"], guide.nodes["z"]["fn"].base_dist
    reconstruction = Bernoulli(logits=vae.decoder(z).squeeze(1)).log_prob(x).sum()
    drawn = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum()
    exact = kl_divergence(Normal(q.loc, q.scale), Normal(0.0, 1.0)).sum()
    for objective, kl in {Trace_ELBO(): drawn, TraceMeanField_ELBO(): exact}.items():
        pyro.set_rng_seed(1)
        loss = objective.differentiable_loss(vae.model, vae.guide, x, beta)
        torch.testing.assert_close(loss, beta * kl - reconstruction, rtol=1e-5, atol=1e-4)


def test_pyros_own_svi_trains_it(vae, x):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = [param.clone() for param in vae.parameters()]
    svi.step(x)
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))


def test_a_second_vae_does_not_reuse_the_first_ones_parameters(vae, x):
    """pyro #1488, #3237: the parameter store is global."""
    encoder, decoder = pv.MLP((1, 4, 4), (2, 3), hidden=(8,)), pv.MLP((3,), (1, 1, 4, 4), hidden=(8,))
    other = pv.VAE(pv.StandardNormal(3), pv.DiagonalNormal(encoder), decoder, pv.Bernoulli())
    for one in (vae, other):
        trace = poutine.trace(one.model).get_trace(x)
        for name, param in one.named_parameters():
            assert any(site["value"] is param for site_name, site in trace.nodes.items() if site_name.endswith(f"$$${name}")), (
                name
            )


def test_a_copy_has_parameters_of_its_own(vae, x):
    """In Pyro's store as elsewhere: training the copy leaves the original alone."""

    def optimizer(params):
        return torch.optim.SGD(params, lr=0.1)

    pv.SVI(vae.model, vae.guide, optimizer, Trace_ELBO()).step(x)
    before = [param.clone() for param in vae.parameters()]
    twin = copy.deepcopy(vae)
    pv.SVI(twin.model, twin.guide, optimizer, Trace_ELBO()).step(x)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, twin.parameters(), strict=True))


def test_encode_sample_reconstruct(vae, x):
    q = vae.encode(x)
    assert (q.batch_shape, q.event_shape) == ((6,), (3,))
    for made, count in ((vae.sample(5), 5), (vae.reconstruct(x), 6)):
        assert made.shape == (count, 1, 4, 4)
        assert not made.requires_grad
        assert ((made >= 0) & (made <= 1)).all()


@pytest.mark.parametrize("batch", [(7,), (2, 7), (3, 2, 7)])
def test_decode_takes_any_leading_dimensions(vae, batch):
    z = torch.randn(*batch, 3)
    p = vae.decode(z)
    assert (p.batch_shape, p.event_shape) == (batch, (1, 4, 4))
    torch.testing.assert_close(p.mean.flatten(0, -4), vae.decode(z.flatten(0, -2)).mean)


@pytest.mark.parametrize("network", [pv.MLP, pv.Conv, pv.Gated])
def test_initialize_starts_at_the_training_mean(network):
    x = torch.rand(50, 2, 6, 6) * torch.tensor([0.2, 0.8])[:, None, None]
    decoder = network((3,), (1, 2, 6, 6))
    vae = pv.VAE(pv.StandardNormal(3), pv.DiagonalNormal(pv.MLP((2, 6, 6), (2, 3))), decoder, pv.Bernoulli(relaxed=True))
    vae.initialize(x)
    weights = [param for name, param in decoder.named_parameters() if name.endswith("weight")]
    with torch.no_grad():
        weights[-1].zero_()
    mean = x.mean((0, 2, 3), keepdim=True).expand(4, 2, 6, 6) if network is pv.Conv else x.mean(0).expand(4, 2, 6, 6)
    torch.testing.assert_close(vae.sample(4), mean, atol=1e-5, rtol=1e-5)


def test_initialize_leaves_a_strangers_decoder_alone(vae, x):
    class Own(torch.nn.Module):
        def forward(self, z):
            return z.sum(-1)[:, None, None, None, None].expand(-1, 1, 1, 4, 4)

    pv.VAE(vae.prior, vae.posterior, Own(), vae.likelihood).initialize(x)
