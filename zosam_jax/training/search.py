"""The search for units to keep: coefficients are trained with the weights, and the largest stay."""

import functools
from typing import Any

import jax

from zosam_jax import sparsity
from zosam_jax.sparsity import slimming, structured
from zosam_jax.sparsity.groups import HEADS, Units
from zosam_jax.sparsity.slimming import Slim
from zosam_jax.training import build
from zosam_jax.training.problem import Loss, Problem
from zosam_jax.trees import PyTree


def begun(problem: Problem, params: PyTree) -> PyTree:
    """Parameters as a run starts with them: where it searches, with coefficients."""
    if not problem.config.searches:
        return params
    return slimming.with_coefficients(params, _units(problem))


def plain(problem: Problem, params: PyTree) -> PyTree:
    """The network's own parameters, with the coefficients multiplied in where there are any."""
    return slimming.multiplied(params, _units(problem)) if isinstance(params, Slim) else params


def loss(problem: Problem, of_network: Loss, params: PyTree) -> Loss:
    """The training loss as one of these parameters; of coefficients with their penalty."""
    if not isinstance(params, Slim):
        return of_network
    return slimming.coefficient_loss(of_network, _units(problem), has_aux=True)


def losses(problem: Problem, of_network: Loss, params: PyTree) -> Loss:
    """The examples' losses likewise, without a penalty."""
    if not isinstance(params, Slim):
        return of_network

    @functools.wraps(of_network)
    def of_slim(params: PyTree, *args: Any) -> Any:
        return of_network(plain(problem, params), *args)

    return of_slim


def draw(problem: Problem, slim: Slim) -> PyTree:
    """Masks of the units with the largest coefficients.

    Of early-bird tickets the sign counts, as in EarlyBERT. Heads go layer by layer, since a layer
    has few of them.
    """
    config, units = problem.config, _units(problem)
    share = config.sparsity_distribution or build.default_distribution(config)
    is_signed = config.sparse == "early-bird"
    scores = [c if is_signed else abs(c) for c in slim.coefficients]
    drawn = None
    for of_heads in (True, False):
        pairs = [
            (group, score)
            for group, score in zip(units.groups, scores, strict=True)
            if (group.kind == HEADS) == of_heads
        ]
        if pairs:
            masks = sparsity.from_unit_scores(
                slim.params,
                [score for _, score in pairs],
                config.sparsity,
                units=Units(tuple(group for group, _ in pairs)),
                distribution="uniform" if of_heads else share,
            )
            drawn = masks if drawn is None else structured.both(drawn, masks)
    return drawn


def watcher(problem: Problem) -> sparsity.EarlyBird:
    """Which says, epoch by epoch, whether the masks of an early-bird ticket have settled."""
    return sparsity.early_bird(lambda slim: draw(problem, slim), units=_units(problem))


def without_coefficients(tree: PyTree) -> PyTree:
    """An optimizer's state for the parameters alone."""

    def is_slim(x: Any) -> bool:
        return isinstance(x, Slim)

    return jax.tree.map(lambda x: x.params if is_slim(x) else x, tree, is_leaf=is_slim)


def _units(problem: Problem) -> Units:
    assert problem.units is not None
    return problem.units
