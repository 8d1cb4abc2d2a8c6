"""Each estimator against a closed form, quadrature, or Pyro's own."""

import copy

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from families import OBJECTIVES, SHAPE, make_hierarchical, make_oracle, make_vae
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO, TraceMeanField_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from statistics_ import assert_mean, repeated
from torch.distributions import Normal, kl_divergence

import pyro_vae as pv

ELBOS = [Trace_ELBO, TraceMeanField_ELBO, pv.StickingTheLandingELBO]
TIGHTER = [pv.ImportanceWeightedELBO, pv.DReGELBO]
COPIES = 20
"""Of each image in a batch.

A call gives the sum of that many independent estimates for little more than the cost of one.
"""
X = (
    torch.tensor([[0.4, -1.0, 0.2], [2.0, 0.5, -0.3]], dtype=torch.float64)
    .reshape(2, 1, 1, 3)
    .repeat(COPIES, 1, 1, 1)
)


def gradients(objective, vae, *args):
    """The loss, and its gradient in every parameter, in one vector."""
    loss = objective.differentiable_loss(vae.model, vae.guide, *args)
    return [loss.detach(), flat(torch.autograd.grad(loss, list(vae.parameters())))]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def exact_gradients(vae, loss):
    return flat(torch.autograd.grad(loss, list(vae.parameters())))


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("objective", ELBOS)
def test_elbo_and_its_gradient_in_closed_form(objective, beta):
    vae = make_oracle()
    exact = -vae.elbo(X, beta).sum()
    losses, grads = repeated(lambda: gradients(objective(), vae, X, None, beta), 60)
    assert_mean(losses, exact.detach(), slack=1e-9)
    assert_mean(grads, exact_gradients(vae, exact), slack=1e-9)


def bound_by_quadrature(vae, x):
    """The importance-weighted bound at K = 2 with one latent dimension.

    By Gauss-Hermite quadrature over two samples.
    """
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = torch.from_numpy(weights / weights.sum())
    q = vae.encode(x)
    z = q.mean + q.scale_tril[..., 0] * torch.from_numpy(nodes)
    likelihood = torch.stack([vae.decode(column[:, None]).log_prob(x) for column in z.T], 1)
    log_w = (
        likelihood + Normal(0.0, 1.0).log_prob(z) - Normal(q.mean, q.scale_tril[..., 0]).log_prob(z)
    )
    both = torch.logaddexp(log_w[:, :, None], log_w[:, None, :]) - np.log(2)
    return (both * weights[:, None] * weights).sum()


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("objective", TIGHTER)
def test_the_bound_of_two_samples_by_quadrature(objective, vectorized):
    vae = make_oracle(latent_dim=1)
    exact = -bound_by_quadrature(vae, X)
    losses, grads = repeated(
        lambda: gradients(objective(2, vectorize_particles=vectorized), vae, X), 60
    )
    assert_mean(losses, exact.detach(), slack=1e-9)
    assert_mean(grads, exact_gradients(vae, exact), slack=1e-9)


@pytest.mark.parametrize("samples", [1, 2, 7, 50])
@pytest.mark.parametrize("objective", [*TIGHTER, pv.StickingTheLandingELBO])
def test_the_exact_posterior_gives_log_p_at_every_number_of_samples(objective, samples):
    vae = make_oracle(exact=True)
    loss = objective(samples).loss(vae.model, vae.guide, X)
    assert loss == pytest.approx(-vae.log_p(X).sum().item(), rel=1e-9)


def test_the_bound_rises_with_the_number_of_samples():
    vae = make_oracle()
    bounds, errors = [], []
    for samples in (1, 2, 4, 16, 64):
        objective = pv.ImportanceWeightedELBO(samples)
        (losses,) = repeated(
            lambda o=objective: [torch.tensor(o.loss(vae.model, vae.guide, X))], 50
        )
        bounds.append(-losses.mean())
        errors.append(losses.std() / 50**0.5)
    rises = torch.stack(bounds).diff()
    assert (rises > 4 * (torch.stack(errors)[:-1] + torch.stack(errors)[1:])).all()
    assert bounds[-1] < vae.log_p(X).sum() + 4 * errors[-1]


