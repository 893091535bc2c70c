"""Data sets by name."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from zosam_jax.data import files, glue, texts
from zosam_jax.data.cifar import cifar10, cifar100
from zosam_jax.data.dataset import Dataset, Split, check_labels, from_arrays, from_splits
from zosam_jax.data.idx import read_idx
from zosam_jax.data.texts import Texts
from zosam_jax.errors import check_one_of

if TYPE_CHECKING:
    from zosam_jax.data.records import Records  # Its Pillow is an extra.

_DIGITS_SPLIT_SEED = 0
_DIGITS_TEST_IMAGES = 360
_CLOTHES = (
    *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_HELD_OUT = ("x_validation", "y_validation")


def digits(data_dir: Path | None = None) -> Dataset:
    """Scikit-learn's bundled handwritten digits: 1,797 images of 8×8 pixels in 17 grey levels.

    The last 360 of a fixed permutation are the test split. Nothing is read from `data_dir`.
    """
    del data_dir
    try:
        from sklearn.datasets import load_digits  # noqa: PLC0415 (an extra)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn: pip install 'zosam_jax[train]'."
        ) from error
    bunch = load_digits()
    images = bunch.images.astype(np.uint8)[..., None]
    everything = Split(images, bunch.target.astype(np.int32))
    order = np.random.default_rng(_DIGITS_SPLIT_SEED).permutation(len(everything))
    train, test = order[:-_DIGITS_TEST_IMAGES], order[-_DIGITS_TEST_IMAGES:]
    digits = from_splits(everything.take(train), everything.take(test), num_classes=10)
    return digits._replace(class_names=tuple("0123456789"))


def fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 grey pixels, 10 classes.

    Args:
      data_dir: the folder of the four IDX files, under their usual names
        (train-images-idx3-ubyte, …), gzip-compressed (.gz) or not.

    Reference: Xiao et al., Fashion-MNIST, https://arxiv.org/abs/1708.07747
    """
    if data_dir is None:
        raise ValueError("dataset='fashion-mnist' is read from files: pass --data-dir DIR.")
    train, test = _idx_split(data_dir, "train"), _idx_split(data_dir, "t10k")
    sizes = ["×".join(map(str, split.images.shape[1:3])) for split in (train, test)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"the t10k images in {data_dir} have {sizes[1]} pixels and the train images {sizes[0]}:"
            " they must have the same."
        )
    return from_splits(train, test, num_classes=10)._replace(class_names=_CLOTHES)


def _idx_split(data_dir: Path, prefix: str) -> Split:
    images = read_idx(_find(data_dir, f"{prefix}-images-idx3-ubyte"))
    label_file = _find(data_dir, f"{prefix}-labels-idx1-ubyte")
    labels = read_idx(label_file)
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"the {prefix} files in {data_dir} do not fit: images of shape {images.shape} and "
            f"labels of shape {labels.shape}, where (N, height, width) and (N,) are expected."
        )
    check_labels(labels, 10, str(label_file))
    return Split(images[..., None], labels.astype(np.int32))


def _find(data_dir: Path, name: str) -> Path:
    path = files.find(data_dir / name, data_dir / f"{name}.gz")
    if path is not None:
        return path
    raise FileNotFoundError(
        f"{data_dir} holds neither {name} nor {name}.gz. The four IDX files are at "
        "https://github.com/zalandoresearch/fashion-mnist and, on Debian, in the package "
        "dataset-fashion-mnist (/usr/share/datasets/fashion-mnist)."
    )


def from_npz(path: Path) -> Dataset:
    """A data set in one NumPy file; see `dataset.from_arrays` for what the arrays may be.

    Args:
      path: of a .npz with the arrays x_train, y_train, x_test and y_test and, if there are any,
        x_validation, y_validation and class_names.

    Raises:
      ValueError: if the file cannot be read, lacks an array, or the arrays do not fit. Arrays of
        Python objects are refused: to read them would execute code.
    """
    if problem := files.fault(path):
        raise ValueError(f"dataset={str(path)!r} {problem}.")
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zip, zlib and NumPy each have their own
        raise ValueError(f"{path} cannot be read: {files.one_line(error)}") from error
    missing = [name for name in _ARRAYS if name not in arrays]
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise ValueError(f"{path} lacks the array {', '.join(missing)}; it holds {found}.")
    x_train, y_train, x_test, y_test = (arrays[name] for name in _ARRAYS)
    names = arrays["class_names"].tolist() if "class_names" in arrays else None
    held_out = [arrays[name] for name in _HELD_OUT if name in arrays]
    try:
        return from_arrays(
            (x_train, y_train),
            (x_test, y_test),
            held_out or None,
            class_names=names,
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "cifar100": cifar100,
}

