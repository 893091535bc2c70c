"""Data sets of images, in memory or read image by image, and of texts."""

from zosam_jax.data.cifar10_c import cifar10_c
from zosam_jax.data.corruptions import BENCHMARK_CORRUPTIONS, CORRUPTIONS, corrupt
from zosam_jax.data.dataset import Dataset, Split, TextInfo, from_arrays
from zosam_jax.data.load import DATASETS, from_npz, load, load_records, load_texts
from zosam_jax.data.packing import labelled, masked_tokens, next_tokens
from zosam_jax.data.texts import Texts
from zosam_jax.data.tokenization import Tokenizer, tokenizer

__all__ = [
    "BENCHMARK_CORRUPTIONS",
    "CORRUPTIONS",
    "DATASETS",
    "Dataset",
    "Split",
    "TextInfo",
    "Texts",
    "Tokenizer",
    "cifar10_c",
    "corrupt",
    "from_arrays",
    "from_npz",
    "labelled",
    "load",
    "load_records",
    "load_texts",
    "masked_tokens",
    "next_tokens",
    "tokenizer",
]