def guide_gradient(objective, vae):
    loss = objective.differentiable_loss(vae.model, vae.guide, X)
    return [flat(torch.autograd.grad(loss, list(vae.encoder.parameters())))]


def test_sticking_the_landing_has_no_variance_at_the_exact_posterior():
    vae = make_oracle(exact=True)
    (ours,) = repeated(lambda: guide_gradient(pv.StickingTheLandingELBO(), vae), 20)
    (pyros,) = repeated(lambda: guide_gradient(Trace_ELBO(), vae), 20)
    assert ours.abs().max() < 1e-10
    assert pyros.std(0).max() > 0.1


def signal_to_noise(objective, vae, count=60):
    (grads,) = repeated(lambda: guide_gradient(objective, vae), count)
    return grads.mean(0).norm() / grads.std(0).norm()


def test_the_signal_to_noise_ratio_falls_for_iwae_and_rises_for_dreg():
    """O(1 / sqrt(K)) against O(sqrt(K)) where the weights have a variance.

    (Rainforth et al., 2018; Tucker et al., 2019)
    """
    vae = make_oracle(exact=True)
    wider = vae.encoder.layers[1].bias.data
    wider[:2] += 0.1
    wider[[2, 5]] += 0.2
    doubly = [signal_to_noise(pv.DReGELBO(k), vae) for k in (1, 100)]
    plain = [signal_to_noise(pv.ImportanceWeightedELBO(k), vae) for k in (1, 100)]
    assert plain[1] < 0.6 * plain[0]
    assert doubly[1] > 4 * doubly[0]


RELATED = {
    "the prior shares the encoder": lambda: make_vae("VampPrior"),
    "the prior shares the encoder and a flow": lambda: make_vae("VampPrior", "FlowPosterior"),
    "one draw starts from another": make_hierarchical,
}


PATHS = {
    "sticking the landing": (pv.StickingTheLandingELBO(), Trace_ELBO()),
    "DReG": (pv.DReGELBO(4), pv.ImportanceWeightedELBO(4)),
    "DReG of one sample": (pv.DReGELBO(1), Trace_ELBO()),
}


@pytest.mark.parametrize("objectives", PATHS)
@pytest.mark.parametrize("model", RELATED)
def test_path_gradients_have_the_same_mean(model, objectives):
    vae, x = (
        RELATED[model]().double(),
        torch.bernoulli(torch.full((2, *SHAPE), 0.4, dtype=torch.float64)),
    )
    x = x.repeat(COPIES, 1, 1, 1)
    samples = [
        repeated(lambda o=objective: gradients(o, vae, x), 40) for objective in PATHS[objectives]
    ]
    for ours, others in zip(*samples, strict=True):
        error = (ours.var(0) + others.var(0)).sqrt()
        assert_mean((ours - others) / error.clamp(min=1e-12), 0.0, slack=1e-6)


class Chain(torch.nn.Module):
    """Two latent variables, the second drawn from the first.

    The ELBO is written by hand, up to a constant.
    """

    def __init__(self):
        super().__init__()
        self.a, self.b = (
            torch.nn.Parameter(torch.tensor(0.7).double()),
            torch.nn.Parameter(torch.tensor(1.5).double()),
        )

    def model(self, x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(x), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.a * x, 0.7))
            pyro.sample("z2", dist.Normal(self.b * z1, 0.5))

    def elbo(self, x):
        second = (self.a * x).square() + 0.7**2
        return (
            -0.5
            * ((x - self.a * x).square() + (1 - self.b) ** 2 * second + self.b**2 * second).sum()
        )


@pytest.mark.parametrize(
    "objective", [Trace_ELBO, pv.StickingTheLandingELBO, lambda: pv.DReGELBO(1)]
)
def test_a_path_that_starts_from_another_draw(objective):
    chain, x = Chain(), torch.tensor([1.0, -2.0]).double().repeat(COPIES)
    _, grads = repeated(lambda: gradients(objective(), chain, x), 60)
    assert_mean(grads, exact_gradients(chain, -chain.elbo(x)))


