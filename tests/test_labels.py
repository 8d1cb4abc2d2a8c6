"""Models of images with labels: exact log p(x | y), the limits where labels say nothing, and every command."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import cycle

import numpy as np
import pyro
import pytest
import torch
from endings import WHOLE, ending
from families import LIKELIHOODS, NETWORKS, OBJECTIVES, POSTERIORS, PRIORS, SHAPE, make_vae
from torch.distributions import Normal

import pyro_vae as pv
from pyro_vae import networks
from pyro_vae.cli.main import main
from pyro_vae.engine.programs import Batch
from pyro_vae.evaluation.metrics import score_images
from pyro_vae.reporting import views
from pyro_vae.testing import LinearGaussianVAE

CLASSES = 3

Y = torch.tensor([0, 1, 2, 2, 1, 0, 1])


def conditional(
    label_dim=CLASSES,
    prior="StandardNormal",
    posterior="DiagonalNormal",
    likelihood="Bernoulli",
    network="MLP",
    latent_dim=2,
):
    """A small conditional VAE of the named parts whose labels matter."""
    q, p_x, make = POSTERIORS[posterior](latent_dim), LIKELIHOODS[likelihood](), NETWORKS[network]
    down = make(SHAPE, (q.num_params, latent_dim))
    up = make((latent_dim + label_dim,), (p_x.num_params, *SHAPE))
    p_z = PRIORS[prior](latent_dim)
    vae = pv.ConditionalVAE(p_z, down, q, up, p_x, data_shape=SHAPE, label_dim=label_dim)
    torch.nn.init.normal_(vae.embedding)
    return vae


@pytest.fixture
def x():
    return torch.rand(7, *SHAPE).round()


def linear_gaussian(label_dim):
    """A linear-Gaussian conditional VAE with the exact guide, and the VAE that it is without labels, in float64."""
    plain = LinearGaussianVAE(SHAPE, 2).double()
    plain.make_guide_exact()
    decoder = networks.Linear((2 + label_dim,), (1, *SHAPE)).double()
    weight, bias = decoder.parameters()
    weight.data[:, :2], bias.data = (param.data for param in plain.decoder.parameters())
    vae = pv.ConditionalVAE(
        plain.prior, plain.encoder, plain.posterior, decoder, plain.likelihood, SHAPE, label_dim
    ).double()
    vae.embedding.data = -weight.data[:, 2:].T.unflatten(1, SHAPE)
    return vae, plain


@torch.no_grad()
@pytest.mark.parametrize("y", [Y, torch.randn(7, CLASSES).double()], ids=["classes", "covariates"])
def test_log_p_of_images_given_labels_in_closed_form(y):
    """p(x | y) is p(x) moved by a linear function of y; with the exact posterior each weight is p(x | y)."""
    vae, plain = linear_gaussian(CLASSES)
    x = torch.randn(7, *SHAPE).double()
    code = y if y.is_floating_point() else torch.eye(CLASSES).double()[y]
    exact = plain.log_p(x + torch.tensordot(code, vae.embedding, 1))
    weights = pv.log_weights(vae.model, vae.guide, x, y, num_samples=5)
    assert weights == pytest.approx(exact.expand(5, -1), abs=1e-8)


def test_quadrature_and_importance_sampling_given_labels(x):
    """Both against a sum over a dense grid of codes."""
    vae, y = conditional(), Y
    side = torch.linspace(-6, 6, 150)
    z = torch.cartesian_prod(side, side)
    with torch.no_grad():
        joint = torch.stack(
            [
                vae.decode(z, label.expand(len(z))).log_prob(image)
                for image, label in zip(x, y, strict=True)
            ]
        )
    prior = Normal(0.0, 1.0).log_prob(z).sum(-1)
    exact = (joint + prior).double().logsumexp(1) + 2 * (side[1] - side[0]).log()
    assert pv.quadrature_log_likelihood(vae, Batch(x, y)) == pytest.approx(exact, abs=0.002)
    scores = score_images(vae, pv.Split(x, y), num_samples=4000)
    assert ((scores.log_likelihood - exact).abs() < 5 * scores.monte_carlo_error + 1e-3).all()


@torch.no_grad()
def test_with_one_class_it_is_a_vae(x):
    """The embedding and the decoder's last input are biases."""
    vae = conditional(label_dim=1)
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


