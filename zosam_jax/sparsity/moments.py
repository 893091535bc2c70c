"""Finding what an optimizer remembers of each weight: momentum, second moments, accumulators."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from zosam_jax import masks
from zosam_jax.trees import Array, PyTree, Shaped


def map_moments(
    function: Callable[[Shaped[Array, "..."], Any], Shaped[Array, "..."]],
    state: PyTree,
    params: PyTree,
    values: PyTree,
) -> PyTree:
    """Applies a function to every array in an optimizer state that belongs to a parameter.

    Such an array has the parameter's shape, and its path in the state ends with the parameter's
    path; of several such parameters the longest path is meant. So momentum, Adam's moments and
    accumulated gradients are found in any nesting of transformations, masked and partitioned ones
    too. `values` is a tree like `params`, with None where nothing is to be done.
    """
    by_path = {
        path: (jnp.shape(param), value)
        for (path, param), value in zip(
            jax.tree.leaves_with_path(params), masks.leaves(values, params), strict=True
        )
    }

    def leaf(path: tuple[Any, ...], array: Any) -> Any:
        for start in range(len(path) + 1):
            shape, value = by_path.get(path[start:], (None, None))
            if shape is not None and shape == jnp.shape(array):
                return array if value is None else function(array, value)
        return array

    return jax.tree_util.tree_map_with_path(leaf, state)
