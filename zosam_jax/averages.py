"""An exponential moving average of the weights, beside any optimizer."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import masks, trees
from zosam_jax.errors import check_decay
from zosam_jax.trees import Array, Float, Int, PyTree, accepting_shapes


class AveragedState(NamedTuple):
    """State of `averaged`.

    Attributes:
      count: int32 scalar, the steps taken.
      average: a pytree like the parameters, in float32 or wider; the initial ones before a step.
      inner_state: that of the transformation inside.
    """

    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    average: PyTree
    inner_state: PyTree


def moved_towards(average: PyTree, tree: PyTree, share: float | Float[Array, ""]) -> PyTree:
    """average + share · (tree − average); what is not floating point is the tree's.

    Args:
      average: arrays, in the dtypes that the result has.
      tree: a pytree like it: parameters, statistics of BatchNorm.
      share: 1 − decay.
    """

    def moved(old: Array, new: Array) -> Array:
        if not jnp.issubdtype(new.dtype, jnp.floating):
            return new
        return old + jnp.asarray(share, old.dtype) * (new.astype(old.dtype) - old)

    return jax.tree.map(moved, average, tree)


def averaged(
    tx: optax.GradientTransformation, decay: float, *, debias: bool = True
) -> optax.GradientTransformationExtraArgs:
    """Keeps a moving average of the weights that the updates lead to; the updates stay as they are.

        a ← a + s (θ − a) with θ the new weights,   s = (1 − d)/(1 − dᵗ) in step t = 1, 2, …

        tx = zosam_jax.averaged(optax.chain(zosam_jax.sam(0.05), optax.sgd(0.1)), 0.999)
        zosam_jax.averaged_params(opt_state)

    Around a whole chain, whose updates are added to the parameters; under a sparse wrapper inside
    it, as in sparsity.rigl(averaged(...), 0.9, ...). Statistics of BatchNorm are no parameters: set
    them anew by passes at the average, or average them alike by `moved_towards`.

    Args:
      tx: any optax transformation.
      decay: d in [0, 1); 1/(1 − d) is about how many steps count.
      debias: whether the weights before the first step have no share. Else s = 1 − d, and theirs
        is dᵗ.

    Returns:
      An optax.GradientTransformationExtraArgs whose state is an AveragedState.

    Raises:
      ValueError, TypeError: for a decay out of range; ValueError from `update` without parameters.
    """
    check_decay(decay)
    inner = optax.with_extra_args_support(tx)

    def init(params: PyTree) -> AveragedState:
        average = jax.tree.map(_wide_copy, params)
        return AveragedState(jnp.zeros((), jnp.int32), average, inner.init(params))

    def update(
        updates: PyTree, state: AveragedState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, AveragedState]:
        if params is None:
            raise ValueError("params is missing: call tx.update(updates, state, params, ...).")
        updates, inner_state = inner.update(updates, state.inner_state, params, **extra_args)
        if extra_args.get("emit", "gradient") != "gradient":  # a perturbation, and no step
            return updates, state._replace(inner_state=inner_state)
        count = optax.safe_increment(state.count)
        share = 1 - jnp.asarray(decay, jnp.float32)
        if debias:
            share = share / (1 - jnp.power(1 - share, count))
        moved = moved_towards(state.average, optax.apply_updates(params, updates), share)
        return updates, AveragedState(count, moved, inner_state)

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)


def averaged_params(opt_state: PyTree) -> PyTree:
    """The moving average of the weights, wherever in an optimizer state it stands.

    Weights that a sparse wrapper in the same state has pruned are zero, whatever they were before.

    Returns:
      A pytree like the parameters, in float32 or wider.

    Raises:
      ValueError: if there is not exactly one `averaged` in the state.
    """
    leaves = jax.tree.leaves(opt_state, is_leaf=_is_state)
    found = [leaf for leaf in leaves if _is_state(leaf)]
    if len(found) != 1:
        raise ValueError(
            f"the optimizer state holds {len(found)} averages of the weights, expected one: wrap "
            "the optimizer once, in zosam_jax.averaged(tx, decay)."
        )
    held = masks.find_masks(opt_state)
    return masks.restrict(found[0].average, held[0] if held else None)


def _is_state(x: Any) -> bool:
    return isinstance(x, AveragedState)


def _wide_copy(p: Any) -> Array:
    """A parameter in a buffer of its own, as it is averaged."""
    floating = jnp.issubdtype(jnp.result_type(p), jnp.floating)
    return jnp.array(p, trees.wide_dtype(p) if floating else None, copy=True)
