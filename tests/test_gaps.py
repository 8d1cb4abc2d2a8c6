"""Missing values in models: densities, training, and every evaluator, against exact results."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import LIKELIHOODS, NETWORKS, make_vamp_prior
from statistics_ import assert_mean

import pyro_vae as pv
from pyro_vae.distributions import leave_out_missing
from pyro_vae.engine.graphs import trace
from pyro_vae.networks import batched
from pyro_vae.testing import LinearGaussianVAE

SHAPE = (1, 2, 3)


class Exact(LinearGaussianVAE):
    """The guide is the exact posterior given what is observed."""

    def encode(self, x, y=None):
        return self.exact_posterior(x)


@pytest.fixture
def gappy():
    vae = Exact(SHAPE, latent_dim=2)
    with torch.no_grad():
        x = vae.sample(12)
    x[torch.rand_like(x) < 0.4] = torch.nan
    x[:, 0, 1, 1] = 0.2
    return vae, x


def elements(p):
    while isinstance(p, dist.Independent):
        p = p.base_dist
    return p


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_density_leaves_out_what_is_missing(name):
    """With finite gradients, which are zero for the parameters of missing elements."""
    likelihood = LIKELIHOODS[name]()
    if getattr(likelihood, "given_total", False):
        pytest.skip("the total of a row needs all of its values")
    params = torch.randn(4, likelihood.num_params, *SHAPE, requires_grad=True)
    x = likelihood(params).sample().float()
    missing = torch.rand(x.shape) < 0.4
    p = leave_out_missing(likelihood(params))
    score = p.log_prob(x.masked_fill(missing, torch.nan))
    each = elements(likelihood(params)).log_prob(x)
    expected = each.masked_fill(missing, 0).flatten(1).sum(1)
    torch.testing.assert_close(score, expected)
    (grad,) = torch.autograd.grad(score.sum(), params)
    assert grad.isfinite().all()
    assert (grad.movedim(1, -1)[missing] == 0).all()


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_a_complete_density_is_the_same_bit_for_bit(name):
    likelihood = LIKELIHOODS[name]()
    params = torch.randn(4, likelihood.num_params, *SHAPE, requires_grad=True)
    x = likelihood(params).sample().float()
    scores = [likelihood(params).log_prob(x), leave_out_missing(likelihood(params)).log_prob(x)]
    assert torch.equal(*scores)
    grads = [torch.autograd.grad(score.sum(), params)[0] for score in scores]
    assert torch.equal(*grads)


class Unmasked(pv.VAE):
    """The programs as they are without a treatment of missing values."""

    def encode(self, x, y=None):
        return self.posterior(self.encoder(self.likelihood.unit(x)))

    def decode(self, z, y=None):
        return self.likelihood(batched(self.decoder, z))


def trained(model, data, engine="eager", objective=None, mask_input=False):
    pyro.set_rng_seed(0)
    encoder = pv.MLP(data.shape, (2, 3), hidden=(9,), mask_input=mask_input)
    decoder = pv.MLP((3,), (1, *data.shape), hidden=(9,))
    vae = model(pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    few = pv.Data("few", data.train[:200], data.validation[:20], data.test[:20])
    options = {"epochs": 2, "batch_size": 50, "seed": 0, "engine": engine, "objective": objective}
    *_, record = pv.fit(vae, few, **options)
    return vae, record


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are made, as text."""
    found = []

    def recorded(*args):
        traced = trace(*args)
        found.append(str(traced.graph.graph))
        return traced

    monkeypatch.setattr("pyro_vae.engine.graphs.trace", recorded)
    return found


def test_steps_on_data_without_gaps_compute_no_masks(digits, graphs):
    """Those steps alone: in validation, and afterwards, the model leaves out what is missing."""
    gaps = digits.with_missing(0.5)
    data = pv.Data("complete", digits.train, gaps.validation, digits.test)
    vae, record = trained(pv.VAE, data, "traced")
    assert record["validation_elbo"] > -40
    x = gaps.test[:5].scored("binary")
    assert pv.log_weights(vae.model, vae.guide, x, num_samples=2).isfinite().all()
    trained(pv.VAE, gaps, "traced")
    without, having = graphs
    assert "isnan" not in without
    assert "isnan" in having


