"""The rounds of a lottery ticket: several trainings of one run, pruned and rewound between."""

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from zosam_jax import sparsity
from zosam_jax.training import build
from zosam_jax.training.problem import Network
from zosam_jax.trees import PyTree

if TYPE_CHECKING:
    from zosam_jax.training.trainer import TrainingLoop


def train(loop: "TrainingLoop") -> None:
    """Trains, prunes and rewinds until the network is as sparse as the options say.

    A resumed run goes through the same rounds, and takes the completed ones from its checkpoints.
    """
    run = loop.run
    config, steps = run.problem.config, run.problem.steps_per_epoch
    asked, current_round = 0, 0  # trainings asked for, prunings

    def train_round(
        params: PyTree, model_state: PyTree, masks: PyTree, start: int, stop: int
    ) -> tuple[PyTree, PyTree]:
        nonlocal asked
        asked += 1
        network = Network(params, model_state)
        epochs = range(start // steps, stop // steps)
        return _train_once(loop, network, masks, epochs, index=asked - 1, in_round=current_round)

    levels = sparsity.lottery_ticket(
        train_round,
        *run.problem.init(run.seed),
        config.sparsity,
        total_steps=run.problem.steps,
        levels=config.lottery_levels,
        rewind_to=config.rewind_epochs * steps,
        **build.mask_options(run.problem),
    )
    for level in levels:
        current_round = level.index + 1


def _train_once(
    loop: "TrainingLoop",
    network: Network,
    masks: PyTree,
    epochs: range,
    *,
    index: int,
    in_round: int,
) -> Network:
    """One training of several, or what it ended with, where it is completed."""
    run, checkpoints = loop.run, loop.checkpoints
    if index < run.progress.training and checkpoints is not None:
        return checkpoints.restore_network(index, network)
    if not run.progress.under_way:
        run.restart(network, masks, epochs.start)
        run.progress = run.progress._replace(
            round=in_round, under_way=True, epoch=epochs.start, step=0, best=-1.0
        )
    loop.train_until(epochs.stop)
    trained = Network(*jax.tree.map(jnp.copy, run.network))
    if checkpoints is not None:
        checkpoints.save_network(index, trained)
    run.progress = run.progress._replace(training=index + 1, under_way=False)
    return trained
