"""Of θ+ε and θ−ε, the gradient at the one with the larger loss."""

import jax
import jax.numpy as jnp

from zosam_jax.ascent.base import Climb
from zosam_jax.descent.base import Descent, Landing, perturbed
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


def worst_side() -> Descent:
    """∇L(θ+sε) with the sign s = ±1 of the larger of L(θ+ε) and L(θ−ε).

    Two forward passes and one backward pass, which runs on what the forward pass on its side left
    behind: 1.15 to 1.4 times the time of jax.value_and_grad on a CPU, and up to twice the memory
    for activations. Under a random direction, and radius "global", it is ZO-SAM whose probes are as
    far from θ as its perturbation, δ√d = ρ, at one forward pass less. Value and auxiliary output
    are those of the side it takes, θ+ε in a tie.
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
        if epsilon is None:
            return Landing(*objective.value_and_grad(params))
        opposite = jax.tree.map(jnp.negative, epsilon)
        return Landing(
            *objective.value_and_grad_of_worse(
                perturbed(params, epsilon), perturbed(params, opposite)
            )
        )

    return Descent(init=lambda params: (), gradient=gradient, settled=_larger)


def _larger(objective: Objective, params: PyTree, epsilon: PyTree, state: PyTree) -> PyTree:
    """sε, by a forward pass on either side."""
    del state
    sides = epsilon, jax.tree.map(jnp.negative, epsilon)
    losses = [objective.value_and_aux(perturbed(params, side))[0] for side in sides]
    above, below = objective.across_devices(losses)
    return jax.tree.map(lambda e: jnp.where(below > above, -e, e), epsilon)