def test_iwae_is_renyi_of_order_zero(vae, x):
    """With the same draws: the value, and the gradient in every parameter."""
    twin = copy.deepcopy(vae)
    pyro.set_rng_seed(3)
    ours = pv.ImportanceWeightedELBO(5).loss_and_grads(vae.model, vae.guide, x)
    pyro.set_rng_seed(3)
    renyi = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    assert ours == pytest.approx(renyi.loss_and_grads(twin.model, twin.guide, x), rel=1e-5)
    for a, b in zip(vae.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("options", [{}, {"num_particles": 1}, {"num_particles": 3}])
def test_in_pyros_own_svi(name, options, vae, x):
    objective = OBJECTIVES[name](**options)
    svi = pyro.infer.SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    before = [param.clone() for param in vae.parameters()]
    losses = [svi.step(x) for _ in range(30)]
    assert all(isinstance(loss, float) for loss in losses)
    assert sum(losses[-5:]) < sum(losses[:5])
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))
    assert isinstance(svi.evaluate_loss(x), float)


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_num_particles_is_exact(name, vectorized, vae, x):
    decoded = []
    vae.decoder.register_forward_hook(lambda module, args, out: decoded.append(len(out)))
    OBJECTIVES[name](num_particles=7, vectorize_particles=vectorized).loss(vae.model, vae.guide, x)
    assert sum(decoded) == 7 * len(x)
    assert len(decoded) == (1 if vectorized else 7)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_sequential_and_vectorized_agree(name):
    vae, options = make_oracle(), {"groups": 1} if name == "FreeBitsELBO" else {}
    made = [
        OBJECTIVES[name](num_particles=3, vectorize_particles=vectorized, **options)
        for vectorized in (False, True)
    ]
    both = [repeated(lambda o=objective: gradients(o, vae, X), 30) for objective in made]
    for one, other in zip(*both, strict=True):
        assert_mean(
            (one - other) / (one.var(0) + other.var(0)).sqrt().clamp(min=1e-12), 0.0, slack=1e-6
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda: pv.ImportanceWeightedELBO(0),
        lambda: pv.DReGELBO(-1),
        lambda: pv.FreeBitsELBO(num_particles=0),
    ],
)
def test_no_samples_are_refused(make):
    with pytest.raises(ValueError, match="num_particles must be positive"):
        make()


@pytest.mark.parametrize("objective", TIGHTER)
def test_scaled_weights_are_refused(objective, vae, x):
    with pytest.raises(ValueError, match="leave beta at 1"):
        objective().loss(vae.model, vae.guide, x, None, 0.5)


def reference(vae, x):
    """The reconstruction of the next draw, and KL by dimension averaged over the batch, by hand."""
    guide = poutine.trace(vae.guide).get_trace(x)
    q, z = guide.nodes["z"]["fn"].base_dist, guide.nodes["z"]["value"]
    return vae.decode(z).log_prob(x).sum(), kl_divergence(
        Normal(q.loc, q.scale), Normal(0.0, 1.0)
    ).mean(0)


