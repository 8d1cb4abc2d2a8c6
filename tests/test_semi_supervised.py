"""A VAE that infers labels, against exact sums over them, VAE, and Pyro's own SVI."""

from __future__ import annotations

from dataclasses import replace
from itertools import cycle
from math import log

import pyro
import pyro.distributions as dist
import pytest
import torch
from families import (
    LIKELIHOODS,
    NETWORKS,
    OBJECTIVES,
    POSTERIORS,
    PRIORS,
    SHAPE,
    make_semi_supervised,
    make_semi_supervised_oracle,
    make_vae,
)
from pyro.infer import Trace_ELBO, TraceEnum_ELBO
from torch import nn

import pyro_vae as pv
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.gap import inference_gap
from pyro_vae.evaluation.labels import classify

Y = torch.tensor([2, -1, 0, -1, 1, -1, -1])
CLASSES = 3


def exact_log_p(log_joint, y):
    """log p(x, y) where y is known, log p(x) elsewhere."""
    known = log_joint.gather(0, y.clamp(min=0)[None])[0]
    return torch.where(y >= 0, known, log_joint.logsumexp(0))


@torch.no_grad()
def test_every_weight_is_the_exact_sum_over_labels():
    vae, log_joint = make_semi_supervised_oracle(CLASSES)
    vae.eval()
    x = torch.randn(7, *SHAPE).double()
    for y in (None, Y, Y.clamp(min=0)):
        known = torch.full((7,), -1) if y is None else y
        weights = pv.log_weights(vae.model, vae.guide, x, y, num_samples=4)
        assert weights == pytest.approx(exact_log_p(log_joint(x), known).expand(4, -1), abs=1e-8)


def exact_elbo(vae, log_joint, x, y, alpha):
    """The ELBO at the exact q(z | x, y), with the classification term: no draw matters."""
    log_q = vae.classifier(x).log_softmax(-1).T
    inferred = (log_q.exp() * (log_joint - log_q)).sum(0)
    index = y.clamp(min=0)[None]
    known = log_joint.gather(0, index)[0] + alpha * log_q.gather(0, index)[0]
    return torch.where(y >= 0, known, inferred).sum()


@pytest.mark.parametrize("training", [True, False])
def test_the_loss_and_the_gradient_of_the_classifier_in_closed_form(training):
    vae, log_joint = make_semi_supervised_oracle(CLASSES, alpha=0.7)
    vae.images_per_label.fill_(4.0)
    vae.train(training)
    x = torch.randn(7, *SHAPE).double()
    loss = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(vae.model, vae.guide, x, Y)
    alpha = 2.8 if training else 0.0
    exact = -exact_elbo(vae, log_joint(x).detach(), x, Y, alpha)
    assert loss.item() == pytest.approx(exact.item(), abs=1e-8)
    params = list(vae.classifier.parameters())
    slopes = zip(torch.autograd.grad(loss, params), torch.autograd.grad(exact, params), strict=True)
    for found, expected in slopes:
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("make", [TraceEnum_ELBO, pv.ImportanceWeightedELBO])
def test_the_gradient_of_a_mixed_batch_is_that_of_finite_differences(make):
    """In float64, at fixed noise, along a random direction in all parameters; none is NaN."""
    vae = make_semi_supervised(CLASSES).double()
    x = torch.rand(7, *SHAPE).double().round()
    objective = make(num_particles=2, vectorize_particles=True)
    objective.max_plate_nesting = 2
    start = nn.utils.parameters_to_vector(vae.parameters()).detach()
    direction = torch.randn_like(start)

    def loss(step):
        nn.utils.vector_to_parameters(start + step * direction, vae.parameters())
        pyro.set_rng_seed(3)
        return objective.differentiable_loss(vae.model, vae.guide, x, Y)

    slope = (loss(1e-6) - loss(-1e-6)).item() / 2e-6
    grads = torch.autograd.grad(loss(0.0), list(vae.parameters()))
    assert slope == pytest.approx((nn.utils.parameters_to_vector(grads) @ direction).item(), 1e-5)


