"""Data larger than memory: arrays that stay on disk, images on the host, and prefetching."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyro_vae.data import files
from pyro_vae.data.split import Split
from pyro_vae.data.values import channels_are_last, check_finite, check_range, with_channels
from pyro_vae.errors import RequestError
from pyro_vae.likelihoods import Pixels


@dataclass(frozen=True, kw_only=True, repr=False)
class HostSplit(Split):
    """Images that do not fit on the device, or that stay on disk.

    Indexing reads some of them into memory, as a `Split`.

    Attributes:
        rows: The positions in `x` of the images of this split, shape `(N,)`.
    """

    rows: Tensor

    def __post_init__(self) -> None:
        """The images were checked where they were read."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: slice | Tensor) -> Split:
        rows = self.rows[index].numpy()
        # NumPy reads in one thread: torch's would compete with those of the training step.
        tensors = self._mapped(lambda tensor: torch.from_numpy(tensor.numpy().take(rows, axis=0)))
        fields = vars(self) | tensors
        del fields["rows"]
        part = object.__new__(Split)  # its values were checked with the others
        part.__dict__.update(fields)
        return part

    def to(self, device: torch.device | str) -> Split:
        """The same split: its images stay where they are."""
        return self

    def scored(self, pixels: Pixels, largest: int | None = None) -> Tensor:
        raise RequestError(
            f"the training {self.noun}s do not fit into memory; use the validation or the test set"
        )

    def with_missing(self, fraction: float, seed: int = 0) -> Split:
        raise RequestError("values can only be hidden in data that fit into memory; use fewer rows")

    def with_fixed_noise(self, stream: int = 0) -> Split:
        """The same split: noise of all images would not fit into memory."""
        return self

    def only(self, index: Tensor) -> Split:
        return self._changed({"rows": self.rows[index]})


def fits(images: Tensor, device: torch.device) -> bool:
    """Whether images need less than half of a device's free memory."""
    if device.type != "cuda" or images.is_cuda:
        return True
    return 2 * images.nbytes < torch.cuda.mem_get_info(device)[0]


def on_host(split: Split) -> HostSplit:
    """A split whose images stay where they are."""
    if isinstance(split, HostSplit):
        return split
    return HostSplit(**vars(split), rows=torch.arange(len(split)))


def prefetch(function: Callable[[Tensor], Any], batches: Iterable[Tensor]) -> Iterator[Any]:
    """The results of a function, which a thread computes one batch ahead."""
    with ThreadPoolExecutor(1) as thread:
        futures = (thread.submit(function, batch) for batch in batches)
        pending = next(futures)
        for future in futures:
            yield pending.result()
            pending = future
        yield pending.result()


def is_mapped(path: Path) -> bool:
    """Whether an array stays on disk: an `.npy` file that is too large to be read."""
    return path.suffix == ".npy" and path.stat().st_size > files.BYTES


def map_array(path: Path, image_shape: tuple[int, ...] | None = None) -> HostSplit:
    """The data of an `.npy` file, left on disk: uint8 or float32, with the channels first.

    Arguments:
        path: The file.
        image_shape: The shape of images that are stored as rows of values.

    Raises:
        RequestError: If the file is damaged, or holds other images.
    """
    with (
        files.refusing(f"{path} cannot be read as an array", "save it with numpy.save"),
        warnings.catch_warnings(),
    ):
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        array = files.rows_as_images(array, str(path), image_shape)
        last = array.ndim == 4 and channels_are_last(*array.shape[1:])
        if array.dtype not in (np.uint8, np.float32) or last:
            raise RequestError(
                f"{path} does not fit into memory: save uint8 or float32, shape"
                " (N, channels, height, width) or (N, D)"
            )
        files.check_bytes(f"an order of the rows of {path}", 16 * len(array))
        tensor = torch.from_numpy(array)
        if tensor.ndim == 2:
            check_finite(tensor, str(path))
            return HostSplit(tensor, rows=torch.arange(len(tensor)))
        images = with_channels(tensor, str(path))
    low, high = (value.item() for value in images.aminmax())
    check_range(array.dtype, low, high, images, str(path))
    if images.dtype == torch.uint8 and high == 1:
        raise RequestError(f"{path} has bytes 0 and 1 and does not fit into memory: save 255 * x")
    return HostSplit(images, rows=torch.arange(len(images)))
