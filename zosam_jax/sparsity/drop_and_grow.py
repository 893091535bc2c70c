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

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from zosam_jax import keys, shardings
from zosam_jax import masks as mask_trees
from zosam_jax.errors import check_one_of, is_traced
from zosam_jax.gradient import SharpnessAwareState
from zosam_jax.masks import Resolved
from zosam_jax.sparsity import budgets, layers, structured, wrapper
from zosam_jax.sparsity.budgets import Budget, Layout
from zosam_jax.sparsity.groups import INPUT, Units
from zosam_jax.sparsity.layers import Where, is_weight
from zosam_jax.sparsity.moments import map_moments
from zosam_jax.sparsity.patterns import Pattern, PerArray, unstructured
from zosam_jax.sparsity.schedules import Schedule
from zosam_jax.sparsity.scores import Score
from zosam_jax.sparsity.selection import largest_in_each
from zosam_jax.sparsity.structured import Structure
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
      dormant: of units that may grow again, what they start from; None where weights start at zero.
    """

    masks: Resolved
    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    updates: Int[Array, ""]
    key: UInt32[Array, " words"]
    budget: PyTree
    inner_state: PyTree
    dormant: "Dormant | None" = None


class Dormant(NamedTuple):
    """What units start from that grow again: the initial weights that make them.

    A unit whose weights are all zero has no gradient, and would stay zero for good. So it gets back
    the weights that make it (and its bias and scale), while those that read it start at zero: the
    network's output does not change, and their gradient is not zero.

    Attributes:
      values: the initial parameters that are masked, None elsewhere.
      read: likewise bool, False where a weight reads a unit that is gone.
    """

    values: PyTree
    read: PyTree

    @property
    def forward(self) -> PyTree:
        """What pruned weights may be without changing the output."""
        return mask_trees.restrict(self.values, self.read)


class Exchange(NamedTuple):
    """An update of the masks."""

    masks: list[Bool[Array, "..."]]  # the new masks, for each layer
    # the weights that were active and go on with their value, for each layer
    staying: list[Bool[Array, "..."]]
    budget: PyTree  # the budget's new state
    starts: list[Array]  # what new weights start from; of no layer for zero
    read: list[Bool[Array, "..."]]  # as in Dormant


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
    but for those that read it, which start at zero (`Dormant`). Its gradient is taken with these
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
    engine = _engine(
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
        updates, inner_state, gradient = wrapper.update_inner(
            inner,
            updates,
            state.inner_state,
            params,
            masks=old,
            extra_args=extra_args,
            keep_gradient=engine.uses_gradient and bool(masked.indices),
            dormant=None if dormant is None else dormant.forward,
        )
        count = optax.safe_increment(state.count)
        if not masked.indices:
            return updates, state._replace(count=count, inner_state=inner_state)
        is_due = schedule.is_due(state.count)
        if replaces_step:
            updates, inner_state = _stand_still(is_due, updates, inner_state, state.inner_state)
        exchange = jax.lax.cond(
            is_due,
            lambda: engine.exchange(
                state, division, masks=old, params=params, updates=updates, gradient=gradient
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
            return wrapper.straight_through(params, state.sparse.masks)
        if state.dormant is not None:
            return wrapper.straight_through(params, state.masks, state.dormant.forward)
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
    engine = _engine(
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
            return wrapper.straight_through(params, old)

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


def _engine(
    drop: Score,
    grow: Score | None,
    schedule: Schedule,
    *,
    budget: Budget | None = None,
    pattern: Pattern | None = None,
    units: Units | None = None,
    where: Where = is_weight,
    regrowth: str = "keep",
) -> "_Engine":
    """Checks the parts and puts them together."""
    _check_score("drop", drop)
    if grow is not None:
        _check_score("grow", grow)
    if units is not None and pattern is not None:
        raise ValueError(f"pattern={pattern.name} does not go with units, which go as a whole.")
    return _Engine(
        drop,
        grow,
        schedule,
        budgets.constant() if budget is None else budget,
        unstructured() if pattern is None else pattern,
        units,
        where,
        regrowth,
    )


class _Engine(NamedTuple):
    """The parts, and how one update of the masks comes out of them."""

    drop: Score
    grow: Score | None
    schedule: Schedule
    budget: Budget
    pattern: Pattern
    units: Units | None
    where: Where
    regrowth: str

    @property
    def uses_gradient(self) -> bool:
        scores = [score for score in (self.drop, self.grow) if score is not None]
        return any("gradient" in _arguments(score) for score in scores)

    def division(self, masks: PyTree, params: PyTree) -> PerArray | Structure:
        """The masked arrays, with what is dropped and grown in them."""
        masked = layers.masked_by(masks, params)
        if self.units is None or not masked.indices:
            return PerArray(masked, self.pattern)
        structure = structured.bind(self.units, params, self.where)
        if structure.layers != masked:
            raise ValueError(
                f"the masks cover {', '.join(masked.paths)}, but the units lie in "
                f"{', '.join(structure.layers.paths)}: make them with units= too."
            )
        return structure

    def init(
        self,
        masks: PyTree | Callable[[PyTree], PyTree],
        params: PyTree,
        inner: optax.GradientTransformation,
        key: int | Array,
    ) -> DropAndGrowState:
        own = wrapper.initial_masks(masks, params)
        division = self.division(own, params)
        masked = division.layers
        active = _counts(division.active(masked.take(own)))
        self._check_masks(division, masked.take(own), active)
        dormant: Any = None
        if mask_trees.is_placeholder(params) and self.units is not None and self.grow is not None:
            dormant = jnp.zeros(())  # one leaf, as masks are
        elif isinstance(division, Structure) and self.grow is not None:
            structured.check_read(cast(Units, self.units), division)
            read = division.masks(division.active(masked.take(own)), roles=(INPUT,))
            values = masked.take(params)
            dormant = Dormant(
                # Copies: both may be donated.
                masked.fill([jnp.array(v, copy=True) for v in values]),
                masked.fill([shardings.like(r, v) for r, v in zip(read, values, strict=True)]),
            )
        return DropAndGrowState(
            masks=own,
            count=jnp.zeros((), jnp.int32),
            updates=jnp.zeros((), jnp.int32),
            key=keys.to_data(key),
            budget=self.budget.init(active),
            inner_state=inner.init(params),
            dormant=dormant,
        )

    def exchange(
        self,
        state: DropAndGrowState,
        division: PerArray | Structure,
        *,
        masks: PyTree,
        params: PyTree,
        updates: PyTree,
        gradient: PyTree,
    ) -> Exchange:
        """New masks, from the weights that the step leads to."""
        masked = division.layers
        active = division.active(masked.take(masks))
        weights = [
            jnp.where(m, p.astype(wide_dtype(p)) + u.astype(wide_dtype(p)), 0.0)
            for m, p, u in zip(*map(masked.take, (masks, params, updates)), strict=True)
        ]
        gradients = [None] * len(weights) if gradient is None else masked.take(gradient)
        drop_key, grow_key = jax.random.split(
            jax.random.fold_in(keys.from_data(state.key), state.count)
        )
        drop_scores = self._scores(division.scores, self.drop, weights, gradients, drop_key)
        drop_scores = [jnp.where(a, s, -jnp.inf) for a, s in zip(active, drop_scores, strict=True)]
        layout = Layout(
            drop_scores,
            _counts(active),
            state.count,
            self.schedule.fraction(state.count),
            division,
        )
        decision = self.budget.decide(state.budget, layout)
        kept = largest_in_each(drop_scores, decision.kept)
        grow_scores = drop_scores
        if self.grow is not None:
            grow_scores = self._scores(division.growth, self.grow, weights, gradients, grow_key)
        # Nothing added to NaN gives zero, where new weights start: such weights come last.
        is_broken = division.active(
            [~jnp.isfinite(p.astype(wide_dtype(p))) for p in masked.take(params)]
        )
        new = division.choose(
            [
                self._candidates(*one)
                for one in zip(kept, active, is_broken, grow_scores, strict=True)
            ],
            decision.final,
        )
        back = kept if self.regrowth == "zero" else active
        staying = [n & b for n, b in zip(new, back, strict=True)]

        def like(found: list[Bool[Array, "..."]]) -> list[Bool[Array, "..."]]:
            pairs = zip(found, masked.take(masks), strict=True)
            return [shardings.like(f, mask) for f, mask in pairs]

        new_masks, staying_masks = like(division.masks(new)), like(division.masks(staying))
        starts, read = [], []
        if state.dormant is not None and isinstance(division, Structure):
            read = like(division.masks(new, roles=(INPUT,)))
            was_read = like(division.masks(staying, roles=(INPUT,)))
            starts = [
                jnp.where(n & r, v, jnp.zeros((), v.dtype))
                for n, r, v in zip(
                    new_masks, was_read, masked.take(state.dormant.values), strict=True
                )
            ]
        return Exchange(new_masks, staying_masks, decision.state, starts, read)

    def _scores(
        self,
        of_blocks: Callable[[list[Array]], list[Array]],
        score: Score,
        weights: list[Float[Array, "..."]],
        gradients: list[Any],
        key: Key[Array, ""],
    ) -> list[Float[Array, "..."]]:
        """Scores of units, for each layer; finite."""
        names = _arguments(score)
        noises = _noise(key, weights) if "noise" in names else [None] * len(weights)
        limit = jnp.finfo(jnp.float32).max
        found = []
        for w, g, noise in zip(weights, gradients, noises, strict=True):
            given = {"weights": w, "gradient": g if g is None else g.astype(w.dtype)}
            given["noise"] = noise
            one = score(**{name: given[name] for name in names}).astype(jnp.float32)
            found.append(jnp.nan_to_num(one, nan=-limit))
        return [jnp.clip(jnp.nan_to_num(s, nan=-limit), -limit, limit) for s in of_blocks(found)]

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

    def _check_masks(
        self,
        division: PerArray | Structure,
        masks: list[Bool[Array, "..."]],
        active: Int[Array, " layers"],
    ) -> None:
        """Raises unless the pattern, or the units, could have given these masks."""
        if not masks or any(map(is_traced, masks)):
            return
        if isinstance(division, PerArray):
            for path, mask in zip(division.layers.paths, masks, strict=True):
                self.pattern.check(path, mask.shape)
        blocks = [a.astype(jnp.float32) for a in division.active(masks)]
        chosen = division.masks(division.choose(blocks, active))
        for path, mask, other in zip(division.layers.paths, masks, chosen, strict=True):
            if not jnp.array_equal(other, mask):
                name = "whole units" if self.units else f"the {self.pattern.name} pattern"
                raise ValueError(f"the initial mask of {path} has not {name}.")


def _counts(active: list[Bool[Array, "..."]]) -> Int[Array, " layers"]:
    counts = [jnp.sum(a, dtype=jnp.int32) for a in active]
    return jnp.stack(counts) if counts else jnp.zeros(0, jnp.int32)


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
