import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import pyro_vae as pv
from pyro_vae import data as module
from pyro_vae.data import load_data, to_pixels


def test_digits(digits):
    assert (digits.name, digits.shape) == ("digits", (1, 8, 8))
    assert [len(split) for split in (digits.train, digits.validation, digits.test)] == [1349, 149, 299]
    assert digits.train.images.dtype == torch.uint8
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)


def test_the_splits_are_a_partition(digits):
    everything = torch.cat([digits.train.images, digits.validation.images, digits.test.images]).flatten(1)
    from sklearn.datasets import load_digits

    original = torch.from_numpy(load_digits().data * 255 / 16).round()
    assert sorted(map(tuple, everything.tolist())) == sorted(map(tuple, original.tolist()))


def test_the_split_does_not_depend_on_the_seed(digits):
    torch.manual_seed(123)
    again = load_data("digits")
    for name in ("train", "validation", "test"):
        assert torch.equal(getattr(again, name).images, getattr(digits, name).images)
        assert torch.equal(getattr(again, name).labels, getattr(digits, name).labels)
    assert torch.equal(again.test.scored("binary"), digits.test.scored("binary"))


def test_an_image_keeps_its_pixels_wherever_it_is_scored(digits):
    whole = digits.test.scored("binary")
    assert torch.equal(digits.test[40:50].scored("binary"), whole[40:50])
    subset = digits.test.subset(17)
    positions = [(digits.test.images == image).flatten(1).all(1).nonzero()[0, 0] for image in subset.images]
    assert torch.equal(subset.scored("binary"), whole[torch.stack(positions)])
    assert torch.equal(subset.images, digits.test.subset(17).images)


def test_pixels_have_the_right_mean_and_range():
    byte = torch.arange(256, dtype=torch.uint8).reshape(256, 1, 1, 1).expand(256, 1, 100, 100)
    assert torch.equal(to_pixels(byte, "unit"), byte / 255)
    assert torch.equal(to_pixels(byte, "byte"), byte.float())
    binary = to_pixels(byte, "binary")
    assert set(binary.unique().tolist()) == {0.0, 1.0}
    assert (binary[0].max(), binary[255].min()) == (0, 1)
    share = torch.arange(256) / 255
    assert ((binary.mean((1, 2, 3)) - share).abs() <= 5 * (share * (1 - share) / 10_000).sqrt() + 1e-6).all()
    dequantized = to_pixels(byte, "dequantized") * 256
    assert (dequantized >= byte).all()
    assert (dequantized <= byte.float() + 1).all()
    assert (dequantized - byte).mean().item() == pytest.approx(0.5, abs=5 / (12 * byte.numel()) ** 0.5)


def test_training_pixels_are_drawn_afresh(digits):
    assert not torch.equal(digits.train.scored("binary"), digits.train.scored("binary"))


def test_bytes_are_refused_of_floats():
    with pytest.raises(pv.RequestError, match="save them as uint8"):
        to_pixels(torch.rand(2, 1, 3, 3), "byte")


def test_static_binarization_is_one_draw(digits):
    static = load_data("digits", binarization="static")
    assert set(static.train.images.unique().tolist()) == {0, 255}
    assert torch.equal(static.train.scored("binary"), static.train.scored("binary"))
    assert torch.equal(static.train.images, load_data("digits", binarization="static").train.images)
    assert torch.equal(static.test.scored("binary"), digits.test.scored("binary"))


def test_image_size(digits):
    assert load_data("digits", image_size=16).shape == (1, 16, 16)
    assert torch.equal(load_data("digits", image_size=8).test.images, digits.test.images)


def test_own_array(images):
    data = load_data(str(images))
    assert (data.shape, data.name) == ((1, 6, 5), "images.npz")
    assert [len(split) for split in (data.train, data.validation, data.test)] == [45, 5, 10]
    original = np.load(images)
    for image, label in zip(data.test.images, data.test.labels, strict=True):
        (index,) = (original["images"] == image.numpy()[0]).all((1, 2)).nonzero()[0]
        assert original["labels"][index] == label


@pytest.mark.parametrize("shape", [(24, 4, 3), (24, 3, 4, 3), (24, 1, 4, 3)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.bool_])
def test_arrays_of_every_kind(tmp_path, shape, dtype):
    array = (np.random.default_rng(0).random(shape) * (255 if dtype == np.uint8 else 1)).round(2).astype(dtype)
    np.save(tmp_path / "a.npy", array)
    data = load_data(str(tmp_path / "a.npy"))
    assert data.shape == ((1, 4, 3) if len(shape) == 3 else shape[1:])
    assert data.train.images.dtype == (torch.float32 if dtype in (np.float32, np.float64) else torch.uint8)


