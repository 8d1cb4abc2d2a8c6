import copy
import itertools
from functools import partial

import families
import numpy as np
import pyro
import pytest
import torch
from families import LIKELIHOODS
from scipy import integrate, stats

import pyro_vae as pv
from pyro_vae import distributions, likelihoods
from pyro_vae.likelihoods import Bernoulli, Beta, ContinuousBernoulli, DiscretizedLogistic, Normal

SEEDED = torch.Generator().manual_seed(0)
PARAMS = torch.randn(1, 6, 1, 2, 3, generator=SEEDED).double()
UNIT = torch.rand(1, 2, 3, generator=SEEDED).double()
BYTE = torch.randint(0, 256, (1, 2, 3), generator=SEEDED).double()
INTEGERS = ("byte", "count")


def test_bernoulli_against_scipy():
    params = torch.randn(1, 1, 2, 3).double()
    x = torch.bernoulli(torch.full((1, 2, 3), 0.5)).double()
    expected = stats.bernoulli.logpmf(x.numpy(), params[0].sigmoid().numpy()).sum()
    assert Bernoulli()(params).log_prob(x).item() == pytest.approx(expected, rel=1e-12)


def test_bernoulli_sums_to_one_over_all_images():
    p = Bernoulli()(torch.randn(1, 1, 2, 3).double())
    everything = (
        torch.tensor(list(itertools.product([0.0, 1.0], repeat=6))).double().reshape(-1, 1, 2, 3)
    )
    assert p.log_prob(everything).exp().sum().item() == pytest.approx(1, abs=1e-12)


def test_bernoulli_is_finite_at_extreme_logits():
    params = torch.tensor([-1e4, 1e4, -1e4, 1e4]).reshape(1, 1, 2, 2).requires_grad_()
    log_prob = Bernoulli()(params).log_prob(torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(1, 2, 2))
    log_prob.backward()
    assert log_prob.item() == pytest.approx(-2e4)
    assert params.grad.isfinite().all()


def test_bernoulli_refuses_grey_pixels():
    with pytest.raises(ValueError, match="within the support"):
        Bernoulli()(torch.zeros(1, 1, 2, 2)).log_prob(torch.full((1, 2, 2), 0.5))


def test_relaxed_bernoulli_is_the_cross_entropy_and_no_density():
    logit, x = torch.tensor(0.7), torch.rand(1, 2, 2)
    p = Bernoulli(relaxed=True)(logit.expand(1, 1, 2, 2))
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logit.expand(1, 2, 2), x, reduction="sum"
    )
    torch.testing.assert_close(p.log_prob(x), -cross_entropy)
    pixel = Bernoulli(relaxed=True)(logit.double().expand(1, 1, 1, 1))
    total, _ = integrate.quad(
        lambda v: pixel.log_prob(torch.tensor(v).double().expand(1, 1, 1)).exp().item(), 0, 1
    )
    assert abs(total - 1) > 0.1


def test_relaxed_bernoulli_refuses_pixels_outside_the_unit_interval():
    with pytest.raises(ValueError, match="within the support"):
        Bernoulli(relaxed=True)(torch.zeros(1, 1, 2, 2)).log_prob(torch.full((1, 2, 2), 1.5))


def test_normal_against_scipy():
    params, x = torch.randn(1, 1, 2, 3).double(), torch.rand(1, 2, 3).double()
    expected = stats.norm.logpdf(x.numpy(), params[0].numpy(), 0.3).sum()
    assert Normal(0.3)(params).log_prob(x).item() == pytest.approx(expected, rel=1e-12)


def test_normal_of_variance_one_half_is_the_sum_of_squares():
    a, b, x = torch.randn(3, 1, 2, 3).double()
    score = [Normal(0.5**0.5)(params[None]).log_prob(x) for params in (a, b)]
    torch.testing.assert_close(score[0] - score[1], (x - b).square().sum() - (x - a).square().sum())


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_params_at_the_mean(name):
    likelihood = LIKELIHOODS[name]()
    high = 255 if likelihood.pixels in INTEGERS else 1
    mean = high * torch.rand(1, 3, 4).clamp(0.1, 0.9)
    likelihood.initialize(mean[None])
    params = likelihood.params_at(mean)
    if params is not None:
        assert params.shape == (likelihood.num_params, 1, 3, 4)
        tolerance = 20.0 if "Logistic" in name else 1e-4
        torch.testing.assert_close(likelihood(params).mean, mean, rtol=1e-5, atol=tolerance)


