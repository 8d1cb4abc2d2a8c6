"""The parts of a run: every public class is known by its names, and others are imported."""

from __future__ import annotations

import sys

import pytest
import torch
from families import LIKELIHOODS, POSTERIORS, PRIORS

import pyro_vae as pv
from pyro_vae.runs.parts import (
    PARTS,
    Choice,
    is_choice,
    known_callables,
    known_classes,
    resolve,
)

FAMILIES = {"prior": PRIORS, "posterior": POSTERIORS, "likelihood": LIKELIHOODS}


@pytest.mark.parametrize("part", FAMILIES)
def test_every_class_of_the_package_is_known(part):
    names = {name.split(",")[0] for name in FAMILIES[part]}
    known = known_classes(part)
    for name in names:
        cls = known[name]
        assert cls.__name__ == name
        assert known[f"{cls.__module__}.{name}"] is cls
        if getattr(pv, name, None) is cls:
            assert known[f"pyro_vae.{name}"] is cls
    assert {cls.__name__ for cls in known.values()} == names


def test_every_path_of_a_known_class_or_function_leads_to_it():
    for known in (known_callables(), *map(known_classes, PARTS)):
        paths = [path for path in known if "." in path]
        assert paths
        assert all(resolve("part", path) is known[path] for path in paths)


@pytest.mark.parametrize("name", PARTS)
def test_the_default_is_known_and_the_base_is_not(name):
    part = PARTS[name]
    assert part.default is None or part.default.class_path in known_classes(name)
    assert part.base not in known_classes(name).values()
    assert not set(known_classes(name).values()) & {*part.unsupported}


def test_functions_that_initialize_are_known_and_others_of_their_module_are_not():
    known = known_callables()
    assert known["torch.nn.init.xavier_uniform_"] is torch.nn.init.xavier_uniform_
    assert known["ELU"] is known["torch.nn.ELU"] is torch.nn.ELU
    assert not {"torch.nn.init.calculate_gain", "torch.nn.init._no_grad_fill_"} & known.keys()
    assert not {"torch.nn.Linear", "Linear"} & known.keys()


@pytest.mark.parametrize(
    "choice", [Choice("A"), Choice("a.B", {"x": 1, "y": {"class_path": "C", "init_args": {}}})]
)
def test_the_plain_form_is_read_back(choice):
    assert Choice.read("prior", choice.plain()) == choice
    assert is_choice(choice.plain())


@pytest.mark.parametrize(
    "plain", [3, None, ["A"], {"init_args": {}}, {"class_path": 3}, {"class_path": "A", "b": 1}]
)
def test_other_values_are_no_class(plain):
    assert not is_choice(plain)
    with pytest.raises(pv.RequestError, match=r"^prior must be a class"):
        Choice.read("prior", plain)


@pytest.mark.parametrize("path", ["no_such_module.A", "torch.nn.NoSuch", "os.path.", ".A", ""])
def test_what_does_not_exist_is_one_line(path):
    with pytest.raises(pv.RequestError, match="prior: there is no class") as caught:
        resolve("prior", path)
    assert "\n" not in str(caught.value)


def test_a_module_that_lacks_another_keeps_its_error(tmp_path, monkeypatch):
    (tmp_path / "lacking.py").write_text("import no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module") as caught:
        resolve("prior", "lacking.A")
    assert not isinstance(caught.value, pv.RequestError)
    assert "lacking" not in sys.modules
