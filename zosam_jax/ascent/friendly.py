"""The gradient without the moving average of past ones: Friendly SAM's ascent."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import masks, trees
from zosam_jax.ascent import memory
from zosam_jax.ascent.backprop import backprop
from zosam_jax.ascent.base import Ascent, AscentResult
from zosam_jax.errors import check_decay, check_number
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


class FriendlyState(NamedTuple):
    """What `friendly` remembers.

    Attributes:
      average: m, a pytree like the parameters in float32 or wider; zeros before the first step.
      started: bool scalar, whether m holds a gradient.
    """

    average: PyTree
    started: Array


def friendly(sigma: float = 1.0, decay: float = 0.9) -> Ascent:
    """d = g − σ m with g = ∇L(θ) and m, the moving average of the g of the steps before.

        m ← λ m + (1 − λ) g, after the step; the first g itself after the first step

    One forward and one backward pass, and one buffer of the parameters' size. m stands for the
    gradient of the whole data set, so that d keeps what is particular to the batch. The first step
    takes plain g. A gradient that is not finite is forgotten.

    Args:
      sigma: σ ≥ 0; 0 is SAM.
      decay: λ in [0, 1).

    Returns:
      An Ascent with a FriendlyState; `clean` of what it finds is the pass at θ.

    Reference: Li et al., Friendly Sharpness-Aware Minimization, CVPR 2024,
      https://arxiv.org/abs/2403.12350
    """
    check_number("sigma", sigma, above=0.0, inclusive=True)
    check_decay(decay)
    gradient_at = backprop()

    def init(params: PyTree) -> FriendlyState:
        return FriendlyState(memory.blank(params), jnp.zeros((), bool))

    def direction(
        objective: Objective, params: PyTree, state: FriendlyState, *, key: Array, mask: PyTree
    ) -> AscentResult:
        found = gradient_at.direction(objective, params, (), key=key, mask=mask)
        d = jax.tree.map(
            lambda g, m: g.astype(m.dtype) - jnp.asarray(sigma, m.dtype) * m,
            found.direction,
            state.average,
        )
        # The slope that backprop measured is that along g.
        return found._replace(direction=masks.restrict(d, mask), slope=None)

    def observe(state: FriendlyState, found: AscentResult, gradient: PyTree) -> FriendlyState:
        del gradient
        if found.clean is None:  # ρ is zero for good: no step takes ∇L(θ)
            return state
        g = found.clean.gradient
        average = memory.from_the_first(state.average, state.started, g, decay)
        return FriendlyState(average, state.started | jnp.isfinite(trees.norm(g)))

    return Ascent(init, direction, observe)
