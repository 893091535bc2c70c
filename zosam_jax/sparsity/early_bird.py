"""Early-bird tickets: masks are drawn as soon as those of successive epochs agree."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from zosam_jax.errors import check_count, check_positive_fraction
from zosam_jax.sparsity import structured
from zosam_jax.sparsity.groups import Units
from zosam_jax.trees import Array, Bool, Float, Int, PyTree


class EarlyBirdState(NamedTuple):
    """What is known of the masks so far; arrays only.

    Attributes:
      masks: the newest masks, or, once they are drawn, those.
      count: int32 scalar, how often masks were looked at until they were drawn.
      distances: from the newest masks to the last ones, newest first; inf where there is none yet.
      drawn: bool scalar, whether the masks stand.
      previous: the newest masks and the ones before, as rows of kept units or weights.
    """

    masks: PyTree
    count: Int[Array, ""]  # type: ignore[assignment]  # hides tuple.count, as optax's own do
    distances: Float[Array, " last"]
    drawn: Bool[Array, ""]
    previous: Bool[Array, "last n"]


class EarlyBird(NamedTuple):
    """Two pure functions, which may be compiled.

    Attributes:
      init: params → the state before training.
      update: (params, state) → the state, after each epoch (or fraction of one).
    """

    init: Callable[[PyTree], EarlyBirdState]
    update: Callable[[PyTree, EarlyBirdState], EarlyBirdState]


def early_bird(
    choose: Callable[[PyTree], PyTree],
    *,
    units: Units | None = None,
    last: int = 5,
    threshold: float = 0.1,
) -> EarlyBird:
    """Draws masks when they are hardly other than in the last epochs.

        d_i = the fraction of units (or weights) that one of m_t and m_{t−i} keeps and one does not
        drawn once max(d_1 … d_k) < threshold

    The dense network is trained until then, and the ticket after that, under fixed masks:

        bird = sparsity.early_bird(lambda p: sparsity.magnitude(p, 0.5, units=units), units=units)
        watch = bird.init(params)
        for epoch in range(epochs):
            params = train_one_epoch(params)
            watch = bird.update(params, watch)
            if watch.drawn:
                break
        masks = watch.masks

    Once drawn, the state stays as it is.

    Args:
      choose: params → masks, for example by `magnitude`, with where=is_scale for BatchNorm's scales
        as in the original.
      units: what the distance counts; None for the weights that `choose` masks.
      last: k, with how many masks the newest are compared.
      threshold: in (0, 1].

    Returns:
      An EarlyBird.

    Reference: You et al., Drawing Early-Bird Tickets, https://arxiv.org/abs/1909.11957
    """
    if not callable(choose):
        raise TypeError(
            f"choose is {type(choose).__name__}; it must be a function from params to masks."
        )
    check_count("last", last)
    check_positive_fraction("threshold", threshold)

    def row(masks: PyTree) -> Bool[Array, " n"]:
        kept = jax.tree.leaves(masks)
        if units is not None:
            kept = structured.kept(units, masks)
        return jnp.concatenate([jnp.ravel(k) for k in kept])

    def init(params: PyTree) -> EarlyBirdState:
        masks = choose(params)
        return EarlyBirdState(
            masks,
            jnp.zeros((), jnp.int32),
            jnp.full(last, jnp.inf),
            jnp.zeros((), bool),
            jnp.zeros((last, row(masks).size), bool),
        )

    def update(params: PyTree, state: EarlyBirdState) -> EarlyBirdState:
        masks = choose(params)
        new = row(masks)
        distances = jnp.where(
            jnp.arange(last) < state.count, jnp.mean(state.previous != new, axis=1), jnp.inf
        )
        found = EarlyBirdState(
            masks,
            state.count + 1,
            distances,
            jnp.max(distances) < threshold,
            jnp.concatenate([new[None], state.previous[:-1]]),
        )
        stays: EarlyBirdState = jax.tree.map(
            lambda old, now: jnp.where(state.drawn, old, now), state, found
        )
        return stays

    return EarlyBird(init, update)
