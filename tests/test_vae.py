"""The programs against densities by hand, and models that are copied, saved and deleted."""

import copy
import gc
import io

import pyro
import pytest
import torch
from families import (
    POSTERIORS,
    SHAPE,
    make_conditional,
    make_conditional_oracle,
    make_hierarchical,
    make_vae,
)
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO, TraceMeanField_ELBO
from torch.distributions import Bernoulli, Normal, kl_divergence

import pyro_vae as pv
from pyro_vae import networks
from pyro_vae.engine.programs import Batch
from pyro_vae.vae import default_batch_size


def normal(params):
    loc, log_scale = params.unbind(-2)
    return Normal(loc, log_scale.exp())


def pixels(vae, z):
    return Bernoulli(logits=vae.decoder(z).squeeze(1))


@pytest.fixture
def hvae():
    return make_hierarchical()


def test_the_programs_are_p_and_q(vae, x):
    guide = poutine.trace(vae.guide).get_trace(x)
    model = poutine.trace(poutine.replay(vae.model, trace=guide)).get_trace(x)
    z = guide.nodes["z"]["value"]
    torch.testing.assert_close(
        guide.nodes["z"]["fn"].log_prob(z), normal(vae.encoder(x)).log_prob(z).sum(-1)
    )
    torch.testing.assert_close(
        model.nodes["z"]["fn"].log_prob(z), Normal(0.0, 1.0).log_prob(z).sum(-1)
    )
    torch.testing.assert_close(
        model.nodes["x"]["fn"].log_prob(x), pixels(vae, z).log_prob(x).sum((1, 2, 3))
    )


def test_the_hierarchical_programs_are_p_and_q(hvae, x):
    pyro.set_rng_seed(1)
    guide = poutine.trace(hvae.guide).get_trace(x)
    z, z2 = guide.nodes["z"]["value"], guide.nodes["z2"]["value"]
    p = [
        Normal(0.0, 1.0).log_prob(z2),
        normal(hvae.down(z2)).log_prob(z),
        pixels(hvae, z).log_prob(x).flatten(1),
    ]
    q = [normal(hvae.encoder(x)).log_prob(z), normal(hvae.up(z)).log_prob(z2)]
    pyro.set_rng_seed(1)
    expected = sum(term.sum() for term in p) - sum(term.sum() for term in q)
    assert -Trace_ELBO().loss(hvae.model, hvae.guide, x) == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("beta", [0.3, 1.0, 4.0, torch.tensor(2.5)])
def test_beta_weighs_the_kl(vae, x, beta):
    """Trace_ELBO gives E log p(x | z) - beta KL; TraceMeanField_ELBO with the KL in closed form."""
    pyro.set_rng_seed(1)
    guide = poutine.trace(vae.guide).get_trace(x)
    z, q = guide.nodes["z"]["value"], normal(vae.encoder(x))
    reconstruction = pixels(vae, z).log_prob(x).sum()
    drawn = (q.log_prob(z) - Normal(0.0, 1.0).log_prob(z)).sum()
    exact = kl_divergence(q, Normal(0.0, 1.0)).sum()
    for objective, kl in {Trace_ELBO(): drawn, TraceMeanField_ELBO(): exact}.items():
        pyro.set_rng_seed(1)
        loss = objective.differentiable_loss(vae.model, vae.guide, x, beta=beta)
        torch.testing.assert_close(loss, beta * kl - reconstruction, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 3.0])
def test_beta_weighs_both_layers(hvae, x, beta):
    def loss(beta):
        pyro.set_rng_seed(1)
        return Trace_ELBO().loss(hvae.model, hvae.guide, x, beta=beta)

    assert loss(beta) - loss(1.0) == pytest.approx((beta - 1) * (loss(2.0) - loss(1.0)), rel=1e-3)


def test_both_layers_broadcast_over_samples(hvae, x):
    def frozen(x):
        with pyro.plate("images", len(x)):
            z = pyro.sample("z", pyro.distributions.Delta(torch.ones(len(x), 3)).to_event(1))
            pyro.sample("z2", pyro.distributions.Delta(z[..., :2]).to_event(1))

    weights = pv.log_weights(hvae.model, frozen, x, num_samples=4)
    torch.testing.assert_close(weights, weights[:1].expand(4, -1))


def test_the_prior_must_have_prior_dim_dimensions(hvae):
    with pytest.raises(ValueError, match="prior_dim=4"):
        pv.HierarchicalVAE(
            pv.StandardNormal(3),
            hvae.encoder,
            hvae.posterior,
            hvae.decoder,
            hvae.likelihood,
            latent_dim=3,
            prior_dim=4,
        )


