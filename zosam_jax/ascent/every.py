"""An ascent asked now and then: its direction serves until the next time."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax.ascent import memory
from zosam_jax.ascent.base import Ascent, Climb
from zosam_jax.errors import check_count
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


class EveryState(NamedTuple):
    """What `every` remembers.

    Attributes:
      wait: int32 scalar, the steps until the ascent is asked again; 0 for now.
      direction: what it answered, a pytree like the parameters in float32 or wider; zeros before
        the first answer.
      ascent: its own state.
    """

    wait: Array
    direction: PyTree
    ascent: PyTree


def every(interval: int, ascent: Ascent) -> Ascent:
    """The direction of `ascent`, found in steps 0, interval, 2·interval, … and kept in between.

    The ascent's passes, divided by `interval`; one buffer of the parameters' size beside its own.
    It is told the descent gradients of all steps. An answer that is not finite is dropped, and the
    direction before it stays. Where a step has several microbatches, those of an asking step have
    answers of their own, and the first one's is kept.

    The passes run inside lax.cond. Forward passes are as fast there as anywhere, but on a CPU the
    gradient of a convolution loses XLA's fast path (27 times slower where we measured it): there,
    wrap ascents that take gradients (`backprop`) for models without convolutions only. What an
    asking step learns besides the direction, its pass at θ and L(θ), is not passed on.

    Args:
      interval: ≥ 1, in steps; 1 asks in each.
      ascent: the ascent to ask.

    Raises:
      ValueError, TypeError: at construction, for an argument that cannot be right.

    Reference: for SAM's gradient, Liu et al., LookSAM, https://arxiv.org/abs/2203.02714
    """
    check_count("interval", interval)
    if not isinstance(ascent, Ascent):
        raise TypeError(
            f"ascent={ascent!r} must be an Ascent, for example "
            "zosam_jax.ascent.random_gradient_estimate()."
        )

    def init(params: PyTree) -> EveryState:
        return EveryState(jnp.zeros((), jnp.int32), memory.blank(params), ascent.init(params))

    def direction(
        objective: Objective, params: PyTree, state: EveryState, *, key: Array, mask: PyTree
    ) -> Climb:
        def ask(state: EveryState) -> EveryState:
            climb = ascent.direction(objective, params, state.ascent, key=key, mask=mask)
            found = memory.widened(climb.direction)
            return EveryState(
                wait=jnp.asarray(interval, jnp.int32) - 1,
                direction=memory.unless_bad(found, found, state.direction),
                ascent=state.ascent if climb.state is None else climb.state,
            )

        def keep(state: EveryState) -> EveryState:
            return state._replace(wait=state.wait - 1)

        state = jax.lax.cond(state.wait == 0, ask, keep, state)
        return Climb(state.direction, state=state)

    def observe(state: EveryState, gradient: PyTree) -> EveryState:
        return state._replace(ascent=ascent.observe(state.ascent, gradient))

    return Ascent(init, direction, observe)