def test_params_at_an_extreme_mean_are_finite():
    assert Bernoulli().params_at(torch.tensor([[[0.0, 1.0]]])).isfinite().all()


@pytest.mark.parametrize("scale", [0, -1.0, float("nan"), float("inf")])
def test_the_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match="scale"):
        Normal(scale)


def test_an_unknown_way_to_learn_the_scale():
    with pytest.raises(ValueError, match="learned"):
        Normal(learned="pixels")


def test_pixels_follow_from_the_options():
    assert (Bernoulli().pixels, Bernoulli(relaxed=True).pixels) == ("binary", "unit")
    assert (Normal().pixels, Normal(learned="scalar").pixels) == ("unit", "dequantized")


def test_a_parameter_of_a_subclass_does_not_change_the_scale():
    class Own(Normal):
        def __init__(self):
            super().__init__(0.3, learned="scalar")
            self.temperature = torch.nn.Parameter(torch.tensor(5.0))

    params = PARAMS[:, :1]
    assert torch.equal(
        Own()(params).log_prob(UNIT), Normal(0.3, learned="scalar")(params).log_prob(UNIT)
    )


@pytest.mark.parametrize("log_concentration", [0.0, 4.0, 8.0, 10.0])
def test_beta_in_float32_agrees_with_float64(log_concentration):
    """784 pixels at their own parameters; lgamma in float32 loses 1.7 nats at 8 and 11 at 10."""
    params = torch.stack([2 * torch.randn(1, 28, 28), torch.full((1, 28, 28), log_concentration)])
    x = (256 * Beta()(params.double()).sample()).floor().add(0.5).div(256).float()

    def value_and_gradient(params, x):
        params = params.requires_grad_()
        value = Beta()(params).log_prob(x)
        return value.detach().double(), torch.autograd.grad(value, params)[0].double()

    (value, grad), (exact, exact_grad) = (
        value_and_gradient(params.clone(), x),
        value_and_gradient(params.double(), x.double()),
    )
    assert (value - exact).abs() < 1e-3
    assert (grad - exact_grad).norm() < 1e-3 * exact_grad.norm()


@pytest.mark.parametrize("size", [0.3, 3.0])
@pytest.mark.parametrize("name", sorted(set(LIKELIHOODS) - {"Normal, pixel", "Laplace, pixel"}))
def test_float32_agrees_with_float64(name, size):
    """784 pixels drawn at their own parameters, and grey ones; to a few roundings of the sum."""
    likelihood = LIKELIHOODS[name]()
    params = size * torch.randn(4, likelihood.num_params, 1, 28, 28)
    exact = copy.deepcopy(likelihood).double()
    drawn = exact(params.double()).sample()
    high = 255 if likelihood.pixels in INTEGERS else 1
    grey = high * torch.rand(4, 1, 28, 28)
    if likelihood.pixels in (*INTEGERS, "binary"):
        grey = grey.round()
    for x in (drawn.float().clamp(2**-20, high - 2**-20) if high == 1 else drawn.float(), grey):
        if likelihood.pixels == "binary":
            x = x.round()
        expected = exact(params.double()).log_prob(x.double())
        error = (likelihood(params).log_prob(x).double() - expected).abs()
        assert (error < 3e-7 * expected.abs() + 1e-4).all()


@pytest.mark.parametrize("logit", [-12.0, -0.3, 4.0])
def test_binomial_in_float32_against_scipy(logit):
    k = torch.arange(256.0)
    likelihood = LIKELIHOODS["Binomial"]()
    value = likelihood(torch.full((256, 1, 1, 1, 1), logit)).log_prob(k.reshape(256, 1, 1, 1))
    exact = stats.binom.logpmf(k.numpy(), 255, 1 / (1 + np.exp(-logit)))
    assert value.numpy() == pytest.approx(exact, rel=2e-7, abs=1e-6)


