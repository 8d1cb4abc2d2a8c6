"""What the content of a checkpoint must be, checked before anything of it is used.

A checkpoint may come from a stranger. `torch.load(weights_only=True)` runs no code, but it returns
any tensors and values: sparse, overlapping or on no device, numbers of any type and size. Each
check raises `MisfitError` with the place of the first value that is not what training writes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from pyro_vae.data.split import MAX_CLASSES

# Limits far above what runs write.
AXES = 8
ELEMENTS = 2**24
LARGEST_COUNT = 2**53
TEXT = 200

# Options of torch's optimizers that training changes: schedulers and `on_nan`.
SCHEDULED = {
    "lr",
    "initial_lr",
    "max_lr",
    "min_lr",
    "betas",
    "momentum",
    "max_momentum",
    "base_momentum",
}
# Depends on the device: `SVI.load_optimizer` sets it.
DEVICE = "capturable"

# Entries of torch's schedulers that training changes, and which of them are counts.
COUNTS = {"last_epoch", "_step_count", "num_bad_epochs", "cooldown_counter", "T_cur", "T_i"}
PROGRESS = COUNTS | {"_last_lr", "base_lrs", "best", "_is_initial"}

COUNTERS = ("epoch", "step", "waited", "rewinds")


class MisfitError(ValueError):
    """Says which value of a checkpoint is not what it should be."""


def check_data(content: Mapping[str, Any]) -> None:
    """Check what a checkpoint says about the data and the libraries."""
    shape = content.get("shape")
    if type(shape) is not list or not 1 <= len(shape) <= AXES:
        raise MisfitError("shape is not a list of sizes")
    for size in shape:
        _check_count("shape", size, 1)
    if math.prod(shape) > ELEMENTS:
        raise MisfitError(f"shape has more than {ELEMENTS:,} elements")
    if "label_dim" in content:
        _check_count("label_dim", content["label_dim"], 1, MAX_CLASSES)
    if "classes" in content:
        classes = content["classes"]
        if type(classes) is not list or len(classes) > MAX_CLASSES:
            raise MisfitError("classes is not a list of names")
        for name in classes:
            if type(name) is not str:
                raise MisfitError("classes is not a list of names")
    for name in ("data", "labels"):
        if name in content:
            _check_text(name, content[name])
    versions = content.get("versions")
    if not isinstance(versions, dict) or len(versions) > 10:
        raise MisfitError("versions is not a mapping")
    for name, version in versions.items():
        _check_text("versions", name)
        _check_text("versions", version)


def check_counters(state: Any) -> None:
    """Check that a state of training has parameters, and that its counters are counts."""
    if not isinstance(state, dict) or not isinstance(state.get("vae"), dict):
        raise MisfitError("it holds no parameters")
    for name in COUNTERS:
        if name in state:
            _check_count(name, state[name])
    if state.get("schedule_epochs") is not None:
        _check_count("schedule_epochs", state["schedule_epochs"], 1)
    if "best" in state and (type(state["best"]) is not float or not state["best"] < math.inf):
        raise MisfitError("best is not a number")


def check_parameters(given: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Check the state_dict of a checkpoint against that of the new model."""
    _check_keys("parameters", given, expected)
    for name, value in expected.items():
        if isinstance(value, Tensor):
            check_tensor(name, given[name], value)
        else:  # the extra state of a user's own module
            _check_equal_structure(name, given[name], value)


def check_trained(given: Any, expected: Mapping[str, Tensor] | None) -> None:
    """Check the weights that are trained, which a checkpoint has if it has their average."""
    if expected is None:
        _check_equal("trained", given, None)
        return
    check_parameters(given, expected)