NPZ = ".npz"
_HUB_PREFIX = "hub:"
_IMAGENET = "ILSVRC/imagenet-1k"
_RECORDS = ("imagenet", "folder", f"{_HUB_PREFIX}OWNER/NAME")


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    image_size: int | None = None,
    label: str | None = None,
) -> Dataset:
    """Loads a data set into memory.

    Args:
      name: one of DATASETS, a file that ends in .npz (`from_npz`), or a name that `load_records`
        knows.
      data_dir: the folder that its files are in.
      image_size: scale the shorter side to so many pixels and cut out the central square; for
        what `load_records` knows.
      label: the column of labels, if there are several; likewise.

    Returns:
      The data set; images are uint8, labels int32.

    Raises:
      ValueError: for an unknown name, an option that the data set has no use for, or a file that is
        damaged or holds something else.
      FileNotFoundError: if a file is missing, saying where such files come from.
      ConnectionError: if the hub is needed and cannot be reached.
      ModuleNotFoundError: if a library is missing, naming the extra that brings it.
    """
    if data_dir is not None:
        files.check_name(data_dir)
    if name in DATASETS or name.endswith(NPZ):
        for option, value in (("image_size", image_size), ("label", label)):
            if value is not None:
                raise ValueError(
                    f"{option}={value!r} is for {', '.join(_RECORDS)}; {name} has no use for it."
                )
        if name.endswith(NPZ):
            return from_npz((data_dir or Path()) / name)
        return DATASETS[name](data_dir)
    source = _source(name, data_dir, choices=(*DATASETS, f"FILE{NPZ}", *_RECORDS))
    from zosam_jax.data import hub  # noqa: PLC0415 (an extra)

    return hub.in_memory(*hub.records(source, label=label), image_size=image_size)


def load_records(
    name: str, data_dir: Path | None = None, *, label: str | None = None
) -> tuple["Records", "Records"]:
    """The training and the test split of a data set, decoded image by image.

    Args:
      name: "imagenet" (ImageNet-1K, from the Hugging Face hub unless `data_dir` is given), "folder"
        (`data_dir` itself) or "hub:OWNER/NAME" (likewise from the hub unless `data_dir` is given).
      data_dir: a folder of parquet files or of images in SPLIT/CLASS/IMAGE; see `hub.records`.
      label: the column of labels, if there are several.

    Returns:
      (training, test), as `hub.records` returns them.

    Raises:
      ValueError, FileNotFoundError, ConnectionError, ModuleNotFoundError: as `load`.
    """
    source = _source(name, data_dir, choices=_RECORDS)
    from zosam_jax.data import hub  # noqa: PLC0415 (an extra)

    return hub.records(source, label=label)


_TEXT_FILES = (".txt", ".jsonl")
_GLUE_PREFIX = "glue:"


def load_texts(name: str, data_dir: Path | None = None, *, label: str | None = None) -> Texts:
    """Loads texts into memory.

    Args:
      name: "python-topics" or "python-docstrings", which come with Python; FILE.txt or FILE.jsonl
        (a JSON object with "text" a line, perhaps with "second" and "label"); "folder" (`data_dir`
        itself, see `texts.of_folder`); "glue:TASK", from `data_dir`'s TSV files or from the hub; or
        "hub:OWNER/NAME".
      data_dir: the folder that files are in.
      label: the column of labels; by default "label", where there is one.

    Raises:
      ValueError: for an unknown name, or a file that is empty, no UTF-8 or not in its format.
      FileNotFoundError, ConnectionError, ModuleNotFoundError: as `load`.
    """
    if data_dir is not None:
        files.check_name(data_dir)
    if name in texts.EMBEDDED:
        return texts.EMBEDDED[name]()
    if name.endswith(_TEXT_FILES):
        return texts.of_file((data_dir or Path()) / name, label)
    if name == "folder":
        return texts.of_folder(_folder(data_dir), label)
    if name.startswith(_GLUE_PREFIX):
        task = name.removeprefix(_GLUE_PREFIX)
        check_one_of("dataset", task, tuple(glue.TASKS))
        return glue.from_hub(task) if data_dir is None else glue.of_files(task, data_dir)
    if name.startswith(_HUB_PREFIX):
        from zosam_jax.data import hub  # noqa: PLC0415 (an extra)

        found = hub.texts(name.removeprefix(_HUB_PREFIX), label=label)
        return texts.with_test(name, found)
    known = (*texts.EMBEDDED, "FILE.txt", "FILE.jsonl", "folder", "glue:TASK", "hub:OWNER/NAME")
    raise ValueError(f"dataset={name!r} is no text; choose one of {', '.join(known)}.")


def _folder(data_dir: Path | None) -> Path:
    if data_dir is None:
        raise ValueError("dataset='folder' is read from files: pass --data-dir DIR.")
    return data_dir


def _source(name: str, data_dir: Path | None, choices: tuple[str, ...]) -> str | Path:
    """The folder if there is one, else the name on the hub."""
    if not (name in ("imagenet", "folder") or name.startswith(_HUB_PREFIX)):
        raise ValueError(f"dataset={name!r} is not known; choose one of {', '.join(choices)}.")
    if data_dir is not None:
        files.check_name(data_dir)
        return data_dir
    if name == "folder":
        return _folder(data_dir)
    return _IMAGENET if name == "imagenet" else name.removeprefix(_HUB_PREFIX)
