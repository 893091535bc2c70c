"""CIFAR-10 and CIFAR-100: 60,000 colour photographs of 32×32 pixels."""

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from zosam_jax.data import files, plain_pickle
from zosam_jax.data.dataset import Dataset, Split, check_labels, from_splits

_SHAPE = (32, 32, 3)
# Of a batch, and of an archive unpacked; those of both sets have less than 0.2 GB.
_MOST_BYTES = 2**29
_MOST_MEMBERS = 1000
_BLOCK = 2**18


class _Layout(NamedTuple):
    """Where a data set is, how its files name things, and the scale of its pixels.

    `mean` and `sd` are those by which GraSP's and MEST's code normalises, in shares of 255.
    CIFAR-10's sd is a mean over images, and smaller than that of all pixels (0.247, 0.243, 0.262).
    """

    repository: str
    label_column: str
    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    label_key: bytes
    num_classes: int
    mean: tuple[float, float, float]
    sd: tuple[float, float, float]
    class_names: tuple[str, ...] | None = None  # the hub's own, if there are any


_CIFAR10 = _Layout(
    repository="uoft-cs/cifar10",
    label_column="label",
    folder="cifar-10-batches-py",
    archive="cifar-10-python.tar.gz",
    train=tuple(f"data_batch_{i}" for i in range(1, 6)),
    test="test_batch",
    label_key=b"labels",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    sd=(0.2023, 0.1994, 0.2010),
    class_names=(
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
)
_CIFAR100 = _Layout(
    repository="uoft-cs/cifar100",
    label_column="fine_label",
    folder="cifar-100-python",
    archive="cifar-100-python.tar.gz",
    train=("train",),
    test="test",
    label_key=b"fine_labels",
    num_classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    sd=(0.2675, 0.2565, 0.2761),
)


def cifar10(data_dir: Path | None = None) -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test images of 32×32 colour pixels, 10 classes.

    Args:
      data_dir: the folder that holds the Python version of the data set, as the archive
        cifar-10-python.tar.gz or unpacked (cifar-10-batches-py, or what is in it), or else the
        hub's parquet files. Without it, uoft-cs/cifar10 on the Hugging Face hub.

    Reference: Krizhevsky, Learning Multiple Layers of Features from Tiny Images (2009)
    """
    return _load(_CIFAR10, data_dir)


def cifar100(data_dir: Path | None = None) -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test images of 32×32 colour pixels, 100 classes.

    The labels are the 100 fine ones. Files and reference are those of `cifar10`, with
    cifar-100-python.tar.gz, cifar-100-python and uoft-cs/cifar100.
    """
    return _load(_CIFAR100, data_dir)


def _load(layout: _Layout, data_dir: Path | None) -> Dataset:
    dataset = _read(layout, data_dir)
    return dataset._replace(
        pixel_mean=tuple(255 * m for m in layout.mean),
        pixel_sd=tuple(255 * s for s in layout.sd),
        class_names=layout.class_names or dataset.class_names,
    )


def _read(layout: _Layout, data_dir: Path | None) -> Dataset:
    if data_dir is None or any(data_dir.rglob("*.parquet")):
        return _from_parquet(layout, data_dir or layout.repository)
    place, contents = _find_batches(layout, data_dir)
    batches = {
        name: _parse_batch(layout, content, place / name) for name, content in contents.items()
    }
    train = Split(
        np.concatenate([batches[name].images for name in layout.train]),
        np.concatenate([batches[name].labels for name in layout.train]),
    )
    return from_splits(train, batches[layout.test], layout.num_classes)


def _from_parquet(layout: _Layout, source: str | Path) -> Dataset:
    from zosam_jax.data import hub  # noqa: PLC0415 (an extra)

    dataset = hub.in_memory(*hub.records(source, label=layout.label_column))
    shape = dataset.train.images.shape[1:]
    if (shape, dataset.num_classes) != (_SHAPE, layout.num_classes):
        raise ValueError(
            f"{source} holds images of shape {shape} in {dataset.num_classes} classes, where "
            f"{_SHAPE} and {layout.num_classes} are expected."
        )
    return dataset


def _find_batches(layout: _Layout, data_dir: Path) -> tuple[Path, dict[str, bytes]]:
    """The place of the batches, and their contents by name."""
    names = (*layout.train, layout.test)
    for folder in (data_dir, data_dir / layout.folder):
        paths = {name: files.find(folder / name) for name in names}
        contents = {name: files.read(path, _MOST_BYTES) for name, path in paths.items() if path}
        if contents:
            return folder, _complete(names, contents, folder)
    archive = files.find(data_dir / layout.archive)
    if archive is not None:
        return archive, _complete(names, _unpack(archive, names), archive)
    raise FileNotFoundError(
        f"{data_dir} holds neither {layout.folder}, nor {layout.archive}, nor parquet files. The "
        "archive is at https://www.cs.toronto.edu/~kriz/cifar.html, the parquet files are at "
        f"https://huggingface.co/datasets/{layout.repository}."
    )


def _complete(names: tuple[str, ...], contents: dict[str, bytes], place: Path) -> dict[str, bytes]:
    missing = [name for name in names if name not in contents]
    if missing:
        raise FileNotFoundError(f"{place} lacks {', '.join(missing)}.")
    return contents


def _unpack(archive: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    contents = {}
    try:
        with files.open_maybe_gzip(archive) as file:
            bounded: Any = files.Bounded(file, _MOST_BYTES)
            with tarfile.open(fileobj=bounded, mode="r|", bufsize=_BLOCK) as tar:
                for number, member in enumerate(tar):
                    if number == _MOST_MEMBERS:
                        raise ValueError(f"it has more than {_MOST_MEMBERS} members")
                    name = os.path.basename(member.name)
                    if name in names and not member.isdir():
                        contents[name] = _member(tar, member)
            while bounded.read(_BLOCK):  # To the end, where gzip keeps its checksum.
                pass
    except Exception as error:  # The libraries of compression raise errors of several kinds.
        raise ValueError(
            f"{archive} is a damaged or truncated archive: {files.one_line(error)}."
        ) from error
    return contents


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    content = (
        tar.extractfile(member) if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) else None
    )
    if content is None:
        raise ValueError(f"{os.path.basename(member.name)} in it is a link or a device, not a file")
    return content.read()


def _parse_batch(layout: _Layout, content: bytes, path: Path) -> Split:
    """Rows of 3·32·32 bytes, one colour plane after the other → (N, 32, 32, 3), and the labels."""
    try:
        batch = plain_pickle.loads(content)
        rows, labels = batch[b"data"], _integers(batch[layout.label_key])
    except (pickle.UnpicklingError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(
            f"{path} is damaged, truncated or no batch of {layout.folder} "
            f"({type(error).__name__}: {error})."
        ) from error
    if not isinstance(rows, np.ndarray) or rows.dtype != np.uint8:
        kind = rows.dtype if isinstance(rows, np.ndarray) else type(rows).__name__
        raise ValueError(f"{path} holds data of type {kind}, where a uint8 array is expected.")
    if not len(labels) or rows.shape != (len(labels), 3072):
        raise ValueError(
            f"{path} holds data of shape {rows.shape} and {len(labels)} labels, where (N, 3072) "
            "and N are expected, N of at least 1."
        )
    check_labels(labels, layout.num_classes, str(path))
    images = np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return Split(images, labels.astype(np.int32))


def _integers(labels: Any) -> npt.NDArray[np.integer]:
    """Labels in a list, as the true files have them, or in an array."""
    if isinstance(labels, np.ndarray) and labels.ndim == 1 and labels.dtype.kind in "iu":
        return labels
    # Nothing is made of a nested list, which may be one that contains itself.
    if isinstance(labels, list) and all(type(label) is int for label in labels):
        return np.array(labels, np.int64)
    raise TypeError("the labels are not a list of integers")
