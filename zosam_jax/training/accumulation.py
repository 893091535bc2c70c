"""A loss over a batch too large for one pass: part by part, in the memory of one part."""

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax.trees import Array, PyTree

# (params, model_state, part) → (mean loss of the part, (new model_state, sums over its images)).
PartLoss: TypeAlias = Callable[[PyTree, PyTree, PyTree], tuple[Array, tuple[PyTree, PyTree]]]


def accumulated(
    loss: PartLoss, model_state: PyTree, batch: PyTree, parts: int
) -> Callable[[PyTree], tuple[Array, tuple[PyTree, PyTree]]]:
    """The mean loss over a batch, whose gradient is summed up part by part.

        L(θ) = 1/K Σₖ Lₖ(θ),   ∇L(θ) = 1/K Σₖ ∇Lₖ(θ)

    The forward pass under differentiation computes each part's gradient at once and keeps nothing
    else, so there is no second forward pass, and an ascent's probes make none backward. BatchNorm
    takes each part's own statistics, and its running averages move K times.

    Args:
      loss: of one part.
      model_state: what the first part starts from.
      batch: arrays with the images along the first axis, a multiple of `parts`.
      parts: K.

    Returns:
      params → (loss, (model_state after the last part, sums over all images)), to be
      differentiated in reverse mode.
    """
    if parts == 1:
        return lambda params: loss(params, model_state, batch)

    # Interleaved, so that a batch split among devices is split there part by part too.
    split = jax.tree.map(
        lambda x: jnp.swapaxes(x.reshape(x.shape[0] // parts, parts, *x.shape[1:]), 0, 1), batch
    )

    # All that is traced is an argument: what a derivative is made of is traced later, elsewhere.
    def over_parts(
        evaluate: Callable[[PyTree, PyTree], Any], model_state: PyTree, split: PyTree
    ) -> tuple[Any, PyTree]:
        """Sums what `evaluate` gives for each part; the model state goes from one to the next."""
        first = jax.eval_shape(evaluate, model_state, jax.tree.map(lambda x: x[0], split))[0]
        sums = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), first)

        def step(carry: tuple[Any, PyTree], part: PyTree) -> tuple[tuple[Any, PyTree], None]:
            sums, model_state = carry
            result, model_state = evaluate(model_state, part)
            return (jax.tree.map(jnp.add, sums, result), model_state), None

        totals, _ = jax.lax.scan(step, (sums, model_state), split)
        return totals

    @jax.custom_vjp
    def total(
        params: PyTree, model_state: PyTree, split: PyTree
    ) -> tuple[Array, tuple[PyTree, PyTree]]:
        def evaluate(model_state: PyTree, part: PyTree) -> Any:
            value, (model_state, metrics) = loss(params, model_state, part)
            return (value, metrics), model_state

        (value, metrics), last = over_parts(evaluate, model_state, split)
        return value / parts, (last, metrics)

    def forward(params: PyTree, model_state: PyTree, split: PyTree) -> Any:
        def evaluate(model_state: PyTree, part: PyTree) -> Any:
            (value, (model_state, metrics)), gradient = jax.value_and_grad(
                lambda p: loss(p, model_state, part), has_aux=True
            )(params)
            return (value, metrics, gradient), model_state

        (value, metrics, gradient), last = over_parts(evaluate, model_state, split)
        return (value / parts, (last, metrics)), jax.tree.map(lambda g: g / parts, gradient)

    def backward(gradient: PyTree, cotangents: Any) -> tuple[PyTree, None, None]:
        slope, _ = cotangents  # auxiliary outputs are not differentiated
        return jax.tree.map(lambda g: (slope * g).astype(g.dtype), gradient), None, None

    total.defvjp(forward, backward)
    return lambda params: total(params, model_state, split)
