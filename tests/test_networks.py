import pytest
import torch
from families import NETWORKS
from torch import nn

from pyro_vae import networks


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("image", [(1, 28, 28), (3, 7, 10), (1, 1, 1), (2, 5, 8)])
def test_shapes_and_gradients(name, image):
    encoder, decoder = NETWORKS[name](image, (2, 4)), NETWORKS[name]((4,), (3, *image))
    z = encoder(torch.randn(5, *image))
    assert z.shape == (5, 2, 4)
    y = decoder(z[:, 0])
    assert y.shape == (5, 3, *image)
    y.square().sum().backward()
    for network in (encoder, decoder):
        assert all(
            param.grad is not None and param.grad.isfinite().all() for param in network.parameters()
        )


@pytest.mark.parametrize("kernel_sizes", [(3, 3), (4, 4), (5, 3), (2, 2)])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 2)])
def test_conv_mirrors_any_size(kernel_sizes, strides):
    for size in range(4, 12):
        options = {"channels": (4, 6), "kernel_sizes": kernel_sizes, "strides": strides}
        assert networks.Conv((5,), (2, 1, size, size + 1), **options)(torch.zeros(2, 5)).shape == (
            2,
            2,
            1,
            size,
            size + 1,
        )


def test_conv_decoder_is_the_encoder_reversed():
    options = {"channels": (4, 6, 8), "kernel_sizes": (3, 5, 3), "strides": (1, 2, 2)}
    encoder, decoder = (
        networks.Conv((1, 28, 28), (2, 5), **options),
        networks.Conv((5,), (1, 1, 28, 28), **options),
    )
    down = [
        (m.in_channels, m.out_channels, m.kernel_size, m.stride)
        for m in encoder.modules()
        if isinstance(m, nn.Conv2d)
    ]
    up = [
        (m.out_channels, m.in_channels, m.kernel_size, m.stride)
        for m in decoder.modules()
        if isinstance(m, nn.ConvTranspose2d)
    ]
    assert down == up[::-1]


def test_gated_layer_is_linear_times_sigmoid():
    network = networks.Gated((3,), (2,), hidden=(5,))
    x = torch.randn(4, 3)
    first, last = (m for m in network.modules() if isinstance(m, nn.Linear))
    linear, gate = first(x).chunk(2, -1)
    torch.testing.assert_close(network(x), last(linear * gate.sigmoid()))


def test_linear_is_affine():
    network = networks.Linear((3,), (2,))
    a, b = torch.randn(2, 3)
    middle = network(((a + b) / 2)[None])
    torch.testing.assert_close(middle, (network(a[None]) + network(b[None])) / 2)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kernel_sizes": (3,)}, "2, 1 and 2"),
        ({"channels": (), "kernel_sizes": (), "strides": ()}, "0, 0 and 0"),
        ({"channels": (0, 4)}, "channels"),
        ({"kernel_sizes": (2, 2), "channels": (2, 2), "strides": (2, 0)}, "strides"),
        ({"kernel_sizes": (2, 2), "strides": (3, 3)}, "stride 3 with kernel size 2"),
    ],
)
def test_impossible_layers_are_named(options, named):
    with pytest.raises(ValueError, match=named):
        networks.Conv((1, 4, 4), (2, 3), **options)


@pytest.mark.parametrize("name", ["MLP", "Gated"])
def test_widths_must_be_positive(name):
    with pytest.raises(ValueError, match="hidden"):
        NETWORKS[name]((3,), (2,), hidden=(4, 0))


def test_any_module_counts_as_a_network():
    assert issubclass(nn.Identity, networks.Network)
    assert not issubclass(nn.Identity, networks.MLP)
    assert not issubclass(dict, networks.Network)


@pytest.mark.parametrize("network", [networks.MLP, networks.Gated, networks.Conv])
def test_initialization(network):
    """Weights as asked for; biases as torch makes them."""
    for name, param in network(
        (1, 8, 8), (2, 3), initialization=torch.nn.init.ones_
    ).named_parameters():
        assert (param == 1).all() == name.endswith("weight")
