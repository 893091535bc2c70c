"""The gradient at the perturbed point: SAM's descent, and that of most of its family."""

from zosam_jax.descent.base import Descent, Landing, Summit, perturbed, stateless


def at_perturbed() -> Descent:
    """∇L(θ+ε), one forward and one backward pass.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412
    """

    def gradient(summit: Summit) -> Landing:
        return Landing(*summit.objective.value_and_grad(perturbed(summit.params, summit.epsilon)))

    return stateless(gradient)
