"""Numbers as text: Larochelle's files, and tables as pandas and Kaggle write them."""

import numpy as np
import pytest
import torch

import pyro_vae as pv
from pyro_vae.cli.main import main
from pyro_vae.data.text import read_csv


def digits_of_bits(count, seed=0):
    return np.random.default_rng(seed).integers(0, 2, (count, 784))


def write(path, rows):
    path.write_text("\n".join(" ".join(map(str, row)) + " " for row in rows) + "\n")


def test_binarized_mnist_keeps_its_splits(tmp_path):
    rows = {part: digits_of_bits(n, n) for part, n in {"train": 15, "valid": 4, "test": 5}.items()}
    for part, bits in rows.items():
        write(tmp_path / f"binarized_mnist_{part}.amat", bits)
    data = pv.load_data(str(tmp_path))
    for split, part in zip(data.splits, rows, strict=True):
        assert torch.equal(split.scored("binary").flatten(1), torch.from_numpy(rows[part]).float())
    assert (data.shape, data.classes) == ((1, 28, 28), None)
    again = pv.load_data(str(tmp_path))
    assert torch.equal(again.test.noise, data.test.noise)


def test_one_file_of_binarized_mnist_is_split(tmp_path):
    bits = digits_of_bits(24)
    write(tmp_path / "a.amat", bits)
    data = pv.load_data(str(tmp_path / "a.amat"))
    assert [len(split) for split in data.splits] == [18, 2, 4]


def test_a_folder_without_the_training_images_is_refused(tmp_path):
    write(tmp_path / "binarized_mnist_test.amat", digits_of_bits(3))
    with pytest.raises(pv.RequestError, match="no file that is named as training images"):
        pv.load_data(str(tmp_path))


def table(path, names, rows, delimiter=","):
    lines = [delimiter.join(map(str, row)) for row in rows]
    if names:
        lines.insert(0, delimiter.join(names))
    path.write_text("\n".join(lines) + "\n")


PIXELS = np.random.default_rng(0).integers(0, 256, (24, 16))
COLUMNS = [f"pixel{i}" for i in range(16)]


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_kaggles_table_of_digits(tmp_path, delimiter):
    labelled = np.column_stack([np.arange(24) % 4, PIXELS])
    table(tmp_path / "train.csv", ["label", *COLUMNS], labelled, delimiter)
    data = pv.load_data(str(tmp_path / "train.csv"), image_shape=(4, 4))
    assert (data.shape, data.train.x.dtype, data.label_dim) == ((1, 4, 4), torch.uint8, 4)
    for image, label in zip(data.test.x, data.test.labels, strict=True):
        (index,) = (image.flatten().numpy() == PIXELS).all(1).nonzero()[0]
        assert label == index % 4


def test_a_table_of_pandas_with_an_index_and_names(tmp_path):
    names = ["cat", "dog"]
    rows = [[i, *PIXELS[i] / 255, names[i % 2]] for i in range(24)]
    table(tmp_path / "a.csv", ["", *COLUMNS, "class"], rows)
    data = pv.load_data(str(tmp_path / "a.csv"), image_shape=(1, 4, 4))
    assert data.classes == ("cat", "dog")
    assert data.train.x.dtype == torch.float32
    known = torch.from_numpy(PIXELS / 255).float()
    for image, label in zip(data.test.x, data.test.labels, strict=True):
        distances = (image.flatten() - known).abs().amax(1)
        assert label == distances.argmin() % 2
        assert distances.min() < 1e-6


@pytest.mark.parametrize("names", [("2", "10"), ("cat", "dog")])
def test_an_empty_label_is_unknown(tmp_path, names):
    rows = [[*PIXELS[i], (*names, "")[i % 3]] for i in range(24)]
    table(tmp_path / "a.csv", [*COLUMNS, "cell_type"], rows)
    (arrays,) = read_csv(tmp_path / "a.csv").parts.values()
    labels = arrays.split(None).labels
    known = [int(name) if name.isdecimal() else number for number, name in enumerate(names)]
    assert labels.tolist() == [*known, -1] * 8