def scipy_value(name):
    first, second = PARAMS[0, :2].numpy()
    x, k = UNIT.numpy(), BYTE.numpy()
    if name == "Categorical":
        return None
    rate, shares = np.exp(first), np.exp(first) / np.exp(first).sum()
    zero, theta = 1 / (1 + np.exp(-second)), np.exp(2)
    return {
        "Normal, column": lambda: stats.norm.logpdf(x, first, 0.3),
        "StudentT": lambda: stats.t.logpdf(x, 4, first, 1),
        "Poisson": lambda: stats.poisson.logpmf(k, rate),
        "NegativeBinomial": lambda: negative_binomial(k, rate, theta),
        "NegativeBinomial, decoder": lambda: negative_binomial(k, k.sum() * shares, np.exp(second)),
        "ZeroInflatedNegativeBinomial": lambda: np.where(
            k == 0,
            np.log(zero + (1 - zero) * stats.nbinom.pmf(0, theta, theta / (theta + rate))),
            np.log(1 - zero) + negative_binomial(k, rate, theta),
        ),
        "Laplace": lambda: stats.laplace.logpdf(x, first, 0.3),
        "Laplace, pixel": lambda: stats.laplace.logpdf(x, first, 0.3 * np.exp(second)),
        "Normal, scalar": lambda: stats.norm.logpdf(x, first, 0.3),
        "Normal, pixel": lambda: stats.norm.logpdf(x, first, 0.3 * np.exp(second)),
        "Beta": lambda: stats.beta.logpdf(
            x, np.exp(second) / (1 + np.exp(-first)), np.exp(second) / (1 + np.exp(first))
        ),
        "Binomial": lambda: stats.binom.logpmf(k, 255, 1 / (1 + np.exp(-first))),
        "DiscretizedLogistic": lambda: np.log(logistic_bins(k, first, second)),
        "DiscretizedLogistic, 3": lambda: np.log(logistic_mixture(k)),
    }[name]()


def negative_binomial(k, mean, theta):
    return stats.nbinom.logpmf(k, theta, theta / (theta + mean))


def logistic_bins(k, loc, log_scale):
    law = stats.logistic(255 * loc, 255 * np.exp(log_scale))
    return np.where(k == 255, 1, law.cdf(k + 0.5)) - np.where(k == 0, 0, law.cdf(k - 0.5))


def logistic_mixture(k):
    loc, log_scale, logits = np.concatenate([PARAMS[0].numpy(), PARAMS[0, :3].numpy() / 2]).reshape(
        3, 3, 1, 2, 3
    )
    weights = np.exp(logits) / np.exp(logits).sum(0)
    return sum(w * logistic_bins(k, m, s) for w, m, s in zip(weights, loc, log_scale, strict=True))


@pytest.mark.parametrize(
    "name", sorted(set(LIKELIHOODS) - {"Bernoulli", "ContinuousBernoulli", "Categorical", "Normal"})
)
def test_against_scipy(name):
    likelihood = LIKELIHOODS[name]().double()
    params = torch.cat([PARAMS, PARAMS[:, :3] / 2], 1)[:, : likelihood.num_params]
    x = BYTE if likelihood.pixels in INTEGERS else UNIT
    assert likelihood(params).log_prob(x).item() == pytest.approx(scipy_value(name).sum(), rel=1e-7)


def test_categorical_against_a_softmax():
    params = torch.randn(1, 256, 1, 2, 3).double()
    expected = params.log_softmax(1).gather(1, BYTE.long()[None, None]).sum()
    torch.testing.assert_close(LIKELIHOODS["Categorical"]()(params).log_prob(BYTE)[0], expected)


