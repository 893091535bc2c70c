"""Where the momentum is about to go: Momentum SAM's ascent, which costs no pass."""

import jax
import jax.numpy as jnp

from zosam_jax.ascent.base import Ascent, AscentResult
from zosam_jax.ascent.previous_gradient import PreviousGradientState, previous_gradient
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Key, PyTree


def momentum(decay: float = 0.9) -> Ascent:
    """−m with a moving average of the descent gradients, m ← decay·m + (1 − decay)·∇L(θ+ε).

    m points where the buffer v ← decay·v + ∇L(θ+ε) of SGD with that momentum does, v = m/(1−decay),
    and −m where the next step goes, up to weight decay, clipping and what else stands between the
    two. No pass through the model; one buffer of the parameters' size. The first step takes the
    plain gradient.

    Args:
      decay: in [0, 1), SGD's momentum.

    Returns:
      An Ascent with a PreviousGradientState.

    Reference: Becker et al., Momentum-SAM, https://arxiv.org/abs/2401.12033
    """
    backwards = previous_gradient(decay)

    def direction(
        objective: Objective,
        params: PyTree,
        state: PreviousGradientState,
        *,
        key: Key[Array, ""],
        mask: Resolved,
    ) -> AscentResult:
        found = backwards.direction(objective, params, state, key=key, mask=mask)
        return found._replace(direction=jax.tree.map(jnp.negative, found.direction))

    return backwards._replace(direction=direction)
