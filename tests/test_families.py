"""Every family keeps its contract, and all of them work together."""

import itertools

import pytest
import torch
from families import FAMILIES, LIKELIHOODS, POSTERIORS, PRIORS, SHAPE, own

import pyro_vae as pv
from pyro_vae import testing
from pyro_vae.cli import constructors, train_parser
from pyro_vae.data import to_pixels
from pyro_vae.evaluation.diagnostics import codes


def test_every_family_is_here():
    for base, table in FAMILIES.items():
        assert {name.split(",")[0] for name in table} == own(base)


@pytest.mark.parametrize("name", PRIORS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_priors(name, latent_dim):
    if "NSF" in name and latent_dim > 2:
        pytest.skip("slow to sample; its class is the same")
    testing.check_prior(PRIORS[name](latent_dim))


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_posteriors(name, latent_dim):
    testing.check_posterior(POSTERIORS[name](latent_dim), torch.rand(3, *SHAPE))


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_likelihoods(name):
    testing.check_likelihood(LIKELIHOODS[name]())


def pairs(triple):
    return {(i, j, triple[i], triple[j]) for i, j in itertools.combinations(range(3), 2)}


def pairwise_cover():
    """Triples in which every pair of a prior, a posterior and a likelihood occurs."""
    tables = [list(PRIORS), list(POSTERIORS), list(LIKELIHOODS)]
    left = {(i, j, a, b) for i, j in itertools.combinations(range(3), 2) for a in tables[i] for b in tables[j]}
    while left:
        best = max(
            itertools.product(*tables),
            key=lambda t: sum((i, j, t[i], t[j]) in left for i, j in itertools.combinations(range(3), 2)),
        )
        left -= {(i, j, best[i], best[j]) for i, j in itertools.combinations(range(3), 2)}
        yield best


COVER = list(pairwise_cover())


def build(prior, posterior, likelihood, latent_dim=2):
    scored = LIKELIHOODS[likelihood]()
    q = POSTERIORS[posterior](latent_dim)
    shared = {"VampPrior": lambda dim: pv.VampPrior(q, SHAPE, components=3)}
    p = shared.get(prior.split(", flow")[0], PRIORS[prior])(latent_dim)
    return pv.VAE(p, q, pv.MLP((latent_dim,), (scored.num_params, *SHAPE), hidden=(4,)), scored)


def small_data(count=8):
    images = torch.randint(0, 256, (count, *SHAPE), dtype=torch.uint8)
    return pv.Data("small", pv.Split(images), pv.Split(images[:3]), pv.Split(images[:4]))


@pytest.mark.parametrize("triple", COVER, ids=" x ".join)
def test_every_pair_trains_is_sampled_and_evaluated(triple):
    vae, data = build(*triple), small_data()
    x = to_pixels(data.train.images, vae.pixels)
    vae.initialize(x)
    before = {name: param.clone() for name, param in vae.named_parameters()}
    (record,) = pv.fit(vae, data, epochs=1, batch_size=5)
    assert all(isinstance(value, int) or torch.tensor(value).isfinite() for value in record.values())
    assert record["step"] == 2
    still = [name for name, param in vae.named_parameters() if torch.equal(param, before[name])]
    assert not still
    assert vae.sample(3).shape == (3, *SHAPE)
    assert vae.reconstruct(x).shape == x.shape
    assert codes(vae, x).scale.min() > 0
    results = pv.evaluate(vae, data.test, num_samples=3)
    assert torch.tensor(results["log_likelihood"]["mean"]).isfinite()


def test_the_cover_is_complete():
    for i, j in itertools.combinations(range(3), 2):
        tables = [PRIORS, POSTERIORS, LIKELIHOODS]
        assert {(t[i], t[j]) for t in COVER} == set(itertools.product(tables[i], tables[j]))


@pytest.mark.parametrize("part", ["prior", "posterior", "likelihood", "encoder", "model", "beta"])
def test_every_family_can_be_named_by_a_flag(part):
    base = {
        **{"encoder": pv.Network, "model": pv.Model, "beta": pv.Schedule},
        "prior": pv.Prior,
        "posterior": pv.Posterior,
        "likelihood": pv.Likelihood,
    }[part]
    for name in own(base):
        made = constructors(train_parser().parse_args([f"--{part}", name]))[part]
        assert made.func.__name__ == name
