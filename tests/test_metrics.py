"""Metrics of each image: against exact values, independent of the batch size, and their errors."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from families import make_oracle, make_vae
from scipy import stats
from statistics_ import assert_likely

import pyro_vae as pv
from pyro_vae.engine.importance import (
    effective_sample_size,
    k_curve,
    log_likelihood,
    log_weights,
    monte_carlo_error,
    pareto_k,
    terms,
)
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.metrics import score, score_images, two_phase_mean


def test_effective_sample_size_of_known_weights():
    weights = torch.tensor(
        [[1.0, 1.0, 1.0], [1.0, 1e-30, 3.0], [1.0, 1e-30, 0.0], [1.0, 1e-30, 0.0]]
    ).double()
    torch.testing.assert_close(
        effective_sample_size(weights.log()), torch.tensor([4.0, 1.0, 16 / 10]).double()
    )
    torch.testing.assert_close(
        effective_sample_size(weights.log() - 1e4), effective_sample_size(weights.log())
    )


def test_monte_carlo_error_of_known_weights():
    weights = torch.rand(50, 3).double() + 0.5
    expected = weights.std(0) / weights.mean(0) / 50**0.5
    torch.testing.assert_close(monte_carlo_error(weights.log() + 1e3), expected)
    assert monte_carlo_error(torch.zeros(1, 2)).isnan().all()


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_k_hat_of_pareto_weights(k):
    """Weights U^-k have the tail index k."""
    torch.manual_seed(0)
    found = pareto_k(-k * torch.rand(4000, 200).double().log())
    assert found.mean().item() == pytest.approx(k, abs=0.06)


def test_k_hat_against_arviz():
    from arviz_stats.base.array import array_stats

    weights = 2 * torch.randn(1000, 4).double()
    _, expected = array_stats.psislw(-weights.numpy(), axis=0)
    np.testing.assert_allclose(pareto_k(weights).numpy(), expected)


def test_k_hat_of_few_or_equal_weights():
    assert pareto_k(torch.randn(24, 3)).isnan().all()
    assert (pareto_k(torch.full((100, 3), -5.0)) == -math.inf).all()
    assert pareto_k(torch.full((1000, 2), -5.0) + 1e-4 * torch.randn(1000, 2)).max() < 0.5


@pytest.mark.parametrize("total", [1, 2, 3, 8, 13, 100])
def test_the_k_curve_by_hand(total):
    weights = torch.randn(total, 5)
    curve = k_curve(weights)
    lengths = [k for k in (1, 2, 4, 8, 16, 32, 64) if k < total] + [total]
    assert list(curve) == lengths
    for k, bound in curve.items():
        blocks = [log_likelihood(weights[i * k : (i + 1) * k]) for i in range(total // k)]
        torch.testing.assert_close(bound, torch.stack(blocks).mean(0))


def oracle(guide):
    """A linear-Gaussian VAE whose guide is exact but for its scale: wide, or too narrow."""
    vae = make_oracle(exact=True, scale=0.7)
    vae.encoder.layers[1].bias.data[[2, 5]] += {"wide": 0.2, "narrow": -1.6}[guide]
    return vae.eval()


def test_intervals_cover_where_the_weights_have_a_variance():
    vae, x = oracle("wide"), torch.randn(400, 1, 1, 3).double()
    found = score(vae.model, vae.guide, Batch(x), 400, 1000)
    off = (found.log_likelihood - vae.log_p(x).detach()) / found.monte_carlo_error
    assert (found.pareto_k < 0.7).double().mean() > 0.95
    covered = int((off.abs() < 1.96).sum())
    assert stats.binomtest(covered, len(x), 0.95).pvalue > 1e-4
    mean_error = (found.monte_carlo_error.square().sum().sqrt() / len(x)).item()
    assert abs((found.log_likelihood - vae.log_p(x)).mean().item()) < 5 * mean_error


def test_k_hat_finds_a_poor_guide():
    vae, x = oracle("narrow"), torch.randn(50, 1, 1, 3).double()
    found = score(vae.model, vae.guide, Batch(x), 400, 1000)
    assert (found.pareto_k > 0.7).double().mean() > 0.6
    assert (found.effective_sample_size < 200).all()
    assert (found.log_likelihood - vae.log_p(x)).mean() < 0


def test_the_elbo_in_closed_form():
    vae, x = oracle("narrow"), torch.randn(30, 1, 1, 3).double()
    weights = log_weights(vae.model, vae.guide, x, num_samples=4000).detach()
    found = score(vae.model, vae.guide, Batch(x), 4000, 1000)
    error = weights.std(0) / 4000**0.5
    assert_likely(((found.elbo - vae.elbo(x).detach()) / error).abs())
    torch.testing.assert_close(found.elbo, found.curve[:, 0], rtol=1e-6, atol=1e-6)


class Table:
    """Programs that read the noise of each sample of an image from a table.

    The first pixel of an image is its index.
    """

    def __init__(self, samples, images):
        self.noise = torch.randn(samples, images)
        self.used = dict.fromkeys(range(images), 0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x[:, 1:])

    def guide(self, x):
        plates = [
            frame.size
            for frame in pyro.poutine.runtime._PYRO_STACK
            if getattr(frame, "name", "") == "importance samples"
        ]
        (samples,) = plates or [1]
        ids = [int(i) for i in x[:, 0]]
        noise = torch.stack([self.noise[self.used[i] : self.used[i] + samples, i] for i in ids], 1)
        for i in ids:
            self.used[i] += samples
        q = dist.Normal(x[:, 1] / 2, torch.full_like(x[:, 1], 0.8))
        z = q.loc + q.scale * noise.to(x.dtype).reshape(*plates, len(x))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z)))


@pytest.mark.parametrize("batch_size", [1000, 250, 30, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_any_batch_size(batch_size, dtype):
    """With equal noise, chunks of samples and batches of images do not change the results.

    Results in float32 are within 1e-3 nats.
    """
    x = torch.cat([torch.arange(7.0)[:, None], torch.randn(7, 3)], 1)
    table = Table(101, 7)
    whole = log_weights(table.model, table.guide, x.double(), num_samples=101)
    again = Table(101, 7)
    again.noise = table.noise
    found = score(again.model, again.guide, Batch(x.to(dtype)), 101, batch_size)
    tolerance = {"atol": 1e-3, "rtol": 0} if dtype == torch.float32 else {}
    torch.testing.assert_close(found.log_likelihood, log_likelihood(whole), **tolerance)
    torch.testing.assert_close(found.elbo, whole.mean(0), **tolerance)
    torch.testing.assert_close(found.curve[:, 3], k_curve(whole)[8], **tolerance)
    single = Table(101, 7)
    single.noise = table.noise
    one_by_one = [
        score(single.model, single.guide, Batch(x[i : i + 1].to(dtype)), 101, 1000).log_likelihood
        for i in range(7)
    ]
    torch.testing.assert_close(torch.cat(one_by_one), found.log_likelihood, **tolerance)


@pytest.mark.parametrize("batch_size", [1, 7, 100, 1000])
@pytest.mark.parametrize("num_samples", [3, 120])
def test_no_pass_exceeds_the_batch_size(vae, x, batch_size, num_samples):
    rows = []
    vae.decoder.register_forward_hook(lambda module, args, out: rows.append(len(out)))
    assert len(score(vae.model, vae.guide, Batch(x[:3], None), num_samples, batch_size).kl) == 3
    assert max(rows) <= batch_size
    assert sum(rows) == num_samples * 3
    assert len(rows) <= 2 * sum(rows) / batch_size + 1


def test_a_traced_evaluation_gives_the_same(vae, x):
    results = []
    for engine in ("eager", "traced"):
        pyro.set_rng_seed(4)
        results.append(
            score(vae.model, vae.guide, Batch(x.repeat(9, 1, 1, 1), None), 300, 1000, engine)
        )
    torch.testing.assert_close(
        results[0].log_likelihood, results[1].log_likelihood, atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(results[0].kl, results[1].kl, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_images_without_finite_weights_are_named(value):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(x[:, 0] > 0, value, 0.0 * z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))

    x = torch.zeros(40, 1)
    x[33] = 1
    with pyro.validation_enabled(False), pytest.raises(pv.NotFiniteError, match="image 33"):
        score(model, guide, Batch(x), 30, 100)


def test_scores_are_those_of_the_terms(vae, x):
    pyro.set_rng_seed(2)
    found = score(vae.model, vae.guide, Batch(x[:1]), 20, 100)
    pyro.set_rng_seed(2)
    t = terms(vae.model, vae.guide, Batch(x[:1]), num_samples=20)
    torch.testing.assert_close(found.reconstruction, t.reconstruction.double().mean(0))
    torch.testing.assert_close(found.kl, t.kl.double().mean(0))
    torch.testing.assert_close(found.log_likelihood, log_likelihood(t.log_weights.double()))


def test_k_hat_of_weights_with_a_gradient():
    vae = oracle("wide")
    weights = pv.log_weights(
        vae.model, vae.guide, torch.randn(2, 1, 1, 3).double(), num_samples=100
    )
    assert weights.requires_grad
    assert torch.equal(pv.pareto_k(weights), pv.pareto_k(weights.detach()))


def test_a_traced_evaluation_runs_the_programs_only_to_trace_them():
    """An eager one runs them in every pass."""
    vae, x = oracle("wide"), torch.randn(400, 1, 1, 3).double()
    runs = {}
    for engine in ("traced", "eager"):
        calls = runs[engine] = []
        score(
            lambda x, calls=calls: calls.append(1) or vae.model(x),
            vae.guide,
            Batch(x),
            3,
            12,
            engine,
        )
    assert len(runs["traced"]) < 10 < 50 < len(runs["eager"])


def test_labels_are_split_with_the_images():
    """The label is the mean of the image; the guide is exact."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(y + z, 1.0), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x - y) / 2, 0.5**0.5))

    x, y = torch.randn(10), torch.arange(10.0)
    found = score(model, guide, Batch(x, y), 5, 15)
    torch.testing.assert_close(found.log_likelihood.float(), dist.Normal(y, 2**0.5).log_prob(x))


