"""The readers of CIFAR-10 and CIFAR-100 on files written here in the true formats."""

import io
import pickle
import re
import struct
import tarfile
from typing import ClassVar

import numpy as np
import pytest

from zosam_jax import data

LABELS = {"cifar10": b"labels", "cifar100": b"fine_labels"}
FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
TRAIN = {"cifar10": [f"data_batch_{i}" for i in range(1, 6)], "cifar100": ["train"]}
TEST = {"cifar10": "test_batch", "cifar100": "test"}
NUM_CLASSES = {"cifar10": 10, "cifar100": 100}


class Python2Pickler(pickle._Pickler):
    """Writes every string as Python 2 did: as bytes, under SHORT_BINSTRING and BINSTRING."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)

    def save_string(self, value):
        encoded = value if isinstance(value, bytes) else value.encode("latin1")
        if len(encoded) < 256:
            self.write(pickle.SHORT_BINSTRING + bytes([len(encoded)]) + encoded)
        else:
            self.write(pickle.BINSTRING + struct.pack("<i", len(encoded)) + encoded)
        self.memoize(value)

    dispatch[bytes] = dispatch[str] = save_string


def python2_dumps(batch):
    """The pickle that Python 2 and NumPy 1 would have written, as they wrote the real files."""
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(batch)
    return stream.getvalue().replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")


def python3_dumps(batch):
    return pickle.dumps(batch, protocol=2)


def make_images(count, seed=0):
    return np.random.default_rng(seed).integers(256, size=(count, 32, 32, 3), dtype=np.uint8)


def make_batch(name, images, labels):
    """Channel-major rows under the keys of the real files."""
    rows = np.stack([image.transpose(2, 0, 1).ravel() for image in images])
    return {
        b"batch_label": b"training batch 1 of 5",
        LABELS[name]: list(map(int, labels)),
        **({b"coarse_labels": [7] * len(labels)} if name == "cifar100" else {}),
        b"data": rows,
        b"filenames": [b"leptodactylus_pentadactylus_s_000004.png"] * len(labels),
    }


def make_files(name, dumps=python3_dumps, per_batch=4):
    """The contents of the files, and the images and labels in their order."""
    images = make_images(per_batch * (len(TRAIN[name]) + 1))
    labels = np.arange(len(images)) * 7 % NUM_CLASSES[name]
    files = {}
    for i, file in enumerate([*TRAIN[name], TEST[name]]):
        rows = slice(i * per_batch, (i + 1) * per_batch)
        files[file] = dumps(make_batch(name, images[rows], labels[rows]))
    return files, images, labels


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def write_archive(path, folder, files):
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def check(dataset, images, labels, test_images=4):
    np.testing.assert_array_equal(dataset.train.images, images[:-test_images])
    np.testing.assert_array_equal(dataset.test.images, images[-test_images:])
    np.testing.assert_array_equal(dataset.train.labels, labels[:-test_images])
    np.testing.assert_array_equal(dataset.test.labels, labels[-test_images:])
    assert dataset.train.labels.dtype == np.int32


@pytest.mark.parametrize("dumps", [python2_dumps, python3_dumps])
@pytest.mark.parametrize("place", ["itself", "parent", "archive"])
@pytest.mark.parametrize("name", LABELS)
def test_order_labels_and_colours_of_the_python_batches(tmp_path, name, place, dumps):
    files, images, labels = make_files(name, dumps)
    if place == "archive":
        write_archive(tmp_path / ARCHIVES[name], FOLDERS[name], files)
    else:
        write(tmp_path / (FOLDERS[name] if place == "parent" else ""), files)
    dataset = data.load(name, tmp_path)
    check(dataset, images, labels)
    assert dataset.num_classes == NUM_CLASSES[name]
    assert dataset.pixel_mean[0] == pytest.approx(
        255 * (0.4914 if dataset.num_classes == 10 else 0.5071)
    )


def test_the_pickles_are_those_of_python_2():
    content = python2_dumps(make_batch("cifar10", make_images(1), [3]))
    assert content.startswith(b"\x80\x02}")
    assert b"U\x04data" in content
    assert b"cnumpy.core.multiarray\n_reconstruct\n" in content
    assert b"_codecs" not in content


def test_a_red_image_is_red(tmp_path):
    red = np.zeros((1, 32, 32, 3), np.uint8)
    red[..., 0] = 255
    files, _, _ = make_files("cifar10")
    write(tmp_path, files | {"test_batch": python2_dumps(make_batch("cifar10", red, [0]))})
    np.testing.assert_array_equal(data.load("cifar10", tmp_path).test.images, red)


class Malicious:
    def __reduce__(self):
        return print, ("owned",)


def changed(**entries):
    batch = make_batch("cifar10", make_images(4), range(4))
    return python3_dumps(batch | {key.encode(): value for key, value in entries.items()})


BROKEN = {
    "is damaged, truncated or no batch of cifar-10-batches-py": lambda good: good[:-100],
    "batch of cifar-10-batches-py (UnpicklingError: it ends too early": lambda good: b"",
    r"(UnpicklingError: b'\x1f' is no instruction": lambda good: b"\x1f\x8b" + good,
    "(UnpicklingError: 3 bytes follow its end": lambda good: good + b"abc",
    "batch of cifar-10-batches-py (TypeError": lambda good: python3_dumps([1, 2]),
    "(KeyError: b'labels')": lambda good: python3_dumps({b"data": np.zeros((1, 3072), np.uint8)}),
    "it refers to 'builtins', 'print'": lambda good: pickle.dumps(Malicious()),
    "data of shape (4, 3071) and 4 labels, where (N, 3072) and N": lambda good: changed(
        data=np.zeros((4, 3071), np.uint8)
    ),
    "data of type float32, where a uint8 array": lambda good: changed(
        data=np.zeros((4, 3072), np.float32)
    ),
    "data of type list, where a uint8 array": lambda good: changed(data=[[0] * 3072]),
    "data of shape (4, 3072) and 3 labels": lambda good: changed(labels=[1, 2, 3]),
    "data of shape (0, 3072) and 0 labels": lambda good: changed(
        data=np.zeros((0, 3072), np.uint8), labels=[]
    ),
    "the labels are not a list of integers": lambda good: changed(labels=[0.0, 1.0, 2.0, 3.0]),
    "gives image 3 the label 10, where 0 to 9 are expected": lambda good: changed(
        labels=[0, 1, 2, 10]
    ),
    "gives image 0 the label -1, where 0 to 9 are expected": lambda good: changed(
        labels=[-1, 0, 1, 2]
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_a_broken_batch_is_named_with_what_is_wrong(tmp_path, capsys, message):
    files, _, _ = make_files("cifar10")
    files["data_batch_3"] = BROKEN[message](files["data_batch_3"])
    write(tmp_path, files)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        data.load("cifar10", tmp_path)
    assert str(caught.value).startswith(str(tmp_path / "data_batch_3"))
    assert capsys.readouterr().out == ""


def test_a_missing_batch_is_named(tmp_path):
    files, _, _ = make_files("cifar10")
    del files["data_batch_1"], files["test_batch"]
    write(tmp_path / FOLDERS["cifar10"], files)
    with pytest.raises(FileNotFoundError, match="batches-py lacks data_batch_1, test_batch"):
        data.load("cifar10", tmp_path)


def test_a_truncated_archive_is_named(tmp_path):
    files, _, _ = make_files("cifar10")
    path = tmp_path / ARCHIVES["cifar10"]
    write_archive(path, FOLDERS["cifar10"], files)
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(ValueError, match=rf"^{path} is a damaged or truncated archive"):
        data.load("cifar10", tmp_path)


def test_an_archive_without_a_batch_says_which(tmp_path):
    files, _, _ = make_files("cifar100")
    del files["train"]
    write_archive(tmp_path / ARCHIVES["cifar100"], FOLDERS["cifar100"], files)
    with pytest.raises(FileNotFoundError, match=r"cifar-100-python.tar.gz lacks train\."):
        data.load("cifar100", tmp_path)


@pytest.mark.parametrize("name", LABELS)
def test_an_empty_or_missing_folder_says_what_belongs_there(tmp_path, name):
    for folder in (tmp_path, tmp_path / "none"):
        with pytest.raises(FileNotFoundError, match=f"neither {FOLDERS[name]}, nor .*kriz") as e:
            data.load(name, folder)
        assert str(e.value).startswith(str(folder))
