"""The two terms of the ELBO that training records, against the densities at the same draws."""

from __future__ import annotations

import pyro
import pytest
import torch
from families import make_hierarchical, make_vae
from pyro import poutine

import pyro_vae as pv
from pyro_vae.training.meter import Meter


def measured(vae, x, beta=1.0):
    """The sums of one run of both programs, and the traces of that run."""
    sums = torch.zeros(2, dtype=torch.float64)
    with Meter(sums, 1):
        guide = poutine.trace(vae.guide).get_trace(x, None, beta)
    with Meter(sums, -1):
        model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(x, None, beta)
    return sums, guide, model


@pytest.mark.parametrize("beta", [1.0, 0.1])
def test_the_terms_of_one_draw_without_beta(vae, x, beta):
    """Computed from the parts: log p(x | z), and log q(z | x) - log p(z)."""
    sums, guide, _ = measured(vae, x, beta)
    z = guide.nodes["z"]["value"]
    with torch.no_grad():
        reconstruction = vae.likelihood(vae.decoder(z)).log_prob(x).sum()
        kl = (vae.posterior(vae.encoder(x)).log_prob(z) - vae.prior().log_prob(z)).sum()
    assert sums.tolist() == pytest.approx([reconstruction.item(), kl.item()], rel=1e-5)


def test_all_latent_sites_count(x):
    vae = make_hierarchical(latent_dim=2)
    sums, guide, model = measured(vae, x)
    total = model.log_prob_sum().item() - guide.log_prob_sum().item()
    latents = [node for node in guide.nodes.values() if node["type"] == "sample"]
    assert len([node for node in latents if not node["infer"].get("_do_not_trace")]) > 1
    assert (sums[0] - sums[1]).item() == pytest.approx(total, rel=1e-5)


def test_runs_add_up_in_place_and_without_gradients(vae, x):
    sums = torch.zeros(2, dtype=torch.float64)
    before = sums.data_ptr()
    singly = []
    for _ in range(3):
        pyro.set_rng_seed(1)
        with Meter(sums, 1):
            vae.guide(x)
        singly.append(sums[1].item())
    assert singly == pytest.approx([singly[0], 2 * singly[0], 3 * singly[0]])
    assert sums.data_ptr() == before
    assert not sums.requires_grad
    assert sums[0] == 0


def test_a_record_has_the_terms_of_the_loss(digits):
    few = pv.Data("few", digits.train[:60], digits.validation[:20], digits.test)
    (record,) = pv.fit(make_vae(shape=digits.shape), few, epochs=1, batch_size=20)
    assert record["reconstruction"] - record["kl"] == pytest.approx(-record["loss"], rel=1e-5)