def folder(path, sizes=((8, 6),), mode="L", classes=("",), count=14):
    for kind in classes:
        (path / kind).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            Image.new(mode, sizes[i % len(sizes)], i).save(path / kind / f"{i}.png")
    return str(path)


def test_a_flat_folder(tmp_path):
    data = load_data(folder(tmp_path / "flat"))
    assert data.shape == (1, 6, 8)
    assert data.train.labels is None


def test_a_folder_of_classes(tmp_path):
    data = load_data(folder(tmp_path / "classes", mode="RGB", classes=("cat", "dog")))
    assert data.shape == (3, 6, 8)
    assert set(torch.cat([data.train.labels, data.test.labels]).tolist()) == {0, 1}


def test_mixed_sizes_are_resized_when_asked(tmp_path):
    path = folder(tmp_path / "mixed", sizes=((8, 6), (5, 5)))
    with pytest.raises(pv.RequestError, match="mixes images of 5x5 and 8x6 pixels: give --image_size"):
        load_data(path)
    assert load_data(path, image_size=7).shape == (1, 7, 7)


def test_images_that_eight_bits_would_spoil_are_refused(tmp_path):
    for mode, array in {"I;16": np.zeros((4, 4), dtype=np.uint16), "F": np.zeros((4, 4), dtype=np.float32)}.items():
        (tmp_path / mode).mkdir()
        Image.fromarray(array).save(tmp_path / mode / "a.tiff")
        with pytest.raises(pv.RequestError, match=f"a.tiff is of mode {mode}: save it with 8 bits"):
            load_data(str(tmp_path / mode))


def test_what_is_transparent_is_white(tmp_path):
    for i in range(14):
        Image.new("RGBA", (4, 4), (0, 0, 0, 0 if i % 2 else 255)).save(tmp_path / f"{i}.png")
    (tmp_path / "._0.png").write_text("left by another system")
    data = load_data(str(tmp_path))
    assert data.shape == (3, 4, 4)
    assert data.train.images.float().mean().item() == pytest.approx(127.5, abs=40)
    assert set(data.train.images.unique().tolist()) == {0, 255}


def test_unknown_kinds_are_refused():
    with pytest.raises(pv.RequestError, match="pixels must be one of"):
        to_pixels(torch.rand(2, 1, 3, 3), "grey")
    with pytest.raises(pv.RequestError, match="binarization must be one of"):
        load_data("digits", binarization="sometimes")


def test_the_splits_have_noise_of_their_own(digits):
    assert not torch.equal(digits.validation.noise, digits.test.noise[:149])