def check_tensor(name: str, given: Any, expected: Tensor) -> None:
    """Check for a dense tensor of the same type and shape, without overlaps and NaN."""
    if type(given) is not Tensor:
        raise MisfitError(f"{_short(name)} is not a tensor")
    is_plain = given.layout is torch.strided and given.device.type == "cpu"
    if not is_plain or given.is_quantized or given.is_nested or given.requires_grad:
        raise MisfitError(f"{_short(name)} is not a dense tensor")
    if given.dtype != expected.dtype or given.shape != expected.shape:
        raise MisfitError(
            f"{_short(name)} is {given.dtype} of shape {tuple(given.shape)}, not {expected.dtype}"
            f" of shape {tuple(expected.shape)}"
        )
    axes = sorted(range(given.ndim), key=given.stride, reverse=True)
    is_contiguous = given.is_contiguous() or given.permute(axes).is_contiguous()
    if not is_contiguous or given.is_conj() or given.is_neg():
        raise MisfitError(f"{_short(name)} is not contiguous")
    needed = (given.storage_offset() + given.numel()) * given.element_size()
    if given.numel() and needed > given.untyped_storage().nbytes():
        raise MisfitError(f"{_short(name)} is larger than its storage")
    if given.is_floating_point() and given.isnan().any():
        raise MisfitError(f"{_short(name)} is NaN")


def check_optimizer(
    given: Any, fresh: Mapping[str, Any], after_a_step: Mapping[Any, Any], is_torchs: bool
) -> None:
    """Check the state of an optimizer.

    Arguments:
        given: The state_dict of the checkpoint.
        fresh: That of a new optimizer with the options of the run.
        after_a_step: Its entry `state` after a step for each parameter.
        is_torchs: Whether the class is torch's. Classes of the user may change all their options.
    """
    _check_keys("optimizer", given, fresh)
    groups = given["param_groups"]
    if type(groups) is not list or len(groups) != len(fresh["param_groups"]):
        raise MisfitError("param_groups are not those of the optimizer")
    for group, new in zip(groups, fresh["param_groups"], strict=True):
        _check_keys("param_groups", group, new)
        for name, value in new.items():
            _check_option(name, group[name], value, is_torchs)
    moments = given["state"]
    if not isinstance(moments, dict) or not moments.keys() <= after_a_step.keys():
        raise MisfitError("the state of the optimizer is not of these parameters")
    storages: set[int] = set()
    for index, expected in after_a_step.items():
        if index in moments:
            _check_keys(f"state {index}", moments[index], expected)
            for name, value in expected.items():
                _check_moment(f"{name} of {index}", moments[index][name], value, storages)


def _check_option(name: str, given: Any, fresh: Any, is_torchs: bool) -> None:
    if name == DEVICE:
        if given is not None and type(given) is not bool:
            raise MisfitError(f"{DEVICE} is not a bool")
    elif is_torchs and name not in SCHEDULED:
        _check_equal(name, given, fresh)
    else:
        _check_equal_structure(name, given, fresh)
    if name == "lr" and not float(given) >= 0:
        raise MisfitError("lr is negative")
    if name == "betas" and not all(0 <= beta <= 1 for beta in given):
        raise MisfitError("betas are not between 0 and 1")


def _check_moment(name: str, given: Any, expected: Any, storages: set[int]) -> None:
    """Check an entry of an optimizer's state, which is updated in place."""
    if not isinstance(expected, Tensor):
        _check_equal_structure(name, given, expected)
    elif expected.ndim == 0:
        check_tensor(name, given, expected)
        if name.startswith("step ") and not 0 <= given.item() < LARGEST_COUNT:
            raise MisfitError(f"{name} is not a count")
    else:
        check_tensor(name, given, expected)
    if isinstance(given, Tensor) and given.numel():
        storage = given.untyped_storage().data_ptr()
        if storage in storages:
            raise MisfitError(f"{name} overlaps another tensor")
        storages.add(storage)


def check_scheduler(given: Any, fresh: Mapping[str, Any] | None, is_torchs: bool) -> None:
    """Check the state of a learning-rate scheduler against that of a new one, if there is one."""
    if fresh is None:
        _check_equal("lr_scheduler", given, None)
        return
    _check_keys("lr_scheduler", given, fresh)
    for name, value in fresh.items():
        if is_torchs and name not in PROGRESS:
            _check_equal(name, given[name], value)
        elif is_torchs and name in COUNTS:
            _check_number(name, given[name])
            if given[name] < 0:
                raise MisfitError(f"{name} is negative")
        else:
            _check_equal_structure(name, given[name], value, infinite=True)