@pytest.mark.parametrize("make", [make_vae, make_hierarchical])
def test_shapes_of_what_the_methods_return(make, x):
    model = make()
    q = model.encode(x)
    assert (q.batch_shape, q.event_shape) == ((6,), (model.latent_dim,))
    for made, count in (
        (model.sample(5), 5),
        (model.sample_mean(5), 5),
        (model.reconstruct_mean(x), 6),
    ):
        assert made.shape == (count, *SHAPE)
        assert not made.requires_grad


@pytest.mark.parametrize("make", [make_vae, make_hierarchical])
def test_latent_dim_changes_neither_the_random_state_nor_batch_normalization(make):
    model = make()
    model.decoder = torch.nn.Sequential(torch.nn.BatchNorm1d(model.latent_dim), model.decoder)
    state = torch.get_rng_state()
    assert model.latent_dim == {make_vae: 2, make_hierarchical: 3}[make]
    assert torch.equal(torch.get_rng_state(), state)
    assert model.decoder[0].num_batches_tracked == 0


@pytest.mark.parametrize("make", [make_vae, make_hierarchical])
def test_sample_gives_draws_and_sample_mean_the_means_of_the_same_images(make):
    model = make()
    pyro.set_rng_seed(3)
    means = model.sample_mean(4000)
    pyro.set_rng_seed(3)
    draws = model.sample(4000)
    assert set(draws.unique().tolist()) == {0.0, 1.0}
    assert ((means > 0) & (means < 1)).all()
    error = (draws - means).mean(0) / (means * (1 - means)).mean(0).div(4000).sqrt()
    assert error.abs().max() < 5


@pytest.mark.parametrize(
    ("likelihood", "values"), [("Binomial", range(256)), ("Categorical", range(256))]
)
def test_samples_of_bytes_are_bytes(likelihood, values):
    assert set(make_vae(likelihood=likelihood).sample(20).unique().tolist()) <= set(values)


@pytest.mark.parametrize("batch", [(7,), (2, 7), (3, 2, 7)])
def test_decode_takes_any_leading_dimensions(vae, batch):
    z = torch.randn(*batch, 3)
    p = vae.decode(z)
    assert (p.batch_shape, p.event_shape) == (batch, SHAPE)
    torch.testing.assert_close(p.mean.flatten(0, -4), vae.decode(z.flatten(0, -2)).mean)


@pytest.mark.parametrize("network", [pv.MLP, pv.Conv, pv.Gated])
def test_initialize_makes_every_mean_the_training_mean(network):
    x = torch.rand(50, 2, 6, 6) * torch.tensor([0.2, 0.8])[:, None, None]
    decoder = network((3,), (1, 2, 6, 6))
    vae = pv.VAE(
        pv.StandardNormal(3),
        pv.MLP((2, 6, 6), (2, 3)),
        pv.DiagonalNormal(),
        decoder,
        pv.Bernoulli(relaxed=True),
    )
    vae.initialize(x)
    weights = [param for name, param in decoder.named_parameters() if name.endswith("weight")]
    with torch.no_grad():
        weights[-1].zero_()
    mean = x.mean((0, 2, 3), keepdim=True) if network is pv.Conv else x.mean(0, keepdim=True)
    torch.testing.assert_close(vae.sample_mean(4), mean.expand(4, 2, 6, 6), atol=1e-5, rtol=1e-5)


def test_initialize_leaves_a_decoder_without_bias_alone(vae, x):
    class Own(torch.nn.Module):
        def forward(self, z):
            return z.sum(-1)[:, None, None, None, None].expand(-1, 1, *SHAPE)

    pv.VAE(vae.prior, vae.encoder, vae.posterior, Own(), vae.likelihood).initialize(x)


def test_rows_per_pass_do_not_depend_on_the_number_of_images():
    x = torch.zeros(3, 1, 28, 28)
    assert default_batch_size(make_vae(shape=(1, 28, 28)), x) == 2**21 // 784
    assert default_batch_size(
        make_vae(likelihood="Categorical", shape=(1, 28, 28)), x
    ) == 2**21 // (256 * 784)


# ---- Pyro's parameter store is global: pyro #1488, #3237


def pyros_svi(vae, x):
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    svi.step(x)


def fit(vae, x):
    images = pv.Split((255 * x).byte())
    list(
        pv.fit(
            vae, pv.Data("small", images, images, images), epochs=1, batch_size=4, engine="eager"
        )
    )


TRAIN = [pyros_svi, fit]


@pytest.mark.parametrize("train", TRAIN)
def test_training_changes_every_parameter(vae, x, train):
    before = [param.clone() for param in vae.parameters()]
    train(vae, x)
    assert all((a != b).any() for a, b in zip(before, vae.parameters(), strict=True))


