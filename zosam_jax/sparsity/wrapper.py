"""Sparse training as an optax wrapper: masks in the optimizer state, pruned weights at zero."""

import functools
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import masks as mask_trees
from zosam_jax import transform, trees
from zosam_jax.sparsity.block_sparse import BlockSparse
from zosam_jax.trees import Array, Bool, PyTree, accepting_shapes


class SparseState(NamedTuple):
    """State of `fixed`.

    Attributes:
      masks: a pytree like the parameters, bool arrays, None for dense parameters.
      inner_state: the wrapped transformation's state.
    """

    masks: mask_trees.Resolved
    inner_state: PyTree


def fixed(
    inner: optax.GradientTransformation,
    masks: PyTree | Callable[[PyTree], PyTree],
) -> optax.GradientTransformationExtraArgs:
    """Trains under masks that never change.

        tx = sparsity.fixed(optax.chain(zo_sam(0.05), optax.sgd(0.1, momentum=0.9)), masks)
        state = tx.init(params)
        params = sparsity.apply_masks(params, sparsity.get_masks(state))

    The wrapped transformation receives the masks as the extra argument `mask`, parameters and
    incoming updates with zeros where weights are pruned, and a `value_fn` that reads kept weights
    only, so that perturbations, gradients, clipping norms and moments are all those of the sparse
    network. After optax.apply_updates pruned weights are exactly zero, whatever momentum and weight
    decay do. The masks take the place of a `mask` that a sharpness-aware transformation was made
    with.

    Only a weight that is NaN or infinite when it is pruned stays so: nothing added to it gives
    zero. No loss, norm or moment sees it, and it grows again last of all; apply_masks makes it
    zero, as the steps for Flax and plain loops do by themselves.

    Args:
      inner: an optax transformation, sharpness-aware or not.
      masks: a pytree like the parameters with 1/0 or bool leaves, None for dense ones; or a
        function of the parameters that returns one.

    Returns:
      An optax.GradientTransformationExtraArgs whose state is a SparseState.

    Raises:
      ValueError: from `init`, for masks that do not fit the parameters; from `update`, without the
        parameters.
    """
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> SparseState:
        return SparseState(initial_masks(masks, params), inner.init(params))

    def update(
        updates: PyTree, state: SparseState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, SparseState]:
        require_params(params)
        updates, inner_state, _ = update_inner(
            inner, updates, state.inner_state, params, masks=state.masks, extra_args=extra_args
        )
        return to_zero(updates, params, state.masks), SparseState(state.masks, inner_state)

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)


def require_params(params: PyTree) -> None:
    """Raises for an update without parameters, which optax allows."""
    if params is None:
        raise ValueError("params is missing: call tx.update(grads, state, params, ...).")


def initial_masks(
    masks: PyTree | Callable[[PyTree], PyTree], params: PyTree
) -> mask_trees.Resolved:
    """Masks as a state keeps them.

    optax.tree.map_params is shown one leaf: masks are no copies of the parameters, whose dtype may
    be changed or to which something may be added.
    """
    if mask_trees.is_placeholder(params):
        return jnp.zeros((), bool)
    trees.refuse_keys(params)
    with transform.naming_the_order(params):
        resolved = mask_trees.resolve(masks, params)
    # Copies: the state may be donated, the caller's masks may not.
    return jax.tree.map(lambda m: jnp.array(m, copy=True), resolved)


