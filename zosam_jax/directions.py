"""Random directions in parameter space, drawn on the weights that a mask keeps.

A distribution is a function `(key, params, mask=None) -> direction` (`Distribution`). Scaling
directions to a radius is the business of `zosam_jax.radius`.

Large arrays are drawn one by one, so that no draw is larger than the largest array; all small ones
(biases, scales, narrow kernels) are cut from one draw, since each takes time to compile. The mask
is applied after the draw, so an all-ones mask gives the same numbers as none.

A direction's words are a hash of their numbers and of a seed that the key's own generator draws:
JAX's generators take longer than the gradient of a small network, for a randomness that no
direction needs. The same key gives the same numbers on any number of devices.

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

# XLA's programs for a CPU are several times slower on arrays of an odd length.
_MULTIPLE = 1_024

# The sum of the four bytes of a random word: its mean, and a power of two near its standard
# deviation; and the odd polynomial that takes it to N(0, 1), fitted to the quantiles.
_BYTES_MEAN, _BYTES_SCALE = 510, 1 / 128
_TO_NORMAL = (8.30389285e-01, 1.08295471e-02, -9.90188550e-04, 1.16102729e-04)


def normal(key: Key[Array, ""], params: FloatTree, mask: Resolved = None) -> FloatTree:
    """u ~ N(0, I) on the kept coordinates, from one random word each.

    The sum of a word's four bytes is nearly normal, and a polynomial does the rest: 1,021 values up
    to ±4.85, whose distribution function is that of N(0, 1) to within 0.002, with a fourth moment
    of 2.9995.
    """
    leaves, structure = jax.tree.flatten(params)
    small = sum(leaf.size for leaf in leaves if leaf.size < _LARGE)
    seeds = iter(jax.random.bits(key, (len(leaves) + 1, 2), jnp.uint32))
    reciprocals = 1.0 / _normals(_words(next(seeds), small))
    drawn, start = [], 0
    for leaf, seed in zip(leaves, seeds, strict=True):
        if leaf.size < _LARGE:
            values, start = 1.0 / reciprocals[start : start + leaf.size], start + leaf.size
        else:
            values = _normals(_words_like(seed, leaf))
        drawn.append(_like(leaf, values))
    return masks.restrict(jax.tree.unflatten(structure, drawn), mask)


def rademacher(key: Key[Array, ""], params: FloatTree, mask: Resolved = None) -> FloatTree:
    """Independent signs, u ∈ {−1, +1}ᵈ on the kept coordinates.

    Each random word gives 32 signs.
    """
    leaves, structure = jax.tree.flatten(params)
    lengths = [-(-leaf.size // _BITS_PER_WORD) for leaf in leaves]
    words = _words(jax.random.bits(key, (2,), jnp.uint32), sum(lengths))
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


def _words(seed: UInt32[Array, "2"], count: int) -> UInt32[Array, " words"]:
    """At least so many random words; a longer draw begins like a shorter one."""
    return _hashed(jnp.arange(-(-count // _MULTIPLE) * _MULTIPLE, dtype=jnp.uint32), seed)


def _words_like(seed: UInt32[Array, "2"], leaf: Float[Array, "*s"]) -> UInt32[Array, "..."]:
    """One for each weight, in any shape; of a leaf in pieces no device hashes all."""
    sharding = shardings.of(leaf)
    if sharding is None:
        return _words(seed, leaf.size)[: leaf.size]
    numbers = jnp.zeros((), jnp.uint32)
    for axis in range(leaf.ndim):
        along = jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis, out_sharding=sharding)
        numbers = numbers * jnp.uint32(leaf.shape[axis]) + along
    return _hashed(numbers, seed)


def _hashed(numbers: UInt32[Array, "..."], seed: UInt32[Array, "2"]) -> UInt32[Array, "..."]:
    first, second = seed
    return _mixed(_mixed(numbers + first) ^ second)


def _mixed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A permutation of the words in which each bit of one changes half of the other's bits.

    Reference: Appleby, MurmurHash3, its finalizer
    """
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _normals(words: UInt32[Array, "*s"]) -> Float[Array, "*s"]:
    """Numbers ~ N(0, 1), one for each random word."""
    pairs = (words & 0x00FF00FF) + ((words >> 8) & 0x00FF00FF)
    total = (pairs & 0xFFFF) + (pairs >> 16)
    x = (total.astype(jnp.int32) - _BYTES_MEAN).astype(jnp.float32) * _BYTES_SCALE
    square, slope = jnp.square(x), jnp.zeros_like(x)
    for coefficient in reversed(_TO_NORMAL):
        slope = slope * square + coefficient
    return slope * x


def _signs(words: UInt32[Array, " words"], size: int) -> Float[Array, " size"]:
    """The first `size` bits of some random words, as ±1."""
    bits = (words[:, None] >> jnp.arange(_BITS_PER_WORD, dtype=jnp.uint32)) & 1
    return 1.0 / (1.0 - 2.0 * bits.reshape(-1)[:size].astype(jnp.float32))


def _like(leaf: Float[Array, "*s"], values: Float[Array, "..."]) -> Float[Array, "*s"]:
    shaped = values.reshape(leaf.shape).astype(trees.wide_dtype(leaf))
    return shardings.like(shaped, leaf)
