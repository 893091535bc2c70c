"""No descent pass at all: what the ascent found is the gradient. MeZO, forward gradients."""

import jax
import jax.numpy as jnp

from zosam_jax.ascent.base import Climb
from zosam_jax.descent.base import Descent, Landing
from zosam_jax.objective import Objective
from zosam_jax.sparsity import masks
from zosam_jax.trees import Array, PyTree


def estimate() -> Descent:
    """ĝ, the climb's direction with its length, where the mask is; ε is not used.

    For ascents that estimate ∇L(θ) and not only which way it points. The value is the ascent's
    L(θ); where it measured none, or the loss has auxiliary output, one forward pass at θ gives
    both.

    Raises:
      TypeError: while tracing, with an ascent that measures no slope of the loss.
      ValueError: while tracing, where ρ is the number 0, at which no step climbs.

    Reference: Malladi et al., Fine-Tuning Language Models with Just Forward Passes (MeZO),
      https://arxiv.org/abs/2305.17333
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
        del state, key
        if epsilon is None:
            raise ValueError(
                "rho=0 leaves out the ascent, whose estimate the descent estimate takes for the "
                "gradient; pass any schedule, for example optax.constant_schedule(0.0)."
            )
        if climb.value is None and climb.slope is None:
            raise TypeError(
                "the descent estimate takes the ascent's direction for the gradient, and this "
                "ascent measures neither the loss nor its slope; use for example "
                "zosam_jax.ascent.random_gradient_estimate()."
            )
        value, aux = climb.value, None
        if value is None or objective.has_aux:
            value, aux = objective.value_and_aux(params)
            value = objective.across_devices(value)
        found = jax.tree.map(
            lambda g, p: g.astype(p.dtype), masks.restrict(climb.direction, mask), params
        )
        return Landing(value, aux, found, is_perturbed=False)

    return Descent(
        init=lambda params: (),
        gradient=gradient,
        settled=lambda objective, params, epsilon, state: jax.tree.map(jnp.zeros_like, epsilon),
        reaches_pruned=False,
    )