@pytest.mark.parametrize(
    "second", [lambda vae: make_vae(latent_dim=3), copy.deepcopy], ids=["new", "copy"]
)
@pytest.mark.parametrize("train", TRAIN)
def test_a_second_model_has_its_own_parameters(vae, x, train, second):
    train(vae, x)
    other = second(vae)
    before = [param.clone() for param in vae.parameters()]
    train(other, x)
    assert all(torch.equal(a, b) for a, b in zip(before, vae.parameters(), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(before, other.parameters(), strict=True))
    for model in (vae, other):
        stored = [
            site["value"]
            for site in poutine.trace(model.model).get_trace(x).nodes.values()
            if site["type"] == "param"
        ]
        assert {id(param) for param in model.parameters()} == {id(value) for value in stored}


@pytest.mark.parametrize("prior", ["StandardNormal", "VampPrior"])
@pytest.mark.parametrize("train", TRAIN)
def test_a_trained_model_can_be_saved_whole(x, train, prior):
    vae, file = make_vae(prior), io.BytesIO()
    train(vae, x)
    torch.save(vae, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    torch.testing.assert_close(loaded.state_dict(), vae.state_dict(), rtol=0, atol=0)
    train(loaded, x)
    train(vae, x)


@pytest.mark.parametrize("train", TRAIN)
def test_the_parameter_store_is_empty_after_the_models_are_deleted(x, train):
    for _ in range(3):
        train(make_vae(), x)
    gc.collect()
    assert list(pyro.get_param_store().keys()) == []


@pytest.mark.parametrize("network", [pv.MLP, pv.Gated, pv.Conv])
def test_the_decoder_can_be_exported(network):
    decoder, z = network((3,), (1, 1, 8, 8)), torch.randn(5, 3)
    exported = torch.export.export(decoder.eval(), (z,)).module()
    torch.testing.assert_close(exported(z), decoder(z))


# ---- Labels

CLASSES = 3
Y = torch.tensor([0, 1, 2, 2, 1, 0, 1])


@torch.no_grad()
@pytest.mark.parametrize("y", [Y, torch.randn(7, CLASSES).double()], ids=["classes", "covariates"])
def test_log_p_of_images_given_labels_in_closed_form(y):
    """p(x | y) is p(x) moved by a linear function of y; each exact weight is p(x | y)."""
    vae, plain = make_conditional_oracle(CLASSES)
    x = torch.randn(7, *SHAPE).double()
    code = y if y.is_floating_point() else torch.eye(CLASSES).double()[y]
    exact = plain.log_p(x + torch.tensordot(code, vae.embedding, 1))
    weights = pv.log_weights(vae.model, vae.guide, x, y, num_samples=5)
    assert weights == pytest.approx(exact.expand(5, -1), abs=1e-8)


@torch.no_grad()
def test_with_one_class_it_is_a_vae():
    """The embedding and the decoder's last input are biases."""
    x = torch.rand(7, *SHAPE).round()
    vae = make_conditional(label_dim=1)
    first, *_ = vae.encoder.parameters()
    plain = make_vae()
    plain.encoder, plain.decoder, decoder = (
        vae.encoder,
        networks.MLP((2,), (1, *SHAPE)),
        vae.decoder,
    )
    for mine, theirs in zip(plain.decoder.parameters(), decoder.parameters(), strict=True):
        mine.copy_(theirs[:, : mine.shape[1]] if mine.ndim == 2 else theirs)
    list(plain.decoder.parameters())[1].add_(next(decoder.parameters())[:, -1])
    y = torch.zeros(len(x), dtype=torch.int64)
    pyro.set_rng_seed(0)
    conditioned = pv.log_weights(vae.model, vae.guide, x, y, num_samples=9)
    list(vae.encoder.parameters())[1].add_(first @ vae.embedding.flatten())
    pyro.set_rng_seed(0)
    assert conditioned == pytest.approx(
        pv.log_weights(plain.model, plain.guide, x, num_samples=9), abs=1e-4
    )


@pytest.mark.parametrize(
    "y", [None, torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.rand(2, 4), torch.rand(2)]
)
def test_labels_that_do_not_fit_are_rejected(y):
    with pytest.raises(pv.RequestError, match=r"label|covariates"):
        pv.codes(make_conditional(), Batch(torch.zeros(2, *SHAPE), y))


def test_labels_change_what_is_generated():
    vae = make_conditional(11)
    seven, one = (vae.p_x(torch.zeros(1, 2), torch.tensor([label])).mean for label in (7, 1))
    assert (seven - one).abs().max() > 0.01
    assert vae.sample(3, y=torch.tensor([1, 2, 3])).shape == (3, *SHAPE)


def test_labels_that_do_not_fit_the_images():
    vae = make_conditional(11)
    for y in (None, torch.tensor([1, 2]), torch.tensor([1, 2, 11])):
        with pytest.raises(pv.RequestError, match="label"):
            vae.sample(3, y)


# ---- Export


@pytest.mark.parametrize(
    ("posterior", "likelihood", "labels"),
    [
        *((name, "Binomial", "classes") for name in sorted(POSTERIORS) if "Flow" not in name),
        ("DiagonalNormal", "Bernoulli", None),
        ("DiagonalNormal", "Bernoulli", "covariates"),
    ],
)
def test_the_moments_of_the_posterior_can_be_exported(posterior, likelihood, labels):
    """Whole: with the labels, and from bytes to the encoder's grey values; for any batch."""
    x = torch.randint(0, 2, (5, *SHAPE)).float()
    if likelihood == "Binomial":
        x = 255 * x
    if labels is None:
        vae = make_vae(posterior=posterior, likelihood=likelihood)
        args = (x,)
    else:
        vae = make_conditional(posterior=posterior, likelihood=likelihood)
        y = torch.tensor([0, 1, 2, 1, 0])
        if labels == "covariates":
            y = 5 * torch.randn(5, CLASSES) + 3
            vae.initialize_labels(y)
        args = (x, y)
    loc, scale = pv.codes(vae, Batch(*args))
    names = sorted(pyro.get_param_store().keys())
    rows = torch.export.Dim("rows")
    program = torch.export.export(
        pv.PosteriorMoments(vae), args, dynamic_shapes=tuple({0: rows} for _ in args)
    ).module()
    torch.testing.assert_close(program(*args), (loc, scale))
    few = [arg[:3] for arg in args]
    torch.testing.assert_close(program(*few), (loc[:3], scale[:3]))
    assert sorted(pyro.get_param_store().keys()) == names


def test_the_moments_in_onnx(tmp_path):
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    vae, x = make_conditional(likelihood="Binomial"), 255 * torch.rand(5, *SHAPE).round()
    y = torch.tensor([0, 1, 2, 1, 0])
    torch.onnx.export(pv.PosteriorMoments(vae), (x, y), tmp_path / "a.onnx", dynamo=True)
    session = runtime.InferenceSession(str(tmp_path / "a.onnx"))
    inputs = dict(zip([node.name for node in session.get_inputs()], (x, y), strict=True))
    outputs = session.run(None, {name: value.numpy() for name, value in inputs.items()})
    for found, expected in zip(outputs, pv.codes(vae, Batch(x, y)), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), expected)


def test_moments_without_a_closed_form_are_refused():
    vae = make_vae(posterior="FlowPosterior")
    with pytest.raises(pv.RequestError, match="FlowPosterior has no closed form"):
        pv.PosteriorMoments(vae)(torch.zeros(2, *SHAPE))


# ---- latent_dim


def test_a_prior_is_measured_without_effects():
    """Once, in evaluation mode: its encoder may have batch normalization and dropout."""
    norm = torch.nn.BatchNorm1d(16)
    encoder = torch.nn.Sequential(
        torch.nn.Flatten(), norm, torch.nn.Dropout(), pv.MLP((16,), (2, 3), (8,))
    )
    posterior = pv.DiagonalNormal()
    prior = pv.VampPrior(encoder, posterior, SHAPE, components=4)
    encoder[2].eval()
    decoder = pv.MLP((3,), (1, *SHAPE))
    state = torch.get_rng_state()
    vae = pv.VAE(prior, encoder, posterior, decoder, pv.Bernoulli())
    assert vae.latent_dim == 3
    assert norm.num_batches_tracked == 0
    assert (norm.training, encoder[2].training, prior.training) == (True, False, True)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_prior_over_scalars_is_refused(vae):
    class Scalars(pv.Prior):
        def forward(self):
            return pyro.distributions.Normal(torch.zeros(3), 1.0)

    with pytest.raises(pv.RequestError, match="use to_event"):
        pv.VAE(Scalars(), vae.encoder, vae.posterior, vae.decoder, vae.likelihood)


@pytest.mark.parametrize("n", [0, -1, 2.5, "a"])
def test_the_number_of_draws_is_a_positive_integer(vae, n):
    for draw in (vae.sample, vae.sample_mean):
        with pytest.raises(pv.RequestError, match="n must be a positive integer"):
            draw(n)


@pytest.mark.parametrize("prior", [pv.StandardNormal, 2, "StandardNormal", None])
def test_what_is_not_a_prior_is_refused(vae, prior):
    with pytest.raises(pv.RequestError, match="prior must be an object"):
        pv.VAE(prior, vae.encoder, vae.posterior, vae.decoder, vae.likelihood)
