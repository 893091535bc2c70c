"""Masks through which gradients reach the weights that they leave out."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import masks as mask_trees
from zosam_jax.sparsity import wrapper
from zosam_jax.sparsity.budgets import Budget
from zosam_jax.sparsity.engine import DropAndGrowState, make_engine
from zosam_jax.sparsity.groups import Units
from zosam_jax.sparsity.layers import Where, is_weight
from zosam_jax.sparsity.patterns import Pattern
from zosam_jax.sparsity.schedules import Schedule
from zosam_jax.sparsity.scores import Score
from zosam_jax.trees import (
    Array,
    PyTree,
    accepting_shapes,
)


def forward_params(params: PyTree, opt_state: PyTree) -> PyTree:
    """The parameters at which a loop of one's own takes the gradient that it hands to a wrapper.

        grads = jax.grad(lambda p: loss(sparsity.forward_params(p, opt_state), x, y))(params)

    Needed for units that grow again (`s2vite`), which have a gradient at their initial weights
    alone, and for straight-through masks; any other state gives the parameters back.
    `zosam_jax.integrations.plain.apply_loss` and sharpness-aware chains do so by themselves.

    Args:
      params: the parameters.
      opt_state: the state of a wrapper, or of what stands around one.

    Returns:
      What the loss is evaluated at, differentiable as if it were `params`.
    """

    def is_leaf(x: Any) -> bool:
        return isinstance(x, DropAndGrowState | StraightThroughState)

    for state in filter(is_leaf, jax.tree.leaves(opt_state, is_leaf=is_leaf)):
        if isinstance(state, StraightThroughState):
            return mask_trees.straight_through(params, state.sparse.masks)
        if state.dormant is not None:
            return mask_trees.straight_through(params, state.masks, state.dormant.forward)
    return params


class StraightThroughState(NamedTuple):
    """State of a wrapper whose pruned weights train on.

    Attributes:
      sparse: what the other wrappers keep.
    """

    sparse: DropAndGrowState


def straight_through(
    inner: optax.GradientTransformation,
    masks: PyTree | Callable[[PyTree], PyTree],
    *,
    score: Score,
    schedule: Schedule,
    budget: Budget,
    pattern: Pattern | None = None,
    units: Units | None = None,
    where: Where = is_weight,
) -> optax.GradientTransformationExtraArgs:
    """Trains dense weights by the gradient of the sparse network.

        θ ← θ − η ∇L(m ⊙ θ),   m ← the largest scores of θ,  when due

    Pruned weights keep their values and get the gradient that they would have, so they may come
    back. The parameters are dense: `apply_masks(params, get_masks(state))` is the network. A
    sharpness-aware transformation inside gets the masks and perturbs kept weights alone.

    Args:
      inner: an optax transformation, sharpness-aware or not.
      masks: the initial masks, or a function of the parameters that returns them.
      score: a function of `weights` (`zosam_jax.sparsity.scores`).
      schedule: when masks are chosen anew.
      budget: how many stay.
      pattern: the shape of the masks.
      units: in its place, units that are masked whole.
      where: which arrays' weights count in the scores of units.

    Returns:
      An optax.GradientTransformationExtraArgs whose state is a StraightThroughState.

    Reference: Lee et al., JaxPruner, https://arxiv.org/abs/2304.14082
    """
    inner = optax.with_extra_args_support(inner)
    engine = make_engine(
        score, None, schedule, budget=budget, pattern=pattern, units=units, where=where
    )

    def init(params: PyTree) -> StraightThroughState:
        return StraightThroughState(engine.init(masks, params, inner, key=0))

    def update(
        updates: PyTree, state: StraightThroughState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, StraightThroughState]:
        wrapper.require_params(params)
        old = state.sparse.masks

        def forward(params: PyTree) -> PyTree:
            return mask_trees.straight_through(params, old)

        functions = wrapper.functions_of_parameters(extra_args).items()
        extra_args |= {name: wrapper.at(forward, function) for name, function in functions}
        updates, inner_state = inner.update(
            updates, state.sparse.inner_state, params, mask=old, **extra_args
        )
        division = engine.division(old, params)
        masked, is_due = division.layers, schedule.is_due(state.sparse.count)
        sparse = state.sparse._replace(
            count=optax.safe_increment(state.sparse.count), inner_state=inner_state
        )
        if not masked.indices:
            return updates, StraightThroughState(sparse)

        def choose() -> tuple[list[Array], PyTree]:
            found = engine.exchange(
                state.sparse,
                division,
                masks=jax.tree.map(jnp.ones_like, old),  # pruned weights compete
                params=params,
                updates=updates,
                gradient=None,
            )
            return found.masks, found.budget

        new, of_budget = jax.lax.cond(
            is_due, choose, lambda: (masked.take(old), state.sparse.budget)
        )
        sparse = sparse._replace(
            masks=masked.fill(new),
            updates=state.sparse.updates + is_due.astype(jnp.int32),
            budget=of_budget,
        )
        return updates, StraightThroughState(sparse)

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)
