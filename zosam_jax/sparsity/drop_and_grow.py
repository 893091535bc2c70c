"""The engine of sparse training with changing masks, from parts that each answer one question.

- schedule: when, and how many weights to exchange (`schedules`);
- drop: a score of the kept weights, of which the smallest go;
- budget: how many stay in each layer, and how many it has afterwards (`budgets`);
- grow: a score of the weights that are not kept, of which the largest come;
- pattern: which shapes a mask may take (`patterns`).

SET, RigL, DSR, MEST and SViTE (`methods`) are compositions of these.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import keys, shardings
from zosam_jax.binding import own_arguments
from zosam_jax.errors import check_one_of, is_traced
from zosam_jax.gradient import SharpnessAwareState
from zosam_jax.masks import Resolved
from zosam_jax.sparsity import budgets, layers, wrapper
from zosam_jax.sparsity.block_sparse import BlockSparse
from zosam_jax.sparsity.budgets import Budget, Layout
from zosam_jax.sparsity.layers import Layers
from zosam_jax.sparsity.moments import map_moments
from zosam_jax.sparsity.patterns import Pattern, unstructured
from zosam_jax.sparsity.schedules import Schedule
from zosam_jax.sparsity.scores import Score
from zosam_jax.sparsity.selection import largest_in_each
from zosam_jax.trees import (
    Array,
    Bool,
    Float,
    Int,
    Key,
    PyTree,
    Shaped,
    UInt32,
    accepting_shapes,
    wide_dtype,
)

SCORE_ARGUMENTS = ("weights", "gradient", "noise")


class DropAndGrowState(NamedTuple):
    """State of a wrapper whose masks change; arrays only.

    Attributes:
      masks: a pytree like the parameters, bool arrays, None for dense parameters.
      count: int32 scalar, the steps taken, by which the schedule goes.
      updates: int32 scalar, the mask updates made.
      key: the random key of the run, as raw uint32 data; never changes.
      budget: the budget's own state.
      inner_state: the wrapped transformation's state.
    """

    masks: Resolved
    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    updates: Int[Array, ""]
    key: UInt32[Array, " words"]
    budget: PyTree
    inner_state: PyTree


class Exchange(NamedTuple):
    """An update of the masks."""

    masks: list[Bool[Array, "..."]]  # the new masks, for each layer
    # the weights that were active and go on with their value, for each layer
    staying: list[Bool[Array, "..."]]
    budget: PyTree  # the budget's new state


def drop_and_grow(
    inner: optax.GradientTransformation,
    masks: PyTree | Callable[[PyTree], PyTree],
    *,
    drop: Score,
    grow: Score,
    schedule: Schedule,
    budget: Budget | None = None,
    pattern: Pattern | None = None,
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

    Args:
      inner: an optax transformation, sharpness-aware or not.
      masks: the initial masks, or a function of the parameters that returns them. A tree without
        any mask makes the whole thing `inner`.
      drop: a function of some of `weights`, `gradient` and `noise`, taken by name
        (`zosam_jax.sparsity.scores`). The smallest scores among active weights go. The gradient is
        the incoming one; inside a sharpness-aware chain it is the gradient at θ+ε that the step
        descends along, at no further cost.
      grow: likewise; the largest scores among weights that were not kept come.
      schedule: when, and which fraction α (`zosam_jax.sparsity.schedules`).
      budget: how many (`zosam_jax.sparsity.budgets`); None for a fraction α of each layer's
        weights, ⌊α·n⌋, dropped and grown again in the same layer.
      pattern: the shape of the masks; the initial ones must have it (see `from_scores`). N:M
        groups grow what they lost.
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
    _check_score("drop", drop)
    _check_score("grow", grow)
    inner = optax.with_extra_args_support(inner)
    engine = _Engine(
        drop,
        grow,
        schedule,
        budgets.constant() if budget is None else budget,
        unstructured() if pattern is None else pattern,
        regrowth,
    )

    def init(params: PyTree) -> DropAndGrowState:
        own = wrapper.initial_masks(masks, params)
        masked = layers.masked_by(own, params)
        active = engine.active(masked.take(own))
        _check_pattern(engine.pattern, masked, masked.take(own), active)
        return DropAndGrowState(
            masks=own,
            count=jnp.zeros((), jnp.int32),
            updates=jnp.zeros((), jnp.int32),
            key=keys.to_data(key),
            budget=engine.budget.init(active),
            inner_state=inner.init(params),
        )

    def update(
        updates: PyTree, state: DropAndGrowState, params: PyTree = None, **extra_args: Any
    ) -> tuple[PyTree, DropAndGrowState]:
        wrapper.require_params(params)
        old = state.masks
        masked = layers.masked_by(old, params)
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
                masked,
                masks=old,
                params=params,
                updates=updates,
                gradient=of_pruned() if of_pruned and engine.uses_gradient else gradient,
            ),
            lambda: Exchange(masked.take(old), masked.take(old), state.budget),
        )
        fates = list(zip(exchange.masks, exchange.staying, strict=True))
        inner_state = map_moments(
            lambda x, fate: _moment(x, *fate, reset=moments == "reset"),
            inner_state,
            params,
            masked.fill(fates),
        )
        new = masked.fill(exchange.masks)
        return wrapper.to_zero(updates, params, masked.fill(exchange.staying)), (
            DropAndGrowState(
                masks=new,
                count=count,
                updates=state.updates + is_due.astype(jnp.int32),
                key=state.key,
                budget=exchange.budget,
                inner_state=inner_state,
            )
        )

    return optax.GradientTransformationExtraArgs(accepting_shapes(init), update)


class _Engine(NamedTuple):
    """The parts, and how one update of the masks comes out of them."""

    drop: Score
    grow: Score
    schedule: Schedule
    budget: Budget
    pattern: Pattern
    regrowth: str

    @property
    def uses_gradient(self) -> bool:
        return any("gradient" in _arguments(score) for score in (self.drop, self.grow))

    def active(self, masks: list[Bool[Array, "..."]]) -> Int[Array, " layers"]:
        """The number of active units in each layer."""
        counts = [jnp.sum(self._active_units(m), dtype=jnp.int32) for m in masks]
        return jnp.stack(counts) if counts else jnp.zeros(0, jnp.int32)

    def exchange(
        self,
        state: DropAndGrowState,
        masked: Layers,
        *,
        masks: PyTree,
        params: PyTree,
        updates: PyTree,
        gradient: PyTree,
    ) -> Exchange:
        """New masks, from the weights that the step leads to."""
        active = [self._active_units(m) for m in masked.take(masks)]
        weights = [
            jnp.where(m, p.astype(wide_dtype(p)) + u.astype(wide_dtype(p)), 0.0)
            for m, p, u in zip(*map(masked.take, (masks, params, updates)), strict=True)
        ]
        gradients = [None] * len(weights) if gradient is None else masked.take(gradient)
        drop_key, grow_key = jax.random.split(
            jax.random.fold_in(keys.from_data(state.key), state.count)
        )
        drop_scores = self._scores(self.drop, weights, gradients, drop_key)
        drop_scores = [jnp.where(a, s, -jnp.inf) for a, s in zip(active, drop_scores, strict=True)]
        layout = Layout(
            drop_scores,
            self.active(masked.take(masks)),
            state.count,
            self.schedule.fraction(state.count),
        )
        decision = self.budget.decide(state.budget, layout)
        kept = largest_in_each(drop_scores, decision.kept)
        grow_scores = self._scores(self.grow, weights, gradients, grow_key)
        # Nothing added to NaN gives zero, where new weights start: such weights come last.
        is_broken = [
            self._active_units(~jnp.isfinite(p.astype(wide_dtype(p)))) for p in masked.take(params)
        ]
        new = self.pattern.choose(
            [
                self._candidates(*one)
                for one in zip(kept, active, is_broken, grow_scores, strict=True)
            ],
            decision.final,
        )
        back = kept if self.regrowth == "zero" else active
        staying = [n & b for n, b in zip(new, back, strict=True)]

        def expand(units: list[Bool[Array, "..."]]) -> list[Bool[Array, "..."]]:
            pairs = zip(units, masked.take(masks), strict=True)
            return [shardings.like(self.pattern.expand(u), mask) for u, mask in pairs]

        return Exchange(expand(new), expand(staying), decision.state)

    def _active_units(self, mask: Bool[Array, "..."]) -> Bool[Array, "..."]:
        return self.pattern.units(mask.astype(jnp.float32)) > 0

    def _scores(
        self,
        score: Score,
        weights: list[Float[Array, "..."]],
        gradients: list[Any],
        key: Key[Array, ""],
    ) -> list[Float[Array, "..."]]:
        """Scores of units, for each layer; finite."""
        names = _arguments(score)
        noises = _noise(key, weights) if "noise" in names else [None] * len(weights)
        limit = jnp.finfo(jnp.float32).max
        scores = []
        for w, g, noise in zip(weights, gradients, noises, strict=True):
            given = {"weights": w, "gradient": g if g is None else g.astype(w.dtype)}
            given["noise"] = noise
            found = score(**{name: given[name] for name in names}).astype(jnp.float32)
            units = self.pattern.units(jnp.nan_to_num(found, nan=-limit))
            scores.append(jnp.clip(units, -limit, limit))
        return scores

    def _candidates(
        self,
        kept: Bool[Array, "*units"],
        active: Bool[Array, "*units"],
        is_broken: Bool[Array, "*units"],
        scores: Float[Array, "*units"],
    ) -> Float[Array, "*units"]:
        """Grow scores under which the kept come first, and all of them stay."""
        if self.regrowth == "last":
            scores = jnp.where(active, -jnp.inf, scores)
        return jnp.where(kept, jnp.inf, jnp.where(is_broken, -jnp.inf, scores))


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


def _noise(key: Key[Array, ""], arrays: list[Float[Array, "..."]]) -> list[Float[Array, "..."]]:
    """Uniform noise in the arrays' shapes, from one draw, since its program is long."""
    sizes = [array.size for array in arrays]
    flat = jax.random.uniform(key, (sum(sizes),))
    parts = jnp.split(flat, list(itertools.accumulate(sizes))[:-1])
    return [
        shardings.like(part.reshape(array.shape), array)
        for part, array in zip(parts, arrays, strict=True)
    ]