@torch.no_grad()
def test_the_importance_weighted_bound_sums_labels_out():
    vae, log_joint = make_semi_supervised_oracle(CLASSES)
    vae.eval()
    x = torch.randn(7, *SHAPE).double()
    loss = pv.ImportanceWeightedELBO(3).loss(vae.model, vae.guide, x, Y)
    assert loss == pytest.approx(-exact_log_p(log_joint(x), Y).sum().item(), abs=1e-8)


@torch.no_grad()
def test_quadrature_and_annealing_sum_labels_out():
    vae, log_joint = make_semi_supervised_oracle(CLASSES)
    x = torch.randn(1, *SHAPE).double()
    exact = exact_log_p(log_joint(x), torch.tensor([-1]))
    assert pv.quadrature_log_likelihood(vae, x) == pytest.approx(exact, abs=2e-3)
    with torch.enable_grad():
        weights = pv.annealed_log_weights(
            vae.model, x, None, num_chains=20, num_temperatures=10, engine="eager"
        )
    error = pv.monte_carlo_error(weights)
    assert ((pv.log_likelihood(weights) - exact).abs() < 5 * error + 0.02).all()
    assert (error < 0.5).all()


@torch.no_grad()
def test_with_one_class_it_is_a_vae():
    """The embedding and the decoder's last input are biases."""
    x = torch.rand(7, *SHAPE).round()
    vae = make_semi_supervised(1).eval()
    plain = make_vae()
    plain.encoder = vae.encoder
    plain.decoder = pv.MLP((2,), (1, *SHAPE))
    for mine, given in zip(plain.decoder.parameters(), vae.decoder.parameters(), strict=True):
        mine.copy_(given[:, : mine.shape[1]] if mine.ndim == 2 else given)
    list(plain.decoder.parameters())[1].add_(next(vae.decoder.parameters())[:, -1])
    found = {}
    for y in (None, torch.tensor([0, -1, 0, 0, -1, -1, 0])):
        pyro.set_rng_seed(0)
        found[y is None] = pv.log_weights(vae.model, vae.guide, x, y, num_samples=9)
    pyro.set_rng_seed(0)
    loss = TraceEnum_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, x)
    weight, bias, *_ = vae.encoder.parameters()
    bias.add_(weight @ vae.embedding.flatten())
    pyro.set_rng_seed(0)
    weights = pv.log_weights(plain.model, plain.guide, x, num_samples=9)
    assert found[True] == pytest.approx(weights, abs=1e-4)
    assert found[False] == pytest.approx(weights, abs=1e-4)
    pyro.set_rng_seed(0)
    assert loss == pytest.approx(Trace_ELBO().loss(plain.model, plain.guide, x), rel=1e-5)


