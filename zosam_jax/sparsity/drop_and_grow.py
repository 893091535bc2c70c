"""The engine of sparse training with changing masks, from parts that each answer one question.

- schedule: when, and how many weights to exchange (`schedules`);
- drop: a score of the kept weights, of which the smallest go;
- budget: how many stay in each layer, and how many it has afterwards (`budgets`);
- grow: a score of the weights that are not kept, of which the largest come;
- pattern: which shapes a mask may take (`patterns`).

SET, RigL, DSR, MEST and SViTE (`methods`) are compositions of these. With units in place of a
pattern the layers are groups of whole channels, heads and neurons, and so are S²ViTE and gradual
pruning.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax.binding import own_arguments
from zosam_jax.errors import check_one_of
from zosam_jax.gradient import SharpnessAwareState
from zosam_jax.masks import Resolved
from zosam_jax.sparsity import wrapper
from zosam_jax.sparsity.block_sparse import BlockSparse
from zosam_jax.sparsity.budgets import Budget
from zosam_jax.sparsity.engine import DropAndGrowState, Exchange, make_engine
from zosam_jax.sparsity.groups import Units
from zosam_jax.sparsity.layers import Where, is_weight
from zosam_jax.sparsity.moments import map_moments
from zosam_jax.sparsity.patterns import Pattern
from zosam_jax.sparsity.schedules import Schedule
from zosam_jax.sparsity.scores import Score
from zosam_jax.trees import (
    Array,
    Bool,
    PyTree,
    Shaped,
    accepting_shapes,
)


def drop_and_grow(
    inner: optax.GradientTransformation,
    masks: PyTree | Callable[[PyTree], PyTree],
    *,
    drop: Score,
    grow: Score | None,
    schedule: Schedule,
    budget: Budget | None = None,
    pattern: Pattern | None = None,
    units: Units | None = None,
    where: Where = is_weight,
    regrowth: str = "keep",
    moments: str = "reset",
    replaces_step: bool = False,
    key: int | Array = 0,
) -> optax.GradientTransformationExtraArgs:
    """Trains under masks that drop weak weights and grow new ones on a schedule.

    A method of your own is two scores:

        tx = sparsity.drop_and_grow(
            optax.chain(zo_sam(0.05), optax.sgd(0.1, momentum=0.9)),
            lambda params: sparsity.random(params, 0.9),
            drop=lambda weights, gradient: jnp.abs(weights * gradient),
            grow=lambda gradient, noise: jnp.abs(gradient) * noise,
            schedule=schedules.periodic(100, 0.3, stop=7500),
        )

    As under `fixed`, `inner` sees the sparse network alone and pruned weights are exactly zero
    after optax.apply_updates. Masks are updated after the step, on the weights it leads to. New
    weights start at zero, so that growing alone does not change the network's output.

    With `units` whole channels, heads and neurons go and come: scores are summed over the kernels
    of a unit, and masks cover all that it has. A unit that comes gets back its initial weights,
    but for those that read it, which start at zero. Its gradient is taken with these
    initial weights in place, which do not change the loss. That holds inside a sharpness-aware
    chain and in `apply_loss`; a loop that takes gradients itself takes them at `forward_params`.
    Growth is decided by the weights that read a unit, since others have no gradient while it is
    gone.

    Args:
      inner: an optax transformation, sharpness-aware or not.
      masks: the initial masks, or a function of the parameters that returns them. A tree without
        any mask makes the whole thing `inner`.
      drop: a function of some of `weights`, `gradient` and `noise`, taken by name
        (`zosam_jax.sparsity.scores`). The smallest scores among active weights go. The gradient is
        the incoming one; inside a sharpness-aware chain it is the gradient at θ+ε that the step
        descends along, at no further cost.
      grow: likewise; the largest scores among weights that were not kept come. None under a budget
        that lets nothing grow.
      schedule: when, and which fraction α (`zosam_jax.sparsity.schedules`).
      budget: how many (`zosam_jax.sparsity.budgets`); None for a fraction α of each layer's
        weights, ⌊α·n⌋, dropped and grown again in the same layer.
      pattern: the shape of the masks; the initial ones must have it (see `from_scores`). N:M
        groups grow what they lost.
      units: in its place, units that are dropped and grown whole (`zosam_jax.sparsity.units`).
      where: which arrays' weights count in the scores of units (see `from_scores`).
      regrowth: what happens to weights dropped in the very update. "keep": they compete like all
        others and go on with value and moments if they win; "zero": they compete, and start
        anew; "last": they come back only where nothing else is left.
      moments: "reset" sets the optimizer's moments of new weights to zero; "keep" leaves what is
        there (moments of pruned weights decay, their gradients being zero).
      replaces_step: whether a mask update takes the place of the step: weights and the inner
        state (its learning-rate schedule too), apart from the sharpness-aware one, then stand
        still.
      key: a seed or a random key, for the noise.

    Returns:
      An optax.GradientTransformationExtraArgs whose state is a DropAndGrowState.

    Raises:
      ValueError, TypeError: at construction, for an argument that cannot be right; from `init`, for
        masks that do not fit the parameters or the pattern; while tracing, if a score needs a
        gradient and there is none.
    """
    check_one_of("regrowth", regrowth, ("keep", "zero", "last"))
    check_one_of("moments", moments, ("reset", "keep"))
    inner = optax.with_extra_args_support(inner)
    engine = make_engine(
        drop,
        grow,
        schedule,
        budget=budget,
        pattern=pattern,
        units=units,
        where=where,
        regrowth=regrowth,
    )

    def init(params: PyTree) -> DropAndGrowState:
        return engine.init(masks, params, inner, key)

    def update(
        updates: PyTree, state: DropAndGrowState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, DropAndGrowState]:
        wrapper.require_params(params)
        old = state.masks
        division = engine.division(old, params)
        masked, dormant = division.layers, state.dormant
        is_due = schedule.is_due(state.count)
        of_pruned = _gradient_of_products(updates, old, params, extra_args)
        updates, inner_state, gradient = wrapper.update_inner(
            inner,
            updates,
            state.inner_state,
            params,
            masks=old,
            extra_args=extra_args,
            keep_gradient=engine.uses_gradient and bool(masked.indices),
            uses_gradient=is_due,
            dormant=None if dormant is None else dormant.forward,
        )
        count = optax.safe_increment(state.count)
        if not masked.indices:
            return updates, state._replace(count=count, inner_state=inner_state)
        if replaces_step:
            updates, inner_state = _stand_still(is_due, updates, inner_state, state.inner_state)
        exchange = jax.lax.cond(
            is_due,
            lambda: engine.exchange(
                state,
                division,
                masks=old,
                params=params,
                updates=updates,
                gradient=of_pruned() if of_pruned and engine.uses_gradient else gradient,
            ),
            lambda: Exchange(
                masked.take(old),
                masked.take(old),
                state.budget,
                [] if dormant is None else [jnp.zeros_like(v) for v in masked.take(dormant.values)],
                [] if dormant is None else masked.take(dormant.read),
            ),
        )
        fates = list(zip(exchange.masks, exchange.staying, strict=True))
        inner_state = map_moments(
            lambda x, fate: _moment(x, *fate, reset=moments == "reset"),
            inner_state,
            params,
            masked.fill(fates),
        )
        starts = None if dormant is None else masked.fill(exchange.starts)
        updates = wrapper.to_zero(updates, params, masked.fill(exchange.staying), starts)
        return updates, state._replace(
            masks=masked.fill(exchange.masks),
            count=count,
            updates=state.updates + is_due.astype(jnp.int32),
            budget=exchange.budget,
            inner_state=inner_state,
            dormant=dormant and dormant._replace(read=masked.fill(exchange.read)),
        )

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)


def _gradient_of_products(
    updates: PyTree, masks: Resolved, params: PyTree, extra_args: dict[str, Any]
) -> Callable[[], PyTree] | None:
    """The pass that gives the gradient at all weights, where the incoming one leaves blocks out.

    None where the incoming gradient has them, or is not taken outside.
    """
    value_fn = extra_args.get("value_fn")
    if updates is None or not isinstance(value_fn, BlockSparse):
        return None
    own = own_arguments(value_fn, "value_fn", extra_args)
    value = value_fn.under(masks, dense_gradient=True)
    return lambda: jax.grad(lambda p: value(p, **own))(params)


def _moment(
    x: Shaped[Array, "*s"], kept: Bool[Array, "*s"], staying: Bool[Array, "*s"], *, reset: bool
) -> Shaped[Array, "*s"]:
    """A weight's moment after a mask update: never NaN or infinite from before the weight went."""
    ends = ~staying & ~jnp.isfinite(x)
    return jnp.where((kept & ~staying) | ends if reset else ends, jnp.zeros((), x.dtype), x)


def _stand_still(
    is_due: Bool[Array, ""], updates: PyTree, inner_state: PyTree, old_inner_state: PyTree
) -> tuple[PyTree, PyTree]:
    """No step where masks are due; the sharpness-aware state moves on, its passes were made."""

    def is_leaf(x: Any) -> bool:
        return isinstance(x, SharpnessAwareState)

    def choose(new: Any, old: Any) -> Any:
        return new if is_leaf(new) else jnp.where(is_due, old, new)

    return (
        jax.tree.map(lambda u: jnp.where(is_due, jnp.zeros((), u.dtype), u), updates),
        jax.tree.map(choose, inner_state, old_inner_state, is_leaf=is_leaf),
    )
