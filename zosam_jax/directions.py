"""Random directions in parameter space, drawn on the weights that a mask keeps.

A distribution is a function `(key, params, mask=None) -> direction`: a pytree like `params`, in
float32 or wider, whose coordinates have mean 0 and variance 1 where the mask is 1 and are exactly
0 where it is 0. Scaling to a radius is somebody else's business (`zosam_jax.radius`).

Large arrays are drawn one by one, so that no draw is larger than the largest array; all small ones
(biases, scales, narrow kernels) are cut from one draw, since each takes time to compile. The mask
is applied after the draw, so an all-ones mask gives the same numbers as none.
"""

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax import trees
from zosam_jax.errors import choose
from zosam_jax.sparsity import masks
from zosam_jax.trees import Array, PyTree

Distribution: TypeAlias = Callable[..., PyTree]

_BITS_PER_WORD = 32

# Coordinates from which on an array is drawn on its own.
_LARGE = 32_768


def normal(key: Array, params: PyTree, mask: PyTree = None) -> PyTree:
    """u ~ N(0, I) on the kept coordinates.

    Args:
      key: a random key.
      params: a pytree of floating-point arrays; gives the shapes.
      mask: a pytree of 1/0 or bool leaves like `params`, or None for all coordinates.

    Returns:
      A pytree like `params`, in float32 or wider.
    """
    return masks.restrict(
        _draw(lambda key, size: jax.random.normal(key, (size,)), key, params), mask
    )


def rademacher(key: Array, params: PyTree, mask: PyTree = None) -> PyTree:
    """Independent signs, u ∈ {−1, +1}ᵈ on the kept coordinates; arguments as in `normal`.

    Each random word gives 32 signs, an order of magnitude cheaper than `jax.random.rademacher`,
    which spends a word on each.
    """
    return masks.restrict(_draw(_signs, key, params), mask)


def sphere(key: Array, params: PyTree, mask: PyTree = None) -> PyTree:
    """Uniform on the sphere of radius √d, d the number of kept coordinates; as in `normal`."""
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


def _signs(key: Array, size: int) -> Array:
    words = jax.random.bits(key, (-(-size // _BITS_PER_WORD),), jnp.uint32)
    bits = (words[:, None] >> jnp.arange(_BITS_PER_WORD, dtype=jnp.uint32)) & 1
    return 1.0 - 2.0 * bits.reshape(-1)[:size].astype(jnp.float32)


def _draw(sample: Callable[[Array, int], Array], key: Array, params: PyTree) -> PyTree:
    """Fills a pytree like `params`, in float32 or wider, with coordinates of `sample(key, n)`."""
    leaves, structure = jax.tree.flatten(params)
    small_key, large_key = jax.random.split(key)
    small = [leaf.size for leaf in leaves if leaf.size < _LARGE]
    shared, start = sample(small_key, sum(small)), 0
    drawn = []
    for index, leaf in enumerate(leaves):
        if leaf.size < _LARGE:
            values, start = shared[start : start + leaf.size], start + leaf.size
        else:
            values = sample(jax.random.fold_in(large_key, index), leaf.size)
        drawn.append(values.reshape(leaf.shape).astype(trees.wide_dtype(leaf)))
    return jax.tree.unflatten(structure, drawn)