@pytest.mark.parametrize(("groups", "size"), [(None, 1), (2, 3), (1, 6)])
@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_free_bits_by_hand(x, groups, size, beta):
    vae = make_vae(latent_dim=6)
    pyro.set_rng_seed(2)
    reconstruction, rates = reference(vae, x)
    floor = (
        rates.reshape(-1, size).sum(-1).sort().values[: (6 // size + 1) // 2].mean().item() + 1e-3
    )
    expected = (
        beta * rates.reshape(-1, size).sum(-1).clamp(min=floor).sum() * len(x) - reconstruction
    )
    pyro.set_rng_seed(2)
    loss = pv.FreeBitsELBO(floor, groups).differentiable_loss(vae.model, vae.guide, x, None, beta)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)


def test_a_kl_below_the_floor_has_no_gradient(vae, x):
    """The gradient of the loss is that of the reconstruction."""
    pyro.set_rng_seed(2)
    _, free = gradients(pv.FreeBitsELBO(floor=1e4), vae, x)
    pyro.set_rng_seed(2)
    reconstruction, _ = reference(vae, x)
    torch.testing.assert_close(free, exact_gradients(vae, -reconstruction))


def test_free_bits_of_two_layers_are_estimated_by_the_draws():
    """The closed form at one draw of the layer above would be wrong.

    Without free bits the loss is the ELBO.
    """
    vae, x = (
        make_hierarchical().double(),
        torch.bernoulli(torch.full((2, *SHAPE), 0.4, dtype=torch.float64)),
    )
    pyro.set_rng_seed(2)
    losses = pv.FreeBitsELBO(floor=1e-300, groups=1).loss(vae.model, vae.guide, x)
    pyro.set_rng_seed(2)
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    guide.compute_log_prob(), model.compute_log_prob()
    rates = [
        (guide.nodes[z]["log_prob"] - model.nodes[z]["log_prob"]).sum().clamp(min=0)
        for z in ("z", "z2")
    ]
    assert losses == pytest.approx(
        (sum(rates) - model.nodes["x"]["log_prob"].sum()).item(), rel=1e-9
    )


@pytest.mark.parametrize("name", ["VampPrior", "FlowPosterior", "FullRankNormal"])
def test_free_bits_of_dimensions_need_independent_ones(name, x):
    vae = make_vae(prior="VampPrior") if name == "VampPrior" else make_vae(posterior=name)
    with pytest.raises(ValueError, match="use groups=1"):
        pv.FreeBitsELBO().loss(vae.model, vae.guide, x)
    assert pv.FreeBitsELBO(groups=1).loss(vae.model, vae.guide, x) > 0


def test_groups_must_divide_the_dimensions(vae, x):
    with pytest.raises(ValueError, match="3 latent dimensions cannot be divided into 2"):
        pv.FreeBitsELBO(groups=2).loss(vae.model, vae.guide, x)


@pytest.mark.parametrize("capacity", [0.01, 50.0])
def test_capacity_by_hand(vae, x, capacity):
    """For a KL above and below the capacity."""
    objective = pv.CapacityELBO(gamma=7.0, capacity=pv.Constant(capacity))
    pyro.set_rng_seed(2)
    reconstruction, rates = reference(vae, x)
    expected = 7.0 * (rates.sum() - capacity).abs() * len(x) - reconstruction
    pyro.set_rng_seed(2)
    torch.testing.assert_close(
        objective.differentiable_loss(vae.model, vae.guide, x), expected, rtol=1e-5, atol=1e-4
    )


def test_capacity_grows(digits):
    capacity = pv.schedules.Linear(steps=500, end=10.0)
    *_, last = pv.fit(
        make_vae(latent_dim=5, shape=digits.shape),
        digits,
        epochs=70,
        objective=pv.CapacityELBO(1000.0, capacity),
    )
    assert last["kl"] == pytest.approx(10, abs=0.5)


@pytest.mark.parametrize(
    ("objective", "beta"),
    [
        (pv.ImportanceWeightedELBO, pv.Constant(0.5)),
        (pv.DReGELBO, pv.schedules.Linear(steps=5)),
        (RenyiELBO, pv.Constant(2.0)),
        (pv.CapacityELBO, pv.Constant(2.0)),
    ],
)
def test_unsupported_beta_is_refused(digits, objective, beta):
    with pytest.raises(pv.RequestError, match=f"{objective.__name__}.* leave beta at 1"):
        pv.fit(make_vae(shape=digits.shape), digits, objective=objective(), beta=beta)


@pytest.mark.parametrize("prior", ["GaussianMixture", "FlowPrior", "StudentT"])
def test_mean_field_requires_a_closed_form(digits, prior):
    with pytest.raises(pv.RequestError, match="closed-form KL"):
        pv.fit(make_vae(prior, shape=digits.shape), digits, objective=TraceMeanField_ELBO())


def test_mean_field_refuses_two_layers():
    few = pv.Data("few", *(pv.Split(torch.zeros(5, *SHAPE)) for _ in range(3)))
    with pytest.raises(pv.RequestError, match="several stochastic layers"):
        pv.fit(make_hierarchical(), few, objective=TraceMeanField_ELBO())


@pytest.mark.parametrize(
    "objective",
    [Trace_ELBO, TraceMeanField_ELBO, lambda: RenyiELBO(num_particles=2), *OBJECTIVES.values()],
)
@pytest.mark.parametrize("batch_size", [1, 7, 10])
def test_odd_batches_one_image_and_one_dimension(digits, objective, batch_size):
    few = pv.Data("few", digits.train[:10], digits.validation[:1], digits.test)
    for record in pv.fit(
        make_vae(latent_dim=1, shape=digits.shape),
        few,
        epochs=2,
        batch_size=batch_size,
        objective=objective(),
    ):
        assert all(np.isfinite(value) for value in record.values())


def coin(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(3 * z, 1.0), obs=x)


def coin_guide(x):
    logit = pyro.param("logit", torch.tensor(0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logit))


@pytest.mark.parametrize(
    "objective", [*TIGHTER, pv.StickingTheLandingELBO, pv.FreeBitsELBO, pv.CapacityELBO]
)
def test_draws_that_are_not_reparameterized_are_refused(objective):
    """Their gradient would omit the effect of the parameters on the draws."""
    with pytest.raises(ValueError, match="reparameterized samples, which site z"):
        objective(num_particles=2).loss_and_grads(coin, coin_guide, torch.tensor([0.5]))


def coins(make):
    """A model and a guide with a discrete code of two values for each row."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", make(torch.full((len(x), 2), 0.5)))
            pyro.sample("x", dist.Normal(z.reshape(len(x), -1).sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", make(pyro.param("p", torch.tensor([0.3, 0.7])).expand(len(x), 2)))

    return model, guide


@pytest.mark.parametrize("enumerated", [False, True])
@pytest.mark.parametrize("method", ["loss", "loss_and_grads"])
@pytest.mark.parametrize("objective", [pv.FreeBitsELBO, pv.CapacityELBO])
@pytest.mark.parametrize(
    "make",
    [
        dist.Categorical,
        dist.OneHotCategorical,
        lambda p: dist.Bernoulli(p).to_event(1),
        lambda p: dist.Bernoulli(p[..., 0]),
    ],
)
def test_discrete_sites_are_refused_in_one_line(make, objective, method, enumerated):
    """Also where only the loss is computed, and whatever torch's closed forms say of the shapes."""
    model, guide = coins(make)
    if enumerated:
        model, guide = config_enumerate(model), config_enumerate(guide)
    with pytest.raises(
        pv.RequestError, match=r"site z \((Categ|OneHot|Bern)\w+\) lacks; use Trace"
    ):
        getattr(objective(), method)(model, guide, torch.zeros(4))


def scaled_line(x):
    with pyro.plate("data", len(x)), poutine.scale(scale=3.0):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def scaled_guide(x):
    loc = pyro.param("loc", torch.tensor(0.4))
    with pyro.plate("data", len(x)), poutine.scale(scale=3.0):
        pyro.sample("z", dist.Normal(loc, 1.0))


@pytest.mark.parametrize("enabled", [True, False])
def test_a_scale_enters_the_elbo_and_is_refused_by_importance_weights(enabled):
    x = torch.tensor([0.3, -1.0])
    with pyro.validation_enabled(enabled):
        pyro.set_rng_seed(0)
        ours = pv.StickingTheLandingELBO(5).loss(scaled_line, scaled_guide, x)
        pyro.set_rng_seed(0)
        pyros = Trace_ELBO(5, vectorize_particles=True, max_plate_nesting=1).loss(
            scaled_line, scaled_guide, x
        )
        assert ours == pytest.approx(pyros, rel=1e-5)
        for objective in TIGHTER:
            with pytest.raises(ValueError, match="leave beta at 1"):
                objective(5).loss(scaled_line, scaled_guide, x)


@pytest.mark.parametrize("objective", [*TIGHTER, pv.StickingTheLandingELBO, pv.CapacityELBO])
def test_data_by_keyword_are_refused(objective):
    vae = make_oracle()
    with pytest.raises(pv.RequestError, match="by position"):
        objective().loss(vae.model, vae.guide, x=X)


@pytest.mark.parametrize("objective", [pyro.infer.JitTrace_ELBO, pyro.infer.ReweightedWakeSleep])
def test_unsupported_objectives_are_refused(digits, objective):
    with pytest.raises(pv.RequestError, match="not supported by fit"):
        pv.fit(make_vae(shape=digits.shape), digits, objective=objective())


def chain(x, steps=3):
    """A sequential program that concatenates along a dimension counted from the left."""
    z = x.new_zeros(len(x), 1)
    with pyro.plate("data", len(x)):
        for t in range(steps):
            z = pyro.sample(
                f"z_{t}",
                dist.Normal(torch.cat((z, x[:, t, None]), 1).mean(1, keepdim=True), 1.0).to_event(
                    1
                ),
            )
            if chain.observes:
                pyro.sample(f"x_{t}", dist.Normal(z[..., 0], 1.0), obs=x[:, t])


def chain_model(x):
    chain.observes = True
    chain(x)


def chain_guide(x):
    chain.observes = False
    chain(x)


SEVERAL = (pv.ImportanceWeightedELBO, pv.DReGELBO, pv.StickingTheLandingELBO, pv.FreeBitsELBO)


@pytest.mark.parametrize("objective", SEVERAL)
def test_programs_that_do_not_broadcast(objective):
    x = torch.randn(4, 3)
    with pytest.raises(pv.RequestError, match="vectorize_particles=False"):
        objective(num_particles=2).loss(chain_model, chain_guide, x)
    pyro.set_rng_seed(0)
    one_by_one = objective(num_particles=2, vectorize_particles=False).loss(
        chain_model, chain_guide, x
    )
    if objective is pv.ImportanceWeightedELBO:
        pyro.set_rng_seed(0)
        renyi = RenyiELBO(alpha=0, num_particles=2, max_plate_nesting=1).loss(
            chain_model, chain_guide, x
        )
        assert one_by_one == pytest.approx(renyi)


def test_one_particle_needs_no_broadcasting():
    x = torch.randn(4, 3)
    pyro.set_rng_seed(0)
    ours = pv.ImportanceWeightedELBO(1).loss(chain_model, chain_guide, x)
    pyro.set_rng_seed(0)
    assert ours == pytest.approx(Trace_ELBO().loss(chain_model, chain_guide, x))


def test_an_error_of_the_programs_stays_as_it_is():
    def wrong(x):
        raise ValueError("mine")

    with pytest.raises(ValueError, match=r"^mine"):
        pv.ImportanceWeightedELBO(2).loss(wrong, wrong, torch.randn(4, 3))


class Shared(torch.nn.Module):
    """One mean for all rows, with a normal prior and noise; the guide is learned."""

    def __init__(self, loc=0.2, scale=0.6, noise=0.8):
        super().__init__()
        self.loc = torch.nn.Parameter(torch.tensor(loc).double())
        self.scale = torch.nn.Parameter(torch.tensor(scale).double())
        self.noise = torch.nn.Parameter(torch.tensor(noise).double())

    def model(self, x):
        pyro.module("shared", self)
        z = pyro.sample("z", dist.Normal(torch.zeros_like(self.loc), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Normal(self.loc, self.scale))

    def log_weight(self, z, x):
        likelihood = Normal(z[..., None], self.noise).log_prob(x).sum(-1)
        return likelihood + Normal(0.0, 1.0).log_prob(z) - Normal(self.loc, self.scale).log_prob(z)

    def bound(self, x, samples):
        """The bound of one or two samples, by Gauss-Hermite quadrature."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(60)
        weights = torch.from_numpy(weights / weights.sum())
        log_w = self.log_weight(self.loc + self.scale * torch.from_numpy(nodes), x)
        if samples == 1:
            return (log_w * weights).sum()
        both = torch.logaddexp(log_w[:, None], log_w) - np.log(2)
        return (both * weights[:, None] * weights).sum()


class Clustered(Shared):
    """The prior of the mean depends on a cluster, which is summed out."""

    SHARES = torch.tensor([0.3, 0.7]).double()

    def model(self, x):
        pyro.module("shared", self)
        k = pyro.sample("k", dist.Categorical(self.SHARES))
        z = pyro.sample("z", dist.Normal(2 * k.to(x), self.noise))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)

    def log_weight(self, z, x):
        likelihood = Normal(z[..., None], self.noise).log_prob(x).sum(-1)
        of_clusters = Normal(torch.tensor([0.0, 2.0]).to(x), self.noise).log_prob(z[..., None])
        prior = (of_clusters + self.SHARES.log()).logsumexp(-1)
        return likelihood + prior - Normal(self.loc, self.scale).log_prob(z)


class ClusteredRows(Clustered):
    """Each row has a latent and a cluster of its own."""

    def model(self, x):
        pyro.module("shared", self)
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(self.SHARES))
            z = pyro.sample("z", dist.Normal(2 * k.to(x), self.noise))
            pyro.sample("x", dist.Normal(z, self.noise), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.scale))

    def bound(self, x, samples):
        return sum(super(ClusteredRows, self).bound(row, samples) for row in x.split(1))


ROWS = torch.tensor([0.9, -0.4, 1.3]).double()


@pytest.mark.parametrize(
    ("make", "vectorized"),
    [(Shared, True), (Shared, False), (Clustered, True), (ClusteredRows, True)],
)
@pytest.mark.parametrize(
    ("objective", "samples", "bound"),
    [
        (pv.ImportanceWeightedELBO, 1, 1),
        (pv.ImportanceWeightedELBO, 2, 2),
        (pv.DReGELBO, 1, 1),
        (pv.DReGELBO, 2, 2),
        (pv.StickingTheLandingELBO, 2, 1),
    ],
)
def test_latents_that_are_global_or_clustered_by_quadrature(
    objective, samples, bound, make, vectorized
):
    """The bound, on the joint density of all rows where they share a latent, and its gradient."""
    program = make()
    exact = -program.bound(ROWS, bound)
    estimate = objective(samples, vectorize_particles=vectorized)
    losses, grads = repeated(lambda: gradients(estimate, program, ROWS), 80)
    assert_mean(losses, exact.detach(), slack=1e-9)
    assert_mean(grads, exact_gradients(program, exact), slack=1e-9)


@pytest.mark.parametrize("objective", [*TIGHTER, pv.StickingTheLandingELBO])
def test_the_exact_posterior_of_a_global_latent_gives_log_p(objective):
    precision = 1 + len(ROWS) / 0.8**2
    program = Shared(loc=(ROWS.sum() / 0.8**2 / precision).item(), scale=precision**-0.5)
    covariance = 0.8**2 * torch.eye(3).double() + 1
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(ROWS).item()
    assert objective(7).loss(program.model, program.guide, ROWS) == pytest.approx(-exact, rel=1e-6)


def test_a_global_latent_is_renyi_of_order_zero():
    """With the same draws, the value and the gradient."""
    program = Shared()
    pyro.set_rng_seed(3)
    ours = gradients(pv.ImportanceWeightedELBO(5), program, ROWS)
    pyro.set_rng_seed(3)
    renyi = RenyiELBO(alpha=0, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    loss = renyi.loss_and_grads(program.model, program.guide, ROWS)
    assert ours[0].item() == pytest.approx(loss)
    torch.testing.assert_close(ours[1], flat([param.grad for param in program.parameters()]))


@config_enumerate
def components(x):
    """A mixture: its weights and centres are global, its assignments are summed out."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("components", 2):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)


@pytest.mark.parametrize("objective", [*TIGHTER, pv.StickingTheLandingELBO])
def test_global_latents_and_sums_take_the_same_steps_with_every_engine(objective):
    data = torch.tensor([-2.0, -2.2, 2.1, 1.9, 2.0])
    losses = []
    for make in (
        lambda *args: pv.SVI(*args, engine="eager"),
        lambda *args: pv.SVI(*args, engine="traced"),
        pyro.infer.SVI,
    ):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(poutine.block(components, hide=["z"]))
        guide(data)
        svi = make(components, guide, pyro.optim.Adam({"lr": 0.05}), objective(num_particles=3))
        losses.append([svi.step(data) for _ in range(12)])
        assert sum(losses[-1][-4:]) < sum(losses[-1][:4])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0] == pytest.approx(losses[2], rel=1e-4)


def subsampled(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), subsample_size=2) as rows:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[rows])


