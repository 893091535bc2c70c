"""One update of masks: what is dropped, how much stays, and what is grown.

Here is what wrappers whose masks change have in common; `drop_and_grow` says what it is made of.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import keys, shardings
from zosam_jax import masks as mask_trees
from zosam_jax.errors import is_traced
from zosam_jax.masks import Resolved
from zosam_jax.sparsity import budgets, layers, structured, wrapper
from zosam_jax.sparsity.budgets import Budget, Layout
from zosam_jax.sparsity.groups import INPUT, Units
from zosam_jax.sparsity.layers import Where, is_weight
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
    UInt32,
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


def make_engine(
    drop: Score,
    grow: Score | None,
    schedule: Schedule,
    *,
    budget: Budget | None = None,
    pattern: Pattern | None = None,
    units: Units | None = None,
    where: Where = is_weight,
    regrowth: str = "keep",
) -> "Engine":
    """Checks the parts and puts them together."""
    _check_score("drop", drop)
    if grow is not None:
        _check_score("grow", grow)
    if units is not None and pattern is not None:
        raise ValueError(f"pattern={pattern.name} does not go with units, which go as a whole.")
    return Engine(
        drop,
        grow,
        schedule,
        budgets.constant() if budget is None else budget,
        unstructured() if pattern is None else pattern,
        units,
        where,
        regrowth,
    )


class Engine(NamedTuple):
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
        """Whether a score looks at the gradient."""
        scores = [score for score in (self.drop, self.grow) if score is not None]
        return any("gradient" in _arguments(score) for score in scores)

    def division(self, masks: PyTree, params: PyTree) -> PerArray | Structure:
        """The masked arrays, with what is dropped and grown in them."""
        masked = layers.masked_by(masks, params)
        if self.units is None or not masked.indices:
            return PerArray(masked, self.pattern)
        structure = structured.bind(self.units, params, self.where)
        if structure.layers.indices != masked.indices:
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
        """The state before the first step."""
        own = wrapper.initial_masks(masks, params)
        division = self.division(own, params)
        masked = division.layers
        active = _counts(division.active(masked.take(own)))
        self._check_masks(division, masked.take(own), active)
        dormant: Any = None
        if mask_trees.is_placeholder(params) and self.units is not None and self.grow is not None:
            dormant = jnp.zeros(())  # one leaf, as masks are
        elif isinstance(division, Structure) and self.grow is not None:
            structured.check_read(division)
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
