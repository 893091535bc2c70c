"""Random gradient estimation (RGE): the ascent of the ZO-SAM paper."""

import warnings

import jax
import jax.numpy as jnp

from zosam_jax import directions, probes, trees
from zosam_jax.ascent.base import Ascent, Climb, stateless
from zosam_jax.errors import check_count, check_number, is_traced
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


def random_gradient_estimate(
    num_directions: int = 1,
    delta: float = 1e-3,
    distribution: str | directions.Distribution = "normal",
    batching: str = "auto",
) -> Ascent:
    """ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ with random uᵢ on the kept weights.

    2m forward passes. For d kept weights E[ĝ] = ∇L + O(δ²), and for m = 1
    E‖ĝ − ∇L‖² / ‖∇L‖² is d + 1 for normal directions, d − 1 for rademacher and sphere; the
    cosine with the gradient is about √(m/d).

    Args:
      num_directions: m ≥ 1.
      delta: δ > 0, the step per coordinate: a probe is δ√d away from θ. 1e-3 suits float32; with
        bfloat16 parameters or compute take 3e-3 to 1e-2, else the difference drowns in rounding.
      distribution: "normal", "rademacher", "sphere", or a function (`zosam_jax.directions`).
      batching: "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).

    Raises:
      ValueError, TypeError: at construction, for an argument out of range.

    Reference: Ji et al., ZO-SAM, https://arxiv.org/abs/2603.13115; for the variance
      Nesterov & Spokoiny, Random Gradient-Free Minimization of Convex Functions, 2017.
    """
    check_count("num_directions", num_directions)
    check_number("delta", delta, above=0.0, inclusive=False)
    probes.check_batching(batching)
    draw = directions.get(distribution)

    def direction(objective: Objective, params: PyTree, *, key: Array, mask: PyTree) -> Climb:
        if is_traced(num_directions):
            warnings.warn(
                "num_directions is traced (optax.inject_hyperparams makes every number a traced "
                "array), so the probes run in a compiled loop, which is slow for convolutions on "
                "a CPU; pass static_args=('num_directions',) to inject_hyperparams to avoid it.",
                stacklevel=2,
            )
        mode = probes.choose_batching(batching, objective.probe, params, num_directions)

        def term(index: Array) -> PyTree:
            u = draw(jax.random.fold_in(key, index), params, mask)
            above, below = probes.along(objective.probe, params, u, (delta, -delta), mode)
            slope = objective.across_devices((above - below) / (2 * delta))
            return trees.scale(u, slope)

        zero = jax.tree.map(lambda p: jnp.zeros(p.shape, trees.wide_dtype(p)), params)
        return Climb(probes.mean(term, num_directions, zero, mode))

    return stateless(direction)
