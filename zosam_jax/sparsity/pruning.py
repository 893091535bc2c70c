"""Masks chosen before training."""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax.errors import check_number
from zosam_jax.keys import as_key
from zosam_jax.sparsity import distributions
from zosam_jax.trees import Array, PyTree

Where: TypeAlias = Callable[[str, Array], bool]


def is_weight(path: str, leaf: Array) -> bool:
    """The default choice of what to mask: arrays of two dimensions or more.

    That takes the kernels of dense and convolutional layers and leaves biases and the scales of
    normalisations dense.
    """
    del path
    return jnp.ndim(leaf) >= 2 and jnp.issubdtype(jnp.result_type(leaf), jnp.floating)


def random(
    params: PyTree,
    sparsity: float,
    *,
    distribution: str | distributions.Distribution = "erk",
    where: Where = is_weight,
    key: int | Array = 0,
) -> PyTree:
    """Keeps weights at random, with exact counts.

    Args:
      params: the parameters; gives the shapes.
      sparsity: the fraction of the maskable weights that becomes zero, 0 ≤ s < 1.
      distribution: how the budget is shared among layers: "erk" (Erdős–Rényi-kernel), "uniform",
        or a function (`zosam_jax.sparsity.distributions`).
      where: (path, leaf) → bool, which parameters to mask; path as in "['Dense_0']['kernel']".
      key: a seed or a random key.

    Returns:
      A pytree like `params`: a bool array for a masked parameter, None for a dense one.

    Raises:
      ValueError: for a sparsity outside [0, 1), one that would empty an array, or a `where` that
        finds nothing to mask.
    """
    check_number("sparsity", sparsity, above=0.0, inclusive=True)
    if sparsity >= 1:
        raise ValueError(f"sparsity={sparsity!r} must be below 1: it is the fraction of zeros.")
    leaves, structure = jax.tree.flatten_with_path(params)
    chosen = [i for i, (path, leaf) in enumerate(leaves) if where(jax.tree_util.keystr(path), leaf)]
    if not chosen:
        raise ValueError("where= finds no parameter to mask among the given ones.")
    kept = distributions.get(distribution)([leaves[i][1].shape for i in chosen], sparsity)
    leaf_keys = jax.random.split(as_key(key), len(chosen))
    masks: list[Array | None] = [None] * len(leaves)
    for i, count, leaf_key in zip(chosen, kept, leaf_keys, strict=True):
        shape = leaves[i][1].shape
        ranks = jax.random.permutation(leaf_key, leaves[i][1].size)
        masks[i] = (ranks < count).reshape(shape)
    return jax.tree.unflatten(structure, masks)
