"""Dense training that is drawn towards sparse weights: SAFE's penalty, by ADMM."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import masks as mask_trees
from zosam_jax import trees
from zosam_jax.errors import check_count, check_number
from zosam_jax.sparsity import layers, pruning
from zosam_jax.sparsity.distributions import SparsityDistribution
from zosam_jax.sparsity.layers import Where, is_weight
from zosam_jax.sparsity.schedules import check_total_steps
from zosam_jax.trees import Array, Bool, Int, PyTree, accepting_shapes


class AdmmState(NamedTuple):
    """State of `admm_penalty`; trees like the parameters, with None for those that stay dense.

    Attributes:
      count: int32 scalar, the steps taken.
      target: z, the sparse weights that the parameters are drawn to.
      dual: u, what is left between the two, summed over the updates of z.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    target: PyTree
    dual: PyTree


def admm_penalty(
    sparsity: float,
    *,
    total_steps: int | None = None,
    penalty: float = 1e-3,
    every: int = 32,
    distribution: str | SparsityDistribution = "global",
    where: Where = is_weight,
) -> optax.GradientTransformationExtraArgs:
    """Adds λ_t (θ − z + u) to the gradient, z being sparse; after sam(ρ) it is SAFE.

        every k steps:   z = P(θ + u),   u ← u + θ − z,   P keeps the largest and zeroes the others
        λ_t = ½ λ (1 − cos(πt/T))

        tx = optax.chain(zosam_jax.sam(0.1), sparsity.admm_penalty(0.9, total_steps=T), sgd)
        masks = sparsity.magnitude(params, 0.9, distribution="global")  # after step T

    The parameters stay dense until they are masked at the end; little is then lost. Two arrays of
    memory for each maskable one. Statistics of BatchNorm are those of the dense network: set them
    anew by some passes under the masks.

    Args:
      sparsity: the fraction of the maskable weights that is zero in z, 0 ≤ s < 1.
      total_steps: T, the length of the run.
      penalty: λ ≥ 0.
      every: k ≥ 1.
      distribution: how the budget is shared among layers, as for `from_scores`.
      where: which parameters are drawn, likewise.

    Returns:
      An optax transformation, to stand between the gradient and the steps.

    Raises:
      ValueError, TypeError: for an argument out of range; from `init`, for a sparsity that the
        parameters do not allow; from `update` without parameters.

    Reference: Lee et al., SAFE: Finding Sparse and Flat Minima to Improve Pruning, ICML 2025,
      https://arxiv.org/abs/2506.06866
    """
    pruning.check_sparsity(sparsity)
    length = check_total_steps(total_steps)
    check_number("penalty", penalty, above=0.0, inclusive=True)
    check_count("every", every)

    def projected(params: PyTree) -> PyTree:
        """P of the maskable parameters, None for the others."""
        scores = jax.tree.map(lambda p: None if p is None else jnp.abs(p), params)
        kept = pruning.from_scores(params, scores, sparsity, distribution=distribution, where=where)
        masked = layers.masked_by(kept, params)
        return masked.fill(
            [
                mask_trees.restrict(p, m)
                for p, m in zip(masked.take(params), masked.take(kept), strict=True)
            ]
        )

    def init(params: PyTree) -> AdmmState:
        masked = layers.select(params, where)
        wide = [jnp.array(p, trees.wide_dtype(p), copy=True) for p in masked.take(params)]
        target = projected(masked.replace(params, wide))
        return AdmmState(
            jnp.zeros((), jnp.int32), target, masked.fill([jnp.zeros_like(p) for p in wide])
        )

    def update(
        updates: PyTree, state: AdmmState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, AdmmState]:
        del extra_args
        for name, given in (("updates", updates), ("params", params)):
            if given is None:
                raise ValueError(
                    f"{name} is missing: put admm_penalty after what takes the gradient, and call "
                    "update with the parameters."
                )
        masked = layers.select(params, where)
        weights = [p.astype(trees.wide_dtype(p)) for p in masked.take(params)]

        def moved() -> tuple[PyTree, PyTree]:
            sums = [p + u for p, u in zip(weights, masked.take(state.dual), strict=True)]
            target = projected(masked.replace(params, sums))
            left = [s - z for s, z in zip(sums, masked.take(target), strict=True)]
            return target, masked.fill(left)

        due: Bool[Array, ""] = (state.count > 0) & (state.count % every == 0)
        target, dual = jax.lax.cond(due, moved, lambda: (state.target, state.dual))
        strength = penalty / 2 * (1 - jnp.cos(math.pi * state.count / length))
        drawn = [
            (g + strength.astype(p.dtype) * (p - z + u)).astype(g.dtype)
            for g, p, z, u in zip(
                masked.take(updates), weights, masked.take(target), masked.take(dual), strict=True
            )
        ]
        state = AdmmState(optax.safe_increment(state.count), target, dual)
        return masked.replace(updates, drawn), state

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)
