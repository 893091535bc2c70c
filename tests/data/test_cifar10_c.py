"""The reader of CIFAR-10-C on small arrays in its format."""

import re

import numpy as np
import pytest

from zosam_jax import data

BLOCK = 4


@pytest.fixture
def arrays():
    """Five blocks in order of severity; the labels repeat."""
    images = np.random.default_rng(0).integers(256, size=(5 * BLOCK, 32, 32, 3), dtype=np.uint8)
    return {"fog": images, "labels": np.tile(np.array([3, 8, 8, 0], np.uint8), 5)}


def write(folder, arrays):
    folder.mkdir(exist_ok=True)
    for name, values in arrays.items():
        np.save(folder / f"{name}.npy", values, allow_pickle=True)


@pytest.mark.parametrize("severity", [1, 2, 5])
@pytest.mark.parametrize("folder", ["", "CIFAR-10-C"])
def test_a_severity_is_its_block(tmp_path, arrays, folder, severity):
    write(tmp_path / folder, arrays)
    split = data.cifar10_c(tmp_path, "fog", severity)
    first = (severity - 1) * BLOCK
    np.testing.assert_array_equal(split.images, arrays["fog"][first : first + BLOCK])
    np.testing.assert_array_equal(split.labels, [3, 8, 8, 0])
    assert split.labels.dtype == np.int32


def test_images_stay_in_their_file(tmp_path, arrays):
    write(tmp_path, arrays)
    assert isinstance(data.cifar10_c(tmp_path, "fog", 3).images, np.memmap)


@pytest.mark.parametrize(
    ("corruption", "severity", "message"),
    [
        ("rain", 1, "corruption='rain' is not known; choose one of 'gaussian_noise', "),
        ("labels", 1, "corruption='labels' is not known"),
        ("fog", 0, "severity=0 must be one of 1, 2, 3, 4, 5."),
        ("fog", 6, "severity=6 must be one of 1, 2, 3, 4, 5."),
        ("fog", "5", "severity='5' must be one of"),
    ],
)
def test_wrong_arguments(tmp_path, arrays, corruption, severity, message):
    write(tmp_path, arrays)
    with pytest.raises(ValueError, match=re.escape(message)):
        data.cifar10_c(tmp_path, corruption, severity)


@pytest.mark.parametrize("missing", ["fog", "labels"])
def test_a_missing_file_is_named(tmp_path, arrays, missing):
    del arrays[missing]
    write(tmp_path, arrays)
    with pytest.raises(FileNotFoundError, match=f"does not hold {missing}.npy: unpack CIFAR-10-C"):
        data.cifar10_c(tmp_path, "fog", 1)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("fog", lambda a: a[:-1], "hold uint8(19, 32, 32, 3) and uint8(20,), where uint8(5·N"),
        ("fog", lambda a: a.astype(np.float32), "hold float32(20, 32, 32, 3)"),
        ("fog", lambda a: a.transpose(0, 3, 1, 2), "hold uint8(20, 3, 32, 32)"),
        ("labels", lambda a: a[:, None], "and uint8(20, 1)"),
        ("labels", lambda a: a[0], "and uint8()"),
        ("labels", lambda a: a + 2, "labels.npy in {folder} gives image 1 the label 10, where 0"),
        ("labels", lambda a: a / 2, "labels.npy in {folder} must hold integers, not float64"),
        ("labels", lambda a: a.astype(object), "{folder}/labels.npy is damaged, truncated or no"),
    ],
)
def test_wrong_contents(tmp_path, arrays, name, change, message):
    write(tmp_path, arrays | {name: change(arrays[name])})
    with pytest.raises(ValueError, match=re.escape(message.format(folder=tmp_path))):
        data.cifar10_c(tmp_path, "fog", 1)


def test_blocks_must_be_whole(tmp_path, arrays):
    write(tmp_path, {name: values[:19] for name, values in arrays.items()})
    with pytest.raises(ValueError, match=r"uint8\(19,\), where uint8\(5·N, 32, 32, 3\)"):
        data.cifar10_c(tmp_path, "fog", 1)


@pytest.mark.parametrize("content", [lambda good: good[:-1], lambda good: b"", lambda good: b"PK"])
def test_a_damaged_file_is_named(tmp_path, arrays, content):
    write(tmp_path, arrays)
    path = tmp_path / "fog.npy"
    path.write_bytes(content(path.read_bytes()))
    with pytest.raises(ValueError, match=rf"^{path} is damaged, truncated or no array"):
        data.cifar10_c(tmp_path, "fog", 1)
