"""Networks: map tensors to tensors, with one leading batch dimension."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from pyro_vae.errors import RequestError, check_positive

Shape = tuple[int, ...]
Initialization = Callable[[Tensor], Tensor]


class Network(nn.Module, ABC):
    """A network: maps `(N, *in_shape)` to `(N, *out_shape)`.

    An encoder maps images to the parameters of a posterior, of shape `(num_params, latent_dim)`. A
    decoder maps codes to the parameters of a likelihood, of shape `(num_params, *data_shape)`. The
    same class serves as either. Any `nn.Module` is accepted as a network. Constructor parameters
    named `in_shape` and `out_shape` are filled in by the command line.

    Attributes:
        mask_input: Whether an encoder receives missing values as NaN. Others receive zeros.
    """

    mask_input = False

    # So that the command line accepts any module as a subclass of Network.
    @classmethod
    def __subclasshook__(cls, other: type) -> bool:
        if cls is not Network:
            return NotImplemented
        return issubclass(other, nn.Module)

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The outputs, shape `(N, *out_shape)`, of a batch `x`, shape `(N, *in_shape)`."""


class _Layers(nn.Module):
    """Layers in sequence, with an initialization of their weights."""

    def __init__(
        self,
        in_shape: Shape,
        layers: Iterable[nn.Module],
        initialization: Initialization | None,
        mask_input: bool = False,
    ) -> None:
        super().__init__()
        self.in_shape = in_shape
        self.mask_input = mask_input
        self.layers = nn.Sequential(*layers)
        if initialization is None:
            return
        for param in self.parameters():
            if param.ndim > 1:
                initialization(param)

    def forward(self, x: Tensor) -> Tensor:
        if self.mask_input:
            x = _with_mask(x)
        return self.layers(x)


class MLP(_Layers, Network):
    """A multilayer perceptron: fully connected layers with an activation between them.

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
        hidden: Width of each hidden layer, from input to output; `[]` gives one linear map.
        activation: Constructor of the activation, such as `torch.nn.Tanh`.
        initialization: Initializes each weight in place, such as `torch.nn.init.kaiming_normal_`;
            None is torch's default.
        mask_input: Of an encoder: also read which values are observed.

    Example:
        >>> import torch
        >>> encoder = MLP((1, 28, 28), (2, 20), hidden=(400,))
        >>> encoder(torch.zeros(8, 1, 28, 28)).shape
        torch.Size([8, 2, 20])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (400,),
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialization: Initialization | None = None,
        mask_input: bool = False,
    ) -> None:
        check_positive(hidden=min(hidden, default=None))
        widths = [prod(_read_shape(in_shape, mask_input)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, width_out), activation()]
        layers += _head(widths[-1], out_shape)
        super().__init__(in_shape, layers, initialization, mask_input)


class Linear(MLP):
    """One affine map, as in probabilistic PCA.

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
    """

    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__(in_shape, out_shape, hidden=())


class Gated(_Layers, Network):
    r"""Fully connected gated layers, the network of Tomczak and Welling.

    .. math:: (A x + b) \odot \sigma(C x + d)

    References:
        | VAE with a VampPrior (Tomczak & Welling, 2018)
        | https://arxiv.org/abs/1705.07120

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
        hidden: Width of each gated layer, from input to output.
        initialization: Initializes each weight in place, such as `torch.nn.init.kaiming_normal_`;
            None is torch's default.
        mask_input: Of an encoder: also read which values are observed.
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        hidden: Sequence[int] = (300, 300),
        initialization: Initialization | None = None,
        mask_input: bool = False,
    ) -> None:
        check_positive(hidden=min(hidden, default=None))
        widths = [prod(_read_shape(in_shape, mask_input)), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for width_in, width_out in pairwise(widths):
            layers += [nn.Linear(width_in, 2 * width_out), nn.GLU()]
        layers += _head(widths[-1], out_shape)
        super().__init__(in_shape, layers, initialization, mask_input)


class Conv(_Layers, Network):
    """Convolutions from images of any size, or transposed convolutions back to them.

    If the input is an image (three dimensions) it is an encoder: strided convolutions, then one
    linear map. Otherwise it is a decoder with the same layers mirrored: a linear map, then
    transposed convolutions with channels, kernel sizes and strides in reverse order. Encoder and
    decoder take the same options.

    Arguments:
        in_shape: Shape of one input.
        out_shape: Shape of one output.
        channels: Number of channels after each convolution, starting at the image; its length is
            the number of layers.
        kernel_sizes: Size of each kernel, starting at the image.
        strides: Stride of each convolution, starting at the image.
        activation: Constructor of the activation.
        initialization: Initializes each weight in place, such as `torch.nn.init.kaiming_normal_`;
            None is torch's default.
        mask_input: Of an encoder: also read which values are observed, as further channels.

    Raises:
        ValueError: If the lists differ in length, a stride exceeds its kernel size, or neither
            inputs nor outputs are images.

    Example:
        >>> import torch
        >>> Conv((1, 28, 28), (2, 20))(torch.zeros(8, 1, 28, 28)).shape
        torch.Size([8, 2, 20])
        >>> Conv((20,), (1, 1, 28, 28))(torch.zeros(8, 20)).shape
        torch.Size([8, 1, 1, 28, 28])
    """

    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        channels: Sequence[int] = (32, 64),
        kernel_sizes: Sequence[int] = (3, 3),
        strides: Sequence[int] = (2, 2),
        activation: Callable[[], nn.Module] = nn.ReLU,
        initialization: Initialization | None = None,
        mask_input: bool = False,
    ) -> None:
        if not len(channels) == len(kernel_sizes) == len(strides) > 0:
            lengths = f"{len(channels)}, {len(kernel_sizes)} and {len(strides)}"
            raise RequestError(
                "channels, kernel_sizes and strides need one entry per layer each, but have"
                f" {lengths}"
            )
        check_positive(channels=min(channels), kernel_sizes=min(kernel_sizes), strides=min(strides))
        if len(in_shape) != 3 and len(out_shape) < 3:
            raise RequestError(
                f"Conv maps images, but gets inputs of shape {tuple(in_shape)} and outputs of shape"
                f" {tuple(out_shape)}; use MLP for vectors"
            )
        options = list(zip(kernel_sizes, strides, strict=True))
        build = _down if len(in_shape) == 3 else _up
        super().__init__(
            in_shape,
            build(
                _read_shape(in_shape, mask_input), out_shape, list(channels), options, activation
            ),
            initialization,
            mask_input,
        )


