"""Data sets for image classification, small enough to live on the device."""

from zosam_jax.data.dataset import Dataset, Split
from zosam_jax.data.load import DATASETS, load

__all__ = ["DATASETS", "Dataset", "Split", "load"]