@pytest.mark.parametrize("engine", ["eager", "traced"])
def test_pyros_svi_takes_the_same_steps(engine):
    x = torch.rand(7, *SHAPE).round()
    losses = []
    for make in (pyro.infer.SVI, pv.SVI):
        pyro.set_rng_seed(0)
        pyro.clear_param_store()
        vae = make_semi_supervised(CLASSES)
        options = {"engine": engine} if make is pv.SVI else {}
        objective = TraceEnum_ELBO(max_plate_nesting=1)
        svi = make(vae.model, vae.guide, pyro.optim.Adam({"lr": 0.01}), objective, **options)
        pyro.set_rng_seed(1)
        losses.append([svi.step(x, Y) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert losses[0][0] != losses[0][-1]


def patterns(rows, seed):
    """Noisy binary images of three patterns, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(rows) % CLASSES
    centres = torch.rand(CLASSES, *SHAPE, generator=torch.Generator().manual_seed(0)).round()
    flips = torch.rand(rows, *SHAPE, generator=generator) < 0.15
    return pv.Split((centres[labels].bool() ^ flips), labels)


def trained(data):
    pyro.set_rng_seed(0)
    vae = make_semi_supervised(CLASSES, alpha=1.0)
    list(
        pv.fit(
            vae,
            data,
            epochs=12,
            batch_size=60,
            seed=0,
            optimizer=lambda params: torch.optim.Adam(params, 1e-2),
            engine="traced",
        )
    )
    return classify(vae, data.test)


def test_few_labels_teach_the_classes_and_shuffled_ones_nothing():
    """Nine labels of 300 images; in the second case 297, as many of each for every pattern."""
    data = pv.Data("patterns", patterns(300, 1), patterns(30, 2), patterns(300, 3))
    assert trained(data.with_labels(9)).accuracy > 0.9
    shuffled = torch.full((CLASSES, 100), -1)
    shuffled[:, :99] = torch.arange(99) % CLASSES
    train = replace(data.train, labels=shuffled.T.flatten())
    found = trained(pv.Data("shuffled", train, data.validation, data.test))
    assert found.accuracy == pytest.approx(1 / CLASSES, abs=4 * found.standard_error)
    assert found.log_loss > log(CLASSES)


def test_the_inference_gap_over_labels_in_closed_form():
    """The best guide is exact, so that the whole gap is the classifier's; labels may be known."""
    vae, log_joint = make_semi_supervised_oracle(CLASSES)
    vae.eval()
    x = torch.randn(4, *SHAPE).double()
    with torch.no_grad():
        joint = log_joint(x)
        log_q = vae.classifier(x).log_softmax(-1).T
        inferred = (log_q.exp() * (joint - log_q)).sum(0)
    for y in (None, Y[:4]):
        given = torch.full((4,), -1) if y is None else y
        exact = exact_log_p(joint, given)
        elbo = torch.where(given >= 0, exact, inferred)
        gap = inference_gap(vae, Batch(x, y), num_samples=1000, steps=50, rounds=1)
        assert gap.method == "quadrature"
        torch.testing.assert_close(gap.local_elbo, exact, atol=0.03, rtol=0)
        torch.testing.assert_close(gap.amortization, exact - elbo, atol=0.03, rtol=0)
        assert gap.approximation.abs().max() < 0.03
        assert (gap.amortization[given < 0] > 0.1).any()
        assert gap.params.shape == (4, 3, 2)


@torch.no_grad()
def test_the_bayes_classifier_takes_the_label_of_the_largest_joint():
    vae, log_joint = make_semi_supervised_oracle(CLASSES)
    y = torch.randint(CLASSES, (200,))
    x = vae.eval().sample(200, y)
    exact = (log_joint(x).argmax(0) == y).double().mean().item()
    split = pv.Split(torch.zeros(x.shape), y).with_x(x)  # real numbers, not pixels
    found = pv.bayes_classifier(vae, split, CLASSES, num_samples=1)
    assert found.accuracy == pytest.approx(exact)


@torch.no_grad()
def test_codes_that_are_labels_have_their_entropy_as_information():
    """z is as the prior, and the label of an image is certain."""
    vae = make_semi_supervised(CLASSES)
    for param in vae.encoder.parameters():
        param.zero_()
    x = torch.zeros(90, *SHAPE)
    x.flatten(1)[torch.arange(90), torch.arange(90) % CLASSES] = 1
    vae.classifier = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), CLASSES, bias=False))
    vae.classifier[1].weight.copy_(100 * torch.eye(CLASSES, x[0].numel()))
    vae.embedding.zero_()
    found = pv.information(vae, x)
    assert found.mutual_information == pytest.approx(log(CLASSES), abs=1e-4)
    assert found.marginal_kl == pytest.approx(0.0, abs=4 * found.marginal_kl_error + 1e-4)


PARTS = list(zip(cycle(PRIORS), cycle(POSTERIORS), LIKELIHOODS, cycle(NETWORKS), strict=False))


@pytest.mark.parametrize("parts", PARTS[:6], ids=" x ".join)
def test_every_part_traced(parts):
    """One epoch of a batch with known and unknown labels, traced as eager."""
    images = (256 * torch.rand(14, *SHAPE)).clamp(max=255).to(torch.uint8)
    split = pv.Split(images, Y.repeat(2))
    data = pv.Data("noise", split, split[:6], split[:6])
    records = []
    for engine in ("eager", "traced"):
        pyro.set_rng_seed(0)
        vae = make_semi_supervised(CLASSES, *parts)
        (record,) = pv.fit(vae, data, epochs=1, batch_size=8, engine=engine, seed=1)
        records.append({key: value for key, value in record.items() if "second" not in key})
    assert records[0] == pytest.approx(records[1], rel=1e-3)


