"""How much do the gradients of minibatches differ from each other?"""

import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import masks, trees
from zosam_jax.analysis.batches import Batch, LossFn
from zosam_jax.binding import Call
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Float, FloatTree, PyTree


class GradientVariance(NamedTuple):
    """What `gradient_variance` finds, over n batches and the kept weights.

    Attributes:
      variance: (1/(n−1)) Σ_b ‖g_b − ḡ‖², the unbiased estimate of the trace of the covariance.
      gradient_norm: ‖ḡ‖₂.
      relative: variance / ‖ḡ‖². It understates the noise, since E‖ḡ‖² is ‖∇L‖² + variance/n:
        far below n it is right, and it cannot be much above n, however small ∇L is.
      mean_squared_norm: (1/n) Σ_b ‖g_b‖².
      num_batches: n.
    """

    variance: float
    gradient_norm: float
    relative: float
    mean_squared_norm: float
    num_batches: int


def gradient_variance(
    loss_fn: LossFn,
    params: PyTree,
    batches: Iterable[Batch],
    *,
    mask: PyTree = None,
    perturbation: Callable[[PyTree, Batch], PyTree] | None = None,
) -> GradientVariance:
    """The variance of the minibatch gradient g_b = ∇L_b(θ + ε_b), in one pass over the batches.

    Welford's recurrence: no difference of large numbers is taken, and one mean gradient is held
    whatever the number of batches.

    Args:
      batches: two or more, of equal size; iterated over once.
      mask: the kept weights (`zosam_jax.sparsity.get_masks`); None for all. Gradients and
        perturbations are restricted to them.
      perturbation: (params, batch) → ε_b, a pytree like `params`, each batch's own, for the
        gradients that sharpness-aware steps take; compiled along, and nothing is differentiated
        through it. None for ε = 0. With `grad = zosam_jax.value_and_grad(loss_fn, ...)` and its
        state it is `lambda params, batch: grad.perturbation(params, state, batch)`; random
        directions are then the same for all batches, unless each brings a state of its own.

    Reference: Welford, Note on a Method for Calculating Corrected Sums of Squares and Products,
      1962.
    """
    floating, _ = trees.split_floating(params)
    kept = masks.resolve(mask, floating)

    # Like the parameters, on their devices too: the second batch then has the same program.
    mean = jax.tree.map(lambda p: jnp.zeros_like(p, trees.wide_dtype(p)), floating)
    squares, count = 0.0, 0
    for batch in batches:
        count += 1
        mean, growth = _include(
            mean,
            jnp.asarray(count, jnp.float32),
            loss_fn=loss_fn,
            perturbation=perturbation,
            params=params,
            batch=batch,
            kept=kept,
        )
        squares += float(growth)
    if count < 2:
        raise ValueError(f"batches holds {count}: the variance of a gradient needs two or more.")
    norm = float(trees.norm(mean))
    variance = squares / (count - 1)
    return GradientVariance(
        variance=variance,
        gradient_norm=norm,
        relative=variance / norm**2 if norm > 0 else float("inf"),
        mean_squared_norm=norm**2 + squares / count,
        num_batches=count,
    )


@functools.partial(jax.jit, static_argnames=("loss_fn", "perturbation"))
def _include(
    mean: FloatTree,
    count: Float[Array, ""],
    *,
    loss_fn: LossFn,
    perturbation: Callable[[PyTree, Batch], PyTree] | None,
    params: PyTree,
    batch: Batch,
    kept: masks.Resolved,
) -> tuple[FloatTree, Float[Array, ""]]:
    """The mean with one gradient more, and by how much Σ‖g_b − ḡ‖² grows."""
    floating, merge = trees.split_floating(params)
    if perturbation is not None:
        epsilon, _ = trees.split_floating(perturbation(params, batch))
        floating = trees.displace(floating, masks.restrict(epsilon, kept))
    loss = Objective(Call(loss_fn, (batch,)), name="loss_fn", merge=merge)
    gradient = masks.restrict(loss.value_and_grad(floating).gradient, kept)
    g = jax.tree.map(lambda x: x.astype(trees.wide_dtype(x)), gradient)
    deviation = trees.displace(g, mean, -1.0)
    after = trees.displace(mean, deviation, 1.0 / count)
    return after, trees.inner(deviation, trees.displace(g, after, -1.0))
