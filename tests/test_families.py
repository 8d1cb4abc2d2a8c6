"""Every class fulfils its contract, and every pair of classes works together."""

import inspect
import itertools

import pytest
import torch
from families import (
    FAMILIES,
    LIKELIHOODS,
    POSTERIORS,
    PRIORS,
    SHAPE,
    is_public,
    make_vae,
    own,
    subclasses,
)

import pyro_vae as pv
from pyro_vae import testing
from pyro_vae.cli.options import train_parser
from pyro_vae.data.split import to_pixels
from pyro_vae.evaluation.codes import codes


@pytest.mark.parametrize("base", FAMILIES)
def test_every_class_is_here(base):
    assert {name.split(",")[0] for name in FAMILIES[base]} == own(base)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_priors(name, latent_dim):
    if "NSF" in name and latent_dim > 2:
        pytest.skip("slow to sample; its class is the same")
    testing.check_prior(PRIORS[name](latent_dim))


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_posteriors(name, latent_dim):
    if "coupling" in name and latent_dim == 1:
        pytest.skip("needs two dimensions")
    testing.check_posterior(POSTERIORS[name](latent_dim), latent_dim)


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name):
    testing.check_likelihood(LIKELIHOODS[name]())


TABLES = (PRIORS, POSTERIORS, LIKELIHOODS)


def pairs(names):
    return {(i, j, names[i], names[j]) for i, j in itertools.combinations(range(3), 2)}


def pairwise_cover():
    """Triples in which every pair of a prior, a posterior and a likelihood occurs."""
    left = set().union(*map(pairs, itertools.product(*TABLES)))
    while left:
        best = max(itertools.product(*TABLES), key=lambda names: len(pairs(names) & left))
        left -= pairs(best)
        yield best


@pytest.mark.parametrize("names", list(pairwise_cover()), ids=" x ".join)
def test_every_pair_trains_is_sampled_and_evaluated(names):
    vae, images = make_vae(*names), torch.randint(0, 256, (8, *SHAPE), dtype=torch.uint8)
    data = pv.Data("small", pv.Split(images), pv.Split(images[:3]), pv.Split(images[:4]))
    x = to_pixels(images, vae.pixels)
    vae.initialize(x)
    before = {name: param.clone() for name, param in vae.named_parameters()}
    (record,) = pv.fit(vae, data, epochs=1, batch_size=5, engine="eager")
    assert record["step"] == 2
    assert all(torch.tensor(value).isfinite() for value in record.values())
    assert not [name for name, param in vae.named_parameters() if torch.equal(param, before[name])]
    assert vae.sample(3).shape == vae.sample_mean(3).shape == (3, *SHAPE)
    assert vae.reconstruct_mean(x).shape == x.shape
    assert codes(vae, x).scale.min() > 0
    assert torch.tensor(
        pv.evaluate(vae, data.test, num_samples=3)["log_likelihood"]["mean"]
    ).isfinite()


@pytest.mark.parametrize(
    ("part", "base"),
    [
        ("prior", pv.Prior),
        ("posterior", pv.Posterior),
        ("likelihood", pv.Likelihood),
        ("encoder", pv.Network),
        ("model", pv.Model),
        ("beta", pv.Schedule),
    ],
)
def test_every_class_can_be_named_by_a_flag(part, base):
    for name in own(base):
        config = train_parser().parse_args([f"--{part}", name])
        assert config[part].class_path.endswith(f".{name}")


HELPED = [cls for base in (*FAMILIES, pv.Model) for cls in (base, *subclasses(base))]


@pytest.mark.parametrize("cls", list(filter(is_public, HELPED)), ids=lambda cls: cls.__name__)
def test_what_becomes_help_is_plain_text(cls):
    """The first line, and the descriptions of the arguments; formulas are in the text between."""
    first, *lines = inspect.getdoc(cls).splitlines()
    arguments = itertools.takewhile(
        lambda line: line not in ("Raises:", "Example:", "References:"),
        itertools.dropwhile(lambda line: line != "Arguments:", lines),
    )
    for line in (first, *arguments):
        assert ":math:" not in line
        assert "\\" not in line
    assert not lines or not lines[0]
