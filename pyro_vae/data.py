"""Data sets, named or the user's own, as tensors: loaded, split, and turned into the pixels that a likelihood scores."""

from __future__ import annotations

import errno
import shutil
import socket
import tempfile
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from pyro_vae.errors import RequestError
from pyro_vae.files import from_pil, read_array, read_folder, resized
from pyro_vae.likelihoods import Pixels

Binarization = Literal["dynamic", "static", "none"]

SEED = 0
DOWNLOAD_SECONDS = 4
OMNIGLOT_SIZE = 28
IMAGE_SIZE = 1024


@dataclass(frozen=True)
class Split:
    """Images, as uint8 or as float32 in [0, 1], shape `(N, channels, height, width)`, with what belongs to each.

    `len`, indexing by a slice or a tensor, and `to` work as on a tensor.

    Attributes:
        images: The images.
        labels: Their classes, shape `(N,)`, or None.
        noise: Their own uniform noise, shape of `images`, or None for images that are given fresh noise at each presentation.
    """

    images: Tensor
    labels: Tensor | None = None
    noise: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: slice | Tensor) -> Split:
        return self._map(lambda tensor: tensor[index])

    def to(self, device: torch.device | str) -> Split:
        """The same split on another device."""
        return self._map(lambda tensor: tensor.to(device))

    def scored(self, pixels: Pixels) -> Tensor:
        """The images as the pixels that a likelihood scores, float32, with their own noise."""
        return to_pixels(self.images, pixels, self.noise)

    def subset(self, count: int) -> Split:
        """A random subset of `count` images, the same at every call.

        Raises:
            RequestError: If there are fewer images.
        """
        if not 1 <= count <= len(self):
            raise RequestError(f"{count} images were asked for, but there are {len(self)}: ask for 1 to {len(self)}")
        return self[_shuffled(len(self))[:count].to(self.images.device)]

    def _map(self, function: Callable[[Tensor], Tensor]) -> Split:
        labels, noise = (None if tensor is None else function(tensor) for tensor in (self.labels, self.noise))
        return Split(function(self.images), labels, noise)