@pytest.mark.parametrize("likelihood", ["Binomial", "Bernoulli"])
def test_evaluate(digits, likelihood):
    vae = make_vae(likelihood=likelihood, shape=digits.shape)
    results = pv.evaluate(vae, digits.test, num_samples=40)
    log_p, curve = results["log_likelihood"], results["k_curve"]
    assert set(curve) == {"1", "2", "4", "8", "16", "32", "40"}
    assert curve["40"]["mean"] == pytest.approx(log_p["mean"])
    assert (
        curve["1"]["mean"]
        == pytest.approx(results["elbo"]["mean"])
        == pytest.approx(log_p["elbo_same_images"]["mean"])
    )
    assert curve["1"]["gain"] == curve["1"]["gain_standard_error"] == 0
    assert curve["40"]["gain"] == pytest.approx(log_p["mean"] - results["elbo"]["mean"])
    assert results["elbo"]["mean"] == pytest.approx(
        results["reconstruction"]["mean"] - results["kl"]["mean"]
    )
    assert "log_likelihood_all_images" not in results
    assert 0 <= log_p["share_of_images_with_k_hat_over_0.7"] <= 1
    assert log_p["monte_carlo_error"] > 0
    bits = results["bits_per_dimension"]
    assert bits["mean"] == pytest.approx(-log_p["mean"] / 64 / math.log(2))
    assert bits["of"] == {"byte": "bytes", "binary": "binary pixels"}[vae.pixels]


