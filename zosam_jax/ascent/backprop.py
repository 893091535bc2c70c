"""The exact gradient, by backpropagation: SAM's ascent."""

from zosam_jax.ascent.base import Ascent, Climb, stateless
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


def backprop() -> Ascent:
    """g = ∇L(θ), one forward and one backward pass.

    Auxiliary outputs of the loss come from this pass, at θ, not from the descent pass at θ+ε.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """

    def direction(objective: Objective, params: PyTree, *, key: Array, mask: PyTree) -> Climb:
        del key, mask
        (_, aux), gradient = objective.value_and_grad(params)
        return Climb(gradient, aux, knows_aux=True)

    return stateless(direction)
