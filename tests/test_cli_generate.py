"""What `generate` writes is what the model says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae.cli.generate import _covariates
from pyro_vae.cli.main import main


def run(*argv):
    assert main([str(arg) for arg in argv]) == 0


@pytest.mark.parametrize(
    "kind", ["samples", "reconstructions", "interpolations", "traversals", "manifold", "codes"]
)
def test_pictures_are_of_a_size_to_look_at(run_dir, tmp_path, kind):
    file = tmp_path / "a" / "picture.png"
    run("generate", run_dir, kind, "--format", "png", "--count", 9, "--out", file)
    with Image.open(file) as image:
        assert min(image.size) > 100


@pytest.mark.parametrize(
    ("flags", "shapes"),
    [
        ("samples --count 25", {"images": (25, 1, 8, 8)}),
        ("samples", {"images": (64, 1, 8, 8)}),
        ("samples --count 1500", {"images": (1500, 1, 8, 8)}),
        (
            "reconstructions --count 7",
            {"images": (7, 1, 8, 8), "reconstructions": (7, 1, 8, 8), "labels": (7,)},
        ),
        ("interpolations --count 3", {"images": (3, 12, 1, 8, 8)}),
        (
            "traversals --dimension 1 --count 4",
            {"images": (4, 11, 1, 8, 8), "dimension": (), "z": (10,)},
        ),
        ("manifold --columns 6", {"images": (6, 6, 1, 8, 8), "z": (2, 6)}),
        ("codes", {"loc": (299, 2), "scale": (299, 2), "labels": (299,)}),
        ("codes --split train", {"loc": (1349, 2), "scale": (1349, 2), "labels": (1349,)}),
    ],
)
def test_arrays_have_their_shapes(run_dir, tmp_path, flags, shapes):
    file = tmp_path / "arrays.npz"
    assert (
        main(["generate", str(run_dir), *flags.split(), "--format", "npz", "--out", str(file)]) == 0
    )
    with np.load(file) as arrays:
        assert {name: arrays[name].shape for name in arrays} == shapes
        assert all(
            arrays[name].dtype == np.uint8
            for name in arrays
            if name in ("images", "reconstructions")
        )


@pytest.mark.parametrize(
    ("flags", "binary"), [("", True), ("--mean true", False), ("--mean false", True)]
)
def test_arrays_of_samples_are_draws_unless_means_are_asked_for(run_dir, tmp_path, flags, binary):
    file = tmp_path / "s.npz"
    assert main(["generate", str(run_dir), "samples", "--out", str(file), *flags.split()]) == 0
    with np.load(file) as arrays:
        assert (
            set(np.unique(arrays["images"])) <= {0, 255}
            if binary
            else len(np.unique(arrays["images"])) > 2
        )


def test_generated_images_are_data(run_dir, tmp_path):
    """For augmentation: what `generate` writes, `--data` reads."""
    file = tmp_path / "more.npz"
    run("generate", run_dir, "samples", "--format", "npz", "--count", 60, "--out", file)
    assert pv.load_data(str(file)).shape == (1, 8, 8)


def test_what_generate_writes_is_what_the_model_says(run_dir, tmp_path, digits):
    vae = pv.load_run(run_dir)
    traversals = "--count 2 --dimension 1"
    kinds = {"codes": "", "traversals": traversals, "manifold": "--columns 4"}
    for name, flags in kinds.items():
        run("generate", run_dir, name, *flags.split(), "--out", tmp_path / f"{name}.npz")
    q = vae.encode(digits.test.scored("binary"))
    with np.load(tmp_path / "codes.npz") as arrays, torch.no_grad():
        np.testing.assert_allclose(arrays["loc"], q.mean.numpy(), atol=1e-6)
        np.testing.assert_allclose(arrays["scale"], q.stddev.numpy(), atol=1e-6)
    with np.load(tmp_path / "traversals.npz") as arrays, torch.no_grad():
        z = vae.encode(digits.test.subset(2).scored("binary")).mean
        z[:, int(arrays["dimension"])] = float(arrays["z"][0])
        expected = vae.decode(z).mean.numpy() * 255
        np.testing.assert_allclose(arrays["images"][:, 1], expected, atol=0.51)
    with np.load(tmp_path / "manifold.npz") as arrays, torch.no_grad():
        corner = vae.decode(torch.from_numpy(arrays["z"])[:, [3, 0]].diagonal()[None]).mean[0]
        np.testing.assert_allclose(arrays["images"][3, 3], corner.numpy() * 255, atol=0.51)


def test_traversals_are_of_the_active_dimensions_over_their_ranges(
    run_dir, tmp_path, digits, capfd
):
    file = tmp_path / "t.npz"
    run("generate", run_dir, "traversals", "--out", file)
    vae = pv.load_run(run_dir)
    active = pv.views.active_dimensions(vae, digits.test)
    listed = ", ".join(map(str, active))
    assert f"active dimensions, the most active first: {listed}\n" in capfd.readouterr().out
    with np.load(file) as arrays, torch.no_grad():
        assert arrays["dimensions"].tolist() == active
        ranges = pv.views.code_range(vae, digits.test)[:, active]
        np.testing.assert_allclose(arrays["ranges"], ranges, rtol=0.2)
        assert arrays["images"].shape == (len(active), 10, 1, 8, 8)
        z = vae.encode(digits.test.subset(10)[:1].scored("binary")).mean
        z[:, active[0]] = float(arrays["ranges"][1, 0])
        expected = vae.decode(z).mean.numpy() * 255
        np.testing.assert_allclose(arrays["images"][0, -1:], expected, atol=0.51)


def test_the_manifold_needs_two_dimensions(tmp_path, refused, complete):
    folder = tmp_path / "r"
    options = ("--epochs", 1, "--latent_dim", 3, "--batch_size", 1000, "--report", "false")
    run("train", "--data", "digits", *options, "--run_dir", folder)
    assert not (folder / "figures" / "manifold.png").exists()
    assert "latent_dim" in refused("generate", folder, "manifold")


def test_their_codes_are_those_in_python(run_dir, new):
    run("generate", run_dir, "codes", "--data", new)
    vae = pv.load_run(run_dir)
    expected = pv.codes(vae, pv.load_images(new).scored(vae.pixels)).loc
    (written,) = (run_dir / "generated").glob("codes-data-test_npz-*.npz")
    np.testing.assert_allclose(np.load(written)["loc"], expected, rtol=1e-5)


def test_files_of_one_name_have_outputs_of_their_own(run_dir, drawn, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        np.savez(tmp_path / name / "same.npz", images=drawn)
        run("generate", run_dir, "codes", "--data", tmp_path / name / "same.npz")
    assert len(list((run_dir / "generated").glob("codes-data-same_npz-*"))) == 2


@pytest.mark.parametrize("kind", ["reconstructions", "interpolations", "traversals"])
def test_pictures_show_them(run_dir, new, drawn, kind, tmp_path):
    out = tmp_path / "out.npz"
    options = ["--data", new, "--count", "2"]
    if kind == "traversals":
        options += ["--dimension", "0"]
    run("generate", run_dir, kind, *options, "--out", out)
    run("generate", run_dir, kind, *options)
    assert list((run_dir / "generated").glob(f"{kind}-data-test_npz-*.png"))
    images = np.load(out)["images"]
    first = images[0] if kind == "reconstructions" else images[0, 0]
    chosen = pv.load_images(new).subset(2 if kind != "interpolations" else 4)
    np.testing.assert_array_equal(first[0], 255 * chosen.scored("binary")[0, 0])


@pytest.mark.parametrize("name", ["a$x^{$b.npz", "$\\frac$.npz", "猫.npz"])
def test_names_of_files_are_text(run_dir, drawn, tmp_path, name):
    """They are in titles, where matplotlib would read mathematics."""
    folder = tmp_path / "of"
    folder.mkdir()
    np.savez(folder / name.replace("/", "_"), images=drawn)
    for kind in ("reconstructions", "codes"):
        out = tmp_path / f"{kind}.png"
        run("generate", run_dir, kind, "--data", folder / name, "--out", out)


@pytest.fixture(scope="module")
def of_animals(tmp_path_factory):
    """A conditional run on folders of images, whose names are those of the classes."""
    folder = tmp_path_factory.mktemp("animals")
    random = np.random.default_rng(0)
    for name in ("7", "cat", "$dog$"):
        (folder / "data" / name).mkdir(parents=True)
        for n in range(20):
            pixels = random.integers(0, 256, (6, 6), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "data" / name / f"{n}.png")
    options = ("--model", "ConditionalVAE", "--latent_dim", 2, "--epochs", 1, "--batch_size", 10)
    run("train", "--data", folder / "data", *options, "--run_dir", folder / "run")
    return folder / "run"


@pytest.mark.parametrize(
    ("label", "number"), [("cat", 2), ("2", 2), ("$dog$", 0), ("7", 1), ("1", 1)]
)
def test_a_label_is_a_class_by_its_name_or_number(of_animals, tmp_path, label, number):
    """The folders are numbered in the order of their names: $dog$, 7, cat."""
    out = tmp_path / "a.npz"
    run("generate", of_animals, "samples", "--count", 3, "--label", label, "--out", out)
    assert np.load(out)["y"].tolist() == [number] * 3
    run("generate", of_animals, "samples", "--count", 3, "--label", label)


def test_messages_and_pictures_name_the_classes(of_animals, refused):
    assert "$dog$, 7, cat, but is cow" in refused(
        "generate", of_animals, "samples", "--label", "cow"
    )
    run("generate", of_animals, "analogies", "--count", 3)
    run("generate", of_animals, "codes", "--format", "png")


@pytest.mark.parametrize(
    ("columns", "label", "expected"),
    [
        (1, "12", [12.0]),
        (1, "[12]", [12.0]),
        (1, "-0.5", [-0.5]),
        (2, "[1, 2.5]", [1.0, 2.5]),
        (2, "1,2.5", [1.0, 2.5]),
        (2, "12", None),
        (1, "[1, 2]", None),
        (1, "cat", None),
        (1, "nan", None),
        (1, "[]", None),
    ],
)
def test_covariates_are_given_as_a_number_or_a_list(columns, label, expected):
    known = torch.rand(5, columns)
    if expected is None:
        with pytest.raises(pv.RequestError, match=f"list of {columns} covariates"):
            _covariates(label, known)
    else:
        assert _covariates(label, known).tolist() == [expected]


def test_the_format_follows_the_file_unless_it_is_given(run_dir, tmp_path, refused):
    run("generate", run_dir, "codes", "--out", tmp_path / "c.png")
    run("generate", run_dir, "samples", "--out", tmp_path / "s.npz")
    run("generate", run_dir, "codes", "--out", tmp_path / "c")
    assert {file.name for file in tmp_path.glob("*.*")} == {"c.png", "s.npz", "c.npz"}
    refused("generate", run_dir, "samples", "--format", "npz", "--out", tmp_path / "x.png")


def test_traversals_of_a_collapsed_model_say_so(run_dir, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("pyro_vae.cli.generate.ACTIVE", 1e6)
    run("generate", run_dir, "traversals", "--out", tmp_path / "t.npz")
    out = capfd.readouterr().out
    assert "no latent dimension is active; the most active one is " in out
    assert "most active first" not in out


KINDS = [
    "samples",
    "samples --label 7",
    "reconstructions --label 7",
    "reconstructions",
    "analogies",
    "interpolations",
]


KINDS += [
    "interpolations --label 3",
    "traversals",
    "traversals --label 3",
    "manifold --label 3",
    "codes",
]


@pytest.mark.parametrize("options", ["analogies", "samples --label 1", "codes", "reconstructions"])
def test_generate_of_a_model_that_infers_labels(options, run_of_few_labels, tmp_path):
    out = tmp_path / "out.npz"
    assert main(["generate", str(run_of_few_labels), *options.split(), "--out", str(out)]) == 0
    assert all(len(array) for array in np.load(out).values())


@pytest.mark.parametrize("options", KINDS)
def test_generate_of_a_model_with_labels(options, run_of_classes, tmp_path):
    for out in ("a.png", "a.npz"):
        argv = ["generate", str(run_of_classes), *options.split(), "--out", str(tmp_path / out)]
        assert main([*argv, *([] if "manifold" in options else ["--count", "4"])]) == 0
    assert (tmp_path / "a.png").stat().st_size > 1000
    if options == "analogies":
        assert np.load(tmp_path / "a.npz")["images"].shape == (10, 4, 1, 8, 8)


@pytest.mark.parametrize(
    "options",
    [
        "samples --label 10",
        "samples --label -1",
        "samples --label [0.5]",
        "samples --label x",
        "codes --label 1",
        "manifold",
    ],
)
def test_labels_that_cannot_be_decoded_are_rejected(options, run_of_classes, capfd):
    assert main(["generate", str(run_of_classes), *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize("options", ["samples --label 1", "analogies"])
def test_a_model_without_labels_takes_none(options, run_dir, capfd):
    assert main(["generate", str(run_dir), *options.split()]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_the_data_of_the_run_are_not_new(tmp_path, images, capfd):
    run("train", "--data", images, "--epochs", 1, "--run_dir", tmp_path / "run", "--device", "cpu")
    run("generate", tmp_path / "run", "codes", "--data", images)
    assert "was trained on" in capfd.readouterr().err


def test_a_named_set_without_test_images_is_not_new(run_dir, capfd):
    run("generate", run_dir, "codes", "--data", "digits")
    assert "was trained on" in capfd.readouterr().err


@pytest.mark.parametrize(("ending", "start"), [("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_vector_pictures(run_dir, tmp_path, refused, ending, start):
    run("generate", run_dir, "samples", "--count", 4, "--out", tmp_path / f"s.{ending}")
    run("generate", run_dir, "samples", "--count", 4, "--format", ending, "--out", tmp_path / "t")
    for name in "st":
        assert (tmp_path / f"{name}.{ending}").read_bytes().startswith(start)
    refused("generate", run_dir, "samples", "--format", ending, "--out", tmp_path / "x.png")


@pytest.fixture(scope="module")
def table():
    """Reals whose columns have very different units."""
    generator = np.random.default_rng(0)
    code = generator.standard_normal((120, 1))
    noise = 0.1 * generator.standard_normal((120, 12))
    return (10.0 ** np.arange(-6, 6) * (20 + code + noise)).astype(np.float32)


@pytest.fixture(scope="module")
def run_of_reals(table, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reals")
    np.save(folder / "table.npy", table)
    flags = "--likelihood Normal --likelihood.kind real --latent_dim 2 --epochs 30"
    flags += " --encoder.hidden [16] --decoder.hidden [16]"
    options = [*flags.split(), "--device", "cpu", "--optimizer.lr", 0.01]
    run("train", "--data", folder / "table.npy", *options, "--run_dir", folder / "run")
    return folder / "run"


def test_vectors_are_stored_in_their_own_units(run_of_reals, table, tmp_path):
    run("generate", run_of_reals, "reconstructions", "--out", tmp_path / "r.npz")
    with np.load(tmp_path / "r.npz") as arrays:
        for row in arrays["images"]:
            assert (table == row).all(1).any()
        error = arrays["reconstructions"] - arrays["images"]
    assert (np.sqrt((error**2).mean(0)) < 0.5 * table.std(0)).all()
    run("generate", run_of_reals, "samples", "--count", 500, "--out", tmp_path / "s.npz")
    with np.load(tmp_path / "s.npz") as arrays:
        assert arrays["images"].shape == (500, 12)
        distance = (arrays["images"].mean(0) - table.mean(0)) / table.std(0)
    assert (np.abs(distance) < 0.5).all()
    options = ["--num_samples", 3, "--check_images", 0]
    run("evaluate", run_of_reals, "--data", tmp_path / "s.npz", *options)


@pytest.mark.parametrize(
    "kind", ["samples", "reconstructions", "interpolations", "traversals", "manifold", "codes"]
)
def test_pictures_of_vectors(run_of_reals, tmp_path, kind):
    run("generate", run_of_reals, kind, "--count", 4, "--columns", 4, "--out", tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        assert min(image.size) > 100
        assert np.array(image.convert("L")).min() < 128


@pytest.fixture(scope="module")
def gappy_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gaps") / "run"
    options = "--data digits --missing 0.4 --latent_dim 2 --epochs 1 --encoder.hidden [8]"
    run("train", *options.split(), "--decoder.hidden", "[8]", "--run_dir", folder)
    return folder


def test_imputations_of_a_run_keep_what_is_observed(gappy_run, tmp_path, digits):
    file = tmp_path / "imputed.npz"
    run("generate", gappy_run, "imputations", "--out", file)
    test = digits.with_missing(0.4).test
    with np.load(file) as arrays:
        observed = arrays["observed"]
        np.testing.assert_array_equal(observed, test.observed)
        images = digits.test.x.numpy()
        np.testing.assert_array_equal(arrays["images"][observed], images[observed])
        assert arrays["images"].dtype == np.uint8
        assert arrays["draws"].shape == (5, *images.shape)
        np.testing.assert_array_equal(
            arrays["draws"][:, observed], images[observed][None].repeat(5, 0)
        )
        assert set(np.unique(arrays["draws"][:, ~observed])) == {0, 255}
        assert (arrays["effective_sample_size"] > 1).all()
        assert arrays["pareto_k"].shape == (299,)


@pytest.mark.parametrize("dtype", [np.float64, np.uint8, bool])
def test_imputations_have_the_layout_of_the_file(gappy_run, tmp_path, dtype):
    rng = np.random.default_rng(0)
    x = (rng.random((15, 8, 8)) < 0.3).astype(dtype)
    observed = rng.random(x.shape) < 0.6
    arrays = {"images": x, "observed": observed}
    if dtype == np.float64:
        x[~observed] = np.nan
        x[observed] *= 0.123456789012345
        arrays = {"images": x}
    np.savez(tmp_path / "x.npz", **arrays)
    run(
        "generate",
        gappy_run,
        "imputations",
        "--data",
        tmp_path / "x.npz",
        "--out",
        tmp_path / "y.npz",
    )
    with np.load(tmp_path / "y.npz") as imputed:
        images = imputed["images"]
        assert (images.dtype, images.shape) == (x.dtype, x.shape)
        np.testing.assert_array_equal(images[observed], x[observed])
        assert set(np.unique(imputed["draws"][:, ~observed])) == {0, 1}
        np.testing.assert_array_equal(imputed["observed"], observed)


def test_a_picture_of_imputations(gappy_run, tmp_path):
    run("generate", gappy_run, "imputations", "--count", 4, "--out", tmp_path / "p.png")
    with Image.open(tmp_path / "p.png") as image:
        assert min(image.size) > 100


def test_imputations_need_gaps(run_dir, capfd):
    assert main(["generate", str(run_dir), "imputations"]) == 2
    assert "these have none" in capfd.readouterr().err
