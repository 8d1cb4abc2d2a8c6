"""The figures of each image: against exact values, whatever the chunks, and the limits of trust in them."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import stats
from statistics_ import assert_likely

import pyro_vae as pv
from pyro_vae.inference.graphs import has_compiler
from pyro_vae.inference.importance import (
    effective_sample_size,
    k_curve,
    log_likelihood,
    log_weights,
    monte_carlo_error,
    pareto_k,
    terms,
)
from pyro_vae.memory import Counter
from pyro_vae.evaluation.metrics import in_chunks, score
from pyro_vae.testing import LinearGaussianVAE


def test_effective_sample_size_of_known_weights():
    weights = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1e-30, 3.0], [1.0, 1e-30, 0.0], [1.0, 1e-30, 0.0]]).double()
    torch.testing.assert_close(effective_sample_size(weights.log()), torch.tensor([4.0, 1.0, 16 / 10]).double())
    torch.testing.assert_close(effective_sample_size(weights.log() - 1e4), effective_sample_size(weights.log()))


def test_monte_carlo_error_of_known_weights():
    weights = torch.rand(50, 3).double() + 0.5
    expected = weights.std(0) / weights.mean(0) / 50**0.5
    torch.testing.assert_close(monte_carlo_error(weights.log() + 1e3), expected)
    assert monte_carlo_error(torch.zeros(1, 2)).isnan().all()


@pytest.mark.parametrize("k", [0.2, 0.5, 0.7, 1.0])
def test_k_hat_of_pareto_weights(k):
    """Weights U^-k have the tail index k. ArviZ's function takes log-likelihoods, and turns their sign."""
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


def oracle(guide="encoder", latent_dim=2):
    """A linear-Gaussian VAE whose guide is exact, a little wider, or much too narrow."""
    pyro.set_rng_seed(1)
    vae = LinearGaussianVAE((1, 1, 3), latent_dim, scale=0.7).double()
    vae.make_guide_exact()
    spread = {"exact": 0.0, "wide": 0.2, "narrow": -1.6}[guide]
    vae.posterior.encoder.layers[1].bias.data[[2, 5]] += spread
    return vae.eval()


def test_intervals_cover_where_the_weights_have_a_variance():
    vae, x = oracle("wide"), torch.randn(400, 1, 1, 3).double()
    found = score(vae.model, vae.guide, x, 400)
    off = (found.log_likelihood - vae.log_p(x).detach()) / found.monte_carlo_error
    assert (found.pareto_k < 0.7).double().mean() > 0.95
    covered = int((off.abs() < 1.96).sum())
    assert stats.binomtest(covered, len(x), 0.95).pvalue > 1e-4
    mean_error = (found.monte_carlo_error.square().sum().sqrt() / len(x)).item()
    assert abs((found.log_likelihood - vae.log_p(x)).mean().item()) < 5 * mean_error


def test_a_poor_guide_is_found_out():
    vae, x = oracle("narrow"), torch.randn(50, 1, 1, 3).double()
    found = score(vae.model, vae.guide, x, 400)
    assert (found.pareto_k > 0.7).double().mean() > 0.6
    assert (found.effective_sample_size < 200).all()
    assert (found.log_likelihood - vae.log_p(x)).mean() < 0


def test_the_elbo_in_closed_form():
    vae, x = oracle("narrow"), torch.randn(30, 1, 1, 3).double()
    weights = torch.cat([part.log_weights for part in in_chunks(vae.model, vae.guide, x, 4000)], 1)
    found = score(vae.model, vae.guide, x, 4000)
    error = weights.std(0) / 4000**0.5
    assert_likely(((found.elbo - vae.elbo(x).detach()) / error).abs())
    torch.testing.assert_close(found.elbo, found.curve[:, 0], rtol=1e-6, atol=1e-6)


class Table:
    """A model and a guide whose noise for each image, named by its first pixel, and each sample is read from a table."""

    def __init__(self, samples, images):
        self.noise = torch.randn(samples, images)
        self.used = dict.fromkeys(range(images), 0)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=x.dtype), 1.0))
            pyro.sample("x", dist.Normal(z[..., None], 0.5).to_event(1), obs=x[:, 1:])

    def guide(self, x):
        samples = next(
            frame.size for frame in pyro.poutine.runtime._PYRO_STACK if getattr(frame, "name", "") == "importance samples"
        )
        ids = [int(i) for i in x[:, 0]]
        noise = torch.stack([self.noise[self.used[i] : self.used[i] + samples, i] for i in ids], 1).to(x.dtype)
        for i in ids:
            self.used[i] += samples
        q = dist.Normal(x[:, 1] / 2, torch.full_like(x[:, 1], 0.8))
        z = q.loc + q.scale * noise
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(z, log_density=q.log_prob(z)))