@dataclass(frozen=True)
class Data:
    """A data set, split: train to fit, validation to choose, test to report."""

    name: str
    train: Split
    validation: Split
    test: Split

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one image: (channels, height, width)."""
        return tuple(self.train.images.shape[1:])

    @cached_property
    def fingerprint(self) -> str:
        """A digest of all images, by which the data are known again."""
        digest = sha256()
        for split in (self.train, self.validation, self.test):
            images = split.images.cpu().contiguous().numpy()
            digest.update(f"{images.dtype} {images.shape}".encode())
            digest.update(images.data)
        return digest.hexdigest()

    def to(self, device: torch.device | str) -> Data:
        """The same data on another device."""
        return self.map(lambda split: split.to(device))

    def map(self, function: Callable[[Split], Split]) -> Data:
        """The data set with each split changed by a function."""
        return Data(self.name, *(function(split) for split in (self.train, self.validation, self.test)))


def to_pixels(images: Tensor, pixels: Pixels, noise: Tensor | None = None) -> Tensor:
    """Images as the pixels that a likelihood scores, float32; dequantized ones are kept off 0 and 1, where they could round to.

    Arguments:
        images: uint8, or float32 in [0, 1].
        pixels: "binary" (1 with probability grey / 255), "unit" (grey / 255), "dequantized" ((byte + u) / 256) or "byte".
        noise: Uniform noise of the images' shape, for "binary" and "dequantized"; drawn afresh when None.

    Raises:
        RequestError: If bytes are wanted of float images, or `pixels` is none of these.
    """
    if pixels not in get_args(Pixels):
        raise RequestError(f"pixels must be one of {', '.join(get_args(Pixels))}, but is {pixels}")
    if pixels == "byte":
        if images.is_floating_point():
            raise RequestError("a likelihood on bytes needs uint8 images, but these are floats: save them as uint8, 0 to 255")
        return images.float()
    unit = images if images.is_floating_point() else images / 255
    if pixels == "unit":
        return unit
    noise = torch.rand_like(unit) if noise is None else noise
    return (noise < unit).to(unit.dtype) if pixels == "binary" else ((255 * unit + noise) / 256).clamp(2**-33, 1 - 2**-24)


def load_data(
    name: str = "auto",
    data_dir: str | Path = "data",
    image_size: int | None = None,
    binarization: Binarization = "dynamic",
    say: Callable[[str], object] = lambda line: None,
    download: bool = True,
) -> Data:
    """Load a data set and split it; the split never depends on a run's seed.

    MNIST, Fashion-MNIST, KMNIST and Omniglot keep their official test sets, and a twelfth of their training images is for
    validation. Other data are split 9 : 1 : 2. torchvision's Omniglot is not the 28x28 set of Burda et al.: figures on it
    are not comparable with published ones.

    Arguments:
        name: "auto" (MNIST if it is on disk or can be reached, else digits), "mnist", "fashion_mnist", "kmnist", "omniglot",
            "digits" (scikit-learn's 1,797 handwritten 8x8 digits, which need no network), or a path: an `.npy` or `.npz`
            file (keys `images` and, if you like, `labels`) of shape (N, H, W) or (N, C, H, W), uint8 or floats in [0, 1], or
            a folder of images, flat or with one folder a class.
        data_dir: Folder that holds, or will hold, the downloaded sets, as torchvision lays them out.
        image_size: Height and width to resize every image to.
        binarization: "static" turns each image into one fixed draw of binary pixels; "dynamic" and "none" leave the images
            as they are, to be binarized afresh at each presentation or not at all.
        say: Called with a line that says which set "auto" took, and why.
        download: Whether `data_dir` may be written to, if the data are not there.

    Raises:
        RequestError: If the data cannot be had or used.
    """
    if binarization not in get_args(Binarization):
        raise RequestError(f"binarization must be one of {', '.join(get_args(Binarization))}, but is {binarization}")
    if image_size is not None and not 1 <= image_size <= IMAGE_SIZE:
        raise RequestError(f"image_size must be 1 to {IMAGE_SIZE}, but is {image_size}")
    load = NAMED.get(name, _load_path) if name != "auto" else _load_auto
    data = load(Source(name, Path(data_dir), image_size, say, download))
    return _binarized(data) if binarization == "static" else data


@dataclass(frozen=True)
class Source:
    """What was asked for."""

    name: str
    data_dir: Path
    image_size: int | None
    say: Callable[[str], object]
    download: bool


def _load_auto(source: Source) -> Data:
    mnist = replace(source, name="mnist")
    try:
        if _on_disk(source.data_dir) or _reachable(_torchvision("mnist").mirrors[0]):
            data = _load_torchvision(mnist)
            source.say(f"data: MNIST, from {source.data_dir}")
            return data
        reason = "its host cannot be reached"
    except RequestError as error:
        reason = str(error).split(";")[0]
    source.say(f"data: digits (8x8, built in), because MNIST is not in {source.data_dir} and {reason}")
    return _load_digits(replace(source, name="digits"))


def _on_disk(data_dir: Path) -> bool:
    folder = data_dir / "MNIST" / "raw"
    names = [f"{part}-{kind}-ubyte" for part in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]
    return all((folder / name).exists() or (folder / f"{name}.gz").exists() for name in names)


def _reachable(url: str) -> bool:
    """Whether the host answers within a few seconds, whatever it answers; a look-up of its name may hang for longer."""
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(_answers(url)), daemon=True)
    thread.start()
    thread.join(DOWNLOAD_SECONDS)
    return answers == [True]


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=DOWNLOAD_SECONDS).close()
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False
    return True


def _torchvision(name: str) -> Any:
    from torchvision import datasets

    classes = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST", "kmnist": "KMNIST", "omniglot": "Omniglot"}
    return getattr(datasets, classes[name])


def _load_torchvision(source: Source) -> Data:
    arrays = _load_omniglot if source.name == "omniglot" else _load_idx
    if not source.download and not (source.data_dir / _own_folder(source.name)).is_dir():
        raise RequestError(
            f"{source.name} is not in {source.data_dir}: say where it is, or may be downloaded to, by --data_dir"
        )
    own = source.data_dir / _own_folder(source.name)
    new = [folder for folder in (own / "raw", own, *own.parents) if not folder.exists()]
    try:
        with _socket_timeout(DOWNLOAD_SECONDS):
            parts = _from_folder(arrays, source)
    except (OSError, RuntimeError) as error:
        _remove_empty(new)
        raise RequestError(
            f"{source.name} could not be downloaded to {source.data_dir} ({_last_line(error)}); put its files there as"
            " torchvision lays them out, or use --data digits, which needs no network"
        ) from error
    train, test = (Split(resized(images, source.image_size), labels) for images, labels in parts)
    return _with_validation(source.name, train, test)


def _remove_empty(folders: Sequence[Path]) -> None:
    """Take away the folders, innermost first, that a download has made in vain."""
    for folder in folders:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def _from_folder(arrays: Callable[[Source, Path], Any], source: Source) -> Any:
    """Load, from a temporary copy if the folder may not be written to: what lies packed there cannot be unpacked."""
    try:
        if source.download:
            return arrays(source, source.data_dir)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM) or not source.data_dir.is_dir():
            raise
    own = _own_folder(source.name)
    with tempfile.TemporaryDirectory() as folder:
        _copy_writable(source.data_dir / own, Path(folder) / own)
        return arrays(source, Path(folder))


def _own_folder(name: str) -> str:
    """The folder that torchvision keeps a data set in."""
    return "omniglot-py" if name == "omniglot" else _torchvision(name).__name__


def _copy_writable(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file():
            copy = target / file.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, copy)


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torchvision's downloads wait for ever on a network that swallows packets."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _last_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1].strip("<>") if lines else type(error).__name__


def _load_idx(source: Source, root: Path) -> list[tuple[Tensor, Tensor]]:
    dataset = _torchvision(source.name)
    parts = [dataset(root, train=train, download=True) for train in (True, False)]
    return [(part.data.unsqueeze(1), part.targets) for part in parts]


def _load_omniglot(source: Source, root: Path) -> list[tuple[Tensor, Tensor]]:
    dataset = _torchvision("omniglot")
    size = source.image_size or OMNIGLOT_SIZE
    parts = [dataset(root, background=background, download=True) for background in (True, False)]
    source.say("data: torchvision's Omniglot is not the 28x28 set of Burda et al.: its figures are not comparable with theirs")
    return [_stack_omniglot(part, size) for part in parts]


def _stack_omniglot(part: Any, size: int) -> tuple[Tensor, Tensor]:
    images = [resized(255 - from_pil(image.convert("L"))[None], size) for image, _ in part]
    return torch.cat(images), torch.tensor([label for _, label in part._flat_character_images])


def _load_digits(source: Source) -> Data:
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    scaled = torch.from_numpy((images * 255 / 16).round().astype(np.uint8)).reshape(-1, 1, 8, 8)
    return _split("digits", Split(resized(scaled, source.image_size), torch.from_numpy(labels)))


def _load_path(source: Source) -> Data:
    path = Path(source.name)
    if not path.exists():
        raise RequestError(f"there is no data set or path {source.name}: choose from auto, {', '.join(NAMED)}, or give a path")
    if not path.is_dir() and path.suffix not in (".npy", ".npz"):
        raise RequestError(
            f"{path} is no folder of images and ends neither in .npy nor in .npz: save the images as one of these"
        )
    images, labels = read_folder(path, source.image_size) if path.is_dir() else read_array(path)
    if images.dtype == torch.uint8 and images.max() == 1:
        source.say(f"data: the bytes in {path} are 0 and 1 of 255, nearly black: for black and white save bools, or 0 and 255")
    return _split(path.name, Split(resized(images, source.image_size), labels))


def _split(name: str, everything: Split) -> Data:
    """Keep a sixth for the test."""
    test, rest = _parted(everything, len(everything) // 6)
    return _with_validation(name, rest, test, len(everything) // 12)


def _with_validation(name: str, train: Split, test: Split, size: int | None = None) -> Data:
    validation, rest = _parted(train, len(train) // 12 if size is None else size)
    if min(len(validation), len(test)) == 0:
        raise RequestError(f"{name} has too few images to split into training, validation and test: it needs 12")
    return Data(name, rest, _with_noise(validation, 1), _with_noise(test, 0))


def _parted(split: Split, count: int) -> tuple[Split, Split]:
    order = _shuffled(len(split))
    return split[order[:count]], split[order[count:]]


def _shuffled(count: int) -> Tensor:
    return torch.randperm(count, generator=_generator())


def _generator(stream: int = 0) -> torch.Generator:
    """The data sets' own randomness: no run's seed reaches it."""
    return torch.Generator().manual_seed(SEED + stream)


def _with_noise(split: Split, stream: int) -> Split:
    return replace(split, noise=torch.rand(split.images.shape, generator=_generator(stream)))


def _binarized(data: Data) -> Data:
    """One fixed draw of binary pixels for every image."""
    return data.map(_fixed_draw)


def _fixed_draw(split: Split) -> Split:
    noisy = split if split.noise is not None else _with_noise(split, 2)
    return replace(split, images=(noisy.scored("binary") * 255).to(torch.uint8))


NAMED: dict[str, Callable[[Source], Data]] = {
    "mnist": _load_torchvision,
    "fashion_mnist": _load_torchvision,
    "kmnist": _load_torchvision,
    "omniglot": _load_torchvision,
    "digits": _load_digits,
}
