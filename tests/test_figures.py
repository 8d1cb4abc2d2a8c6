"""Figures show the images and metrics that they say, with the right labels."""

from __future__ import annotations

from io import BytesIO
from itertools import combinations

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.reporting import figures

SHAPE = (1, 4, 5)


def make(latent_dim=2):
    encoder = pv.MLP(SHAPE, (2, latent_dim), hidden=(8,))
    decoder = pv.MLP((latent_dim,), (1, *SHAPE), hidden=(8,))
    return pv.VAE(
        pv.StandardNormal(latent_dim), encoder, pv.DiagonalNormal(), decoder, pv.Bernoulli()
    )


def shown(figure):
    """The picture in a figure of images, shape (height, width, 3)."""
    return np.asarray(figure.axes[0].images[0].get_array())


def labels(axis):
    return [label.get_text() for label in axis.get_ticklabels()]


def opened(figure):
    return Image.open(BytesIO(figures.png(figure))).convert("RGB")


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
        figures.traversals(rows, 0, torch.linspace(-3, 3, 10)),
    ]
    for figure in drawn:
        width, height = opened(figure).size
        assert 100 < width < 2500
        assert 40 < height < 2500


def test_a_calibration_is_drawn_from_its_summary():
    found = pv.calibration(make(), num_images=40).summary()
    figure = figures.calibration(found)
    left, right = figure.axes
    assert len(left.lines) == 4  # two dimensions, the guide's density and the likelihood
    for line, name in zip(left.lines, left.get_legend().get_texts()[1:], strict=True):
        level, excess = line.get_data()
        counts = np.array(found["histograms"][name.get_text()])
        assert counts.sum() == 40
        np.testing.assert_allclose(excess[1:], counts.cumsum() / 40 - level[1:], atol=1e-6)
    shares = right.containers[-1].lines[0].get_ydata()
    assert list(shares) == [value["share"] for value in found["coverage"].values()]
    assert min(opened(figure).size) > 300


def test_samples_say_whether_they_are_means():
    images = torch.rand(4, *SHAPE)
    assert "means" in figures.samples(images).axes[0].get_title()
    assert "draws x" in figures.samples(images, mean=False).axes[0].get_title()


def test_columns_name_the_originals_and_the_values():
    axes = figures.traversals(torch.rand(2, 4, *SHAPE), 0, torch.tensor([-2.0, 0.0, 2.0])).axes[0]
    assert labels(axes.xaxis) == ["image", "-2", "0", "2"]
    axes = figures.interpolations(torch.rand(2, 5, *SHAPE)).axes[0]
    assert labels(axes.xaxis) == ["image", "0", "0.5", "1", "image"]


