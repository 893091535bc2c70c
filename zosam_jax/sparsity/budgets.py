"""How many weights each layer keeps when masks are updated, and how many it then has.

Counts are in units of the mask's pattern (single weights, or blocks), as traced integers.
"""

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from zosam_jax.errors import check_number
from zosam_jax.sparsity import distributions, structured
from zosam_jax.sparsity.distributions import GLOBAL, SparsityDistribution
from zosam_jax.sparsity.patterns import PerArray
from zosam_jax.sparsity.schedules import check_fraction
from zosam_jax.sparsity.selection import largest_of_all, largest_within
from zosam_jax.sparsity.structured import Structure
from zosam_jax.trees import Array, Bool, Float, Int

BudgetState: TypeAlias = Any


class Layout(NamedTuple):
    """What a budget decides on; one entry for each masked layer.

    Attributes:
      scores: drop scores of all units, −∞ where inactive.
      active: the number of active units.
      step, fraction: of the schedule.
      division: the masked arrays and what they consist of, blocks or units; None outside a wrapper.
    """

    scores: list[Float[Array, "..."]]
    active: Int[Array, " layers"]
    step: Int[Array, ""]
    fraction: Float[Array, ""]
    division: PerArray | Structure | None = None

    @property
    def sizes(self) -> list[int]:
        """The number of units, active or not."""
        return [score.size for score in self.scores]


class Decision(NamedTuple):
    """A budget's answer.

    Attributes:
      kept: units of each layer that survive the drop.
      final: units of each layer after growth, at least `kept`.
      state: the budget's own state.
    """

    kept: Int[Array, " layers"]
    final: Int[Array, " layers"]
    state: BudgetState


class Budget(NamedTuple):
    """How many weights go and come.

    Attributes:
      init: initial active counts → the budget's state.
      decide: (state, layout) → decision.
    """

    init: Callable[[Int[Array, " layers"]], BudgetState]
    decide: Callable[[BudgetState, Layout], Decision]


def constant(
    rounding: Callable[[Float[Array, " layers"]], Float[Array, " layers"]] = jnp.floor,
) -> Budget:
    """Each layer exchanges the schedule's fraction of its weights and keeps their number.

    Args:
      rounding: of the numbers of weights to exchange, one for each layer.

    Returns:
      A Budget without a state.
    """

    def decide(state: BudgetState, layout: Layout) -> Decision:
        dropped = rounding(_settle(layout.fraction * layout.active)).astype(jnp.int32)
        kept = layout.active - jnp.clip(dropped, 0, layout.active)
        return Decision(kept, layout.active, state)

    return Budget(lambda active: (), decide)


def stages(
    sparsity: float, lower: Sequence[float], upper: Sequence[float], starts: Sequence[int]
) -> Budget:
    """Prunes every layer to one sparsity and grows it to another, stage by stage.

    Where a stage names the sparsity of the initial masks, the initial counts are meant exactly.
    Layers whose initial sparsity is another (not a uniform distribution) shrink and grow by the
    same factors.

    Args:
      sparsity: that of the initial masks, over all layers.
      lower: for each stage the sparsity to prune to.
      upper: for each stage the sparsity to grow to, at most the one pruned to.
      starts: the first step of each stage.

    Returns:
      A Budget whose state is the layers' initial counts.

    Raises:
      ValueError, TypeError: for a sparsity outside [0, 1), or one to grow to that is above the one
        pruned to.
    """
    for low, up in zip(lower, upper, strict=True):
        for name, value in (("lower", low), ("upper", up)):
            check_fraction(name, value)
            if value == 1:
                raise ValueError(f"{name}={value!r} must be below 1: it is the fraction of zeros.")
        if up > low:
            raise ValueError(f"upper={up!r} must be at most lower={low!r}, the sparsity before.")

    def decide(initial: Int[Array, " layers"], layout: Layout) -> Decision:
        stage = jnp.searchsorted(jnp.asarray(starts), layout.step, side="right") - 1
        sizes = layout.sizes

        def at_stage(
            levels: Sequence[float], count: Callable[[float, int], int]
        ) -> Int[Array, " layers"]:
            table = []
            for s in levels:
                published = jnp.asarray([count(s, n) for n in sizes], jnp.int32)
                scaled = jnp.floor(_settle(initial * ((1.0 - s) / (1.0 - sparsity))))
                scaled = jnp.minimum(scaled.astype(jnp.int32), jnp.asarray(sizes))
                other = jnp.where(is_uniform, published, scaled)
                table.append(initial if s == sparsity else other)
            return jnp.stack(table)[stage]

        is_uniform = jnp.abs(initial - (1.0 - sparsity) * jnp.asarray(sizes)) < 1.0
        # As published, what is pruned and what is kept in the end are both rounded down.
        kept = at_stage(lower, lambda s, n: n - math.floor(_decimal(s) * n))
        final = at_stage(upper, lambda s, n: math.floor((1 - _decimal(s)) * n))
        kept = jnp.minimum(kept, layout.active)
        return Decision(kept, jnp.maximum(final, kept), initial)

    return Budget(lambda active: active, decide)


