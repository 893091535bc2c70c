"""The weights with the largest scores: exact counts, ties to the lowest index, no sorting.

A threshold is found bit by bit, each bit by counting, so that the number of weights to keep may be
known only when the compiled program runs. On a CPU that is some thirty times faster than sorting
(`benchmarks/mask_update.py`).
"""

import itertools
from collections.abc import Callable, Iterable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from zosam_jax.trees import Array, Bool, Float, Int, Integer, Num, UInt32


@jax.jit
def largest(
    scores: Sequence[Num[Array, "..."]], count: int | Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """Masks of the `count` largest entries of all arrays together.

    Among equal scores the earlier array wins, and in it the lower index in row-major order.
    NaN counts as −∞. Compares in float32. There are `count` entries or more, less than 2³¹.
    """
    return _largest(scores, jnp.reshape(jnp.asarray(count, jnp.int32), 1), [0] * len(scores))


@jax.jit
def largest_in_each(
    scores: Sequence[Num[Array, "..."]], counts: Int[Array, " layers"]
) -> list[Bool[Array, "..."]]:
    """Masks of the counts[i] largest entries of each array, as `largest` of it alone.

    All arrays are searched in the same loops, which keeps the program small; they must have less
    than 2³¹ entries in all.
    """
    return _largest(scores, jnp.asarray(counts, jnp.int32), list(range(len(scores))))


def largest_of_all(
    scores: Sequence[Num[Array, "..."]], count: int | Int[Array, ""]
) -> list[Bool[Array, "..."]]:
    """Masks of the `count` largest entries of all arrays together, among them the largest of each.

    An array without an entry would cut the network in two, so `count` is at least their number.
    """
    kept: list[Array] = largest(_largest_of_each_first(scores), count)
    return kept


def largest_within(
    scores: Sequence[Num[Array, " _"]],
    limit: float | Float[Array, ""],
    cost: Callable[[list[Bool[Array, " _"]]], Float[Array, ""]],
    *,
    evenly: bool = False,
) -> list[Bool[Array, " _"]]:
    """Masks of as many of the largest entries as cost no more than `limit`.

    Entries come in order of their scores, or `evenly` in order of their rank in their own array,
    as a fraction of its length; the largest of each array comes first of all.

    Args:
      scores: of short vectors; all are sorted.
      limit: with a tolerance of 1e-6 for rounding.
      cost: masks → their cost, which grows with what they keep.
      evenly: whether all arrays keep the same fraction.

    Returns:
      The masks. They keep one entry of each array even where that costs more.
    """
    if evenly:
        scores = [-(_ranks(s) + 0.5) / max(s.size, 1) for s in scores]
    ranks = _ranks(jnp.concatenate(_largest_of_each_first(scores)))
    stops = np.cumsum([0, *(s.size for s in scores)])

    def first(count: Integer[Array, ""]) -> list[Bool[Array, " _"]]:
        kept = ranks < count
        return [kept[a:b] for a, b in itertools.pairwise(stops)]

    def fits(count: UInt32[Array, ""]) -> Bool[Array, ""]:
        return cost(first(count)) <= limit + 1e-6

    count = greatest(fits, (), num_bits=int(stops[-1]).bit_length())
    return first(jnp.maximum(count, len(scores)))


def _largest_of_each_first(scores: Sequence[Num[Array, "..."]]) -> list[Float[Array, "..."]]:
    limit = jnp.finfo(jnp.float32).max
    scores = [
        jnp.clip(jnp.nan_to_num(s.astype(jnp.float32), nan=-limit), -limit, limit) for s in scores
    ]
    best = largest_in_each(scores, jnp.asarray([min(s.size, 1) for s in scores], jnp.int32))
    return [jnp.where(b, jnp.inf, s) for b, s in zip(best, scores, strict=True)]


def _ranks(scores: Num[Array, " units"]) -> Int[Array, " units"]:
    """0 for the largest, ties to the lowest index."""
    return jnp.argsort(jnp.argsort(-scores, stable=True), stable=True)


def _largest(
    scores: Sequence[Num[Array, "..."]], counts: Int[Array, " pools"], pools: Sequence[int]
) -> list[Bool[Array, "..."]]:
    """The counts[p] largest entries of all arrays that belong to pool p."""
    ordered = [_as_ordered_bits(score) for score in scores]
    positions = _positions(scores)

    def totals(masks: Iterable[Bool[Array, "..."]]) -> Int[Array, " pools"]:
        sums = jnp.stack([jnp.sum(m, dtype=jnp.int32) for m in masks])
        return jnp.zeros_like(counts).at[jnp.asarray(pools)].add(sums)

    def at_least(threshold: UInt32[Array, " pools"]) -> Bool[Array, " pools"]:
        return totals(b >= threshold[p] for b, p in zip(ordered, pools, strict=True)) >= counts

    threshold = greatest(at_least, counts.shape, num_bits=32)
    above = [bits > threshold[p] for bits, p in zip(ordered, pools, strict=True)]
    ties = [bits == threshold[p] for bits, p in zip(ordered, pools, strict=True)]
    missing = counts - totals(above)

    def at_most(stop: UInt32[Array, " pools"]) -> Bool[Array, " pools"]:
        before = zip(ties, positions, pools, strict=True)
        return totals(t & (i < stop[p]) for t, i, p in before) <= missing

    size = sum(score.size for score in scores)
    stop = greatest(at_most, counts.shape, num_bits=max(size.bit_length(), 1))
    return [
        a | (t & (i < stop[p])) for a, t, i, p in zip(above, ties, positions, pools, strict=True)
    ]


def largest_in_groups(
    scores: Num[Array, "*groups m"], count: int | Int[Array, ""]
) -> Bool[Array, "*groups m"]:
    """The mask of the `count` largest entries along the last axis, ties to the lowest index.

    Meant for short axes: every entry is compared with every other of its group.
    """
    ordered = _as_ordered_bits(scores)
    one, other = ordered[..., :, None], ordered[..., None, :]
    index = jnp.arange(scores.shape[-1])
    wins = (other > one) | ((other == one) & (index[None, :] < index[:, None]))
    return jnp.sum(wins, axis=-1) < count


def _as_ordered_bits(scores: Num[Array, "*s"]) -> UInt32[Array, "*s"]:
    """Unsigned integers in the order of the float32 values."""
    values = scores.astype(jnp.float32)
    values = jnp.where(jnp.isnan(values), -jnp.inf, jnp.where(values == 0, 0.0, values))  # no −0
    bits = jax.lax.bitcast_convert_type(values, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def greatest(
    holds: Callable[[UInt32[Array, "..."]], Bool[Array, "..."]],
    shape: tuple[int, ...],
    num_bits: int,
) -> UInt32[Array, "..."]:
    """The greatest integers below 2^num_bits for which conditions hold that only ever turn off.

    0 where one never holds.
    """

    def decide_bit(i: int | Int[Array, ""], x: UInt32[Array, "*s"]) -> UInt32[Array, "*s"]:
        candidate = x | (jnp.uint32(1) << jnp.asarray(num_bits - 1 - i, jnp.uint32))
        return jnp.where(holds(candidate), candidate, x)

    found: Array = jax.lax.fori_loop(0, num_bits, decide_bit, jnp.zeros(shape, jnp.uint32))
    return found


def _positions(arrays: Sequence[Num[Array, "..."]]) -> list[UInt32[Array, "..."]]:
    """Row-major indices that go on from one array to the next."""
    positions, start = [], 0
    for array in arrays:
        flat = jnp.arange(start, start + array.size, dtype=jnp.uint32)
        positions.append(flat.reshape(array.shape))
        start += array.size
    return positions