def test_counts_are_scored_per_count():
    x = torch.poisson(torch.rand(30, 6) * 5)
    likelihood = pv.likelihoods.Poisson()
    encoder, decoder = pv.MLP((6,), (2, 2)), pv.MLP((2,), (1, 6))
    vae = pv.VAE(pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, likelihood)
    results = pv.evaluate(vae, x, num_samples=10)
    log_p = results["log_likelihood"]
    assert results["nats_per_count"]["mean"] == pytest.approx(-log_p["mean"] / 6)
    assert results["nats_per_count"]["standard_error"] == pytest.approx(log_p["standard_error"] / 6)
    assert "bits_per_dimension" not in results


def test_evaluate_a_subset(digits):
    """Images of two kinds: a subset may hold too many of one, but the ELBO corrects for it."""
    vae = make_vae(shape=digits.shape)
    vae.initialize(digits.train.scored("binary"))
    images = torch.cat([torch.zeros_like(digits.test.x[:150]), digits.test.x[:150]])
    whole = pv.evaluate(vae, pv.Split(images), num_samples=30)
    part = pv.evaluate(vae, pv.Split(images), num_samples=30, num_images=20)
    assert (
        part["log_likelihood"]["num_images"]
        == part["log_likelihood"]["elbo_same_images"]["num_images"]
        == 20
    )
    assert part["elbo"]["num_images"] == part["log_likelihood_all_images"]["num_images"] == 300
    assert (
        part["log_likelihood"]["num_samples"]
        == part["log_likelihood_all_images"]["num_samples"]
        == 30
    )
    corrected = part["log_likelihood_all_images"]
    assert (
        abs(corrected["mean"] - whole["log_likelihood"]["mean"]) < 4 * corrected["standard_error"]
    )
    assert corrected["standard_error"] < 0.6 * part["log_likelihood"]["standard_error"]


def test_a_subset_of_more_images_than_there_are_is_refused(vae, x):
    with pytest.raises(pv.RequestError, match="7"):
        pv.evaluate(vae, pv.Split(x), num_samples=5, num_images=7)


