"""Data sets for image classification: in memory, or read image by image."""

from zosam_jax.data.cifar10_c import cifar10_c
from zosam_jax.data.corruptions import BENCHMARK_CORRUPTIONS, CORRUPTIONS, corrupt
from zosam_jax.data.dataset import Dataset, Split, from_arrays
from zosam_jax.data.load import DATASETS, from_npz, load, load_records

__all__ = [
    "BENCHMARK_CORRUPTIONS",
    "CORRUPTIONS",
    "DATASETS",
    "Dataset",
    "Split",
    "cifar10_c",
    "corrupt",
    "from_arrays",
    "from_npz",
    "load",
    "load_records",
]