def train_on_digits(data, model):
    """log p(x) or log p(x | y) of each test image after 30 epochs."""
    pyro.set_rng_seed(0)
    labels = 10 if model is pv.ConditionalVAE else 0
    networks = {
        "encoder": pv.MLP(data.shape, (2, 5), (64,)),
        "decoder": pv.MLP((5 + labels,), (1, *data.shape), (64,)),
    }
    parts = {
        "prior": pv.StandardNormal(5),
        "posterior": pv.DiagonalNormal(),
        "likelihood": pv.Bernoulli(),
        **networks,
    }
    vae = model(**parts, **({"data_shape": data.shape, "label_dim": 10} if labels else {}))
    list(
        pv.fit(
            vae, data, epochs=30, seed=0, optimizer=lambda params: torch.optim.Adam(params, 3e-3)
        )
    )
    return score_images(vae, data.test, 200).log_likelihood, vae


def test_labels_help_unless_they_are_shuffled(digits):
    def shuffled(split):
        return replace(split, labels=split.labels[torch.randperm(len(split))])

    plain, _ = train_on_digits(digits, pv.VAE)
    given, vae = train_on_digits(digits, pv.ConditionalVAE)
    given_noise, _ = train_on_digits(digits.map(shuffled), pv.ConditionalVAE)
    gain, no_gain = (given - plain), (given_noise - plain)
    assert gain.mean() > 0.3 + 3 * gain.std() / len(gain) ** 0.5
    assert no_gain.mean() < 3 * no_gain.std() / len(gain) ** 0.5
    accuracy = pv.bayes_classifier(vae, digits.test, 10, num_samples=20)
    assert accuracy.num_images == len(digits.test)
    assert accuracy.accuracy > 0.75


def test_the_bayes_classifier_finds_the_label_of_the_largest_density():
    """Against the exact densities of a linear-Gaussian model."""
    vae, plain = linear_gaussian(CLASSES)
    y = torch.randint(CLASSES, (500,))
    x = vae.sample(len(y), y)
    with torch.no_grad():
        exact = torch.stack([plain.log_p(x + shift) for shift in vae.embedding]).argmax(0)
    found = pv.bayes_classifier(vae, pv.Split(x, y), CLASSES, num_samples=1)
    assert found.accuracy == pytest.approx((exact == y).double().mean().item())
    assert 0.4 < found.accuracy < 1


PARTS = list(zip(cycle(PRIORS), cycle(POSTERIORS), LIKELIHOODS, cycle(NETWORKS), strict=False))


