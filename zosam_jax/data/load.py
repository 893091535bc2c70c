"""Data sets by name."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from zosam_jax.data.dataset import Dataset, Split, from_splits
from zosam_jax.data.idx import read_idx

_DIGITS_SPLIT_SEED = 0
_DIGITS_TEST_IMAGES = 360


def digits(data_dir: Path | None = None) -> Dataset:
    """Scikit-learn's bundled handwritten digits: 1,797 images of 8×8 pixels in 17 grey levels.

    The last 360 of a fixed permutation are the test split. Nothing is read from `data_dir`.

    Raises:
      ModuleNotFoundError: if scikit-learn is missing, naming the extra that brings it.
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
    return from_splits(everything.take(train), everything.take(test), num_classes=10)


def fashion_mnist(data_dir: Path | None = None) -> Dataset:
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28×28 grey pixels, 10 classes.

    Args:
      data_dir: the folder of the four IDX files, under their usual names
        (train-images-idx3-ubyte, …), gzip-compressed (.gz) or not.

    Raises:
      ValueError: without a folder, or if a file is damaged or does not fit its companion.
      FileNotFoundError: if a file is missing, saying where such files come from.

    Reference: Xiao et al., Fashion-MNIST, https://arxiv.org/abs/1708.07747
    """
    if data_dir is None:
        raise ValueError("dataset='fashion-mnist' is read from files: pass --data-dir DIR.")
    return from_splits(_idx_split(data_dir, "train"), _idx_split(data_dir, "t10k"), num_classes=10)


def _idx_split(data_dir: Path, prefix: str) -> Split:
    images = read_idx(_find(data_dir, f"{prefix}-images-idx3-ubyte"))
    labels = read_idx(_find(data_dir, f"{prefix}-labels-idx1-ubyte"))
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise ValueError(
            f"the {prefix} files in {data_dir} do not fit: images of shape {images.shape} and "
            f"labels of shape {labels.shape}, where (N, height, width) and (N,) are expected."
        )
    return Split(images[..., None], labels.astype(np.int32))


def _find(data_dir: Path, name: str) -> Path:
    for path in (data_dir / name, data_dir / f"{name}.gz"):
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"{data_dir} holds neither {name} nor {name}.gz. The four IDX files are at "
        "https://github.com/zalandoresearch/fashion-mnist and, on Debian, in the package "
        "dataset-fashion-mnist (/usr/share/datasets/fashion-mnist)."
    )


DATASETS: dict[str, Callable[[Path | None], Dataset]] = {
    "digits": digits,
    "fashion-mnist": fashion_mnist,
}


def load(name: str, data_dir: Path | None = None) -> Dataset:
    """Loads a data set by its name in DATASETS.

    Raises:
      ValueError: for an unknown name; else what the data set's own function raises.
    """
    if name not in DATASETS:
        raise ValueError(f"dataset={name!r} is not known; choose one of {', '.join(DATASETS)}.")
    return DATASETS[name](data_dir)
