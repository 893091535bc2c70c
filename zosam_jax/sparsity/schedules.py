"""When masks change, and how much of them: functions of the step, on whole runs of known length.

Arguments out of range raise ValueError or TypeError, here as in budgets and patterns.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from zosam_jax.errors import check_count, check_number
from zosam_jax.trees import Array, Bool, Float, Int


class Schedule(NamedTuple):
    """When to update masks, and the fraction of the kept weights to exchange then.

    Attributes:
      is_due: step → bool; steps count from 0.
      fraction: step → α, for due steps.
    """

    is_due: Callable[[Int[Array, ""]], Bool[Array, ""]]
    fraction: Callable[[Int[Array, ""]], Float[Array, ""]]


def periodic(
    every: int,
    fraction: float | Callable[[Int[Array, ""]], Float[Array, ""]],
    *,
    start: int = 0,
    stop: int | None = None,
) -> Schedule:
    """At every step that is a multiple of `every`, with start ≤ step < stop.

    Args:
      every: ΔT ≥ 1.
      fraction: α in [0, 1], or a function of the step (`cosine`).
      start: the first step that may be due.
      stop: the first step that no longer is; None for never.
    """
    check_count("every", every)
    check_number("start", start, above=0, inclusive=True)
    if stop is not None:
        check_number("stop", stop, above=0, inclusive=True)
    if not callable(fraction):
        check_fraction("fraction", fraction)

    def is_due(step: Int[Array, ""]) -> Bool[Array, ""]:
        due = (step % every == 0) & (step >= start)
        return due if stop is None else due & (step < stop)

    return Schedule(is_due, fraction if callable(fraction) else lambda step: jnp.float32(fraction))


def staged(every: Sequence[int], starts: Sequence[int], *, stop: int) -> Schedule:
    """Periods that change along the run: `every[i]` from step `starts[i]` on, until `stop`.

    The fraction is left to the budget. Step 0 is not due.

    Args:
      every: the period of each stage, in steps.
      starts: the first step of each stage.
      stop: the first step that is no longer due.

    Returns:
      A Schedule whose fraction is 0.

    Raises:
      ValueError, TypeError: for a period below 1, or not one for each stage.
    """
    for period in every:
        check_count("every", period)
    if len(every) != len(starts):
        raise ValueError(f"every={every!r} must have one period for each of {len(starts)} stages.")

    def is_due(step: Int[Array, ""]) -> Bool[Array, ""]:
        stage = jnp.searchsorted(jnp.asarray(starts), step, side="right") - 1
        period = jnp.asarray(every)[stage]
        return (step > 0) & (step % period == 0) & (step < stop)

    return Schedule(is_due, lambda step: jnp.float32(0.0))


def cubic(initial: float, final: float, *, begin: int, end: int, every: int) -> Schedule:
    """Zhu and Gupta's gradual sparsity, fast at first and slow at the end.

        s(t) = s_f + (s_i − s_f)·(1 − (t − t_0)/(t_1 − t_0))³

    Due every `every` steps from t_0 on, and at t_1, the last time.

    Args:
      initial: s_i, at step t_0 and before.
      final: s_f, from step t_1 on.
      begin: t_0.
      end: t_1, above t_0.
      every: the steps between updates of the masks.

    Returns:
      A Schedule whose fraction is s(t), for `budgets.gradual`.

    Reference: Zhu and Gupta, To prune, or not to prune, https://arxiv.org/abs/1710.01878
    """
    check_fraction("initial", initial)
    check_fraction("final", final)
    check_number("begin", begin, above=0, inclusive=True)
    check_number("end", end, above=begin, inclusive=False)
    check_count("every", every)

    def is_due(step: Int[Array, ""]) -> Bool[Array, ""]:
        regular = ((step - begin) % every == 0) & (step >= begin) & (step < end)
        return regular | (step == end)

    def sparsity(step: Int[Array, ""]) -> Float[Array, ""]:
        left = 1.0 - jnp.clip((step - begin) / (end - begin), 0.0, 1.0)
        now: Array = jnp.float32(final) + (initial - final) * left**3
        return now

    return Schedule(is_due, sparsity)


def cosine(
    fraction: float, steps: int, *, final: float = 0.0
) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """α(t) = α_end + (α − α_end)/2·(1 + cos(πt/T)), α_end from step T on.

    Args:
      fraction: α in [0, 1].
      steps: T.
      final: α_end in [0, 1].

    Returns:
      step → α, a float32 scalar.
    """
    check_fraction("fraction", fraction)
    check_fraction("final", final)

    def at(step: Int[Array, ""]) -> Float[Array, ""]:
        progress = jnp.minimum(step / max(steps, 1), 1.0)
        return final + (fraction - final) / 2 * (1.0 + jnp.cos(math.pi * progress))

    return at


def check_fraction(argument: str, value: float) -> None:
    """Raises unless 0 ≤ value ≤ 1."""
    check_number(argument, value, above=0.0, inclusive=True)
    if value > 1:
        raise ValueError(f"{argument}={value!r} must be at most 1.")


def check_total_steps(total_steps: int | None) -> int:
    """The length of the run, which schedules are fractions of."""
    if total_steps is None:
        raise ValueError(
            "total_steps is missing: the mask schedule is laid out over the run, so say how many "
            "steps it has (epochs × steps per epoch)."
        )
    check_count("total_steps", total_steps)
    return int(total_steps)
