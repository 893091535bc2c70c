"""Data too large for one pass: every analysis sees it as batches of equal size, one at a time.

The loop over batches runs on the host, around compiled functions, so that memory is that of one
batch. (A compiled loop would be no faster, and on a CPU XLA's convolutions lose their fast path
inside one.)
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax.trees import Array, Float, Num, PyTree

Batch: TypeAlias = Any
LossFn: TypeAlias = Callable[[PyTree, Batch], Float[Array, ""]]


def mean(
    evaluate: Callable[[Batch], PyTree[Num[Array, "..."]]], batches: Iterable[Batch]
) -> PyTree[Num[Array, "..."]]:
    """(1/n) Σ_b evaluate(b), with one result alive beside the sum.

    Args:
      evaluate: batch → a pytree of arrays, compiled by the caller.
      batches: of equal size; iterated over once in this call, and again in others.

    Returns:
      A pytree like one result.

    Raises:
      ValueError: if there are no batches.
      TypeError: for an iterator, which can be iterated over only once.
    """
    if isinstance(batches, Iterator):
        raise TypeError(f"batches={batches!r} can be iterated over only once: pass a list.")
    total, count = None, 0
    for batch in batches:
        result = evaluate(batch)
        total = result if total is None else jax.tree.map(jnp.add, total, result)
        count += 1
    if count == 0:
        raise ValueError("batches is empty: pass at least one batch.")
    return jax.tree.map(lambda x: x / count, total)