def batched(network: nn.Module, z: Tensor) -> Tensor:
    """Apply a network to vectors `z`, shape `(..., in_features)`, with any leading dimensions."""
    return network(z.flatten(0, -2)).unflatten(0, z.shape[:-1])


def _read_shape(in_shape: Shape, mask_input: bool) -> Shape:
    """The shape of one input, joined with the mask if it is read."""
    if not mask_input:
        return in_shape
    return (2 * in_shape[0], *in_shape[1:])


def _with_mask(x: Tensor) -> Tensor:
    """Inputs with zeros for what is missing, joined with ones where they are observed."""
    missing = x.isnan()
    return torch.cat([x.masked_fill(missing, 0.0), (~missing).to(x.dtype)], 1)


def _down(
    image: Shape,
    out_shape: Shape,
    channels: list[int],
    options: list[tuple[int, int]],
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    sizes = _sizes(image[1:], options)
    layers: list[nn.Module] = []
    steps = zip(pairwise([image[0], *channels]), options, strict=True)
    for (c_in, c_out), (kernel, stride) in steps:
        layers += [nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2), activation()]
    width = channels[-1] * prod(sizes[-1])
    return nn.Sequential(*layers, nn.Flatten(), *_head(width, out_shape))


def _up(
    in_shape: Shape,
    out_shape: Shape,
    channels: list[int],
    options: list[tuple[int, int]],
    activation: Callable[[], nn.Module],
) -> nn.Sequential:
    *planes, height, width = out_shape
    sizes = _sizes((height, width), options)
    start = (channels[-1], *sizes[-1])
    layers: list[nn.Module] = [
        nn.Flatten(),
        nn.Linear(prod(in_shape), prod(start)),
        nn.Unflatten(1, start),
    ]
    steps = zip(pairwise([prod(planes), *channels]), options, pairwise(sizes), strict=True)
    for (c_out, c_in), (kernel, stride), (large, small) in reversed(list(steps)):
        padding = kernel // 2
        reached = [(size - 1) * stride - 2 * padding + kernel for size in small]
        extra = (large[0] - reached[0], large[1] - reached[1])
        layers += [
            activation(),
            nn.ConvTranspose2d(c_in, c_out, kernel, stride, padding, extra),
        ]
    return nn.Sequential(*layers, nn.Unflatten(1, tuple(planes)))


def _sizes(image: Shape, options: list[tuple[int, int]]) -> list[Shape]:
    """Height and width of the image before and after each convolution."""
    sizes = [tuple(image)]
    for kernel, stride in options:
        if stride > kernel:
            raise RequestError(
                f"stride {stride} with kernel size {kernel} skips pixels; use a stride of at most"
                f" {kernel}"
            )
        sizes.append(tuple((s + 2 * (kernel // 2) - kernel) // stride + 1 for s in sizes[-1]))
    return sizes


def _head(width: int, out_shape: Shape) -> tuple[nn.Module, nn.Module]:
    return nn.Linear(width, prod(out_shape)), nn.Unflatten(1, out_shape)