def gradual(
    initial: float,
    final: float,
    *,
    distribution: str | SparsityDistribution = "uniform",
    budget: str = "units",
    costs: Any = None,
) -> Budget:
    """Shrinks every layer from one sparsity to another; nothing grows.

        n_l(t) = n_l(∞) + round((n_l(0) − n_l(∞)) · (s(∞) − s(t)) / (s(∞) − s(0)))

    s(t) is the schedule's fraction (`schedules.cubic`). In the end the counts are exactly those of
    the distribution; with "global" they are of all layers together.

    Args:
      initial: s(0), the sparsity of the initial masks.
      final: s(∞), at least s(0).
      distribution: see `from_scores`.
      budget, costs: of units, see `from_scores`.

    Returns:
      A Budget whose state is the layers' initial counts.
    """
    if not 0 <= initial <= final < 1:
        raise ValueError(f"initial={initial!r} must lie between 0 and sparsity={final!r}, below 1.")

    def decide(first: Int[Array, " layers"], layout: Layout) -> Decision:
        left = (jnp.float32(final) - layout.fraction) / max(final - initial, 1e-9)
        division, limits = layout.division, None
        if isinstance(division, Structure):
            limits = structured.costs_of(division, budget, costs)
        if isinstance(division, Structure) and limits is not None:
            structured.check_limit(division, final, distribution, limits)
            masks = largest_within(
                layout.scores,
                1.0 - final + (final - initial) * left,
                division.cost(limits),
                evenly=distribution != GLOBAL,
            )
            counts = _counts(masks)
        elif distribution == GLOBAL:
            total = round((1.0 - final) * sum(layout.sizes))
            counts = _counts(
                largest_of_all(layout.scores, _between(jnp.sum(first), jnp.int32(total), left))
            )
        else:
            shapes = [score.shape for score in layout.scores]
            last = distributions.get(distribution)(shapes, final)
            counts = _between(first, jnp.asarray(last, jnp.int32), left)
        counts = jnp.minimum(counts, layout.active)
        return Decision(counts, counts, first)

    return Budget(lambda active: active, decide)


def _counts(masks: list[Bool[Array, "..."]]) -> Int[Array, " layers"]:
    return jnp.stack([jnp.sum(mask, dtype=jnp.int32) for mask in masks])


def _between(
    first: Int[Array, "*n"], last: Int[Array, "*n"], left: Float[Array, ""]
) -> Int[Array, "*n"]:
    """Whole numbers on the way from `first` to `last`, exactly `last` where nothing is left."""
    return last + jnp.round(_settle((first - last) * left)).astype(jnp.int32)


class ThresholdState(NamedTuple):
    """State of `threshold`: the magnitude below which weights go."""

    threshold: Float[Array, ""]


def threshold(fraction: float, initial: float, tolerance: float = 0.1) -> Budget:
    """One threshold H for all layers; layers that lost little win what the others lost.

        drop where score < H, at least one weight stays in each layer;  K dropped in all
        K > (1 + tolerance)·N_p: H ← H/2;   K < (1 − tolerance)·N_p: H ← 2H
        layer l grows K·R_l/ΣR, R_l its survivors, in exact integers that add up to K

    Args:
      fraction: N_p, the number aimed at, as a fraction of all active weights.
      initial: the first H.
      tolerance: how far K may be from N_p before H moves.

    Returns:
      A Budget whose state is H.
    """
    check_fraction("fraction", fraction)
    check_number("initial", initial, above=0.0, inclusive=False)
    check_fraction("tolerance", tolerance)

    def decide(state: ThresholdState, layout: Layout) -> Decision:
        over = [jnp.sum(score >= state.threshold, dtype=jnp.int32) for score in layout.scores]
        kept = jnp.maximum(jnp.stack(over), jnp.minimum(layout.active, 1))
        dropped = jnp.sum(layout.active - kept)
        aim = fraction * jnp.sum(layout.active)
        factor = jnp.where(
            dropped > (1 + tolerance) * aim,
            0.5,
            jnp.where(dropped < (1 - tolerance) * aim, 2.0, 1.0),
        )
        final = kept + share(dropped, weights=kept, room=jnp.asarray(layout.sizes) - kept)
        return Decision(kept, final, ThresholdState(state.threshold * factor))

    return Budget(lambda active: ThresholdState(jnp.float32(initial)), decide)


def share(
    total: Int[Array, ""], weights: Int[Array, " layers"], room: Int[Array, " layers"]
) -> Int[Array, " layers"]:
    """Splits an integer in proportion to weights, by largest remainders, within each one's room.

    What does not fit is split again among those with room left; `total` is at most Σ room.
    """

    def goes_on(given: Int[Array, " layers"]) -> Bool[Array, ""]:
        return jnp.sum(given) < total

    def one_round(given: Int[Array, " layers"]) -> Int[Array, " layers"]:
        left, open_ = total - jnp.sum(given), given < room
        # Zero weights count a little: they get what nobody else has room for.
        relative = jnp.where(open_, jnp.maximum(weights, 1e-3), 0.0)
        quota = left * (relative / jnp.sum(relative))
        whole = jnp.minimum(jnp.floor(quota * (1 - 1e-6)).astype(jnp.int32), room - given)
        rest = left - jnp.sum(whole)
        remainder = jnp.where(given + whole < room, quota - whole, -jnp.inf)
        order = jnp.argsort(jnp.argsort(-remainder, stable=True), stable=True)
        extra = (order < rest) & (given + whole < room)
        return given + whole + extra

    shares: Array = jax.lax.while_loop(goes_on, one_round, jnp.zeros_like(room))
    return shares


def _settle(x: Float[Array, "*layers"]) -> Float[Array, "*layers"]:
    """x, or the integer that it misses by no more than float32's rounding."""
    nearest = jnp.round(x)
    return jnp.where(jnp.abs(x - nearest) <= 1e-6 * nearest, nearest, x)


def _decimal(sparsity: float) -> Fraction:
    """The number that was meant, such as 9/10 by 0.9."""
    return Fraction(str(round(sparsity, 9)))
