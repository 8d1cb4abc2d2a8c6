"""The check of importance sampling by a second method."""

import json
import math

import pytest
import torch
from families import make_oracle, make_vae
from folded import X, folded

import pyro_vae as pv
from pyro_vae.evaluation.check import annealed_log_likelihood, check_log_likelihood
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.evaluation.quadrature import quadrature_log_likelihood


@pytest.mark.parametrize(("dim", "method"), [(2, "quadrature"), (3, "ais")])
def test_a_missed_mode_is_found(dim, method):
    """Importance sampling misses all but one of the modes, with a small error and a small k-hat."""
    vae = folded(dim)
    x = 1 + 2 * torch.rand(12, 1, 1, dim)
    scores = score_images(vae, x, 2000)
    assert (scores.pareto_k < 0.7).all()
    assert scores.monte_carlo_error.max() < 0.1
    found = check_log_likelihood(vae, x, scores, num_images=8)
    assert found["method"] == method
    assert found["num_images"] == 8
    assert found["disagree"]
    assert found["difference"] == pytest.approx(dim * math.log(2), abs=0.02 if dim == 2 else 0.6)
    assert found["max_difference"] >= found["difference"]


@pytest.mark.parametrize("dim", [2, 3])
def test_a_good_guide_passes(dim):
    vae, x = make_oracle(dim, exact=True, shape=(1, 1, 4)).float().eval(), torch.randn(9, 1, 1, 4)
    vae.encoder.layers[1].bias.data[dim :: dim + 1] += 0.2
    found = check_log_likelihood(vae, x, score_images(vae, x, 2000), num_temperatures=50)
    assert not found["disagree"]
    assert abs(found["difference"]) < 0.2
    assert found["num_images"] == 9


@pytest.mark.parametrize(
    ("missing", "error", "disagree"),
    [
        (
            [0.0, 0.0, 1.0],
            [0.5, 0.5, 0.01],
            True,
        ),  # one image, although it adds less to the mean than the mean's error
        ([0.3, 0.3, 0.3], [0.1, 0.1, 0.1], True),  # only the mean is significant
        ([0.0, 0.0, -1.0], [0.5, 0.5, 0.01], False),  # a lower second estimate tells nothing
        ([0.05, 0.05, 0.05], [1e-4, 1e-4, 1e-4], False),  # significant, but of no consequence
        ([0.3, 0.3, 0.3], [0.5, 0.5, 0.5], False),
    ],
)
def test_what_counts_as_disagreement(missing, error, disagree):
    vae = folded(2)
    scores = score_images(vae, X, 30)._replace(monte_carlo_error=torch.tensor(error).double())
    scores = scores._replace(
        log_likelihood=quadrature_log_likelihood(vae, X) - torch.tensor(missing)
    )
    found = check_log_likelihood(vae, X, scores)
    assert found["disagree"] == disagree
    assert found["difference"] == pytest.approx(sum(missing) / 3, abs=1e-5)
    assert found["standard_error"] == pytest.approx(math.hypot(*error) / 3)


def test_the_error_of_one_sample_is_unknown(vae, x):
    """One sample of each image, or one chain: neither NaN nor agreement."""
    for num_samples, num_chains in ((1, 8), (30, 1)):
        found = check_log_likelihood(
            vae, x, score_images(vae, x, num_samples), num_chains=num_chains, num_temperatures=3
        )
        assert found["standard_error"] is found["disagree"] is None
        json.dumps(found, allow_nan=False)


def test_annealing_a_model_in_hand():
    vae, x = make_oracle(shape=(1, 2, 3)).float().eval(), torch.randn(20, 1, 2, 3)
    scores = score_images(vae, x, 50)
    found = annealed_log_likelihood(vae, x, scores, num_chains=8, num_temperatures=30)
    exact = vae.log_p(x).mean().item()
    assert found["annealed"]["mean"] == pytest.approx(exact, abs=0.3)
    difference = found["annealed"]["mean"] - scores.log_likelihood.mean().item()
    assert found["annealed_difference"]["mean"] == pytest.approx(difference, abs=1e-6)
    assert found["simulated"]["gap"]["mean"] > -1


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_the_batch_size_bounds_the_passes_of_the_check(latent_dim):
    vae, x = make_oracle(latent_dim, shape=(1, 2, 3)).float().eval(), torch.randn(4, 1, 2, 3)
    scores = score_images(vae, x, 30)
    rows = []
    vae.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    check_log_likelihood(
        vae, x, scores, num_chains=8, num_temperatures=2, batch_size=16, engine="eager"
    )
    assert max(rows) <= 16


def test_the_check_is_of_random_images():
    """A model that is wrong for every other image: evenly spaced ones would be of one kind."""
    vae, x = folded(2), X.repeat(40, 1, 1, 1)[:100]
    scores = score_images(vae, x, 30)
    wrong = scores.log_likelihood.clone()
    wrong[::11] -= 100
    found = check_log_likelihood(vae, x, scores._replace(log_likelihood=wrong), num_images=50)
    assert 0 < found["difference"] - 2 * math.log(2) < 50


@pytest.mark.parametrize("given_total", [False, True])
def test_counts_are_checked_by_quadrature(given_total):
    """With the total as an exposure no row can be simulated at the total at which it is scored."""
    x = torch.randint(0, 9, (6, 4))
    data = pv.Data("counts", pv.Split(x), pv.Split(x), pv.Split(x))
    vae = make_vae(likelihood="NegativeBinomial", latent_dim=2, shape=(4,))
    vae.likelihood = pv.NegativeBinomial(given_total=given_total)
    vae.initialize(data.test.scored("count"))
    scores = score_images(vae, data.test, 4000)
    check = check_log_likelihood(vae, data.test, scores, num_images=6)
    assert (check["method"], check["disagree"]) == ("quadrature", False)
    if given_total:
        with pytest.raises(pv.RequestError, match="given_total scores each at its own"):
            annealed_log_likelihood(vae, data.test, scores)