@pytest.mark.parametrize("parts", PARTS, ids=" x ".join)
def test_every_part_traced(parts):
    """One epoch with labels, the last batch smaller, by the traced engine as by the eager one."""
    images = (256 * torch.rand(20, *SHAPE)).clamp(max=255).to(torch.uint8)
    split = pv.Split(images, torch.arange(20) % CLASSES)
    data = pv.Data("noise", split, split[:6], split[:6])
    losses = []
    for engine in ("eager", "traced"):
        pyro.set_rng_seed(0)
        vae = conditional(CLASSES, *parts)
        losses += [
            record["loss"]
            for record in pv.fit(vae, data, epochs=1, batch_size=8, engine=engine, seed=1)
        ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective(name, digits):
    options = {"num_particles": 2} if "Capacity" not in name and "Free" not in name else {}
    encoder, decoder = pv.MLP(digits.shape, (2, 2), (8,)), pv.MLP((12,), (1, *digits.shape), (8,))
    parts = (pv.StandardNormal(2), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli())
    vae = pv.ConditionalVAE(*parts, data_shape=digits.shape, label_dim=10)
    (record,) = pv.fit(
        vae, digits, epochs=1, objective=OBJECTIVES[name](**options), engine="traced"
    )
    assert -60 < record["elbo"] < 0


@pytest.mark.parametrize(
    "y", [None, torch.tensor([0, 3]), torch.tensor([-1, 0]), torch.rand(2, 4), torch.rand(2)]
)
def test_labels_that_do_not_fit_are_rejected(y):
    with pytest.raises(pv.RequestError, match=r"label|covariates"):
        pv.codes(conditional(), Batch(torch.zeros(2, *SHAPE), y))


def test_data_without_labels_are_rejected(digits, tmp_path, capfd):
    unlabelled = digits.map(lambda split: replace(split, labels=None))
    with pytest.raises(pv.RequestError, match="labels"):
        pv.fit(conditional(10), unlabelled, epochs=1)
    np.save(tmp_path / "images.npy", digits.train.x[:50].numpy())
    argv = [
        "train",
        "--data",
        str(tmp_path / "images.npy"),
        "--model",
        "ConditionalVAE",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    assert main(argv) == 2
    _, err = capfd.readouterr()
    assert "labels" in err
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "bad", ["labels=-1", "labels=1000000", "covariates=nan", "covariates=(12,)"]
)
def test_bad_labels_in_a_file(bad, tmp_path, capfd):
    arrays = {
        "labels=-1": {"labels": np.full(40, -1)},
        "labels=1000000": {"labels": np.arange(40) * 1_000_000},
        "covariates=nan": {"covariates": np.full((40, 2), np.nan)},
        "covariates=(12,)": {"covariates": np.zeros(40)},
    }
    np.savez(tmp_path / "data.npz", images=np.zeros((40, 4, 4), np.uint8), **arrays[bad])
    assert main(["train", "--data", str(tmp_path / "data.npz"), "--model", "ConditionalVAE"]) == 2
    _, err = capfd.readouterr()
    assert bad.split("=")[0] in err
    assert len(err.splitlines()) == 1


@pytest.fixture(scope="module")
def run_of_classes(tmp_path_factory):
    """A trained run with a two-dimensional code."""
    folder = tmp_path_factory.mktemp("classes") / "run"
    options = [
        "--model",
        "ConditionalVAE",
        "--latent_dim",
        "2",
        "--encoder.hidden",
        "[16]",
        "--decoder.hidden",
        "[16]",
    ]
    with ending(WHOLE):
        assert (
            main(["train", "--data", "digits", "--epochs", "3", "--run_dir", str(folder), *options])
            == 0
        )
    return folder


def test_training_draws_analogies(run_of_classes):
    pictures = {file.stem for file in (run_of_classes / "figures").glob("*.png")}
    assert pictures >= {"curves", "reconstructions", "samples", "latent", "analogies"}
    assert "manifold" not in pictures  # it would need a label


KINDS = [
    "samples",
    "samples --label 7",
    "reconstructions --label 7",
    "reconstructions",
    "analogies",
    "interpolations",
]
KINDS += [
    "interpolations --label 3",
    "traversals",
    "traversals --label 3",
    "manifold --label 3",
    "codes",
]


@pytest.mark.parametrize("options", KINDS)
def test_generate(options, run_of_classes, tmp_path):
    for out in ("a.png", "a.npz"):
        argv = ["generate", str(run_of_classes), *options.split(), "--out", str(tmp_path / out)]
        assert main([*argv, *([] if "manifold" in options else ["--count", "4"])]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000
    if options == "analogies":
        assert np.load(tmp_path / "a.npz")["images"].shape == (10, 4, 1, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        "samples --label 10",
        "samples --label -1",
        "samples --label [0.5]",
        "samples --label x",
        "codes --label 1",
        "manifold",
    ],
)
def test_labels_that_cannot_be_decoded_are_rejected(options, run_of_classes, capfd):
    assert main(["generate", str(run_of_classes), *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("options", ["samples --label 1", "analogies"])
def test_a_model_without_labels_takes_none(options, run_dir, capfd):
    assert main(["generate", str(run_dir), *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_labels_change_what_is_generated(run_of_classes):
    vae = pv.load_run(run_of_classes)
    seven, one = (vae.p_x(torch.zeros(1, 2), torch.tensor([label])).mean for label in (7, 1))
    assert (seven - one).abs().max() > 0.01
    assert vae.sample(3, y=torch.tensor([1, 2, 3])).shape == (3, 1, 8, 8)


def test_labels_that_do_not_fit_the_images(run_of_classes):
    vae = pv.load_run(run_of_classes)
    for y in (None, torch.tensor([1, 2]), torch.tensor([1, 2, 10])):
        with pytest.raises(pv.RequestError, match="label"):
            vae.sample(3, y)


def test_evaluate(run_of_classes, capfd):
    argv = [
        "evaluate",
        str(run_of_classes),
        "--num_samples",
        "100",
        "--classify_images",
        "50",
        "--gap_images",
        "2",
    ]
    assert main(argv) == 0
    out, _ = capfd.readouterr()
    assert "Bayes classifier" in out
    (file,) = run_of_classes.glob("results-*.json")
    results = json.loads(file.read_text())
    assert results["given"] == "labels"
    assert results["bayes_classifier"]["num_images"] == 50
    assert results["check"]["method"] == "quadrature"
    assert not results["check"]["disagree"]


def test_resumed_equals_uninterrupted(tmp_path):
    options = ["--data", "digits", "--model", "ConditionalVAE", "--latent_dim", "2"]
    assert main(["train", *options, "--epochs", "2", "--run_dir", str(tmp_path / "whole")]) == 0
    assert main(["train", *options, "--epochs", "1", "--run_dir", str(tmp_path / "parts")]) == 0
    assert main(["train", "--resume", "--epochs", "2", "--run_dir", str(tmp_path / "parts")]) == 0
    whole, parts = (pv.load_run(tmp_path / name).state_dict() for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_resuming_with_other_labels_is_rejected(tmp_path, capfd):
    images, labels = torch.randint(256, (40, 4, 4)).to(torch.uint8).numpy(), np.arange(40) % 2
    argv = [
        "train",
        "--data",
        str(tmp_path / "data.npz"),
        "--model",
        "ConditionalVAE",
        "--run_dir",
        str(tmp_path / "r"),
    ]
    np.savez(tmp_path / "data.npz", images=images, labels=labels)
    assert main([*argv, "--epochs", "1"]) == 0
    np.savez(tmp_path / "data.npz", images=images, labels=1 - labels)
    assert main([*argv, "--epochs", "2", "--resume"]) == 2
    assert "changed" in capfd.readouterr().err


def test_a_run_folder_whose_model_was_changed_to_one_with_labels(run_dir, tmp_path, capfd):
    folder = tmp_path / "run"
    shutil.copytree(run_dir, folder)
    config = folder / "config.yaml"
    config.write_text(config.read_text().replace("pyro_vae.VAE", "pyro_vae.ConditionalVAE"))
    assert main(["generate", str(folder), "samples"]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_covariates(tmp_path, capfd):
    """The brightness of an image as a covariate."""
    generator = np.random.default_rng(0)
    brightness = generator.uniform(size=(240, 1))
    images = (255 * brightness[:, :, None] * np.ones((1, 4, 4))).astype(np.uint8)
    np.savez(tmp_path / "data.npz", images=images, labels=np.arange(240) % 3, covariates=brightness)
    run = str(tmp_path / "r")
    options = ["--model", "ConditionalVAE", "--optimizer.lr", "0.01", "--latent_dim", "2"]
    assert (
        main(
            [
                "train",
                "--data",
                str(tmp_path / "data.npz"),
                "--epochs",
                "60",
                "--run_dir",
                run,
                *options,
            ]
        )
        == 0
    )
    vae = pv.load_run(run)
    dark, bright = (
        vae.sample_mean(20, torch.full((20, 1), value)).mean().item() for value in (0.2, 0.8)
    )
    assert dark == pytest.approx(0.2, abs=0.1)
    assert bright == pytest.approx(0.8, abs=0.1)
    assert main(["generate", run, "samples", "--label", "[0.3]"]) == 0
    assert main(["generate", run, "samples", "--label", "1"]) == 0
    assert main(["generate", run, "samples", "--label", "[1, 2]"]) == 2
    assert main(["generate", run, "samples"]) == 0
    assert main(["evaluate", run, "--num_samples", "50"]) == 0
    assert main(["generate", run, "analogies"]) == 2


OWN = '''
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

import pyro_vae as pv


class ClassPrior(pv.Model):
    """Each class has a prior of its own; the likelihood does not see the class."""

    needs_labels = True

    def __init__(self, encoder, posterior, decoder, likelihood, latent_dim: int, label_dim: int) -> None:
        super().__init__(encoder, posterior, decoder, likelihood)
        self.latent_dim = latent_dim
        self.loc = torch.nn.Parameter(torch.randn(label_dim, latent_dim))

    def model(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)):
            with poutine.scale(scale=beta):
                z = pyro.sample("z", dist.Normal(self.loc[y], 1.0).to_event(1))
            pyro.sample("x", self.decode(z), obs=x)

    def guide(self, x, y=None, beta=1.0):
        self.register()
        with pyro.plate("images", len(x)), poutine.scale(scale=beta):
            pyro.sample("z", self.encode(x))
'''


def test_a_model_of_the_users_own_with_a_prior_per_class(tmp_path, monkeypatch):
    """One class with two programs trains, is evaluated, generates and comes back."""
    (tmp_path / "classprior.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    run = str(tmp_path / "r")
    options = ["--model", "classprior.ClassPrior", "--latent_dim", "2", "--epochs", "2"]
    assert main(["train", "--data", "digits", "--run_dir", run, *options]) == 0
    assert main(["evaluate", run, "--trust", "--num_samples", "50", "--classify_images", "20"]) == 0
    for kind in ("samples", "analogies", "manifold --label 3"):
        assert main(["generate", run, "--trust", *kind.split()]) == 0
    vae = pv.load_run(run, trust=True)
    assert vae.latent_dim == 2
    assert torch.allclose(
        vae.sample_codes(4000, torch.full((4000,), 3)).mean(0), vae.loc[3], atol=0.1
    )
    assert main(["generate", run, "--trust", "samples", "--label", "-1"]) == 2
    rows = views.analogies(vae, torch.arange(10), 3)
    assert not torch.equal(rows[0], rows[1])