@pytest.mark.parametrize(
    "logit", [-1e4, -100.0, -3.0, -1e-3, -1e-5, 0.0, 1e-8, 1e-3, 0.5, 40.0, 1e4]
)
def test_continuous_bernoulli_at_every_logit(logit):
    """pytorch #72525. Against scipy's truncated exponential, or its series where scipy cancels."""
    params = torch.full((1, 1, 1, 1, 1), logit, dtype=torch.float64, requires_grad=True)
    for x in (0.0, 0.25, 1.0):
        log_prob = (
            ContinuousBernoulli()(params)
            .log_prob(torch.full((1, 1, 1), x, dtype=torch.float64))
            .sum()
        )
        (grad,) = torch.autograd.grad(log_prob, params)
        size, y = abs(logit), x if logit < 0 else 1 - x
        series = size * (0.5 - y) - size**2 / 24
        exact = series if size <= 1e-3 else stats.truncexpon.logpdf(y * size, size) + np.log(size)
        slope = (
            (x - 0.5) - logit / 12
            if size <= 1e-3
            else x - (0.5 + np.sign(logit) * (0.5 + 1 / np.expm1(min(size, 700)) - 1 / size))
        )
        assert log_prob.item() == pytest.approx(exact, rel=1e-9, abs=1e-9)
        assert grad.item() == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_continuous_bernoulli_agrees_with_torch_where_torch_is_sound():
    logits, x = torch.linspace(-8, 8, 33).double(), torch.rand(33).double()
    ours = likelihoods.TruncatedExponential(logits)
    torchs = torch.distributions.ContinuousBernoulli(logits=logits)
    keep = logits.abs() > 0.5
    torch.testing.assert_close(ours.log_prob(x)[keep], torchs.log_prob(x)[keep])
    torch.testing.assert_close(ours.mean[keep], torchs.mean[keep])


def test_discretized_logistic_edges_hold_the_tails():
    p = DiscretizedLogistic()(torch.tensor([-2.0, -3.0]).double().reshape(1, 2, 1, 1, 1))
    assert p.log_prob(torch.zeros(1, 1, 1).double()).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    "name", [name for name, make in LIKELIHOODS.items() if make().pixels == "byte"]
)
def test_discrete_likelihoods_sum_to_one(name):
    likelihood = LIKELIHOODS[name]().double()
    for size in (0.1, 3.0, 10.0):
        params = size * torch.randn(50, likelihood.num_params, 1, 1, 1).double()
        total = (
            likelihood(params)
            .log_prob(torch.arange(256.0).double().reshape(256, 1, 1, 1, 1))
            .exp()
            .sum(0)
        )
        assert (total - 1).abs().max() < 1e-6


def test_a_mixture_needs_components():
    with pytest.raises(ValueError, match="components"):
        DiscretizedLogistic(0)


