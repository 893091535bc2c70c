"""The IDX reader on files written here in the true format."""

import gzip
import re
import struct

import numpy as np
import pytest

from zosam_jax import data
from zosam_jax.data.idx import read_idx


def encode(values: np.ndarray) -> bytes:
    header = bytes((0, 0, 0x08, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape)
    return header + values.astype(np.uint8).tobytes()


@pytest.fixture
def images():
    return np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
def test_shape_order_and_values_survive(tmp_path, images, pack):
    path = tmp_path / "images"
    path.write_bytes(pack(encode(images)))
    np.testing.assert_array_equal(read_idx(path), images)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda good: good[:-1], "is truncated: 60 values expected for the shape (3, 4, 5), 59"),
        (lambda good: good + b"x", "has bytes left over"),
        (lambda good: good[:9], "its header of 16 bytes is incomplete"),
        (lambda good: b"\x89PNG" + good, "is not an IDX file of unsigned bytes"),
        (lambda good: b"", "is not an IDX file"),
        (lambda good: gzip.compress(good)[:-20], "damaged or truncated gzip file"),
    ],
)
def test_a_broken_file_is_named_with_what_is_wrong(tmp_path, images, content, message):
    path = tmp_path / "broken"
    path.write_bytes(content(encode(images)))
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_idx(path)
    assert str(path) in str(caught.value)


def write_fashion(folder, train=20, test=10, compress=True):
    rng = np.random.default_rng(0)
    for prefix, count in (("train", train), ("t10k", test)):
        contents = {
            f"{prefix}-images-idx3-ubyte": rng.integers(256, size=(count, 28, 28)),
            f"{prefix}-labels-idx1-ubyte": np.arange(count) % 10,
        }
        for name, values in contents.items():
            encoded = encode(values)
            if compress:
                (folder / f"{name}.gz").write_bytes(gzip.compress(encoded))
            else:
                (folder / name).write_bytes(encoded)


@pytest.mark.parametrize("compress", [True, False])
def test_fashion_mnist_from_a_folder(tmp_path, compress):
    write_fashion(tmp_path, compress=compress)
    dataset = data.load("fashion-mnist", tmp_path)
    assert dataset.train.images.shape == (20, 28, 28, 1)
    assert dataset.test.images.dtype == np.uint8
    np.testing.assert_array_equal(dataset.train.labels, np.arange(20) % 10)
    assert dataset.pixel_mean == pytest.approx([dataset.train.images.mean()])


def test_a_missing_file_says_which_and_where_to_get_it(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither t10k-labels-idx1-ubyte nor .*Debian"):
        data.load("fashion-mnist", tmp_path)


def test_companions_must_fit(tmp_path):
    write_fashion(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(encode(np.arange(7))))
    with pytest.raises(ValueError, match=r"the train files .* do not fit: .*\(20, 28, 28\)"):
        data.load("fashion-mnist", tmp_path)


def test_fashion_mnist_needs_a_folder():
    with pytest.raises(ValueError, match="pass --data-dir DIR"):
        data.load("fashion-mnist")
