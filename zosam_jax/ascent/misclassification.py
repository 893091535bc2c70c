"""What BiSAM's ascent climbs: a smooth bound on whether examples are misclassified."""

import math

import jax
import jax.numpy as jnp

from zosam_jax.errors import check_number
from zosam_jax.trees import Array, Float, Shaped


def misclassification_bound(
    outputs: Float[Array, "*batch classes"], targets: Shaped[Array, "..."], mu: float = 1.0
) -> Float[Array, "*batch"]:
    """(1/μ) log Σ_j exp(μ φ(z_j − z_y)) for each example, φ(x) = 1 + log σ(x − log(e − 1)).

    φ rises, is 0 at 0 and never above 1: below the step that says whether class j has overtaken the
    label y. Cross-entropy is above it, and can rise without one example becoming wrong.

        def bound(params, x, y):
            return zosam_jax.ascent.misclassification_bound(model(params, x), y).mean()

        updates, state = zosam_jax.bisam(0.05).update(
            None, state, params, value_fn=loss, probe_fn=bound, x=x, y=y
        )

    Args:
      outputs: z, logits.
      targets: y, labels of the outputs' shape without the last axis, of which those below 0 have a
        bound of 0; or distributions over the classes of the outputs' shape, whose mean logit is
        then z_y.
      mu: μ > 0.

    Reference: Xie et al., Improving SAM Requires Rethinking its Optimization Formulation (BiSAM),
      ICML 2024, https://arxiv.org/abs/2407.12993
    """
    check_number("mu", mu, above=0.0, inclusive=False)
    is_label = jnp.issubdtype(targets.dtype, jnp.integer)
    if is_label:
        of_label = jnp.take_along_axis(outputs, jnp.maximum(targets, 0)[..., None], axis=-1)
    else:
        of_label = jnp.sum(targets * outputs, axis=-1, keepdims=True)
    margins = 1 + jax.nn.log_sigmoid(outputs - of_label - math.log(math.e - 1))
    bound: Array = jax.nn.logsumexp(mu * margins, axis=-1) / mu
    return jnp.where(targets < 0, 0.0, bound) if is_label else bound