@pytest.mark.parametrize("shape", [(1,), (30,), (2, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("name", LIKELIHOODS)
def test_data_of_any_shape(name, shape):
    """A model's decoder tells the number of dimensions; each element is scored as in an image."""
    likelihood = LIKELIHOODS[name]()
    decoder = pv.MLP((2,), (likelihood.num_params, *shape), hidden=())
    vae = pv.VAE(
        pv.StandardNormal(2), pv.MLP(shape, (2, 2)), pv.DiagonalNormal(), decoder, likelihood
    )
    z = torch.randn(3, 4, 2)
    p = vae.decode(z)
    assert (p.batch_shape, p.event_shape) == ((3, 4), shape)
    x = p.sample()
    image = LIKELIHOODS[name]()
    params = decoder(z.flatten(0, 1)).reshape(3, 4, likelihood.num_params, 1, 1, -1)
    torch.testing.assert_close(p.log_prob(x), image(params).log_prob(x.reshape(3, 4, 1, 1, -1)))


def test_vectors_without_a_model():
    assert pv.Poisson()(torch.zeros(5, 1, 30)).event_shape == (30,)
    assert pv.NegativeBinomial("decoder")(torch.zeros(2, 30)).event_shape == (30,)
    with pytest.raises(
        pv.RequestError, match=r"shape \(..., 2, \*data_shape\), but gets \(5, 1, 30"
    ):
        pv.NegativeBinomial("decoder")(torch.zeros(5, 1, 30))


@pytest.mark.parametrize("data_shape", [(5,), (1, 2, 3)])
@pytest.mark.parametrize(
    "make",
    [
        pv.Poisson,
        partial(pv.Poisson, given_total=True),
        pv.NegativeBinomial,
        partial(pv.ZeroInflatedNegativeBinomial, "decoder", given_total=True),
        partial(pv.Binomial, total_count=16),
        partial(Normal, kind="real", learned="column"),
        likelihoods.StudentT,
    ],
)
def test_check_of_likelihoods_whose_elements_have_parameters(make, data_shape):
    likelihood = make()
    high = 16 if likelihood.largest == 16 else 40
    likelihood.initialize(torch.randint(0, high + 1, (50, *data_shape)).float())
    for param in likelihood.parameters():
        torch.nn.init.normal_(param)
    pv.testing.check_likelihood(likelihood, data_shape)


FAMILIES = {
    "Normal": Normal,
    "Laplace": likelihoods.Laplace,
    "StudentT": likelihoods.StudentT,
}


@pytest.mark.parametrize("learned", ["no", "scalar", "column", "pixel"])
@pytest.mark.parametrize("name", FAMILIES)
def test_reals_are_scored_in_the_units_of_the_user(name, learned):
    """Columns in other units: log p changes by the logarithms of the factors, whatever is learned.

    The decoder outputs and the input of the encoder do not change.
    """
    options = {} if name == "StudentT" else {"kind": "real"}
    x = torch.randn(50, 3).double() * torch.tensor([1.0, 7.0, 0.2]).double()
    factor = torch.tensor([1000.0, 0.01, -3.0]).double()
    other = 5 + factor * x
    first, second = (FAMILIES[name](learned=learned, **options).double() for _ in range(2))
    first.initialize(x)
    second.initialize(other)
    torch.testing.assert_close(second.unit(other), factor.sign() * first.unit(x))
    params = torch.randn(50, first.num_params, 3).double()
    mirrored = params.clone()
    mirrored[:, 0] *= factor.sign()
    difference = first(params).log_prob(x) - second(mirrored).log_prob(other)
    torch.testing.assert_close(difference, factor.abs().log().sum().expand(50))
    torch.testing.assert_close(second(mirrored).mean, 5 + factor * first(params).mean)


def test_reals_against_scipy_and_a_sum():
    x = torch.tensor([[10.0, -2.0, 5.0], [20.0, 4.0, 5.0], [60.0, 1.0, 5.0]]).double()
    likelihood = Normal(0.3, learned="no", kind="real").double()
    likelihood.initialize(x)
    params = torch.randn(3, 1, 3).double()
    mean, scale = x.numpy().mean(0), x.numpy().std(0)
    scale[2] = 1  # of a constant column
    expected = stats.norm.logpdf(x, mean + scale * params[:, 0].numpy(), 0.3 * scale).sum(1)
    assert likelihood(params).log_prob(x).numpy() == pytest.approx(expected, rel=1e-12)
    assert likelihood.unit(x)[:, 2].tolist() == [0, 0, 0]


def test_what_each_element_has_is_loaded_into_a_new_likelihood():
    trained = Normal(kind="real", learned="column")
    trained.initialize(3 + torch.randn(20, 4))
    with torch.no_grad():
        trained.log_factor.normal_()
    for new in (Normal(kind="real", learned="column"), Normal(1.0, "column", "real", (4,))):
        new.load_state_dict(trained.state_dict())
        params, x = torch.randn(5, 1, 4), torch.randn(5, 4)
        assert torch.equal(new(params).log_prob(x), trained(params).log_prob(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Normal(1.0, "column", "real", (3,)).load_state_dict(trained.state_dict())


def test_a_scale_per_column_is_learned_by_fit():
    x = torch.randn(60, 2) * torch.tensor([1.0, 50.0])
    data = pv.Data("reals", pv.Split(x), pv.Split(x[:20]), pv.Split(x[:20]))
    vae = families.build(data, likelihood=Normal(kind="real", learned="column"))
    (record,) = pv.fit(vae, data, epochs=1, batch_size=20, engine="eager")
    assert record["step"] == 3
    assert vae.likelihood.log_factor.shape == (2,)
    assert (vae.likelihood.log_factor != 0).all()
    torch.testing.assert_close(vae.likelihood.data_mean, x.mean(0))


@pytest.mark.parametrize("count", [0.0, 1.0, 300.0, 1e6, 2.0**24])
def test_counts_in_float32_against_scipy(count):
    """Means from exp(-8) to exp(18); a float32 log-gamma function loses a nat at a million."""
    log_mean = torch.linspace(-8, 18, 14)
    x = torch.full((14,), count)
    for log_theta in (-5.0, 0.0, 4.0):
        params = torch.stack([log_mean, torch.full((14,), log_theta)])
        mean, theta = params.double().exp().numpy()
        value = pv.NegativeBinomial("decoder")(params[None, :, :, None].movedim(2, 0).squeeze(1))
        expected = negative_binomial(count, mean, theta)
        assert value.log_prob(x[:, None]).numpy() == pytest.approx(expected, rel=1e-6, abs=1e-6)
    value = pv.Poisson()(log_mean.reshape(14, 1, 1)).log_prob(x[:, None])
    expected = stats.poisson.logpmf(count, log_mean.double().exp().numpy())
    assert value.numpy() == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_a_negative_binomial_of_little_dispersion_is_a_poisson_distribution():
    x, log_mean = torch.arange(30.0), torch.full((30,), 2.0)
    close = distributions.MeanNegativeBinomial(log_mean, torch.full((30,), 40.0))
    torch.testing.assert_close(
        close.log_prob(x), distributions.PrecisePoisson(log_mean).log_prob(x), atol=1e-4, rtol=0
    )


def test_moments_of_counts_are_those_of_draws():
    pyro.set_rng_seed(0)
    shape = torch.Size([200_000])
    for p in (
        distributions.PrecisePoisson(torch.tensor(1.5)),
        distributions.MeanNegativeBinomial(torch.tensor(1.5), torch.tensor(0.5)),
        distributions.ZeroInflated(
            distributions.PrecisePoisson(torch.tensor(1.5)), torch.tensor(-0.5)
        ),
    ):
        draws = p.sample(shape)
        error = (p.variance / len(draws)) ** 0.5
        assert abs(draws.mean() - p.mean) < 4 * error
        spread = (draws - p.mean) ** 2
        assert abs(spread.mean() - p.variance) < 4 * spread.std() / len(draws) ** 0.5


def test_given_the_total_the_shares_alone_matter():
    """A Poisson distribution given the total is a multinomial one, up to that of the total."""
    params = torch.randn(1, 1, 4).double()
    x = torch.tensor([[3.0, 0.0, 7.0, 1.0]]).double()
    likelihood = pv.Poisson(given_total=True).double()
    value = likelihood(params).log_prob(x).item()
    shares = params.flatten().softmax(0).numpy()
    expected = stats.multinomial.logpmf([3, 0, 7, 1], 11, shares) + stats.poisson.logpmf(11, 11)
    assert value == pytest.approx(expected, rel=1e-12)
    assert likelihood(params + 5).log_prob(x).item() == pytest.approx(value, rel=1e-12)
    likelihood.initialize(torch.cat([x, 3 * x]))
    p = likelihood(params)
    assert p.mean.sum().item() == pytest.approx(22)
    assert likelihood.mean(p, x).sum().item() == pytest.approx(11)
    assert likelihood(params).log_prob(x * 0).item() == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.Binomial(0), "total_count must be a positive integer"),
        (lambda: pv.NegativeBinomial("gene"), "dispersion must be one of feature, decoder"),
        (lambda: Normal(kind="counts"), "kind must be one of grey, real"),
        (lambda: likelihoods.StudentT(1.0), "df must be over 1"),
    ],
)
def test_options_that_cannot_work(make, message):
    with pytest.raises(pv.RequestError, match=message):
        make()


def test_binomial_of_few_levels_against_scipy():
    k, logit = torch.arange(17.0), torch.tensor(0.7)
    value = pv.Binomial(16)(logit.expand(17, 1, 1)).log_prob(k[:, None])
    expected = stats.binom.logpmf(k.numpy(), 16, logit.sigmoid().item())
    assert value.numpy() == pytest.approx(expected, rel=1e-6)
    assert (pv.Binomial(16).pixels, pv.Binomial().pixels) == ("count", "byte")


def test_what_is_shown():
    """Images in grey values; vectors as the encoder reads them; anything by one line."""
    image = torch.tensor([[[[0.0, 51.0, torch.nan]]]])
    shown = pv.Categorical().shown(image)
    torch.testing.assert_close(shown, torch.tensor([[[[0.0, 0.2, 0.5]]]]))
    counts = torch.tensor([[0.0, 3.0, 15.0, 16.0]])
    likelihood = pv.Poisson()
    likelihood.data_dims = 1
    torch.testing.assert_close(likelihood.shown(counts), counts.log1p())
    vae = families.make_vae(likelihood="Poisson", shape=(4,))
    vae.likelihood.shown = lambda x: x.unflatten(-1, (1, 2, 2)) / 16
    pairs = pv.views.reconstructions(vae, counts)
    assert pairs.shape == (1, 2, 1, 2, 2)
    torch.testing.assert_close(pairs[0, 0].flatten(), counts[0] / 16)
