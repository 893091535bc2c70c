"""Of θ+ε and θ−ε, the gradient at the one with the larger loss."""

import jax
import jax.numpy as jnp

from zosam_jax.descent.base import Descent, DescentResult, PerturbedPoint, perturbed, stateless
from zosam_jax.trees import PyTree


def worst_side() -> Descent:
    """∇L(θ+sε) with the sign s = ±1 of the larger of L(θ+ε) and L(θ−ε).

    Two forward passes and one backward pass, which runs on what the forward pass on its side left
    behind: 1.15 to 1.4 times the time of jax.value_and_grad on a CPU, and up to twice the memory
    for activations. Under a random direction, and radius "global", it is ZO-SAM whose probes are as
    far from θ as its perturbation, δ√d = ρ, at one forward pass less. Value and auxiliary output
    are those of the side it takes, θ+ε in a tie.
    """

    def gradient(point: PerturbedPoint) -> DescentResult:
        if point.epsilon is None:
            return DescentResult(*point.objective.value_and_grad(point.params))
        opposite = jax.tree.map(jnp.negative, point.epsilon)
        return DescentResult(
            *point.objective.value_and_grad_of_worse(
                perturbed(point.params, point.epsilon), perturbed(point.params, opposite)
            )
        )

    return stateless(gradient, effective_perturbation=_larger)


def _larger(point: PerturbedPoint, state: PyTree) -> PyTree:
    """sε, by a forward pass on either side."""
    del state
    sides = point.epsilon, jax.tree.map(jnp.negative, point.epsilon)
    losses = [point.objective.value_and_aux(perturbed(point.params, s))[0] for s in sides]
    above, below = point.objective.across_devices(losses)
    return jax.tree.map(lambda e: jnp.where(below > above, -e, e), point.epsilon)
