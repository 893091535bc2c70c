"""Probes where the gradient is likely to be: along the descent gradients of the last steps."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import directions, probes, trees
from zosam_jax.ascent import memory
from zosam_jax.ascent.base import Ascent, Climb
from zosam_jax.errors import (
    check_count,
    check_number,
    check_part,
    check_static,
)
from zosam_jax.objective import Objective
from zosam_jax.sparsity import masks
from zosam_jax.trees import Array, PyTree

# A vector of which less than this part is new lies in the span of the others, up to rounding.
_NEW = 1e-4


class GuidedState(NamedTuple):
    """What `guided_gradient_estimate` remembers, in float32 or wider; zeros at first.

    Attributes:
      history: the last k descent gradients, newest first, each a pytree like the parameters.
      average: their moving average, or None where it is not asked for.
    """

    history: tuple[PyTree, ...]
    average: PyTree


def guided_gradient_estimate(
    history: int = 1,
    num_directions: int = 1,
    delta: float = 1e-3,
    distribution: str | directions.Distribution = "normal",
    batching: str = "auto",
    *,
    fraction: float = 1.0,
    decay: float | None = None,
) -> Ascent:
    """ĝ = Σᵢ ⟨∇L(θ), bᵢ⟩ bᵢ over an orthonormal basis of past gradients and random directions.

        ⟨∇L(θ), b⟩ ≈ [L(θ+hb) − L(θ−hb)] / (2h),   h = δ√d

    The basis spans the last k observed descent gradients and m random directions, on the d kept
    weights: up to O(δ²), ĝ is the orthogonal projection of the gradient on their span. A vector
    that adds nothing to the span (the history before there is any, a gradient seen twice) adds
    nothing to ĝ. A descent gradient that is not finite is not remembered.

    2(k + m) forward passes; k buffers of the parameters' size between the steps, and k + m
    vectors of that size during the estimate. A k of 1 or 2 is what memory affords.

    Args:
      history: k ≥ 1.
      num_directions: m ≥ 1.
      delta: δ > 0, the step per coordinate as in `random_gradient_estimate`: every probe is δ√d
        away from θ.
      distribution: of the random directions (`zosam_jax.directions`).
      batching: "auto", "unroll", "vmap" or "map" (`zosam_jax.probes`).
      fraction: how much of the batch the probes see, in (0, 1]; they cost that part of their
        price. The batch is then the loss's array arguments, examples along their first axes.
      decay: None, or the decay in [0, 1) of a moving average of the descent gradients that joins
        the span: two passes and one buffer more.

    Raises:
      ValueError, TypeError: at construction, for an argument out of range, and for a `history` or
        `num_directions` that is traced.

    Reference: Maheswaranathan et al., Guided Evolutionary Strategies,
      https://arxiv.org/abs/1806.10230, who draw probes from the span where this one probes a basis.
    """
    for name, count in (("history", history), ("num_directions", num_directions)):
        check_static(name, count)
        check_count(name, count)
    check_number("delta", delta, above=0.0, inclusive=False)
    probes.check_batching(batching)
    check_part("fraction", fraction)
    if decay is not None:
        memory.check_decay(decay)
    draw = directions.get(distribution)

    def init(params: PyTree) -> GuidedState:
        return GuidedState(
            history=tuple(memory.blank(params) for _ in range(history)),
            average=None if decay is None else memory.blank(params),
        )

    def direction(
        objective: Objective, params: PyTree, state: GuidedState, *, key: Array, mask: PyTree
    ) -> Climb:
        part = objective.on_fraction(fraction)
        drawn = [draw(jax.random.fold_in(key, i), params, mask) for i in range(num_directions)]
        remembered = state.history if decay is None else (*state.history, state.average)
        vectors = [*(masks.restrict(past, mask) for past in remembered), *drawn]
        basis = _orthonormal(jax.tree.map(lambda *rows: jnp.stack(rows), *vectors), len(vectors))
        kept = jnp.asarray(masks.count_kept(params, mask), jnp.float32)
        step = delta * jnp.sqrt(jnp.maximum(kept, 1))
        mode = probes.choose_batching(batching, part.probe, params, len(vectors))

        def term(index: Array) -> tuple[PyTree, Array]:
            b = _row(basis, index)
            above, below = objective.across_devices(
                probes.along(part.probe, params, b, (step, -step), mode)
            )
            return trees.scale(b, (above - below) / (2 * step)), (above + below) / 2

        mean, value = probes.mean(term, len(vectors), mode)
        estimate = trees.scale(mean, len(vectors))
        return Climb(
            estimate,
            value=value if objective.is_probed_itself and fraction == 1 else None,
            # ⟨∇L, ĝ⟩ = ‖ĝ‖², since ĝ is a projection of ∇L.
            slope=trees.norm(estimate),
        )

    def observe(state: GuidedState, gradient: PyTree) -> GuidedState:
        pushed = (memory.widened(gradient), *state.history[:-1])
        return GuidedState(
            history=memory.unless_bad(gradient, pushed, state.history),
            average=None
            if decay is None
            else memory.moving_average(state.average, gradient, decay),
        )

    return Ascent(init, direction, observe)


def _orthonormal(rows: PyTree, count: int) -> PyTree:
    """Gram–Schmidt: orthonormal rows with the same span; zeros for a row that adds nothing.

    Args:
      rows: a pytree of arrays of shape [count, ...]; row i of all of them together is a vector.
      count: the number of rows.
    """

    def orthonormalize(i: Array, rows: PyTree) -> PyTree:
        earlier = jnp.arange(count) < i
        v = _unit(_row(rows, i), floor=0.0)
        for _ in range(2):  # once leaves errors of the size of rounding over what is left
            v = _without(v, rows, earlier)
        v = _unit(v, floor=_NEW)
        return jax.tree.map(lambda leaf, x: leaf.at[i].set(x), rows, v)

    return jax.lax.fori_loop(0, count, orthonormalize, rows)


def _row(rows: PyTree, index: Array) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[index], rows)


def _unit(vector: PyTree, floor: float) -> PyTree:
    """v / ‖v‖, or zeros where ‖v‖ is no more than `floor` or not finite."""
    length = trees.norm(vector)
    usable = (length > floor) & jnp.isfinite(length)
    return jax.tree.map(
        lambda x: jnp.where(usable, x / jnp.where(usable, length, 1).astype(x.dtype), 0), vector
    )


def _without(vector: PyTree, rows: PyTree, which: Array) -> PyTree:
    """v − Σᵢ ⟨bᵢ, v⟩ bᵢ over the rows bᵢ that `which`, bool[count], selects."""

    def products(leaf: Array, x: Array) -> Array:
        return jnp.tensordot(leaf, x, axes=x.ndim, precision="highest")

    total: Any = sum(jax.tree.leaves(jax.tree.map(products, rows, vector)))
    coefficients = jnp.where(which, total, 0)
    return jax.tree.map(
        lambda x, leaf: (
            x - jnp.tensordot(coefficients.astype(x.dtype), leaf, axes=1, precision="highest")
        ),
        vector,
        rows,
    )
