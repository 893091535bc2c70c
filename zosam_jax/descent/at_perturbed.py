"""The gradient at the perturbed point: SAM's descent, and that of most of its family."""

from zosam_jax.ascent.base import Climb
from zosam_jax.descent.base import Descent, Landing, perturbed
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


def at_perturbed() -> Descent:
    """∇L(θ+ε), one forward and one backward pass.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """

    def gradient(
        objective: Objective,
        params: PyTree,
        epsilon: PyTree | None,
        climb: Climb,
        state: PyTree,
        *,
        key: Array,
        mask: PyTree,
    ) -> Landing:
        del climb, state, key, mask
        return Landing(*objective.value_and_grad(perturbed(params, epsilon)))

    return Descent(init=lambda params: (), gradient=gradient)
