"""Calibration of guides that are exact, and of guides that are wrong in a known way."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import make_conditional_oracle, make_hierarchical, make_oracle, make_vae
from folded import folded
from scipy import stats
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.evaluation.uniformity import uniformity


def oracle(shift=0.0, scale=1.0):
    """Three dimensions; the guide's mean and standard deviations are off."""
    vae = make_oracle(3, exact=True, shape=(1, 2, 3))
    with torch.no_grad():
        first = vae.encode(torch.zeros(1, 1, 2, 3).double()).stddev[0, 0]
        bias = vae.encoder.layers[1].bias
        bias[0] += shift * first
        bias[3:].unflatten(0, (3, 3)).diagonal().add_(math.log(scale))
    return vae


def test_an_exact_guide_passes_at_its_nominal_rate():
    """And its regions have the coverage that they say, within the binomial errors."""
    vae = oracle()
    found = [pv.calibration(vae, num_images=200) for _ in range(25)]
    p_values = torch.cat([one.p_values for one in found]).numpy()
    assert stats.kstest(p_values, "uniform").pvalue > 1e-3
    for region in (0.5, 0.9, 0.99):
        covered = sum(round(200 * one.coverage[region]) for one in found)
        assert stats.binomtest(covered, 25 * 200, region).pvalue > 1e-3


@pytest.mark.parametrize(
    ("changes", "worst"),
    [({"shift": 0.3}, "z[0]"), ({"scale": 0.8}, None), ({"scale": 1.25}, None)],
)
def test_a_wrong_guide_fails(changes, worst):
    found = pv.calibration(oracle(**changes))
    assert found.p_value < 1e-4
    if worst:
        assert found.summary()["worst"] == worst
    covered = found.coverage[0.9]
    if changes.get("scale", 1) < 1:
        assert covered < 0.85
    if changes.get("scale", 1) > 1:
        assert covered > 0.93


def test_a_missed_mode_fails_although_k_hat_is_small():
    """A guide that knows one of two modes holds half of the codes."""
    vae = folded(1)
    x = 1 + 2 * torch.rand(50, 1, 1, 1)
    assert (pv.score_images(vae, x, 500).pareto_k < 0.7).double().mean() > 0.9
    found = pv.calibration(vae, num_images=300)
    assert found.p_value < 1e-10
    assert found.coverage[0.99] < 0.7


def test_a_guide_that_ignores_the_image_fails_by_the_likelihood_alone():
    """Each dimension of the prior is calibrated, and so are its regions."""
    vae = oracle()
    vae.set_guide(torch.zeros(3).double(), torch.eye(3).double())
    found = pv.calibration(vae)
    p_values = dict(zip(found.names, found.p_values.tolist(), strict=True))
    assert p_values.pop("log p(x | z)") < 1e-10
    assert min(p_values.values()) > 1e-3
    assert found.summary()["gain"]["mean"] == pytest.approx(0, abs=1e-6)


def test_the_gain_of_the_exact_guide_is_the_mutual_information():
    vae = oracle()
    weight, _ = vae.decoder.parameters()
    exact = 0.5 * torch.logdet(torch.eye(3) + weight.T @ weight / vae.variance).item()
    found = pv.calibration(vae, num_images=2000)
    assert_mean(found.log_q - found.log_prior, exact)


def test_ranks_of_equal_values_are_uniform():
    """A decoder that ignores the code gives equal log p(x | z), whose ranks are random."""
    vae = make_vae()
    torch.nn.init.zeros_(list(vae.decoder.parameters())[-2])
    found = pv.calibration(vae, num_images=300)
    level = found.levels[:, found.names.index("log p(x | z)")]
    assert uniformity(level[:, None]).item() > 1e-4


def test_labels_are_those_of_the_data():
    """An exact guide given the label; its images depend on it."""
    vae, _ = make_conditional_oracle(3)
    data = pv.Split(torch.rand(40, 1, 4, 4), torch.arange(40) % 3)
    found = pv.calibration(vae.float(), data, num_images=500)  # a split is in float32
    assert found.p_value > 1e-3
    assert found.levels.shape == (500, 4)
    with pytest.raises(pv.RequestError, match="needs labels"):
        pv.calibration(vae)


def test_two_latent_sites_and_a_flow():
    found = pv.calibration(make_hierarchical(), num_images=50)
    assert found.names[:5] == ("z[0]", "z[1]", "z[2]", "z2[0]", "z2[1]")
    assert found.levels.shape == (50, 7)
    found = pv.calibration(make_vae(posterior="FlowPosterior"), num_images=50)
    assert ((found.levels > 0) & (found.levels < 1)).all()


def test_a_model_of_ones_own():
    """Programs with the exact posterior of one code, and with one that is too wide."""

    class Own(pv.Model):
        latent_dim = 1

        def __init__(self, scale):
            super().__init__(torch.nn.Linear(1, 1), None, None, pv.likelihoods.Normal(1.0))
            self.scale = scale

        def model(self, x, y=None, beta=1.0):
            with pyro.plate("images", len(x)):
                z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(z[..., None, None], 1.0).to_event(3), obs=x)

        def guide(self, x, y=None, beta=1.0):
            with pyro.plate("images", len(x)):
                loc = x.flatten(1) / 2
                pyro.sample("z", dist.Normal(loc, self.scale * 0.5**0.5).to_event(1))

    assert pv.calibration(Own(1.0)).p_value > 1e-3
    assert pv.calibration(Own(1.4)).p_value < 1e-6


def test_labels_that_are_inferred_are_summed_out():
    encoder, decoder = pv.MLP((1, 4, 4), (2, 3)), pv.MLP((3 + 4,), (1, 1, 4, 4))
    parts = pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    classifier = pv.MLP((1, 4, 4), (4,))
    vae = pv.SemiSupervisedVAE(*parts, classifier, data_shape=(1, 4, 4), label_dim=4)
    found = pv.calibration(vae, num_images=30)
    assert found.names[:3] == ("z[0]", "z[1]", "z[2]")
    assert len(found.names) == 5
    x = torch.bernoulli(torch.full((3, 1, 4, 4), 0.4))
    options = {"num_chains": 100, "num_temperatures": 10}
    from_guide = pv.annealed_log_weights(vae.model, x, guide=vae.guide, **options)
    with torch.no_grad():
        weights = pv.log_weights(vae.model, vae.guide, x, num_samples=10_000)
    difference = pv.log_likelihood(from_guide) - pv.log_likelihood(weights)
    assert difference.abs().max() < 0.2


@pytest.mark.parametrize(
    "likelihood", [pv.Bernoulli(relaxed=True), pv.likelihoods.Poisson(given_total=True)]
)
def test_what_cannot_be_simulated_is_refused(likelihood):
    vae = make_vae()
    vae.likelihood = likelihood
    with pytest.raises(pv.RequestError, match="calibration"):
        pv.calibration(vae)


def test_the_batch_size_bounds_the_passes(vae):
    rows = []
    vae.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    pv.calibration(vae, num_images=10, batch_size=250)
    assert max(rows) <= 250