def subsampled_guide(x):
    pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 0.7))


def test_a_subsample_estimates_the_elbo_and_is_refused_by_importance_weights():
    x = torch.tensor([0.3, -1.0, 2.0, 0.5])
    losses = [pv.StickingTheLandingELBO().loss(subsampled, subsampled_guide, x) for _ in range(100)]
    expected = Normal(0.0, 1.0).log_prob(torch.tensor(0.3)) - Normal(0.0, 0.7).log_prob(
        torch.tensor(0.0)
    )
    expected = expected - 0.7**2 / 2 + 0.5 + (Normal(0.3, 1.0).log_prob(x) - 0.7**2 / 2).sum()
    assert_mean(-torch.tensor(losses), expected)
    for objective in TIGHTER:
        with pytest.raises(pv.RequestError, match="subsampling"):
            objective(3).loss(subsampled, subsampled_guide, x)


def tossed(x):
    z = pyro.sample("z", dist.Poisson(3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def tossed_guide(x):
    pyro.sample("z", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))


@pytest.mark.parametrize("objective", [*TIGHTER, pv.StickingTheLandingELBO])
def test_global_draws_that_are_not_reparameterized_are_refused(objective):
    with pytest.raises(pv.RequestError, match=r"site z \(Poisson\) lacks"):
        objective(num_particles=2).loss_and_grads(tossed, tossed_guide, torch.zeros(3))


def test_an_objective_tells_programs_apart():
    """One object for programs in a plate and for programs with a global latent."""
    objective = pv.ImportanceWeightedELBO(4)
    program = Shared()
    vae = make_oracle()
    expected = []
    for owner, data in ((vae, X), (program, ROWS)):
        pyro.set_rng_seed(0)
        expected.append(pv.ImportanceWeightedELBO(4).loss(owner.model, owner.guide, data))
    for _ in range(2):
        for (owner, data), value in zip(((vae, X), (program, ROWS)), expected, strict=True):
            pyro.set_rng_seed(0)
            assert objective.loss(owner.model, owner.guide, data) == pytest.approx(value)


def test_free_bits_of_a_global_latent_by_hand():
    program = Shared()
    kl = kl_divergence(Normal(program.loc, program.scale), Normal(0.0, 1.0)).item()
    for floor in (kl / 2, 2 * kl):
        pyro.set_rng_seed(2)
        loss, grad = gradients(pv.FreeBitsELBO(floor, groups=1, num_particles=2), program, ROWS)
        pyro.set_rng_seed(2)
        z = torch.stack([Normal(program.loc, program.scale).rsample() for _ in range(2)])
        rate = kl_divergence(Normal(program.loc, program.scale), Normal(0.0, 1.0))
        likelihood = Normal(z[:, None], program.noise).log_prob(ROWS).sum() / 2
        expected = rate.clamp(min=floor) - likelihood
        torch.testing.assert_close(loss, expected.detach())
        torch.testing.assert_close(grad, exact_gradients(program, expected))


def test_free_bits_of_global_and_local_latents_are_an_elbo_without_a_floor():
    def model(x):
        mu = pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    x = torch.tensor([[0.3, -1.0], [2.0, 0.5], [0.1, 0.2]])

    def guide(x):
        pyro.sample("mu", dist.Normal(torch.zeros(2), 0.7).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5).to_event(1))

    losses = []
    for objective in (pv.FreeBitsELBO(floor=1e-300, groups=1), Trace_ELBO()):
        values = [objective.loss(model, guide, x) for _ in range(150)]
        losses.append(torch.tensor(values))
    # A clamped estimate of a KL may be above the estimate, but not below it.
    assert losses[0].mean() > losses[1].mean() - 5 * losses[1].std() / 150**0.5
    with pytest.raises(pv.RequestError, match="is auxiliary"):
        pv.FreeBitsELBO(groups=1).loss(model, AutoMultivariateNormal(model), x)


def test_a_capacity_requires_the_plate():
    program = Shared()
    with pytest.raises(pv.RequestError, match="not in exactly one plate"):
        pv.CapacityELBO().loss(program.model, program.guide, ROWS)