def test_a_folder_of_tables(tmp_path):
    labelled = np.column_stack([np.arange(24) % 4, PIXELS])
    table(tmp_path / "mnist_train.csv", ["label", *COLUMNS], labelled)
    table(tmp_path / "mnist_test.csv", ["label", *COLUMNS], labelled[:5])
    data = pv.load_data(str(tmp_path), image_shape=(4, 4))
    assert [len(split) for split in data.splits] == [22, 2, 5]
    assert data.test.labels.tolist() == [0, 1, 2, 3, 0]


def test_a_table_without_names(tmp_path):
    table(tmp_path / "a.csv", None, PIXELS)
    data = pv.load_data(str(tmp_path / "a.csv"), image_shape=(4, 4))
    assert sum(map(len, data.splits)) == 24


BAD = {
    "counts": (COLUMNS, PIXELS, "a likelihood on binary values cannot score counts from"),
    "words": (COLUMNS[:2], [["a", "b"]] * 24, "cannot be read as a table"),
    "an empty row": (COLUMNS[:2], [[1, ""]] * 23 + [["", ""]], "without any observed value"),
    "two labels": (["label", "class", *COLUMNS[:2]], [[1, 1, 2, 3]] * 24, "2 columns of labels"),
    "only labels": (["label"], [[1]] * 24, "no columns of numbers"),
    "ragged": (COLUMNS[:2], [[1, 2], [3]], "cannot be read as a table"),
    "nothing": ([], [], "cannot be read as a table"),
}


@pytest.mark.parametrize("name", BAD)
def test_other_tables_are_refused(tmp_path, name, refused):
    names, rows, message = BAD[name]
    table(tmp_path / "a.csv", names, rows)
    assert message in refused("train", "--data", tmp_path / "a.csv", "--run_dir", tmp_path / "r")
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("content", ["", "hello", "1 2\n3\n", "<html>"])
def test_damaged_text_is_refused(tmp_path, content):
    (tmp_path / "a.amat").write_text(content)
    with pytest.raises(pv.RequestError, match=r"a\.amat") as caught:
        pv.load_data(str(tmp_path / "a.amat"))
    assert "\n" not in str(caught.value)


def test_vectors_are_trained_resumed_and_scored_from_the_command_line(tmp_path, capsys):
    """Reals in a table: what is standardized is stored in the run folder."""
    reals = np.random.default_rng(0).normal(100, [[1, 20, 0.1]], (40, 3)).round(4)
    table(tmp_path / "a.csv", ["a", "b", "c"], reals.tolist())
    run = str(tmp_path / "run")
    options = ["--likelihood", "Normal", "--likelihood.kind", "real", "--latent_dim", "2"]
    argv = ["train", "--data", str(tmp_path / "a.csv"), "--run_dir", run, *options]
    assert main([*argv, "--epochs", "1", "--test_samples", "5", "--report", "false"]) == 0
    printed = capsys.readouterr().out
    assert "a.csv: 31 + 3 + 6 rows of 3 (training + validation + test)" in printed
    assert "nats per row" in printed
    assert main(["train", "--run_dir", run, "--resume", "--epochs", "2", "--report", "false"]) == 0
    data, vae = pv.load_data(str(tmp_path / "a.csv")), pv.load_run(run)
    torch.testing.assert_close(vae.likelihood.data_mean, data.train.x.mean(0))
    options = ["--num_samples", "3", "--check_images", "2", "--data", str(tmp_path / "a.csv")]
    assert main(["evaluate", run, *options]) == 0
    assert "40 rows, real values" in capsys.readouterr().out


@pytest.mark.parametrize("header", ["a,b,c\n", ""])
def test_an_empty_cell_is_a_missing_value(tmp_path, header):
    path = tmp_path / "gaps.csv"
    path.write_text(header + "1.5,,3\n2,4,nan\n1,2,3\n")
    arrays = read_csv(path).parts["train"]
    expected = np.array([[1.5, np.nan, 3], [2, 4, np.nan], [1, 2, 3]], np.float32)
    np.testing.assert_array_equal(arrays.x, expected)
    split = arrays.split(None)
    assert torch.equal(split.observed, torch.from_numpy(~np.isnan(expected)))
