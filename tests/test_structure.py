"""What a run of two programs shows about their plates."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.engine.structure import find_structure
from pyro_vae.errors import RequestError

X = torch.zeros(4, 3)


def shared(x):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def shared_guide(x):
    pyro.sample("z", dist.Normal(0.0, 1.0))


def nested(x):
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
        with pyro.plate("columns", 3, dim=-1):
            kind = pyro.sample("kind", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(z + kind, 1.0), obs=x)


def nested_guide(x):
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))


def test_a_latent_outside_the_plate_is_global():
    structure = find_structure(shared, shared_guide, (X,))
    assert structure.rows is None
    assert structure.nesting == 1
    assert not structure.enumerated


def test_a_plate_of_all_sites_gives_rows():
    structure = find_structure(nested, nested_guide, (X,))
    assert structure.rows == "rows"
    assert structure.nesting == 2
    assert structure.enumerated == {"kind"}
    assert set(structure.dims) == {"z"}


def test_a_discrete_site_that_the_guide_draws_is_not_summed_out():
    def guide(x):
        with pyro.plate("rows", len(x), dim=-2):
            pyro.sample("z", dist.Normal(torch.zeros(1), 1.0))
            with pyro.plate("columns", 3, dim=-1):
                pyro.sample("kind", dist.Categorical(torch.ones(2)))

    assert not find_structure(nested, guide, (X,)).enumerated


def test_without_a_guide_all_discrete_sites_are_summed_out():
    assert find_structure(nested, None, (X,)).enumerated == {"kind"}


def test_programs_without_data_are_global():
    structure = find_structure(lambda: shared(X), lambda: shared_guide(X), ())
    assert structure.rows is None


def test_the_random_state_stays():
    before = torch.get_rng_state()
    find_structure(shared, shared_guide, (X,))
    assert torch.equal(before, torch.get_rng_state())


def counting(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


@pytest.mark.parametrize(
    ("model", "guide", "name"),
    [
        (counting, lambda x: None, "z"),  # without an end: it cannot be summed out
        (shared, lambda x: None, "z"),
        (lambda x: None, shared_guide, "z"),
    ],
)
def test_different_latents_are_refused(model, guide, name):
    with pytest.raises(RequestError, match=f"only one of them has {name}"):
        find_structure(model, guide, (X,))


def test_a_part_of_the_rows_cannot_stand_for_a_whole_program():
    def part(x):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 100, subsample_size=len(x)):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])

    structure = find_structure(part, shared_guide, (X,))
    assert structure.subsampled == "data"
    with pytest.raises(RequestError, match="plate data holds a part of its rows"):
        structure.check_complete()