def update_inner(
    inner: optax.GradientTransformationExtraArgs,
    updates: PyTree,
    inner_state: PyTree,
    params: PyTree,
    *,
    masks: mask_trees.Resolved,
    extra_args: dict[str, Any],
    keep_gradient: bool = False,
    uses_gradient: bool | Bool[Array, ""] = True,
    dormant: PyTree = None,
) -> tuple[PyTree, PyTree, PyTree]:
    """One step of the wrapped transformation on the sparse network.

    Returns (updates, inner state, dense gradient). The last is None without `keep_gradient`, else
    ∂L/∂(m⊙θ) at all weights, pruned ones too: the incoming updates, or where there are none the
    gradient that a sharpness-aware transformation descends along. It costs no further pass. Where
    `uses_gradient` says that nobody reads it at this step, products that skip blocks
    (`block_sparse`) leave it zero at pruned weights. Pruned weights then have the values `dormant`
    in place of zero, which do not change the loss.
    """
    if extra_args.get("emit", "gradient") != "gradient":
        raise ValueError(
            f"emit={extra_args['emit']!r}: a sparse wrapper takes steps; call the update of the "
            "sharpness-aware transformation inside it, with mask=get_masks(state)."
        )
    from_inside = keep_gradient and updates is None
    if from_inside and not transform.states(inner_state):
        raise ValueError(
            "updates is None and no sharpness-aware transformation is inside: masks grow where "
            "the gradient is large, so pass it, tx.update(grads, state, params, ...)."
        )
    gradient = updates if keep_gradient else None
    if keep_gradient and transform.comes_first(inner_state):
        if updates is not None:
            _warn_of_updates_for_growth_alone()
        updates = None
    elif updates is not None:
        updates = mask_trees.restrict(updates, masks)

    def forward(params: PyTree) -> PyTree:
        if from_inside:
            return mask_trees.straight_through(params, masks, dormant)
        return mask_trees.restrict(params, masks)

    def on_kept_weights(function: Callable[..., Any]) -> Callable[..., Any]:
        if isinstance(function, BlockSparse):
            return function.under(masks, dense_gradient=from_inside and uses_gradient)
        return at(forward, function)

    extra_args = {
        **extra_args,
        **{
            name: on_kept_weights(function)
            for name, function in functions_of_parameters(extra_args).items()
        },
        "mask": masks,
        **({"keep_gradient": True} if from_inside else {}),
    }
    # A pruned weight that is NaN would reach norms and moments through weight decay and radii.
    kept = mask_trees.restrict(params, masks)
    updates, inner_state = inner.update(updates, inner_state, kept, **extra_args)
    if from_inside:
        gradient, inner_state = transform.pop_gradient(inner_state)
    return updates, inner_state, gradient


@functools.cache
def _warn_of_updates_for_growth_alone() -> None:
    """Warns once in a process."""
    warnings.warn(
        "the incoming updates decide where masks grow, and nothing else: the sharpness-aware "
        "transformation inside takes the gradient itself, under optax.MultiSteps(rigl(...)) that "
        "of the last microbatch alone. Pass None in their place, unless what is inside estimates "
        "its gradient (mezo, forward_gradient), and accumulate inside: "
        "rigl(optax.chain(zo_sam(...), optax.MultiSteps(...)))",
        stacklevel=4,
    )


def to_zero(
    updates: PyTree, params: PyTree, masks: mask_trees.Resolved, values: PyTree = None
) -> PyTree:
    """Updates that take the weights that the masks leave out to zero from wherever they are.

    Or to `values`, a tree like the parameters with None where there are none.
    """
    if masks is None:
        return updates
    return jax.tree.map(
        lambda u, p, m, v: u if m is None else jnp.where(m, u, -p if v is None else v - p),
        updates,
        params,
        masks,
        jax.tree.map(lambda _: None, params) if values is None else values,
    )


def functions_of_parameters(extra_args: dict[str, Any]) -> dict[str, Callable[..., Any]]:
    """The extra arguments that are functions of the parameters."""
    names = ("value_fn", "probe_fn", "losses_fn")
    return {name: extra_args[name] for name in names if extra_args.get(name) is not None}


def at(forward: Callable[[PyTree], PyTree], function: Callable[..., Any]) -> Callable[..., Any]:
    """function(forward(params), …); it keeps its signature, by which arguments are bound."""

    @functools.wraps(function)
    def masked(params: PyTree, *args: Any, **kwargs: Any) -> Any:
        return function(forward(params), *args, **kwargs)

    return masked
