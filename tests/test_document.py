"""The JSON document has the fields that the page's script reads, and says what the arrays say."""

from __future__ import annotations

from typing import Any, get_args, get_origin, get_type_hints, is_typeddict

import pytest
import torch
from families import make_vae
from pages import TINY, document_in, random_split

from pyro_vae.reporting import explorer
from pyro_vae.reporting.document import Document, density_levels
from pyro_vae.reporting.subject import Subject

pytest.importorskip("bokeh", reason="Bokeh is not installed")

from pyro_vae.reporting.page import page


def test_contours_hold_the_mass_that_they_say():
    normal = torch.distributions.MultivariateNormal(
        torch.zeros(2), torch.tensor([[1.0, 0.7], [0.7, 1.0]])
    )
    draws = normal.sample((20_000,))
    grid = explorer.grid_around(draws, 150)
    log_density = normal.log_prob(grid.points)
    for mass, level in zip(
        (0.9, 0.5), density_levels(grid, log_density, (0.9, 0.5))[1], strict=True
    ):
        inside = normal.log_prob(draws) > log_density.max() + torch.tensor(level).log()
        assert inside.double().mean().item() == pytest.approx(mass, abs=0.015)


def check(value: Any, kind: Any, names: dict[str, set[str]], place: str = "") -> None:
    """Fail unless a value of JSON has the type; collects the names of models and of texts."""
    if is_typeddict(kind):
        hints = get_type_hints(kind)
        assert value.keys() == hints.keys(), place
        for field, collected in names.items():
            if kind.__name__.endswith(field):
                collected.update(hints)
        for key, child in hints.items():
            check(value[key], child, names, f"{place}.{key}")
    elif get_origin(kind) is list:
        assert isinstance(value, list), place
        for child in value:
            check(child, get_args(kind)[0], names, place)
    elif get_origin(kind) is tuple:
        for child, part in zip(value, get_args(kind), strict=True):
            check(child, part, names, place)
    elif get_origin(kind) is dict:
        assert all(isinstance(column, list) for column in value.values()), place
    elif type(None) in get_args(kind):
        if value is not None:
            check(value, get_args(kind)[0], names, place)
    else:
        assert isinstance(value, (int, float) if kind is float else kind), place


@pytest.mark.parametrize("latent_dim", [2, 3])
def test_the_document_is_the_one_that_its_types_describe(latent_dim):
    """And each of its names is that of a Bokeh model or the id of an element of the page."""
    vae = make_vae(latent_dim=latent_dim)
    earlier = [("epoch 1", make_vae(latent_dim=2))] if latent_dim == 2 else []
    text = page(Subject("run", vae, random_split(), earlier=earlier), TINY)
    found = document_in(text)
    names: dict[str, set[str]] = {"Models": set(), "Text": set()}
    check(found, Document, names)
    assert bool(found["snapshots"]) == (latent_dim == 2)
    assert bool(found["paths"]) == (latent_dim == 3)
    if latent_dim == 2:
        assert len(names["Models"]) == 14
        assert all(f'"name":"{name}"' in text for name in names["Models"])
        assert all(f'id="{name}"' in text for name in names["Text"])
