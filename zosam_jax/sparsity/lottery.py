"""The lottery ticket hypothesis: train, prune, rewind, again; over any training function."""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from zosam_jax.errors import check_count, check_one_of
from zosam_jax.masks import apply_masks
from zosam_jax.sparsity import layers, pruning
from zosam_jax.sparsity.distributions import GLOBAL, SparsityDistribution
from zosam_jax.sparsity.layers import Where, is_weight
from zosam_jax.sparsity.patterns import Pattern
from zosam_jax.trees import Array, Bool, PyTree


class Train(Protocol):
    """A training function, from one step of the run to another."""

    def __call__(
        self, params: PyTree, model_state: Any, masks: PyTree, start: int, stop: int, /
    ) -> tuple[PyTree, Any]:
        """Trains under masks, with a fresh optimizer, through the steps start ≤ step < stop.

        Args:
          params: the parameters to start from.
          model_state: what else training changes (BatchNorm statistics).
          masks: a pytree like `params` of bool leaves, None for dense parameters.
          start: the first step.
          stop: the step after the last.

        Returns:
          (params, model_state) after the last step.
        """


RETRAIN = ("rewind weights", "rewind learning rate", "fine-tune")


class Level(NamedTuple):
    """One round of training and pruning.

    Attributes:
      index: 0 for the dense network.
      masks: those trained under; all True at level 0.
      start: (params, model_state) that training began from.
      trained: (params, model_state) that it ended with.
    """

    index: int  # type: ignore[assignment]  # hides tuple.index
    masks: PyTree[Bool[Array, "..."]]
    start: tuple[PyTree, Any]
    trained: tuple[PyTree, Any]


def lottery_ticket(
    train: Train,
    params: PyTree,
    model_state: Any,
    sparsity: float,
    *,
    total_steps: int,
    levels: int | None = None,
    rewind_to: int = 0,
    retrain: str = "rewind weights",
    distribution: str | SparsityDistribution = GLOBAL,
    where: Where = is_weight,
    pattern: Pattern | None = None,
) -> Iterator[Level]:
    """Iterative magnitude pruning; an iterator, whose last level is the ticket.

        for level in sparsity.lottery_ticket(train, params, model_state, 0.9, total_steps=10_000):
            print(level.index, sparsity.sparsity_of(level.masks, params), evaluate(*level.trained))

    Level 0 trains the dense network from its first step to its last. Each later level prunes the
    trained weights of smallest magnitude to the density (1 − s)^(i/levels), nested in the masks
    before, and trains again:

    - "rewind weights": from the weights and the schedule of step k, θ = m ⊙ θ_k, with θ_k and the
      model_state (BatchNorm statistics) of the dense run;
    - "rewind learning rate": from the trained weights, with the schedule of step k on;
    - "fine-tune": from the trained weights for as many steps, past the schedule's end.

    Args:
      train: (params, model_state, masks, start, stop) → (params, model_state): trains under
        `masks`, with a fresh optimizer, through the steps start ≤ step < stop of the learning-rate
        schedule and the data's order. Fine-tuning asks for steps from total_steps on.
      params: the parameters at step 0.
      model_state: what else training changes (BatchNorm statistics), in any form; None without.
      sparsity: the fraction of the maskable weights that is zero in the end.
      total_steps: the length of the dense run.
      levels: rounds of pruning. Default: as many as pruning a fifth each time would take;
        one for a pattern of fixed density (N:M).
      rewind_to: k. With k > 0 its weights come from a run of k steps of its own, which equals the
        dense run's beginning if `train` is deterministic.
      retrain: one of the three above.
      distribution: how the budget is shared among layers (see `from_scores`).
      where: which parameters to mask (see `from_scores`).
      pattern: the shape of the masks (see `from_scores`).

    Returns:
      An iterator over the levels, each trained as it is asked for.

    Raises:
      ValueError: for an argument that cannot be right, before anything is trained.

    References: Frankle and Carbin, The Lottery Ticket Hypothesis,
    https://arxiv.org/abs/1803.03635; Renda et al., Comparing Rewinding and Fine-tuning in Neural
    Network Pruning, https://arxiv.org/abs/2003.02389
    """
    pruning.check_sparsity(sparsity)
    check_count("total_steps", total_steps)
    check_one_of("retrain", retrain, RETRAIN)
    if rewind_to != 0:
        check_count("rewind_to", rewind_to)
    if rewind_to >= total_steps:
        raise ValueError(f"rewind_to={rewind_to} must be below total_steps={total_steps}.")
    if levels is not None:
        check_count("levels", levels)
    if sparsity == 0:
        levels = 0
    elif pattern is not None and pattern.density is not None:
        levels = 1
    elif levels is None:
        levels = default_levels(sparsity)
    options: dict[str, Any] = {"distribution": distribution, "where": where, "pattern": pattern}
    # An impossible budget fails here, without anything being computed.
    jax.eval_shape(lambda p: pruning.magnitude(p, sparsity, **options), params)
    densities = [(1.0 - sparsity) ** (i / levels) for i in range(1, levels + 1)]
    plan = _Plan(densities, total_steps, rewind_to, retrain)
    return _levels(train, (params, model_state), plan, options)


def default_levels(sparsity: float) -> int:
    """The rounds that pruning a fifth of the weights each time takes to a sparsity above 0."""
    # The tolerance keeps 0.8 of the weights, say, at one level.
    return math.ceil(math.log(1.0 - sparsity) / math.log(0.8) - 1e-9)


class _Plan(NamedTuple):
    densities: Sequence[float]
    total_steps: int
    rewind_to: int
    retrain: str


def _levels(
    train: Train,
    initial: tuple[PyTree, Any],
    plan: _Plan,
    options: dict[str, Any],
) -> Iterator[Level]:
    masked = layers.select(initial[0], options["where"])
    masks = masked.fill([jnp.ones(jnp.shape(w), bool) for w in masked.take(initial[0])])
    rewinds_weights = plan.retrain == RETRAIN[0]
    early = initial
    if plan.rewind_to and plan.densities and rewinds_weights:
        early = train(*initial, masks, 0, plan.rewind_to)
    trained = train(*initial, masks, 0, plan.total_steps)
    yield Level(0, masks, initial, trained)
    first = plan.total_steps if plan.retrain == RETRAIN[2] else plan.rewind_to
    for index, density in enumerate(plan.densities, start=1):
        scores = jax.tree.map(
            lambda m, w: None if m is None else jnp.where(m, jnp.abs(w), -1.0),
            masks,
            trained[0],
            is_leaf=lambda x: x is None,
        )
        masks = pruning.from_scores(initial[0], scores, 1.0 - density, **options)
        params, model_state = early if rewinds_weights else trained
        start = (apply_masks(params, masks), model_state)
        trained = train(*start, masks, first, first + plan.total_steps - plan.rewind_to)
        yield Level(index, masks, start, trained)