def test_without_classification_the_loss_is_minus_the_elbo():
    split = pv.Split((torch.rand(14, *SHAPE) < 0.5), Y.repeat(2))
    data = pv.Data("noise", split, split[:6], split[:6])
    for alpha in (0.0, 1.0):
        (record,) = pv.fit(make_semi_supervised(CLASSES, alpha=alpha), data, epochs=1)
        difference = record["loss"] + record["elbo"]
        assert (abs(difference) < 1e-4) == (alpha == 0)
        assert record["elbo"] == pytest.approx(record["reconstruction"] - record["kl"], rel=1e-6)
        assert record["validation_loss"] == pytest.approx(-record["validation_elbo"], rel=1e-5)


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if not name.startswith("Importance")])
def test_objectives_that_cannot_sum_labels_out_are_refused(name):
    split = pv.Split((torch.rand(14, *SHAPE) < 0.5), Y.repeat(2))
    data = pv.Data("noise", split, split[:6], split[:6])
    with pytest.raises(pv.RequestError, match="use TraceEnum_ELBO or ImportanceWeightedELBO"):
        pv.fit(make_semi_supervised(CLASSES), data, epochs=1, objective=OBJECTIVES[name]())


@pytest.mark.parametrize(
    ("y", "said"),
    [
        (torch.tensor([0, 3]), "labels must be integers from 0 to 2, or -1"),
        (torch.tensor([-2, 0]), "labels must be integers from 0 to 2, or -1"),
        (torch.rand(2, 3), "y are covariates"),
    ],
)
def test_labels_that_do_not_fit(y, said):
    with pytest.raises(pv.RequestError, match=said):
        pv.codes(make_semi_supervised(CLASSES), Batch(torch.zeros(2, *SHAPE), y))


def test_options_and_parts_that_do_not_fit():
    class First(pv.Posterior):
        num_params = 1

        def forward(self, params):
            return dist.Delta(params[:, 0]).to_event(1)

    vae = make_semi_supervised(CLASSES)
    vae.posterior = First()
    vae.encoder = pv.MLP(SHAPE, (1, 2))
    with pytest.raises(pv.RequestError, match="First must take parameters with any leading"):
        pv.log_weights(vae.model, vae.guide, torch.zeros(5, *SHAPE), None, num_samples=1)
    with pytest.raises(pv.RequestError, match="alpha must be a number, at least 0"):
        make_semi_supervised(CLASSES, alpha=-1.0)
    with pytest.raises(pv.RequestError, match="all training labels of class 1 are unknown"):
        make_semi_supervised(CLASSES).initialize_labels(torch.tensor([0, -1, 2]))


def test_class_proportions_are_those_of_the_known_labels():
    vae = make_semi_supervised(CLASSES)
    vae.initialize_labels(torch.tensor([0, -1, 2, 2, 1, -1, -1, -1]))
    assert vae.log_p_y.exp().tolist() == pytest.approx([0.25, 0.25, 0.5])
    assert vae.images_per_label.item() == 2.0
    drawn = vae.sample_codes(4, torch.tensor([0, -1, 2, 1]))
    assert drawn.shape == (4, 2)


@torch.no_grad()
def test_unknown_labels_are_completed_by_the_most_likely_ones():
    vae = make_semi_supervised(CLASSES).eval()
    x = torch.rand(7, *SHAPE).round()
    likely = vae.classifier(x).argmax(-1)
    assert torch.equal(vae.complete_labels(x), likely)
    completed = vae.complete_labels(x, Y)
    assert torch.equal(completed, torch.where(Y >= 0, Y, likely))
    torch.testing.assert_close(pv.codes(vae, Batch(x, Y)).loc, vae.encode(x, completed).mean)
    images = pv.views.reconstructions(vae, x)
    assert images.shape == (7, 2, *SHAPE)
    assert pv.views.interpolations(vae, x[:6]).shape[0] == 3
