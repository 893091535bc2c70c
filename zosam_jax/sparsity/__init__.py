"""Sparse training: which weights exist, who decides it, and keeping the others at zero."""

from zosam_jax.sparsity import distributions
from zosam_jax.sparsity.masks import apply_masks, get_masks, sparsity_of
from zosam_jax.sparsity.pruning import is_weight, random
from zosam_jax.sparsity.wrapper import SparseState, fixed

__all__ = [
    "SparseState",
    "apply_masks",
    "distributions",
    "fixed",
    "get_masks",
    "is_weight",
    "random",
    "sparsity_of",
]
