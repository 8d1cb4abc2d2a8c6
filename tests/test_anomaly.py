"""Scores of anomalies against exact values, and AUROC with its error."""

from __future__ import annotations

import math

import pytest
import torch
from families import make_conditional, make_oracle, make_vae
from sklearn.metrics import roc_auc_score

import pyro_vae as pv
from pyro_vae.evaluation.anomaly import anomaly_scores, auroc


def test_auroc_is_that_of_scikit_learn():
    for rounding in (10, 0):  # with equal scores, too
        scores = torch.randn(200).round(decimals=rounding)
        is_anomaly = torch.rand(200) < 0.3
        found = auroc(scores, is_anomaly)
        assert found.auroc == pytest.approx(roc_auc_score(is_anomaly, scores))
        assert (found.num_anomalies, found.num_normal) == (is_anomaly.sum(), (~is_anomaly).sum())


def test_the_error_of_auroc_is_that_over_samples():
    """Normal scores a distance of 1 apart: the AUROC is Phi(1 / sqrt 2)."""
    is_anomaly = torch.arange(150) < 50
    found = [auroc(torch.randn(150) + is_anomaly.double(), is_anomaly) for _ in range(1000)]
    areas = torch.tensor([one.auroc for one in found]).double()
    errors = torch.tensor([one.standard_error for one in found]).double()
    exact = torch.special.ndtr(torch.tensor(0.5**0.5).double()).item()
    assert areas.mean().item() == pytest.approx(exact, abs=4 * areas.std().item() / 1000**0.5)
    assert errors.square().mean().sqrt().item() == pytest.approx(areas.std().item(), rel=0.1)


def test_auroc_needs_both_kinds():
    with pytest.raises(pv.RequestError, match="3 normal images and 0 anomalies"):
        auroc(torch.zeros(3), torch.zeros(3, dtype=torch.bool))
    assert auroc(torch.arange(3.0), torch.tensor([False, False, True])).standard_error is None


def test_the_scores_of_a_linear_gaussian_model():
    """Its entropy is known, and the family holds the exact posterior."""
    vae = make_oracle(shape=(1, 2, 3), exact=True).float().eval()
    vae.encoder.layers[1].bias.data += 0.3
    x = torch.cat([vae.sample(15).detach(), 2 * torch.randn(5, 1, 2, 3)])
    scores = pv.score_images(vae, x, 400)
    found = anomaly_scores(vae, x, scores, 400)
    weight, _ = vae.decoder.parameters()
    covariance = weight @ weight.T + vae.variance * torch.eye(6)
    entropy = 0.5 * torch.logdet(2 * math.pi * math.e * covariance).item()
    spread = (6 / 2) ** 0.5 / 20**0.5  # of the mean log density of the 20 simulated images
    expected = (vae.log_p(x).detach() + entropy).abs().double()
    torch.testing.assert_close(found["typicality"], expected, atol=4 * spread, rtol=0)
    regret = (vae.log_p(x) - vae.elbo(x)).detach().double()
    torch.testing.assert_close(found["likelihood_regret"], regret, atol=0.3, rtol=0.1)
    assert torch.equal(found["minus_elbo"], -scores.elbo)
    assert torch.equal(found["minus_log_likelihood"], -scores.log_likelihood)


def test_scores_of_other_models():
    """Labels are kept; there is no typicality of a cross-entropy."""
    y = torch.tensor([0, 2, 1])
    data = pv.Split(torch.randint(0, 256, (3, 1, 4, 4), dtype=torch.uint8), y)
    vae = make_conditional()
    assert len(anomaly_scores(vae, data, pv.score_images(vae, data, 5), 5)) == 4
    vae = make_vae()
    vae.likelihood = pv.Bernoulli(relaxed=True)
    found = anomaly_scores(vae, data, pv.score_images(vae, data, 5), 5)
    assert found.keys() == {"minus_elbo", "minus_log_likelihood", "likelihood_regret"}
