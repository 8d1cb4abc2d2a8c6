"""The images of `views` are the ones that they say, and figures show them with the right labels."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.evaluation.diagnostics import codes
from pyro_vae.reporting import figures, views

SHAPE = (1, 4, 5)


def make(latent_dim=2, prior=None, likelihood=None):
    prior, likelihood = prior or pv.StandardNormal(latent_dim), likelihood or pv.Bernoulli()
    encoder = pv.MLP(SHAPE, (2, latent_dim), hidden=(8,))
    decoder = pv.MLP((latent_dim,), (likelihood.num_params, *SHAPE), hidden=(8,))
    return pv.VAE(prior, encoder, pv.DiagonalNormal(), decoder, likelihood)


def hierarchical():
    encoder, decoder = pv.MLP(SHAPE, (2, 2), hidden=(8,)), pv.MLP((2,), (1, *SHAPE), hidden=(8,))
    parts = pv.StandardNormal(3), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    return pv.HierarchicalVAE(*parts, latent_dim=2, prior_dim=3, hidden=(8,))


@pytest.fixture
def x():
    return torch.bernoulli(torch.full((6, *SHAPE), 0.3))


def means(vae, z):
    with torch.no_grad():
        return vae.decode(z).mean


def shown(figure):
    """The picture in a figure of images, shape (height, width, 3)."""
    return np.asarray(figure.axes[0].images[0].get_array())


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def opened(figure):
    return Image.open(BytesIO(figures.png(figure))).convert("RGB")


# --- views ------------------------------------------------------------------------------------------------------------


def test_bytes_become_grey_values():
    grey = views.to_grey(make(likelihood=pv.Categorical()), torch.tensor([0.0, 51.0, 255.0]))
    torch.testing.assert_close(grey, torch.tensor([0.0, 0.2, 1.0]))


def test_samples_are_means_or_draws():
    vae = make()
    mean, draws = views.samples(vae, 7), views.samples(vae, 7, mean=False)
    assert mean.shape == draws.shape == (7, *SHAPE)
    assert ((mean > 0) & (mean < 1)).all()
    assert ((draws == 0) | (draws == 1)).all()


def test_many_samples_take_small_passes(monkeypatch):
    vae, rows = make(), []
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: rows.append(len(z)) or decode(z))
    assert len(views.samples(vae, 2001)) == 2001
    assert views.decode_mean(vae, torch.zeros(3, 700, 2)).shape == (3, 700, *SHAPE)
    assert max(rows) <= 1000


def test_reconstructions_stand_beside_their_images(x):
    pairs = views.reconstructions(make(), x)
    torch.testing.assert_close(pairs[:, 0], x)
    assert pairs[:, 1].shape == x.shape
    assert ((pairs[:, 1] > 0) & (pairs[:, 1] < 1)).all()


def test_interpolations_go_from_image_to_image(x):
    vae, (first, second) = make(3), x.chunk(2)
    made = views.interpolations(vae, x, steps=5)
    assert made.shape == (3, 7, *SHAPE)
    torch.testing.assert_close(made[:, 0], first)
    torch.testing.assert_close(made[:, -1], second)
    start, end = codes(vae, first).loc, codes(vae, second).loc
    for step in range(5):
        torch.testing.assert_close(made[:, 1 + step], means(vae, start + step / 4 * (end - start)))


def test_traversals_change_one_dimension(x):
    vae = make(3)
    made = views.traversals(vae, x, dimension=1, steps=3, width=2.0)
    torch.testing.assert_close(made[:, 0], x)
    for step, value in enumerate([-2.0, 0.0, 2.0], start=1):
        z = codes(vae, x).loc.clone()
        z[:, 1] = value
        torch.testing.assert_close(made[:, step], means(vae, z))


@pytest.mark.parametrize("dimension", [-1, 3])
def test_a_missing_dimension_is_refused(x, dimension):
    with pytest.raises(pv.RequestError, match="0 to 2"):
        views.traversals(make(3), x, dimension)


def test_the_manifold_grows_to_the_right_and_upwards():
    vae = make()
    images, z = views.manifold(vae, 4)
    levels = torch.tensor([0.125, 0.375, 0.625, 0.875])
    exact = torch.special.ndtri(levels)
    error = (levels * (1 - levels) / views.PRIOR_DRAWS).sqrt() / torch.distributions.Normal(
        0.0, 1.0
    ).log_prob(exact).exp()
    assert ((z - exact).abs() < 5 * error).all()
    for row, column in ((0, 3), (2, 1)):
        torch.testing.assert_close(
            images[row, column], means(vae, torch.stack([z[0, column], z[1, 3 - row]])[None])[0]
        )


def shifted():
    prior = pv.priors.Normal(2)
    prior.loc.data, prior.log_scale.data = torch.tensor([5.0, -3.0]), torch.tensor([-1.0, 1.0])
    return make(prior=prior)


MODELS = [
    shifted,
    lambda: make(prior=pv.GaussianMixture(2, 3)),
    lambda: make(prior=pv.StudentT(2)),
    hierarchical,
]


@pytest.mark.parametrize("model", MODELS)
def test_the_manifold_is_spaced_by_the_quantiles_of_any_prior(model, monkeypatch):
    """Of the codes that the decoder reads: in a hierarchy the prior is over another space."""
    vae, drawn = model(), []
    _, z = views.manifold(vae, 5)
    decode = vae.decode
    monkeypatch.setattr(vae, "decode", lambda z: drawn.append(z) or decode(z))
    vae.sample(20_000)
    below = (drawn[0] < z.T[:, None]).double().mean(1)
    assert (below - torch.tensor([[0.1], [0.3], [0.5], [0.7], [0.9]])).abs().max() < 0.03


def test_the_manifold_needs_two_dimensions():
    with pytest.raises(pv.RequestError, match="latent_dim=2"):
        views.manifold(make(3))


# --- figures of images ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_grid_has_each_image_in_its_place(channels):
    images = torch.rand(5, channels, 4, 3)
    picture = shown(figures.grid(images, "five", columns=2))
    for index, image in enumerate(images):
        row, column = divmod(index, 2)
        cell = picture[5 * row + 1 :][:4, 4 * column + 1 :][:, :3]
        expected = (
            image[:3] if channels > 2 else (1 - image.mean(0, keepdim=True)).expand(3, -1, -1)
        )
        np.testing.assert_allclose(cell, expected.permute(1, 2, 0), atol=1e-6)


@pytest.mark.parametrize(
    "shape", [(1, 1, 28, 28), (4, 3, 8, 8), (4, 1, 64, 8), (1, 1, 8, 64), (4, 1, 1, 300)]
)
def test_pictures_of_any_shape_are_of_a_size_to_look_at(shape):
    rows = torch.rand(shape)[:, None].repeat(1, 11, 1, 1, 1)
    drawn = [
        figures.samples(rows[:, 0]),
        figures.reconstructions(rows[:, :2], "pairs"),
        figures.interpolations(rows),
        figures.traversals(rows, 0),
    ]
    for figure in drawn:
        width, height = opened(figure).size
        assert 100 < width < 2500
        assert 40 < height < 2500


def test_samples_say_whether_they_are_means():
    images = torch.rand(4, *SHAPE)
    assert "means" in figures.samples(images).axes[0].get_title()
    assert "draws x" in figures.samples(images, mean=False).axes[0].get_title()


def test_columns_name_the_originals_and_the_values():
    axes = figures.traversals(torch.rand(2, 4, *SHAPE), dimension=0, width=2.0).axes[0]
    assert labels(axes.xaxis) == ["image", "-2", "0", "2"]
    axes = figures.interpolations(torch.rand(2, 5, *SHAPE)).axes[0]
    assert labels(axes.xaxis) == ["image", "0", "0.5", "1", "image"]


def test_the_manifolds_labels_are_the_values_of_z():
    images, z = torch.rand(3, 3, *SHAPE), torch.tensor([[-1.0, 0.0, 7.25], [10.0, 20.0, 30.0]])
    figure = figures.manifold(images, z)
    axes = figure.axes[0]
    assert labels(axes.xaxis) == ["-1", "0", "7.25"]
    assert labels(axes.yaxis) == ["30", "20", "10"]
    column, row = round(axes.get_xticks()[2]), round(axes.get_yticks()[0])
    assert shown(figure)[row, column, 0] in 1 - images[0, 2].numpy()


# --- figures of metrics -----------------------------------------------------------------------------------------------


def record(epoch, active_units=3, beta=1.0):
    terms = {"elbo": -120.0 - 9 / epoch, "reconstruction": -100.0 - 9 / epoch, "kl": 20.0}
    validation = {f"validation_{key}": value - 1 for key, value in terms.items()}
    loss = -terms["reconstruction"] + beta * terms["kl"]
    return {"epoch": epoch, "loss": loss, "active_units": active_units, **terms, **validation}


@pytest.mark.parametrize("epochs", [1, 2, 5, 200])
@pytest.mark.parametrize("active_units", [0, 2, 20])
def test_ticks_of_epochs_and_active_units_are_integers(epochs, active_units):
    figure = figures.curves(
        [record(epoch, active_units * epoch // epochs) for epoch in range(1, epochs + 1)]
    )
    ticks = [tick for axes in figure.axes for tick in axes.get_xticks()] + list(
        figure.axes[-1].get_yticks()
    )
    assert ticks == [round(tick) for tick in ticks]


def test_curves_show_the_loss_where_it_is_not_the_elbo():
    plain, annealed = ([record(epoch, beta=beta) for epoch in (1, 2)] for beta in (1.0, 0.5))
    assert len(figures.curves(plain).axes[0].lines) == 2
    *_, loss = figures.curves(annealed).axes[0].lines
    np.testing.assert_allclose(loss.get_ydata(), [-r["loss"] for r in annealed])


def bound(mean, error):
    return {"mean": mean, "standard_error": 3.0, "gain": mean + 100, "gain_standard_error": error}


def test_the_band_of_the_bounds_is_the_error_of_the_paired_gain():
    figure = figures.bounds(
        {"1": bound(-100.0, 0.0), "2": bound(-99.0, 0.25), "5": bound(-98.0, 0.5)}
    )
    (axes,) = figure.axes
    band = axes.collections[0].get_paths()[0].vertices
    for k, mean, error in ((1, -100, 0), (2, -99, 0.25), (5, -98, 0.5)):
        heights = band[band[:, 0] == k, 1]
        assert (heights.min(), heights.max()) == (mean - error, mean + error)


def test_bounds_of_a_single_image_have_no_band():
    figures.png(figures.bounds({"1": bound(-100.0, None), "2": bound(-99.0, None)}))
    figures.png(figures.bounds({"1": bound(-100.0, None)}))


@pytest.mark.parametrize("latent_dim", [1, 2, 20])
@pytest.mark.parametrize("count", [1, 2, 50])
def test_codes_of_any_number_of_dimensions_are_drawn(latent_dim, count):
    points = (
        figures.latent(torch.randn(count, latent_dim), torch.arange(count) % 10, "codes")
        .axes[0]
        .collections[0]
    )
    assert len(points.get_offsets()) == count


def test_principal_components_are_the_directions_of_greatest_variance():
    axes = figures.latent(
        torch.randn(500, 4) * torch.tensor([0.1, 1.0, 10.0, 0.1]), None, "codes"
    ).axes[0]
    spread = np.asarray(axes.collections[0].get_offsets()).std(0)
    np.testing.assert_allclose(spread, [10, 1], rtol=0.2)
    assert "99%" in axes.get_xlabel()


def test_each_label_has_its_colour():
    which = torch.arange(30) % 3 + 4
    axes = figures.latent(torch.randn(30, 2), which, "codes").axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["4", "5", "6"]
    colours = [tuple(colour) for colour in axes.collections[0].get_facecolors()]
    assert colours == [colours[index % 3] for index in range(30)]
    assert len(set(colours)) == 3


def test_each_label_stands_at_the_median_of_its_codes():
    which, codes = torch.arange(30) % 3 + 4, torch.randn(30, 2)
    texts = figures.latent(codes, which, "codes").axes[0].texts
    for name, text in zip((4, 5, 6), texts, strict=True):
        assert text.get_text() == str(name)
        np.testing.assert_allclose(text.xy, codes[which == name].median(0).values)


@pytest.mark.parametrize("which", [None, torch.arange(30)])
def test_codes_without_labels_or_with_too_many_have_one_colour(which):
    axes = figures.latent(torch.randn(30, 2), which, "codes").axes[0]
    assert axes.get_legend() is None
    assert len({tuple(colour) for colour in axes.collections[0].get_facecolors()}) == 1


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_labels_differ_even_in_sixty_four_colours():
    """The README's picture had labels 0 and 2 in one colour, and 1 and 4, because it had been reduced so."""
    original = opened(figures.latent(torch.randn(4000, 2), torch.arange(4000) % 10, "codes"))
    exact, reduced = (
        np.asarray(original),
        np.asarray(original.quantize(64).convert("RGB"), dtype=float),
    )
    found = [reduced[(exact == rgb(colour)).all(-1)].mean(0) for colour in figures.COLOURS]
    assert min(np.abs(a - b).max() for a, b in combinations(found, 2)) > 40


DICHROMACY = {  # of linear RGB (Machado et al., 2009, severity 1)
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("kind", DICHROMACY)
def test_labels_differ_to_colour_blind_readers(kind):
    """By a distance of 14 in CIELAB, where 2.3 is just noticeable."""
    seen = [
        np.clip(DICHROMACY[kind] @ linear(rgb(colour) / 255), 0, 1) for colour in figures.COLOURS
    ]
    assert min(np.linalg.norm(lab(a) - lab(b)) for a, b in combinations(seen, 2)) > 14


def linear(srgb):
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def lab(linear_rgb):
    to_xyz = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    ratio = to_xyz @ linear_rgb / [0.9505, 1, 1.089]
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_equal_figures_are_equal_bytes():
    first, second = (figures.png(figures.grid(torch.ones(2, *SHAPE), "ones")) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