BAD_ARRAYS = {
    "nan": (np.full((20, 4, 4), np.nan), "holds NaN or infinite"),
    "range": (np.full((20, 4, 4), 1.5), r"scale them to \[0, 1\]"),
    "int64": (np.zeros((20, 4, 4), dtype=np.int64), "save uint8"),
    "flat": (np.zeros((20, 16), dtype=np.uint8), r"\(N, height, width\)"),
    "channels_last": (np.zeros((20, 8, 8, 3), dtype=np.uint8), r"transpose\(0, 3, 1, 2\)"),
    "small_and_channels_last": (np.zeros((20, 5, 5, 3), dtype=np.uint8), r"transpose\(0, 3, 1, 2\)"),
    "no_images": (np.zeros((0, 8, 8), dtype=np.uint8), "has shape"),
    "few": (np.zeros((11, 8, 8), dtype=np.uint8), "too few images"),
    "objects": (np.array([{}, {}], dtype=object), "cannot be read as arrays"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_bad_arrays_are_refused(tmp_path, name):
    array, message = BAD_ARRAYS[name]
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(pv.RequestError, match=message):
        load_data(str(tmp_path / "a.npy"))


def test_bad_files_are_refused(tmp_path):
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_text("no image")
    np.savez(tmp_path / "other.npz", pictures=np.zeros((20, 4, 4)))
    np.savez(tmp_path / "labels.npz", images=np.zeros((20, 4, 4), dtype=np.uint8), labels=np.zeros(3))
    for name, message in {
        "text.npy": "cannot be read as arrays",
        "notes.txt": "save the images as one of these",
        "empty": "holds no images",
        "broken": "cannot be read as an image",
        "other.npz": "has no array named images",
        "labels.npz": "one integer an image",
        "nowhere": "there is no data set or path",
    }.items():
        with pytest.raises(pv.RequestError, match=message):
            load_data(str(tmp_path / name))


@pytest.fixture
def offline(monkeypatch):
    def refuse(*args, **kwargs):
        raise module.urllib.error.URLError("no network")

    monkeypatch.setattr(module.urllib.request, "urlopen", refuse)


def test_auto_takes_digits_without_a_network_and_says_so(tmp_path, offline):
    said = []
    assert load_data("auto", tmp_path, say=said.append).name == "digits"
    assert said == [f"data: digits (8x8, built in), because MNIST is not in {tmp_path} and its host cannot be reached"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "kmnist", "omniglot"])
def test_a_set_asked_for_by_name_is_never_replaced(tmp_path, offline, name):
    with pytest.raises(pv.RequestError, match=f"{name} could not be downloaded .* --data digits, which needs no network"):
        load_data(name, tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_auto_takes_mnist_that_is_on_disk(mnist, tmp_path, offline, monkeypatch):
    said = []
    monkeypatch.setattr(module, "_on_disk", lambda folder: True)
    monkeypatch.setattr(module, "_load_torchvision", lambda source: mnist)
    assert load_data("auto", tmp_path, say=said.append) is mnist
    assert said == [f"data: MNIST, from {tmp_path}"]


def test_a_hanging_name_server_is_not_waited_for(monkeypatch):
    monkeypatch.setattr(module, "DOWNLOAD_SECONDS", 0.05)
    monkeypatch.setattr(module, "_answers", lambda url: module.threading.Event().wait(5))
    assert not module._reachable("http://example.invalid")


def test_links_out_of_the_folder_are_not_followed(tmp_path):
    (tmp_path / "images").mkdir()
    for index in range(12):
        Image.new("L", (4, 4), index).save(tmp_path / "images" / f"{index}.png")
    Image.new("L", (4, 4), 99).save(tmp_path / "secret.png")
    (tmp_path / "images" / "inside.png").symlink_to(tmp_path / "images" / "3.png")
    assert len(pv.load_data(str(tmp_path / "images")).train) == 10
    (tmp_path / "images" / "outside.png").symlink_to(tmp_path / "secret.png")
    with pytest.raises(pv.RequestError, match=r"outside.png is a link that leads out of"):
        pv.load_data(str(tmp_path / "images"))


def test_an_image_that_would_unpack_to_a_giant_is_refused(tmp_path):
    """60,000 x 60,000 pixels in a file of half a megabyte: refused by its header, before it is unpacked."""
    data = zlib.compress(bytes(60_000 // 8 + 1) * 60_000, 9)
    chunks = {b"IHDR": struct.pack(">IIBBBBB", 60_000, 60_000, 1, 0, 0, 0, 0), b"IDAT": data, b"IEND": b""}
    packed = [struct.pack(">I", len(c)) + name + c + struct.pack(">I", zlib.crc32(name + c)) for name, c in chunks.items()]
    (tmp_path / "giant.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(pv.RequestError, match=r"giant\.png"):
        pv.load_data(str(tmp_path))


def test_an_archive_that_would_unpack_to_a_giant_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "a.npz", images=np.zeros((1000, 50, 50), dtype=np.uint8))
    monkeypatch.setattr("pyro_vae.files.BYTES", 1_000_000)
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    with pytest.raises(pv.RequestError, match="use fewer or smaller images"):
        pv.load_data(str(tmp_path / "a.npz"))


def test_a_download_that_fails_leaves_empty_folders_of_the_users(tmp_path, offline):
    (tmp_path / "keep" / "empty").mkdir(parents=True)
    (tmp_path / "MNIST").mkdir()
    with pytest.raises(pv.RequestError, match="could not be downloaded"):
        load_data("mnist", tmp_path)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["MNIST", "empty", "keep"]


@pytest.mark.parametrize("shape", [(20, 2, 5, 4), (20, 5, 7, 3), (20, 2, 6, 1), (20, 3, 9, 9)])
def test_few_pixels_are_not_taken_for_channels(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    assert pv.load_data(str(tmp_path / "a.npy")).shape == shape[1:]


def test_a_size_that_no_memory_holds_is_refused(tmp_path):
    with pytest.raises(pv.RequestError, match="image_size must be 1 to"):
        pv.load_data("digits", image_size=100_000)
    np.save(tmp_path / "a.npy", np.full((20_000, 2, 2), 9, dtype=np.uint8))
    with pytest.raises(pv.RequestError, match="use a smaller image_size"):
        pv.load_data(str(tmp_path / "a.npy"), image_size=1000)


def test_the_fingerprint_is_that_of_the_images(digits):
    assert digits.fingerprint == pv.load_data("digits").fingerprint
    assert digits.fingerprint != pv.load_data("digits", binarization="static").fingerprint


def test_bytes_of_0_and_1_are_said_to_be_nearly_black(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).integers(0, 2, (20, 5, 5), dtype=np.uint8))
    said = []
    load_data(str(tmp_path / "a.npy"), say=said.append)
    assert "nearly black: for black and white save bools" in said[0]