@pytest.mark.parametrize("memory_mb", [None, 0.01, 0.001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whatever_the_chunks(memory_mb, dtype):
    """Given the same noise: chunked as unchunked, and in a batch as one by one; float32 within 1e-3 nats of float64."""
    x = torch.cat([torch.arange(7.0)[:, None], torch.randn(7, 3)], 1)
    table = Table(101, 7)
    whole = log_weights(table.model, table.guide, x.double(), 101)
    again = Table(101, 7)
    again.noise = table.noise
    found = score(again.model, again.guide, x.to(dtype), 101, memory_mb)
    tolerance = {"atol": 1e-3, "rtol": 0} if dtype == torch.float32 else {}
    torch.testing.assert_close(found.log_likelihood, log_likelihood(whole), **tolerance)
    torch.testing.assert_close(found.elbo, whole.mean(0), **tolerance)
    torch.testing.assert_close(found.curve[:, 3], k_curve(whole)[8], **tolerance)
    single = Table(101, 7)
    single.noise = table.noise
    one_by_one = [score(single.model, single.guide, x[i : i + 1].to(dtype), 101).log_likelihood for i in range(7)]
    torch.testing.assert_close(torch.cat(one_by_one), found.log_likelihood, **tolerance)


@pytest.mark.parametrize("memory_mb", [0.02, 0.3, 5.0])
@pytest.mark.parametrize("num_samples", [3, 500])
def test_memory_is_bounded_as_asked(vae, x, memory_mb, num_samples):
    """No pass of the decoder makes more than may be taken, whatever K and N."""
    passes = []
    x = x.repeat(20, 1, 1, 1)

    def model(rows):
        with Counter() as counter:
            vae.model(rows)
        passes.append(counter.bytes / 2**20)

    chunks = list(in_chunks(model, vae.guide, x, num_samples, memory_mb))
    assert sum(part.kl.shape[1] for part in chunks) == 120
    assert all(part.kl.shape[0] == num_samples for part in chunks)
    assert max(passes) <= memory_mb
    fewest = sum(passes) / memory_mb
    assert len(passes) < 25 * fewest + 3


def test_too_little_memory_for_one_sample(vae, x):
    with pytest.raises(pv.RequestError, match=r"memory_mb is 0.0001, but the smallest pass takes 0.00\d+: allow more"):
        score(vae.model, vae.guide, x, 5, memory_mb=0.0001)


@pytest.mark.parametrize(
    "engine", ["traced", pytest.param("compiled", marks=pytest.mark.skipif(not has_compiler(), reason=""))]
)
def test_every_engine_gives_the_same(vae, x, engine):
    results = []
    for one in ("eager", engine):
        pyro.set_rng_seed(4)
        results.append(score(vae.model, vae.guide, x.repeat(9, 1, 1, 1), 300, memory_mb=1.0, engine=one))
    torch.testing.assert_close(results[0].log_likelihood, results[1].log_likelihood, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(results[0].kl, results[1].kl, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_weights_of_nothing_are_one_clear_line(value):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("x", torch.where(x[:, 0] > 0, value, 0.0 * z))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0).expand([len(x)]))

    x = torch.zeros(40, 1)
    x[33] = 1
    with pyro.validation_enabled(False), pytest.raises(pv.NotFiniteError, match="image 33 has no finite importance weight"):
        score(model, guide, x, 30)


def test_no_draw_of_its_own_changes_the_count(vae, x):
    """The probe for memory is part of the samples."""
    decoded = []
    vae.decoder.register_forward_hook(lambda module, args, out: decoded.append(len(out)))
    score(vae.model, vae.guide, x, 77)
    assert sum(decoded) == 77 * len(x)


def test_scores_are_those_of_the_terms(vae, x):
    pyro.set_rng_seed(2)
    found = score(vae.model, vae.guide, x[:1], 20)
    pyro.set_rng_seed(2)
    t = terms(vae.model, vae.guide, x[:1], 20)
    torch.testing.assert_close(found.reconstruction, t.reconstruction.double().mean(0))
    torch.testing.assert_close(found.kl, t.kl.double().mean(0))
    torch.testing.assert_close(found.log_likelihood, log_likelihood(t.log_weights.double()))


def test_the_tail_of_weights_that_have_a_gradient():
    vae = oracle("wide")
    weights = pv.log_weights(vae.model, vae.guide, torch.randn(2, 1, 1, 3).double(), 100)
    assert weights.requires_grad
    assert torch.equal(pv.pareto_k(weights), pv.pareto_k(weights.detach()))


def test_a_traced_evaluation_runs_the_programs_for_the_trace_alone():
    """And an eager one for every pass: the 400 images of three samples take many."""
    vae, x = oracle("wide"), torch.randn(400, 1, 1, 3).double()
    runs = {}
    for engine in ("traced", "eager"):
        calls = runs[engine] = []
        score(lambda x, calls=calls: calls.append(1) or vae.model(x), vae.guide, x, 3, memory_mb=0.01, engine=engine)
    assert len(runs["traced"]) < 10 < 50 < len(runs["eager"])
