"""A moving average of the gradients, that of this step among them: VaSSO's ascent."""

from typing import NamedTuple

import jax.numpy as jnp

from zosam_jax import trees
from zosam_jax.ascent import memory
from zosam_jax.ascent.backprop import backprop
from zosam_jax.ascent.base import Ascent, AscentResult
from zosam_jax.errors import check_positive_fraction
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Bool, FloatTree, PyTree


class SmoothedState(NamedTuple):
    """What `smoothed` remembers.

    Attributes:
      average: d, a pytree like the parameters in float32 or wider; zeros before the first step.
      started: bool scalar, whether d holds a gradient.
    """

    average: FloatTree
    started: Bool[Array, ""]


def smoothed(theta: float = 0.9, fraction: float = 1.0) -> Ascent:
    """d ← (1 − θ) d + θ g with g = ∇L(θ), before the step is taken along d; the first d is g.

    One forward and one backward pass, and one buffer of the parameters' size. The noise of single
    batches counts less in d than in g. A gradient that is not finite is left out of d.

    Args:
      theta: θ in (0, 1]; 1 is SAM.
      fraction: how much of the batch the ascent sees.

    Returns:
      An Ascent with a SmoothedState; of the whole batch, `clean` of what it finds is the pass at θ.

    Reference: Li and Giannakis, Enhancing Sharpness-Aware Optimization Through Variance
      Suppression (VaSSO), NeurIPS 2023, https://arxiv.org/abs/2309.15639
    """
    check_positive_fraction("theta", theta)
    gradient_at = backprop(fraction)

    def init(params: PyTree) -> SmoothedState:
        return SmoothedState(memory.blank(params), jnp.zeros((), bool))

    def direction(
        objective: Objective, params: PyTree, state: SmoothedState, *, key: Array, mask: PyTree
    ) -> AscentResult:
        found = gradient_at.direction(objective, params, (), key=key, mask=mask)
        d = memory.from_the_first(state.average, state.started, found.direction, 1 - theta)
        # The slope that backprop measured is that along g.
        return found._replace(direction=d, slope=None)

    def observe(state: SmoothedState, found: AscentResult, gradient: PyTree) -> SmoothedState:
        del gradient
        if found.direction is None:  # ρ is zero for good: no step takes ∇L(θ)
            return state
        d = found.direction
        return SmoothedState(d, state.started | (trees.norm(d) > 0))

    return Ascent(init, direction, observe)