def check_random(given: Any) -> None:
    """Check the state of the random number generators (`random_state`)."""
    _check_keys("random", given, {"torch": 0, "cuda": 0, "python": 0, "numpy": 0})
    check_tensor("random", given["torch"], torch.get_rng_state())
    if given["cuda"] is not None:
        cuda = given["cuda"]
        if not isinstance(cuda, Tensor) or cuda.ndim != 1:
            raise MisfitError("the random state is not CUDA's")
        check_tensor("random", cuda, torch.empty(cuda.shape, dtype=torch.uint8))
    python = given["python"]
    is_python = type(python) in (tuple, list) and len(python) == 3
    if not is_python or type(python[1]) not in (tuple, list) or len(python[1]) != 625:
        raise MisfitError("the random state is not Python's")
    for word in python[1]:
        _check_count("random", word, 0, 2**32 - 1)
    _check_count("random", python[0], 3, 3)
    _check_count("random", python[1][-1], 0, 624)
    if python[2] is not None:
        _check_number("random", python[2])
    numpy = given["numpy"]
    if type(numpy) is not list or len(numpy) != 4:
        raise MisfitError("the random state is not NumPy's")
    check_tensor("random", numpy[0], torch.empty(624, dtype=torch.int64))
    _check_count("random", numpy[1], 0, 624)
    _check_count("random", numpy[2], 0, 1)
    _check_number("random", numpy[3])


def _check_keys(name: str, given: Any, expected: Mapping[str, Any]) -> None:
    if not isinstance(given, dict):
        raise MisfitError(f"{_short(name)} is not a mapping")
    if given.keys() != expected.keys():
        differing = sorted(map(_short, given.keys() ^ expected.keys()))
        raise MisfitError(f"{_short(name)} has other entries: {', '.join(differing[:3])}")


def _check_count(name: str, given: Any, least: int = 0, largest: int = LARGEST_COUNT) -> None:
    if type(given) is not int or not least <= given <= largest:
        raise MisfitError(f"{_short(name)} is not an integer from {least} to {largest}")


def _check_number(name: str, given: Any, infinite: bool = False) -> None:
    """Check for a number, or for a scalar tensor, which CUDA graphs need."""
    if type(given) is Tensor:
        check_tensor(name, given, torch.empty((), dtype=torch.float32))
        given = given.item()
    limit = math.inf if infinite else 1e300
    if type(given) not in (int, float) or not -limit <= given <= limit:
        raise MisfitError(f"{_short(name)} is not a number")


def _check_text(name: str, given: Any) -> None:
    if type(given) is not str or len(given) > TEXT or not given.isprintable():
        raise MisfitError(f"{_short(name)} is not short text")


def _check_equal(name: str, given: Any, expected: Any) -> None:
    """Check for the same plain value."""
    _check_equal_structure(name, given, expected)
    if isinstance(expected, Mapping):
        for key in expected:
            _check_equal(name, given[key], expected[key])
    elif isinstance(expected, list | tuple):
        for one, other in zip(given, expected, strict=True):
            _check_equal(name, one, other)
    elif given != expected:
        raise MisfitError(f"{_short(name)} is not that of the run")


def _check_equal_structure(name: str, given: Any, expected: Any, infinite: bool = False) -> None:
    """Check for containers of the same sizes, with values of the same types."""
    if isinstance(expected, Mapping):
        _check_keys(name, given, expected)
        for key, value in expected.items():
            _check_equal_structure(name, given[key], value, infinite)
    elif isinstance(expected, list | tuple):
        if type(given) not in (list, tuple) or len(given) != len(expected):
            raise MisfitError(f"{_short(name)} has another length")
        for one, other in zip(given, expected, strict=True):
            _check_equal_structure(name, one, other, infinite)
    elif isinstance(expected, Tensor) and expected.ndim > 0:
        check_tensor(name, given, expected)
    elif isinstance(expected, int | float | Tensor) and not isinstance(expected, bool):
        _check_number(name, given, infinite)
    elif isinstance(expected, Collection) and not isinstance(expected, str):
        raise MisfitError(f"{_short(name)} is not plain")
    elif type(given) is not type(expected):
        raise MisfitError(f"{_short(name)} is not a {type(expected).__name__}")
    elif isinstance(expected, str):
        _check_text(name, given)


def _short(value: Any) -> str:
    return str(value)[:60]