def test_the_standard_error_is_over_images(digits):
    """Half of the images give about sqrt(2) times the error."""
    vae = make_vae(shape=digits.shape)
    whole, half = (
        pv.evaluate(vae, digits.test[:count], num_samples=2)["elbo"] for count in (298, 149)
    )
    assert half["standard_error"] / whole["standard_error"] == pytest.approx(2**0.5, rel=0.15)
    assert abs(half["mean"] - whole["mean"]) < 4 * half["standard_error"]


@pytest.mark.parametrize("n", [10, 50, 200])
def test_the_error_of_two_phase_sampling(n):
    """Means of a subset, corrected by a noisy control variate, around the population's mean."""
    generator = torch.Generator().manual_seed(0)

    def repetition():
        easy, gap = torch.randn(2, 200, generator=generator).double()
        x = -100 + 10 * easy
        y = x + 5 + 2 * gap - 0.5 * easy
        noise = torch.randn(2, 200, generator=generator).double()
        index = torch.randperm(200, generator=generator)[:n]
        return two_phase_mean(y[index], (x + 0.3 * noise[0])[index], x + noise[1])

    means, errors = torch.tensor([repetition() for _ in range(3000)]).double().T
    assert_likely((means.mean() + 95) / (means.std() / 3000**0.5))
    assert errors.square().mean().sqrt().item() == pytest.approx(means.std().item(), rel=0.06)
    assert means.std() < 0.8 * 10 / n**0.5 or n == 200


def test_two_phase_sampling_of_one_image():
    mean, error = two_phase_mean(
        torch.tensor([3.0]), torch.tensor([1.0]), torch.tensor([1.0, 2.0, 6.0])
    )
    assert mean == pytest.approx(5.0)
    assert error is None


def test_the_median_is_the_middle_of_an_even_number(vae, x):
    from pyro_vae.evaluation.metrics import summarize

    scores = score_images(vae, pv.Split(x[:4]), 30)
    scores = scores._replace(effective_sample_size=torch.tensor([1.0, 2.0, 4.0, 9.0]))
    results = summarize(vae, pv.Split(x[:4]), scores, 30)
    assert results["log_likelihood"]["median_effective_sample_size"] == 3


def test_the_monte_carlo_error_does_not_depend_on_k_hat():
    vae, x = oracle("narrow").float(), torch.randn(50, 1, 1, 3)
    log_p = pv.evaluate(vae, x, num_samples=400)["log_likelihood"]
    assert log_p["share_of_images_with_k_hat_over_0.7"] > 0.6
    assert log_p["monte_carlo_error"] > 0


def test_the_errors_of_one_sample_are_none(vae, x):
    log_p = pv.evaluate(vae, pv.Split(x), num_samples=1)["log_likelihood"]
    assert log_p["monte_carlo_error"] is log_p["share_of_images_with_k_hat_over_0.7"] is None


@pytest.mark.parametrize("num_samples", [1, 3, 30])
def test_scores_are_float64(vae, x, num_samples):
    scores = score_images(vae, x, num_samples)
    assert {value.dtype for value in scores} == {torch.float64}


def test_bits_per_dimension_are_of_all_images(digits):
    vae = make_vae(likelihood="Binomial", shape=digits.shape)
    results = pv.evaluate(vae, digits.test, num_samples=20, num_images=10)
    of_all, bits = results["log_likelihood_all_images"], results["bits_per_dimension"]
    assert bits["num_images"] == 299
    assert bits["mean"] == pytest.approx(-of_all["mean"] / 64 / math.log(2))
    assert bits["standard_error"] == pytest.approx(of_all["standard_error"] / 64 / math.log(2))


@pytest.mark.parametrize("num_samples", [1, 2])
def test_results_are_json(vae, x, num_samples):
    for count in (1, 6):
        results = pv.evaluate(vae, x[:count], num_samples=num_samples)
        json.dumps(results, allow_nan=False)


def test_coverage_falls_where_k_hat_is_high():
    """Of the mean over 100 images, as the documentation of `evaluate` says."""
    covered = {}
    for shift in (0.2, -0.8):
        vae = make_oracle(exact=True, shape=(1, 1, 12), scale=0.7).eval()
        vae.encoder.layers[1].bias.data[2::3] += shift
        x = torch.randn(2000, 1, 1, 12).double()
        found = score(vae.model, vae.guide, Batch(x), 300, 30_000)
        off = (found.log_likelihood - vae.log_p(x).detach()).reshape(20, 100).mean(1)
        error = found.monte_carlo_error.reshape(20, 100).square().sum(1).sqrt() / 100
        covered[shift] = (off.abs() < 1.96 * error).double().mean().item()
    assert covered[0.2] > 0.8
    assert covered[-0.8] < 0.3
