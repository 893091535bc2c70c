"""The exact gradient, by backpropagation: SAM's ascent."""

from zosam_jax import masks, trees
from zosam_jax.ascent.base import Ascent, AscentResult, stateless
from zosam_jax.errors import check_part
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, FloatTree, Key


def backprop(fraction: float = 1.0, *, losses: bool = False, of_probe: bool = False) -> Ascent:
    """g = ∇L(θ), one forward and one backward pass, on the whole batch or a part of it.

    On a part the passes cost that part of SAM's, and the direction is noisier, as with the small
    batches of m-sharpness. On the whole batch, auxiliary outputs of the loss come from this pass,
    at θ, not from the descent pass at θ+ε.

    Args:
      fraction: how much of the batch the ascent sees.
      losses: whether to keep the losses of the examples for a descent that asks for them; the
        pass is then that of their mean (`Objective.losses_and_grad`). On a part of the batch
        they are not kept.
      of_probe: whether g is the gradient of `probe_fn`, where the caller passes one: an ascent of
        another function than what the descent descends. Nothing else is then known of θ.

    Reference: Foret et al., Sharpness-Aware Minimization, https://arxiv.org/abs/2010.01412; on a
      part of the batch, Bahri et al., https://arxiv.org/abs/2110.08529
    """
    check_part("fraction", fraction)

    def direction(
        objective: Objective, params: FloatTree, *, key: Key[Array, ""], mask: Resolved
    ) -> AscentResult:
        del key
        part, each = objective.on_fraction(fraction), None
        if of_probe and not objective.is_probed_itself:
            return AscentResult(part.probe_gradient(params))
        if losses:
            each, found = part.losses_and_grad(params)
        else:
            found = part.value_and_grad(params)
        if fraction < 1:
            return AscentResult(found.gradient)
        slope = trees.norm(masks.restrict(found.gradient, mask))
        return AscentResult(
            found.gradient, clean=found, value=found.value, slope=slope, losses=each
        )

    return stateless(direction)