def _arguments(score: Score) -> list[str]:
    return [
        p.name for p in inspect.signature(score).parameters.values() if p.name in SCORE_ARGUMENTS
    ]


def _check_pattern(
    pattern: Pattern, masked: Layers, masks: list[Bool[Array, "..."]], active: Int[Array, " layers"]
) -> None:
    """Raises unless the pattern itself could have chosen these masks."""
    if not masks or any(map(is_traced, masks)):
        return
    for path, mask in zip(masked.paths, masks, strict=True):
        pattern.check(path, mask.shape)
    chosen = pattern.choose([pattern.units(m.astype(jnp.float32)) for m in masks], active)
    for path, mask, units in zip(masked.paths, masks, chosen, strict=True):
        if not jnp.array_equal(pattern.expand(units), mask):
            raise ValueError(f"the initial mask of {path} has not the {pattern.name} pattern.")


def _check_score(argument: str, score: Score) -> None:
    if not callable(score):
        raise TypeError(f"{argument}={score!r} must be a function of {_KNOWN}.")
    unknown = [
        p.name
        for p in inspect.signature(score).parameters.values()
        if p.name not in SCORE_ARGUMENTS and p.default is p.empty
    ]
    if unknown:
        raise TypeError(
            f"{argument} takes {', '.join(map(repr, unknown))}, which is not known: a score is a "
            f"function of {_KNOWN}, taken by name."
        )


_KNOWN = "some of " + ", ".join(SCORE_ARGUMENTS)
