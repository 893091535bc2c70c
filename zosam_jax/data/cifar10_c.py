"""CIFAR-10-C: the test images of CIFAR-10 under 19 kinds of corruption at five severities."""

from pathlib import Path

import numpy as np

from zosam_jax.data import files
from zosam_jax.data.corruptions import SEVERITIES, check_corruption
from zosam_jax.data.dataset import Split, check_labels


def cifar10_c(data_dir: Path, corruption: str, severity: int) -> Split:
    """One corruption of the CIFAR-10 test images at one severity, mapped from its file.

    CORRUPTION.npy holds uint8 images (50,000, 32, 32, 3): five blocks of the 10,000 test images,
    one for each severity in turn. labels.npy (50,000,) holds their labels in the same order.

    Args:
      data_dir: the folder of these files, or the one that holds it as CIFAR-10-C.
      corruption: one of CORRUPTIONS.
      severity: 1, …, 5.

    Returns:
      10,000 images of 32×32 pixels, read from the file as they are asked for, and their labels.

    Raises:
      ValueError: for another corruption or severity, or if a file is damaged or of another shape.
      FileNotFoundError: if a file is missing, saying where such files come from.

    Reference: Hendrycks and Dietterich, Benchmarking Neural Network Robustness to Common
      Corruptions and Perturbations, https://arxiv.org/abs/1903.12261
    """
    check_corruption(corruption, severity)
    files.check_name(data_dir)
    images, labels = _map(data_dir, corruption), _map(data_dir, "labels")
    _check(images, labels, data_dir, corruption)
    block = len(labels) // len(SEVERITIES)
    chosen = slice((severity - 1) * block, severity * block)
    return Split(images[chosen], labels[chosen].astype(np.int32))


def _map(data_dir: Path, name: str) -> np.ndarray:
    path = files.find(data_dir / f"{name}.npy", data_dir / "CIFAR-10-C" / f"{name}.npy")
    if path is not None:
        try:
            return np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # Of a header, which is parsed as Python, errors of any kind.
            raise ValueError(
                f"{path} is damaged, truncated or no array: {files.one_line(error)}"
            ) from error
    raise FileNotFoundError(
        f"{data_dir} does not hold {name}.npy: unpack CIFAR-10-C.tar there, from "
        "https://zenodo.org/records/2535967."
    )


def _check(images: np.ndarray, labels: np.ndarray, data_dir: Path, corruption: str) -> None:
    n = len(labels) if labels.ndim else 0
    whole = labels.shape == (n,) and n > 0 and n % len(SEVERITIES) == 0
    if not whole or images.shape != (n, 32, 32, 3) or images.dtype != np.uint8:
        raise ValueError(
            f"{corruption}.npy and labels.npy in {data_dir} hold {images.dtype}{images.shape} and "
            f"{labels.dtype}{labels.shape}, where uint8(5·N, 32, 32, 3) and integers (5·N,) are "
            "expected."
        )
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels.npy in {data_dir} must hold integers, not {labels.dtype}.")
    check_labels(labels, 10, f"labels.npy in {data_dir}")
