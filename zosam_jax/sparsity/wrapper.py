"""Sparse training as an optax wrapper: masks in the optimizer state, pruned weights at zero."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax.sparsity import masks as mask_trees
from zosam_jax.trees import PyTree


class SparseState(NamedTuple):
    """State of a sparse wrapper.

    Attributes:
      masks: a pytree like the parameters, bool arrays, None for dense parameters.
      inner_state: the wrapped transformation's state.
    """

    masks: PyTree
    inner_state: PyTree


def fixed(
    inner: optax.GradientTransformation, masks: PyTree | Callable[[PyTree], PyTree]
) -> optax.GradientTransformationExtraArgs:
    """Trains under masks that never change.

        tx = sparsity.fixed(optax.chain(zo_sam(0.05), optax.sgd(0.1, momentum=0.9)), masks)
        state = tx.init(params)
        params = sparsity.apply_masks(params, sparsity.get_masks(state))

    The wrapped transformation receives the masks as the extra argument `mask`, incoming updates
    with zeros where weights are pruned, and a `value_fn` that reads kept weights only, so that
    perturbations, gradients, clipping norms and moments are all those of the sparse network. After
    optax.apply_updates pruned weights are exactly zero, whatever momentum and weight decay do.

    Args:
      inner: an optax transformation, sharpness-aware or not.
      masks: a pytree like the parameters with 1/0 or bool leaves, None for dense ones; or a
        function of the parameters that returns one.

    Raises:
      ValueError: from `init`, for masks that do not fit the parameters.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> SparseState:
        # Copies: the state may be donated, the caller's masks may not.
        own = jax.tree.map(lambda m: jnp.array(m, copy=True), mask_trees.resolve(masks, params))
        return SparseState(own, inner.init(params))

    def update(
        updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, SparseState]:
        if params is None:
            raise ValueError("params is missing: call tx.update(grads, state, params, ...).")
        if updates is not None:
            updates = mask_trees.restrict(updates, state.masks)
        for name in ("value_fn", "probe_fn"):
            if extra_args.get(name) is not None:
                extra_args[name] = _on_kept_weights(extra_args[name], state.masks)
        extra_args["mask"] = state.masks
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        return _land_on_zero(updates, params, state.masks), SparseState(state.masks, inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _on_kept_weights(function: Callable[..., Any], masks: PyTree) -> Callable[..., Any]:
    """The same function of params ⊙ masks; it keeps its signature, by which arguments are bound."""

    @functools.wraps(function)
    def masked(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        return function(mask_trees.restrict(params, masks), *args, **kwargs)

    return masked


def _land_on_zero(updates: PyTree, params: PyTree, masks: PyTree) -> PyTree:
    """Updates that take pruned weights to zero from wherever they are."""
    if masks is None:
        return updates
    return jax.tree.map(
        lambda u, p, m: u if m is None else jnp.where(m, u, -p),
        updates,
        params,
        masks,
    )
