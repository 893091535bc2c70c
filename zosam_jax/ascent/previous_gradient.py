"""The gradient of the step before: an ascent that costs nothing (S2-SAM)."""

from typing import NamedTuple

from zosam_jax import masks
from zosam_jax.ascent import memory
from zosam_jax.ascent.base import Ascent, AscentResult
from zosam_jax.errors import check_decay
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, FloatTree, Key, PyTree


class PreviousGradientState(NamedTuple):
    """What `previous_gradient` remembers.

    Attributes:
      average: m, a pytree like the parameters in float32 or wider; zeros before the first step.
    """

    average: FloatTree


def previous_gradient(decay: float = 0.0) -> Ascent:
    """g = m, a moving average of the descent gradients, m ← decay·m + (1 − decay)·∇L(θ+ε).

    No pass through the model; one buffer of the parameters' size. With decay 0 the direction is
    the last step's gradient at its perturbed point, on its own batch. The gradients are those the
    transformation emits, before clipping, weight decay and momentum. The first step has none to
    look back on, and takes the plain gradient. A gradient that is not finite is forgotten.

    Args:
      decay: in [0, 1); 0 remembers the last step alone.

    Returns:
      An Ascent, whose state is one buffer of the parameters' size.

    Reference: Ji et al., A Single-Step, Sharpness-Aware Minimization is All You Need to Achieve
      Efficient and Accurate Sparse Training, NeurIPS 2024 (S2-SAM, decay 0).
    """
    check_decay(decay)

    def direction(
        objective: Objective,
        params: PyTree,
        state: PreviousGradientState,
        *,
        key: Key[Array, ""],
        mask: Resolved,
    ) -> AscentResult:
        del objective, params, key
        return AscentResult(masks.restrict(state.average, mask))

    def observe(
        state: PreviousGradientState, found: AscentResult, gradient: FloatTree
    ) -> PreviousGradientState:
        del found
        return PreviousGradientState(memory.moving_average(state.average, gradient, decay))

    return Ascent(lambda params: PreviousGradientState(memory.blank(params)), direction, observe)