def test_treatment_changes_nothing_where_nothing_is_missing(digits):
    """Losses and gradients, bit for bit."""
    vae, _ = trained(pv.VAE, digits)
    x = digits.test[:9].scored("binary")
    results = []
    for treated in (True, False):
        pyro.set_rng_seed(0)
        with vae.treating_missing(treated):
            loss = pyro.infer.Trace_ELBO().differentiable_loss(vae.model, vae.guide, x)
        results.append([loss, *torch.autograd.grad(loss, list(vae.parameters()))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_training_without_gaps_is_the_same_bit_for_bit(digits, engine):
    observed = torch.ones(digits.train.x.shape, dtype=torch.bool)
    train = pv.Split(digits.train.x, digits.train.labels, observed=observed)
    marked = pv.Data("marked", train, digits.validation, digits.test)
    vae, _ = trained(pv.VAE, marked, engine)
    plain, _ = trained(Unmasked, digits, engine)
    for one, other in zip(vae.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)
    if engine == "eager":
        scores = []
        for each in (vae, plain):
            pyro.set_rng_seed(0)
            scores.append(pv.score_images(each, digits.test[:9], 30))
        assert all(torch.equal(*pair) for pair in zip(*scores, strict=True))


@pytest.mark.parametrize("mask_input", [False, True])
@pytest.mark.parametrize(
    "make",
    [lambda: None, lambda: pv.ImportanceWeightedELBO(3), lambda: pv.DReGELBO(3), pv.FreeBitsELBO],
)
def test_engines_agree_with_gaps(digits, make, mask_input):
    data = digits.with_missing(0.5)
    parameters = []
    for engine in ("eager", "traced"):
        vae, record = trained(pv.VAE, data, engine, make(), mask_input)
        assert record["loss"] < 40
        parameters.append(torch.cat([param.detach().flatten() for param in vae.parameters()]))
    assert parameters[0].isfinite().all()
    torch.testing.assert_close(*parameters, rtol=1e-4, atol=1e-5)


def test_the_hidden_values_have_no_effect(digits):
    """Other bytes under the same gaps give the same model, bit for bit."""
    data = digits.with_missing(0.5)
    other = []
    for split in data.splits:
        noise = torch.randint(256, split.x.shape).to(torch.uint8)
        x = torch.where(split.observed, split.x, noise)
        other.append(pv.Split(x, split.labels, split.noise, observed=split.observed))
    one, _ = trained(pv.VAE, data, mask_input=True)
    two, _ = trained(pv.VAE, pv.Data("other", *other), mask_input=True)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_exact_results_given_what_is_observed(gappy):
    """By conditioning the joint Gaussian of z and x, one row at a time."""
    vae, x = gappy
    weight, bias = vae.decoder.parameters()
    size = weight.shape[1]
    columns = torch.cat([torch.eye(size), weight])
    noise = torch.cat([torch.zeros(size), torch.full((len(bias),), vae.variance)])
    joint = columns @ columns.T + noise.diag()
    posterior = vae.exact_posterior(x)
    for index, row in enumerate(x.flatten(1)):
        seen = size + (~row.isnan()).nonzero()[:, 0]
        inner = joint[seen][:, seen]
        residual = row[seen - size] - bias[seen - size]
        gain = torch.linalg.solve(inner, joint[seen][:, :size]).T
        torch.testing.assert_close(posterior.mean[index], gain @ residual, rtol=1e-4, atol=1e-5)
        covariance = torch.eye(size) - gain @ joint[seen][:, :size]
        torch.testing.assert_close(
            posterior.covariance_matrix[index], covariance, rtol=1e-4, atol=1e-5
        )
        log_p = dist.MultivariateNormal(torch.zeros(len(seen)), inner).log_prob(residual)
        torch.testing.assert_close(vae.log_p(x)[index], log_p, rtol=1e-4, atol=1e-4)


def test_weights_of_the_exact_posterior_are_constant(gappy):
    vae, x = gappy
    weights = pv.log_weights(vae.model, vae.guide, x, num_samples=7)
    torch.testing.assert_close(weights, vae.log_p(x).expand(7, -1), rtol=0, atol=1e-4)


def test_every_evaluator_scores_what_is_observed(gappy):
    exact, x = gappy
    vae = LinearGaussianVAE(SHAPE, latent_dim=2)
    vae.decoder.load_state_dict(exact.decoder.state_dict())
    log_p = exact.log_p(x).detach().double()
    quadrature = pv.quadrature_log_likelihood(vae, x)
    torch.testing.assert_close(quadrature, log_p, rtol=0, atol=1e-3)
    scores = pv.score_images(exact, x, num_samples=100)
    torch.testing.assert_close(scores.log_likelihood, log_p, rtol=0, atol=1e-4)
    weights = pv.annealed_log_weights(vae.model, x, num_chains=200, num_temperatures=10)
    assert_mean((weights - log_p).exp(), 1.0)
    results = pv.evaluate(exact, x, num_samples=30)
    assert results["log_likelihood"]["mean"] == pytest.approx(log_p.mean().item(), abs=1e-4)
    assert results["observed"] == pytest.approx(1 - x.isnan().double().mean().item())
    check = pv.check_log_likelihood(exact, x, scores)
    assert (check["method"], check["disagree"]) == ("quadrature", False)


def test_the_elbo_is_that_of_what_is_observed(gappy):
    exact, x = gappy
    vae = LinearGaussianVAE(SHAPE, latent_dim=2)
    vae.decoder.load_state_dict(exact.decoder.state_dict())
    draws = pv.log_weights(vae.model, vae.guide, x, num_samples=4000)
    assert_mean(draws - vae.elbo(x), 0.0)


def test_bounds_from_both_sides_keep_the_gaps(gappy):
    vae, x = gappy
    simulated, bounds = pv.bidirectional_bounds(vae.model, x, num_chains=30, num_temperatures=20)
    assert torch.equal(simulated.isnan(), x.isnan())
    log_p = vae.log_p(simulated)
    assert (bounds.lower - log_p).mean().abs() < 0.1
    assert (bounds.upper - log_p).mean().abs() < 0.1


def test_training_reaches_the_optimum_of_probabilistic_pca_with_gaps():
    """The ELBO of the exact posterior is the likelihood, whose maximum EM finds.

    The M step is a regression of the observed values of each column on the moments of z.
    """
    truth = Exact(SHAPE, latent_dim=1)
    with torch.no_grad():
        truth.decoder.layers[1].weight.copy_(torch.tensor([[1.0], [-2.0], [0.5], [1.5], [1], [0]]))
        x = truth.sample(150)
    x[torch.rand_like(x) < 0.4] = torch.nan
    x[:, 0, 0, 0] = x[:, 0, 0, 0].nan_to_num(0.3)
    em = Exact(SHAPE, latent_dim=1)
    em.load_state_dict(truth.state_dict())
    for _ in range(60):
        em_step(em, x)
    best = em.log_p(x).mean().item()

    vae = Exact(SHAPE, latent_dim=1)
    vae.decoder.layers[1].weight.data.copy_(truth.decoder.layers[1].weight + 0.3)
    svi = pv.SVI(
        vae.model, vae.guide, lambda params: torch.optim.Adam(params, 0.1), pyro.infer.Trace_ELBO()
    )
    for _ in range(80):
        svi.step(x)
    reached = vae.log_p(x).mean().item()
    assert best - 0.01 < reached < best + 1e-4


@torch.no_grad()
def em_step(vae, x):
    weight, bias = vae.decoder.parameters()
    posterior = vae.exact_posterior(x)
    means = torch.cat([posterior.mean, torch.ones(len(x), 1)], 1)
    moments = means[:, :, None] * means[:, None]
    moments[:, :-1, :-1] += posterior.covariance_matrix
    for column, values in enumerate(x.flatten(1).T):
        seen = ~values.isnan()
        solution = torch.linalg.solve(moments[seen].sum(0), means[seen].T @ values[seen])
        weight[column] = solution[:-1]
        bias[column] = solution[-1]


@pytest.mark.parametrize("name", ["MLP", "Gated", "Conv"])
def test_a_network_that_reads_the_mask(name):
    x = torch.rand(6, 2, 5, 8)
    x[:, 0, 1, 3] = torch.nan
    network = NETWORKS[name]((2, 5, 8), (2, 4), mask_input=True)
    z = network(x)
    assert z.isfinite().all()
    assert not torch.allclose(z, network(x.nan_to_num()))
    z.sum().backward()
    assert all(param.grad.isfinite().all() for param in network.parameters())


def test_other_networks_read_zeros(digits):
    x = digits.train[:5].with_missing(0.5).scored("binary")
    vae, _ = trained(pv.VAE, digits)
    assert torch.equal(vae.q_z(x).mean, vae.q_z(x.nan_to_num(0.0)).mean)


def test_the_model_is_initialized_by_what_is_observed():
    """Also pseudo-inputs, which are training images."""
    x = torch.rand(100, 1, 4, 4)
    x[::2, 0, 0, 0] = torch.nan
    prior = make_vamp_prior("DiagonalNormal", 2, start="data", components=60)
    decoder = pv.MLP((2,), (1, 1, 4, 4), hidden=(5,))
    likelihood = pv.likelihoods.Normal()
    vae = pv.VAE(prior, prior.encoder, prior.posterior, decoder, likelihood)
    vae.initialize(x)
    assert prior.inputs.isfinite().all()
    (*_, bias) = decoder.parameters()
    torch.testing.assert_close(bias.reshape(1, 4, 4), x.nanmean(0))


class Correlated(pv.Likelihood):
    num_params = 1
    pixels = "unit"

    def forward(self, params):
        loc = params.squeeze(-4).flatten(-3)
        joint = dist.MultivariateNormal(loc, torch.eye(loc.shape[-1]))
        shape = params.shape[-3:]
        return dist.TransformedDistribution(
            joint, dist.transforms.ReshapeTransform((loc.shape[-1],), shape)
        )


class OwnPrograms(pv.VAE):
    def model(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(batched(self.decoder, z)), obs=x)


@pytest.mark.parametrize(
    ("model", "likelihood"), [(pv.VAE, Correlated), (OwnPrograms, pv.Bernoulli)]
)
def test_what_cannot_leave_out_values_is_refused(digits, model, likelihood):
    data = digits.with_missing(0.3)
    encoder, decoder = pv.MLP(data.shape, (2, 3)), pv.MLP((3,), (1, *data.shape))
    vae = model(pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, likelihood())
    with pytest.raises(pv.RequestError, match="cannot leave out"):
        next(pv.fit(vae, data, epochs=1))
    with pytest.raises(pv.RequestError, match="cannot leave out"):
        pv.evaluate(vae, data.test, 10)
    pv.evaluate(vae, digits.test[:3], 10)


def test_counts_given_their_total_need_all_values():
    x = torch.randint(9, (40, 6), dtype=torch.int32)
    split = pv.Split(x).with_missing(0.3)
    encoder, decoder = pv.MLP((6,), (2, 3)), pv.MLP((3,), (1, 6))
    parts = pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder
    with pytest.raises(pv.RequestError, match="cannot leave out"):
        pv.fit(pv.VAE(*parts, pv.Poisson(given_total=True)), pv.Data("x", split, split, split))
    pv.fit(pv.VAE(*parts, pv.Poisson()), pv.Data("x", split, split, split))


def test_rows_and_columns_without_values_are_refused(digits, gappy):
    vae, x = gappy
    x = x.clone()
    x[4] = torch.nan
    with pytest.raises(pv.RequestError, match="1 rows have no observed value, such as row 4"):
        pv.score_images(vae, x, 10)
    observed = torch.ones(digits.train.x.shape, dtype=torch.bool)
    observed[:, 0, 2, 5] = False
    data = pv.Data("gap", pv.Split(digits.train.x, observed=observed), digits.test, digits.test)
    with pytest.raises(pv.RequestError, match=r"missing in all training rows.*\(0, 2, 5\)"):
        trained(pv.VAE, data)


def test_supports_tell_a_value_of_finite_density():
    """Also a distribution that does not tell its support."""

    class Untold(dist.Normal):
        @property
        def support(self):
            raise NotImplementedError

    p = leave_out_missing(Untold(torch.zeros(2), 1.0, validate_args=False).to_event(1))
    x = torch.tensor([0.3, torch.nan])
    assert p.log_prob(x) == dist.Normal(0.0, 1.0).log_prob(x[0])
