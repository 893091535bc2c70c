"""The gradient on the examples that the perturbation hurts most: ESAM's descent."""

import jax
import jax.numpy as jnp

from zosam_jax import shardings
from zosam_jax.descent.base import Descent, DescentResult, PerturbedPoint, perturbed, stateless
from zosam_jax.errors import check_part


def sharpness_sensitive_selection(fraction: float) -> Descent:
    """∇L(θ+ε) on the γB of the B examples with the largest ℓᵢ(θ+ε) − ℓᵢ(θ).

    One forward pass for the losses at θ+ε, and one forward and one backward pass on γB examples.
    The losses at θ are the ascent's, where it keeps them (`ascent.backprop(losses=True)`); else
    they cost a further forward pass. γ = 1 is SAM, and so is a ρ that is zero for good: both take
    the whole batch. The value is the mean of all losses at θ+ε, which is L(θ+ε).

    The losses of the examples are those of `losses_fn`, or of the loss on each example alone. The
    batch is the loss's array arguments, examples along their first axes; with `axis_name` every
    device chooses among its own.

    Args:
      fraction: γ in (0, 1]; at least one example is taken, of equal ones the first.

    Reference: Du et al., Efficient Sharpness-aware Minimization (its sharpness-sensitive data
      selection), https://arxiv.org/abs/2110.03141
    """
    check_part("fraction", fraction)

    def gradient(point: PerturbedPoint) -> DescentResult:
        objective = point.objective
        there = perturbed(point.params, point.epsilon)
        if point.epsilon is None or fraction == 1:
            return DescentResult(*objective.value_and_grad(there))
        before = point.ascent.losses
        if before is None:
            before = objective.losses(point.params)
        count = max(1, round(fraction * objective.batch_size))
        after = objective.losses(there)
        rise = shardings.gathered(after - before)
        # A loss that is NaN must not go unnoticed: its example is among the hardest.
        _, hardest = jax.lax.top_k(jnp.where(jnp.isnan(rise), jnp.inf, rise), count)
        part = objective.on(lambda x: jnp.asarray(x).at[hardest].get(out_sharding=shardings.of(x)))
        found = part.value_and_grad(there)
        return DescentResult(objective.across_devices(jnp.mean(after)), found.aux, found.gradient)

    return stateless(gradient)
