"""No descent pass at all: what the ascent found is the gradient. MeZO, forward gradients."""

import jax
import jax.numpy as jnp

from zosam_jax import masks
from zosam_jax.descent.base import Descent, DescentResult, PerturbedPoint, stateless


def estimate() -> Descent:
    """ĝ, the ascent's direction with its length, where the mask is; ε is not used.

    For ascents that estimate ∇L(θ) and not only which way it points. The value is the ascent's
    L(θ); where it measured none, or the loss has auxiliary output, one forward pass at θ gives
    both.

    Raises:
      TypeError: while tracing, with an ascent that measures no slope of the loss.
      ValueError: while tracing, where ρ is the number 0, which leaves out the ascent.

    Reference: Malladi et al., Fine-Tuning Language Models with Just Forward Passes (MeZO),
      https://arxiv.org/abs/2305.17333
    """

    def gradient(point: PerturbedPoint) -> DescentResult:
        if point.epsilon is None:
            raise ValueError(
                "rho=0 leaves out the ascent, whose estimate the descent estimate takes for the "
                "gradient; pass any schedule, for example optax.constant_schedule(0.0)."
            )
        if point.ascent.value is None and point.ascent.slope is None:
            raise TypeError(
                "the descent estimate takes the ascent's direction for the gradient, and this "
                "ascent measures neither the loss nor its slope; use for example "
                "zosam_jax.ascent.random_gradient_estimate()."
            )
        value, aux = point.ascent.value, None
        if value is None or point.objective.has_aux:
            value, aux = point.objective.value_and_aux(point.params)
            value = point.objective.across_devices(value)
        found = jax.tree.map(
            lambda g, p: g.astype(p.dtype),
            masks.restrict(point.ascent.direction, point.mask),
            point.params,
        )
        return DescentResult(value, aux, found, is_perturbed=False)

    return stateless(
        gradient,
        effective_perturbation=lambda point, state: jax.tree.map(jnp.zeros_like, point.epsilon),
        has_dense_gradient=False,
    )
