"""What ascents remember of past gradients, in float32 or wider.

A buffer is a pytree like the parameters. It covers all weights, pruned ones too: which of them are
kept is known, and may have changed, when the buffer is used.
"""

import jax
import jax.numpy as jnp

from zosam_jax import trees
from zosam_jax.trees import Array, Bool, FloatTree


def blank(params: FloatTree) -> FloatTree:
    """A buffer of zeros."""
    return jax.tree.map(lambda p: jnp.zeros_like(p, trees.wide_dtype(p)), params)


def moving_average(average: FloatTree, gradient: FloatTree, decay: float | Array) -> FloatTree:
    """decay·average + (1 − decay)·gradient, elementwise; a bad gradient changes nothing.

    Args:
      average: a buffer.
      gradient: g, a pytree like it in any floating-point dtype.
      decay: in [0, 1).
    """

    def leaf(old: Array, g: Array) -> Array:
        share = jnp.asarray(decay, old.dtype)
        return share * old + (1 - share) * g.astype(old.dtype)

    return unless_bad(gradient, jax.tree.map(leaf, average, gradient), average)


def from_the_first(
    average: FloatTree, started: Bool[Array, ""], gradient: FloatTree, decay: float | Array
) -> FloatTree:
    """As `moving_average`; the gradient itself where the buffer holds none yet."""
    first = moving_average(average, gradient, 0.0)
    later = moving_average(average, gradient, decay)
    return jax.tree.map(lambda f, m: jnp.where(started, m, f), first, later)


def unless_bad(judged: FloatTree, new: FloatTree, old: FloatTree) -> FloatTree:
    """`new`, or `old` where `judged` holds a NaN or an infinity."""
    fine = jnp.isfinite(trees.norm(judged))
    return jax.tree.map(lambda n, o: jnp.where(fine, n, o), new, old)
