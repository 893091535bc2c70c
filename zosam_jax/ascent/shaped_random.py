"""A random direction that is longer where the gradients were small, or the other way round."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import directions, trees
from zosam_jax.ascent import memory
from zosam_jax.ascent.base import Ascent, Climb
from zosam_jax.errors import check_number, is_traced
from zosam_jax.objective import Objective
from zosam_jax.sparsity import masks
from zosam_jax.trees import Array, PyTree


class ShapedRandomState(NamedTuple):
    """What `shaped_random_direction` remembers.

    Attributes:
      square: v, a pytree like the parameters in float32 or wider; zeros before the first step.
    """

    square: PyTree


def shaped_random_direction(
    power: float = -0.5,
    decay: float = 0.99,
    distribution: str | directions.Distribution = "rademacher",
    *,
    damping: float = 1e-3,
) -> Ascent:
    """g = u ⊙ ((v/v̄ + damping) / (1 + damping))^power with u random, v̄ the mean of v.

    v ← decay·v + (1 − decay)·∇L(θ+ε)² is a moving average of the squared descent gradients,
    elementwise; its mean is over the kept weights. No pass through the model; one buffer of the
    parameters' size. A negative power perturbs the weights most whose gradients are small, as
    adaptive random weight perturbation does with −1/2; a positive one those with large gradients;
    0, and every power as long as v is zero, leaves u as it is. A gradient that is not finite is
    forgotten.

    Args:
      power: in [−1, 1].
      decay: in [0, 1).
      distribution: "normal", "rademacher", "sphere", or a function (`zosam_jax.directions`).
      damping: > 0, in units of v̄: what keeps weights that have no gradient at all (dead units)
        from taking the whole radius.

    Raises:
      ValueError, TypeError: at construction, for an argument out of range.

    Reference: the idea is that of ARWP, Li et al., Revisiting Random Weight Perturbation for
      Efficiently Improving Generalization, https://arxiv.org/abs/2404.00357
    """
    check_number("power", power, above=-1.0, inclusive=True)
    if not is_traced(power) and power > 1:
        raise ValueError(f"power={power!r} must be at most 1.")
    memory.check_decay(decay)
    check_number("damping", damping, above=0.0, inclusive=False)
    draw = directions.get(distribution)

    def direction(
        objective: Objective,
        params: PyTree,
        state: ShapedRandomState,
        *,
        key: Array,
        mask: PyTree,
    ) -> Climb:
        del objective
        u = draw(key, params, mask)
        mean = _mean(state.square, mask)

        def leaf(u: Array, v: Array) -> Array:
            relative = jnp.where(mean > 0, v / jnp.where(mean > 0, mean, 1), 1).astype(u.dtype)
            offset = jnp.asarray(damping, u.dtype)
            return u * ((relative + offset) / (1 + offset)) ** jnp.asarray(power, u.dtype)

        return Climb(jax.tree.map(leaf, u, state.square))

    def observe(state: ShapedRandomState, gradient: PyTree) -> ShapedRandomState:
        return ShapedRandomState(memory.moving_average(state.square, gradient, decay, order=2))

    return Ascent(lambda params: ShapedRandomState(memory.blank(params)), direction, observe)


def _mean(tree: PyTree, mask: PyTree) -> Array:
    """The mean over the kept coordinates; 0 if there are none."""
    total = sum(jnp.sum(leaf) for leaf in jax.tree.leaves(masks.restrict(tree, mask)))
    total = jnp.asarray(total, jnp.float32)
    return trees.ratio(total, jnp.asarray(masks.count_kept(tree, mask), jnp.float32))
