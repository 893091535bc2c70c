"""The gradient at the perturbed point: SAM's descent, and that of most of its family."""

from zosam_jax.descent.base import Descent, DescentResult, PerturbedPoint, perturbed, stateless


def at_perturbed() -> Descent:
    """∇L(θ+ε), one forward and one backward pass.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """

    def gradient(point: PerturbedPoint) -> DescentResult:
        return DescentResult(
            *point.objective.value_and_grad(perturbed(point.params, point.epsilon))
        )

    return stateless(gradient)