def test_the_manifold_is_seamless_and_its_ticks_are_values_of_z():
    images = torch.rand(9, 9, *SHAPE)
    z = torch.stack([torch.arange(9.0), 10 * torch.arange(9.0)])
    figure = figures.manifold(images, z)
    axes = figure.axes[0]
    assert shown(figure).shape == (9 * 4, 9 * 5, 3)
    assert labels(axes.xaxis) == ["0", "2", "4", "6", "8"]
    assert labels(axes.yaxis) == ["80", "60", "40", "20", "0"]
    column, row = int(axes.get_xticks()[1] // 5), int(axes.get_yticks()[3] // 4)
    assert (column, row) == (2, 6)
    np.testing.assert_allclose(shown(figure)[24:28, 10:15, 0], 1 - images[6, 2, 0], atol=1e-6)


def test_means_stand_beside_draws_of_the_same_code():
    images = torch.rand(4, 2, *SHAPE)
    figure = figures.samples_and_draws(images, columns=2)
    for part, axes in enumerate(figure.axes):
        picture = np.asarray(axes.images[0].get_array())
        np.testing.assert_allclose(picture[1:5, 7:12, 0], 1 - images[1, part, 0], atol=1e-6)
    assert "draws x" in figure.axes[1].get_title()


def test_each_row_of_the_traversals_names_its_dimension_and_range():
    ranges = torch.tensor([[-1.0, -2.5], [1.0, 2.0]])
    figure = figures.dimensions(torch.rand(2, 4, *SHAPE), [7, 0], ranges)
    assert labels(figure.axes[0].yaxis) == ["z[7], -1 to 1", "z[0], -2.5 to 2"]


def test_reconstructions_say_the_elbo_of_each_image():
    figure = figures.reconstructions(torch.rand(2, 2, *SHAPE), "pairs", [-12.34, -5.0])
    assert labels(figure.axes[0].xaxis) == ["-12.3", "-5.0"]


@pytest.mark.parametrize(("file_format", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vector_twins_are_the_same_bytes_again(file_format, start):
    images = torch.rand(2, *SHAPE)
    made = [figures.rendered(figures.grid(images, "two"), file_format) for _ in range(2)]
    assert made[0].startswith(start)
    assert made[0] == made[1]


def record(epoch, active_units=3, beta=1.0):
    terms = {"elbo": -120.0 - 9 / epoch, "reconstruction": -100.0 - 9 / epoch, "kl": 20.0}
    validation = {f"validation_{key}": value - 1 for key, value in terms.items()}
    loss = -terms["reconstruction"] + beta * terms["kl"]
    return {"epoch": epoch, "loss": loss, "active_units": active_units, **terms, **validation}


@pytest.mark.parametrize("epochs", [1, 2, 5, 200])
@pytest.mark.parametrize("active_units", [0, 2, 20])
def test_ticks_of_epochs_are_integers(epochs, active_units):
    figure = figures.curves(
        [record(epoch, active_units * epoch // epochs) for epoch in range(1, epochs + 1)]
    )
    ticks = [tick for axes in figure.axes for tick in axes.get_xticks()]
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


def test_many_dimensions_have_two_planes():
    codes = torch.randn(500, 4) * torch.tensor([0.1, 1.0, 10.0, 0.1])
    t_sne, active = figures.latent(codes[:60], None, "codes").axes
    assert "t-SNE of 60 codes" in t_sne.get_xlabel()
    assert (active.get_xlabel(), active.get_ylabel()) == ("z[2]", "z[1]")


def test_each_label_has_its_colour():
    which = torch.arange(30) % 3 + 4
    axes = figures.latent(torch.randn(30, 2), which, "codes").axes[0]
    assert [text.get_text() for text in axes.texts] == ["4", "5", "6"]
    colours = [tuple(colour) for colour in axes.collections[0].get_facecolors()]
    assert colours == [colours[index % 3] for index in range(30)]
    assert len(set(colours)) == 3


def test_each_label_stands_near_the_median_of_its_codes():
    which, codes = torch.arange(60) % 3, torch.randn(60, 2) / 10
    codes += 5.0 * which[:, None]
    texts = figures.latent(codes, which, "codes").axes[0].texts
    for name, text in enumerate(texts):
        np.testing.assert_allclose(text.xy, codes[which == name].median(0).values, rtol=1e-6)
    together = figures.latent(torch.randn(60, 2), which, "codes").axes[0].texts
    assert len({tuple(text.xy) for text in together}) == 3


@pytest.mark.parametrize("which", [None, torch.arange(30)])
def test_codes_without_labels_or_with_too_many_have_one_colour(which):
    axes = figures.latent(torch.randn(30, 2), which, "codes").axes[0]
    assert not axes.texts
    assert len({tuple(colour) for colour in axes.collections[0].get_facecolors()}) == 1


def rgb(colour):
    return np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])


def test_labels_differ_even_in_sixty_four_colours():
    """A picture once had labels 0 and 2 in one colour, and 1 and 4: it had been reduced so."""
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


HARD = ["a$x^{$b.npz", r"$\frac$", "$", "$$", r"a\$b", "猫", "a\x07b", "\ud800", "_under", "🐈$^$"]


@pytest.mark.parametrize("name", HARD)
def test_names_are_text_and_no_mathematics(name):
    """In titles, tick labels, legends and annotations; without matplotlib's warnings."""
    opened(figures.grid(torch.rand(2, *SHAPE), name, 2, [name], [name, f"5\n{name}"]))
    classes = (name, "other")
    y = torch.arange(20) % 2
    figure = figures.latent(torch.randn(20, 2), y, name, classes)
    opened(figure)
    assert len(figure.axes[0].texts) == 2
    opened(figures.analogies(torch.rand(2, 3, *SHAPE), torch.tensor([0, 1]), classes))
    figure = figures.samples(torch.rand(2, *SHAPE))
    figures.add_to_title(figure, f"given y = {name}")
    opened(figure)


def test_names_without_glyphs_stay_different_and_dollars_stay_dollars():
    assert figures.plain("猫") != figures.plain("犬")
    first = figures.png(figures.grid(torch.ones(2, *SHAPE), "5$ 6$"))
    assert first == figures.png(figures.grid(torch.ones(2, *SHAPE), "5$ 6$"))
    axes = figures.grid(torch.ones(2, *SHAPE), "5$ 6$").axes[0]
    assert axes.title._preprocess_math(axes.get_title()) == ("5$ 6$", False)


def test_classes_have_the_users_names():
    y = torch.tensor([0, 1, 1, -1, 2] * 4)
    axes = figures.latent(torch.randn(20, 2), y, "codes", ("cat", "dog")).axes[0]
    expected = ["cat", "dog", "2"]
    assert [text.get_text() for text in axes.texts] == expected
    axes = figures.analogies(torch.rand(2, 3, *SHAPE), torch.tensor([1, 0]), ("cat", "dog")).axes[0]
    assert labels(axes.yaxis) == ["dog", "cat"]


def trained_data(n=30):
    x = torch.bernoulli(torch.full((n, *SHAPE), 0.3))
    return pv.Data("noise", *(pv.Split(x, torch.arange(n) % 3) for _ in range(3)))


def test_the_figures_of_a_model_show_a_random_subset(monkeypatch):
    """The first test images may be another population."""
    data = trained_data()
    monkeypatch.setattr(figures, "LATENT_IMAGES", 20)
    vae = make()
    drawn = figures.figures_of(vae, data, [record(1)])
    assert list(drawn) == ["curves", "reconstructions", "samples", "latent", "manifold"]
    assert "traversals" in figures.figures_of(make(3), data)
    points = drawn["latent"].axes[0].collections[0].get_offsets()
    np.testing.assert_allclose(points, pv.codes(vae, data.test.subset(20)).loc, rtol=1e-5)
    assert "curves" not in figures.figures_of(vae, data)
