"""Random directions in parameter space, drawn on the weights that a mask keeps.

A distribution is a function `(key, params, mask=None) -> direction` (`Distribution`). Scaling
directions to a radius is the business of `zosam_jax.radius`.

Large arrays are drawn one by one, so that no draw is larger than the largest array; all small ones
(biases, scales, narrow kernels) are cut from one draw, since each takes time to compile. The mask
is applied after the draw, so an all-ones mask gives the same numbers as none.

What is cut out of a shared draw ends in a division. XLA would compute a cheaper expression anew for
every use of a direction, and compile a program of its own for each array and use; with divisions a
step compiles in half the time.
"""

import itertools
from typing import Protocol

import jax
import jax.numpy as jnp

from zosam_jax import masks, shardings, trees
from zosam_jax.errors import choose
from zosam_jax.masks import Resolved
from zosam_jax.trees import Array, Float, FloatTree, Key, UInt32


class Distribution(Protocol):
    """A way to draw a random direction."""

    def __call__(
        self, key: Key[Array, ""], params: FloatTree, mask: Resolved = None, /
    ) -> FloatTree:
        """Draws a direction.

        Args:
          key: a random key.
          params: θ; gives the shapes.
          mask: resolved (`zosam_jax.masks.resolve`); None for all coordinates.

        Returns:
          u, a pytree like `params` in float32 or wider, whose coordinates have mean 0 and variance
          1 where the mask is 1, and are exactly 0 where it is 0.
        """


_BITS_PER_WORD = 32

# Coordinates from which on an array is drawn on its own.
_LARGE = 32_768


def normal(key: Key[Array, ""], params: FloatTree, mask: Resolved = None) -> FloatTree:
    """u ~ N(0, I) on the kept coordinates."""
    leaves, structure = jax.tree.flatten(params)
    small_key, large_key = jax.random.split(key)
    small = sum(leaf.size for leaf in leaves if leaf.size < _LARGE)
    reciprocals = 1.0 / jax.random.normal(small_key, (small,))
    # All keys at once: draws of one size are then the same program, which compiles once.
    large_keys = iter(jax.random.split(large_key, len(leaves)))
    drawn, start = [], 0
    for leaf in leaves:
        if leaf.size < _LARGE:
            values, start = 1.0 / reciprocals[start : start + leaf.size], start + leaf.size
        else:
            sharding = shardings.of(leaf)
            # The same numbers in any shape; of pieces no device draws the whole.
            shape = (leaf.size,) if sharding is None else leaf.shape
            values = jax.random.normal(next(large_keys), shape, out_sharding=sharding)
        drawn.append(_like(leaf, values))
    return masks.restrict(jax.tree.unflatten(structure, drawn), mask)


def rademacher(key: Key[Array, ""], params: FloatTree, mask: Resolved = None) -> FloatTree:
    """Independent signs, u ∈ {−1, +1}ᵈ on the kept coordinates.

    Each random word gives 32 signs, an order of magnitude cheaper than `jax.random.rademacher`,
    which spends a word on each.
    """
    leaves, structure = jax.tree.flatten(params)
    lengths = [-(-leaf.size // _BITS_PER_WORD) for leaf in leaves]
    words = jax.random.bits(key, (sum(lengths),), jnp.uint32)
    starts = itertools.accumulate(lengths, initial=0)
    parts = [words[start : start + n] for start, n in zip(starts, lengths, strict=False)]
    drawn = [_like(leaf, _signs(part, leaf.size)) for leaf, part in zip(leaves, parts, strict=True)]
    return masks.restrict(jax.tree.unflatten(structure, drawn), mask)


def sphere(key: Key[Array, ""], params: FloatTree, mask: Resolved = None) -> FloatTree:
    """Uniform on the sphere of radius √d, d the number of kept coordinates."""
    direction = normal(key, params, mask)
    length = trees.norm(direction)
    dimension = jnp.asarray(masks.count_kept(params, mask), length.dtype)
    return trees.scale(direction, jnp.where(length > 0, jnp.sqrt(dimension) / length, 0.0))


DISTRIBUTIONS: dict[str, Distribution] = {
    "normal": normal,
    "rademacher": rademacher,
    "sphere": sphere,
}


def get(distribution: str | Distribution) -> Distribution:
    """The distribution of that name; a function of your own is passed through."""
    return choose("distribution", distribution, DISTRIBUTIONS)


def _signs(words: UInt32[Array, " words"], size: int) -> Float[Array, " size"]:
    """The first `size` bits of some random words, as ±1."""
    bits = (words[:, None] >> jnp.arange(_BITS_PER_WORD, dtype=jnp.uint32)) & 1
    return 1.0 / (1.0 - 2.0 * bits.reshape(-1)[:size].astype(jnp.float32))


def _like(leaf: Float[Array, "*s"], values: Float[Array, "..."]) -> Float[Array, "*s"]:
    shaped = values.reshape(leaf.shape).astype(trees.wide_dtype(leaf))
    return shardings.like(shaped, leaf)
