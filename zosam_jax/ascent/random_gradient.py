"""Random gradient estimation (RGE): the ascent of the ZO-SAM paper."""

import warnings

import jax
import jax.numpy as jnp

from zosam_jax import directions, probes, trees
from zosam_jax.ascent.base import Ascent, AscentResult, stateless
from zosam_jax.errors import (
    check_count,
    check_delta,
    check_one_of,
    check_part,
    is_traced,
)
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, Int, Key

DIFFERENCES = ("central", "forward")


def random_gradient_estimate(
    num_directions: int = 1,
    delta: float = 1e-3,
    distribution: str | directions.Distribution = "normal",
    batching: str = "auto",
    *,
    difference: str = "central",
    fraction: float = 1.0,
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
      difference: "central" as above, or "forward", [L(θ+δuᵢ) − L(θ)] / δ: m + 1 forward passes,
        an error of O(δ) instead of O(δ²), and L(θ) itself to log.
      fraction: how much of the batch the probes see.

    Reference: Ji et al., ZO-SAM, https://arxiv.org/abs/2603.13115; for the variance
      Nesterov & Spokoiny, Random Gradient-Free Minimization of Convex Functions, 2017.
    """
    check_count("num_directions", num_directions)
    check_delta("delta", delta)
    check_one_of("difference", difference, DIFFERENCES)
    check_part("fraction", fraction)
    probes.check_batching(batching)
    draw = directions.get(distribution)

    def direction(
        objective: Objective, params: FloatTree, *, key: Key[Array, ""], mask: Resolved
    ) -> AscentResult:
        if is_traced(num_directions):
            warnings.warn(
                "num_directions is traced (optax.inject_hyperparams makes every number a traced "
                "array), so the probes run in a compiled loop, which is slow for convolutions on "
                "a CPU; pass static_args=('num_directions',) to inject_hyperparams to avoid it.",
                stacklevel=2,
            )
        part = objective.on_fraction(fraction)
        mode = probes.choose_batching(batching, part.probe, params, num_directions)
        start = part.probe(params) if difference == "forward" else None

        def slope_and_value(u: FloatTree) -> tuple[Float[Array, ""], Float[Array, ""]]:
            if start is not None:
                (above,) = probes.along(part.probe, params, u, (delta,), mode)
                return (above - start) / delta, start
            above, below = probes.along(part.probe, params, u, (delta, -delta), mode)
            return (above - below) / (2 * delta), (above + below) / 2

        def term(
            index: Int[Array, ""],
        ) -> tuple[FloatTree, Float[Array, ""], Float[Array, ""]]:
            u = draw(jax.random.fold_in(key, index), params, mask)
            slope, value = objective.across_devices(slope_and_value(u))
            return trees.scale(u, slope), jnp.square(slope), value

        estimate, square, value = probes.mean(term, num_directions, mode)
        return AscentResult(
            estimate,
            value=value if objective.is_probed_itself and fraction == 1 else None,
            # ⟨∇L, ĝ⟩ is the mean of the squared slopes.
            slope=trees.ratio(square, trees.norm(estimate)),
        )

    return stateless(direction)
