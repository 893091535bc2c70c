"""The worst of several random perturbations, found by looking at each."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax import directions, probes, trees
from zosam_jax.ascent.base import Ascent, Climb, stateless
from zosam_jax.errors import check_count, check_part, is_traced
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


class _Candidate(NamedTuple):
    """sign·u, u the draw of that index, and the loss at its place; sign 0 for no candidate."""

    loss: Array
    draw: Array
    sign: Array


def worst_of(
    candidates: int = 2,
    distribution: str | directions.Distribution = "rademacher",
    fraction: float = 1.0,
    *,
    antithetic: bool = False,
) -> Ascent:
    """g = uⱼ, j = argmaxᵢ L(θ + radius(uᵢ)): the candidate with the largest loss where it leads.

    k forward passes for k random candidates, each at the very distance that the descent pass will
    be; that is a probe at full length, which measures the rise of the loss and not its slope. A
    candidate whose loss is not finite cannot win; if none is, the step takes the plain gradient.
    No buffers: the winner is drawn again from its key.

    Args:
      candidates: k ≥ 1.
      distribution: "normal", "rademacher", "sphere", or a function (`zosam_jax.directions`).
      fraction: how much of the batch the probes see, in (0, 1]; they cost that part of their
        price. The batch is then the loss's array arguments, examples along their first axes.
      antithetic: True for candidates that come in pairs ±u, k of them in all.

    Raises:
      ValueError, TypeError: at construction, for an argument out of range, and for antithetic
        candidates that are not even in number.
    """
    check_count("candidates", candidates)
    check_part("fraction", fraction)
    if antithetic and not is_traced(candidates) and candidates % 2:
        raise ValueError(
            f"candidates={candidates!r} must be even with antithetic=True: they come in pairs."
        )
    draw = directions.get(distribution)
    signs = (1.0, -1.0) if antithetic else (1.0,)
    draws = candidates // len(signs)

    def direction(objective: Objective, params: PyTree, *, key: Array, mask: PyTree) -> Climb:
        part = objective.on_fraction(fraction)
        mode = probes.choose_batching("auto", part.probe, params, candidates)

        def drawn(index: Array) -> PyTree:
            return draw(jax.random.fold_in(key, index), params, mask)

        def worse(index: Array, worst: _Candidate) -> _Candidate:
            epsilon = objective.perturbation(drawn(index))
            losses = objective.across_devices(
                probes.along(part.probe, params, epsilon, signs, mode)
            )
            losses = jnp.where(jnp.isfinite(losses), losses, -jnp.inf)
            place = jnp.argmax(losses)
            challenger = _Candidate(
                losses[place], jnp.asarray(index, jnp.int32), jnp.asarray(signs)[place]
            )
            wins = challenger.loss > worst.loss
            winner: _Candidate = jax.tree.map(
                lambda new, old: jnp.where(wins, new, old), challenger, worst
            )
            return winner

        dtype = jax.eval_shape(part.probe, params).dtype
        worst = _Candidate(jnp.full((), -jnp.inf, dtype), jnp.zeros((), jnp.int32), jnp.zeros(()))
        if mode == "map":
            worst = jax.lax.fori_loop(0, draws, worse, worst)
        else:
            for i in range(draws):
                worst = worse(probes.after(worst, jnp.asarray(i)), worst)
        return Climb(trees.scale(drawn(worst.draw), worst.sign))

    return stateless(direction)
