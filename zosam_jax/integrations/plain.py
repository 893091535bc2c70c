"""One step of any optax transformation from a loss function, sharpness-aware or not."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from zosam_jax import masks, transform
from zosam_jax.binding import own_arguments
from zosam_jax.sparsity import forward_params
from zosam_jax.sparsity.block_sparse import BlockSparse
from zosam_jax.trees import Array, PyTree


class Step(NamedTuple):
    """What one step gives.

    Attributes:
      value: the loss, at θ+ε for a sharpness-aware transformation, at θ otherwise.
      aux: the loss's auxiliary output, None without one.
      params: the new parameters.
      opt_state: the new optimizer state.
    """

    value: Array
    aux: Any
    params: PyTree
    opt_state: PyTree


def apply_loss(
    tx: optax.GradientTransformation,
    loss: Callable[..., Any],
    params: PyTree,
    opt_state: PyTree,
    *,
    has_aux: bool = False,
    **extra_args: Any,
) -> Step:
    """Takes one step: the loss goes to `tx` if it is sharpness-aware, else its gradient does.

    So one loop serves every optimizer, and swapping `zo_sam` in or out is a change of `tx` alone.

    Args:
      tx: an optax transformation.
      loss: (params, **kwargs) → scalar, or → (scalar, aux) with `has_aux`. Its keyword arguments
        are taken from `extra_args` by name.
      params: the parameters.
      opt_state: the state of `tx`.
      has_aux: whether `loss` returns auxiliary output.
      **extra_args: passed to `tx.update`, the loss's arguments among them. A transformation that
        is not sharpness-aware also gets `value`, `grad` and `value_fn`, for line searches and the
        like.
    """
    own = own_arguments(loss, "loss", extra_args)
    current = getattr(opt_state, "masks", None)  # of a sparse wrapper's state
    tx = optax.with_extra_args_support(tx)
    if transform.states(opt_state):
        with transform.naming_the_order(opt_state):
            updates, opt_state = tx.update(
                None, opt_state, params, value_fn=loss, has_aux=has_aux, **extra_args
            )
        value = transform.value(opt_state)
        aux, opt_state = transform.pop_aux(opt_state)
    else:

        def with_aux(params: PyTree, loss: Callable[..., Any] = loss) -> tuple[Array, Any]:
            result = loss(params, **own)
            return result if has_aux else (result, None)

        def value_fn(params: PyTree) -> Array:
            return with_aux(params)[0]

        if isinstance(loss, BlockSparse) and current is not None:
            # Products under the masks of the moment, of which tx knows that they are such.
            dense = functools.partial(with_aux, loss=loss.function)
            with_aux = loss.of(dense).under(current)
            value_fn = loss.of(lambda params: dense(params)[0])

        def forward(params: PyTree) -> tuple[Array, Any]:
            return with_aux(forward_params(params, opt_state))

        (value, aux), gradient = jax.value_and_grad(forward, has_aux=True)(params)
        others = {k: v for k, v in extra_args.items() if k not in own}
        updates, opt_state = tx.update(
            gradient,
            opt_state,
            params,
            value=value,
            grad=gradient,
            value_fn=value_fn,
            **others,
        )
    params = optax.apply_updates(params, updates)
    # Where the state is a sparse wrapper's: NaN plus an update is not the zero that is due.
    params = masks.restrict(params, getattr(opt_state, "masks", None))
    return Step(value, aux, params, opt_state)
