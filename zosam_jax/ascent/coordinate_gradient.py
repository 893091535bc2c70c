"""Coordinate-wise gradient estimation (CGE): exact up to O(δ²), at two passes a weight."""

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from zosam_jax.ascent.base import Ascent, AscentResult, stateless
from zosam_jax.errors import check_count, check_delta
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, Int, Key, wide_dtype


def coordinate_gradient_estimate(delta: float = 1e-3, chunk_size: int = 1) -> Ascent:
    """ĝⱼ = [L(θ+δeⱼ) − L(θ−δeⱼ)] / (2δ) for every kept weight j, 0 for the others.

    2d forward passes for d kept weights, run in a compiled loop; the paper rejects it for this
    cost. It serves small models, and as a yardstick for cheaper estimates.

    Args:
      delta: δ > 0, in the units of a parameter.
      chunk_size: how many coordinates to evaluate at once (vmapped), each with its own copy of
        the parameters.
    """
    check_delta("delta", delta)
    check_count("chunk_size", chunk_size)

    def direction(
        objective: Objective, params: FloatTree, *, key: Key[Array, ""], mask: Resolved
    ) -> AscentResult:
        del key
        flat, unravel = ravel_pytree(params)
        order, count = _kept_first(params, mask)

        def slope(coordinate: Int[Array, ""]) -> Float[Array, ""]:
            def at(step: float) -> Float[Array, ""]:
                moved = flat[coordinate].astype(wide_dtype(flat)) + step
                return objective.probe(unravel(flat.at[coordinate].set(moved.astype(flat.dtype))))

            return (at(delta) - at(-delta)) / (2 * delta)

        def chunk(index: Int[Array, ""], estimate: Float[Array, " d"]) -> Float[Array, " d"]:
            # Past the end the last coordinate is evaluated again, and lands in its own place.
            rank = jnp.minimum(index * chunk_size + jnp.arange(chunk_size), count - 1)
            coordinates = order[rank]
            slopes = objective.across_devices(jax.vmap(slope)(coordinates))
            return estimate.at[coordinates].set(slopes.astype(estimate.dtype))

        chunks = -(-count // chunk_size)
        start = jnp.zeros(flat.shape, wide_dtype(flat))
        estimate = jax.lax.fori_loop(0, chunks, chunk, start)
        return AscentResult(_unravel_wide(estimate, params))

    return stateless(direction)


def _kept_first(params: FloatTree, mask: Resolved) -> tuple[Int[Array, " d"], int | Int[Array, ""]]:
    """Coordinates of the raveled parameters, kept ones first, and how many are kept."""
    if mask is None:
        flat, _ = ravel_pytree(params)
        return jnp.arange(flat.size), flat.size
    kept, _ = ravel_pytree(
        jax.tree.map(lambda p, m: jnp.ones(p.shape, bool) if m is None else m, params, mask)
    )
    return jnp.argsort(~kept, stable=True), jnp.sum(kept)


def _unravel_wide(flat: Float[Array, " d"], params: FloatTree) -> FloatTree:
    wide = jax.tree.map(lambda p: jnp.zeros(p.shape, wide_dtype(p)), params)
    return ravel_pytree(wide)[1](flat)
