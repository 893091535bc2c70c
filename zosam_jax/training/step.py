"""The compiled training step and what it turns into its successor."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import averages, keys, sparsity, transform
from zosam_jax.analysis.estimator import PerturbationQuality, perturbation_quality
from zosam_jax.ascent import misclassification_bound
from zosam_jax.compiling import compiler_options
from zosam_jax.gradient import Diagnostics
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.sparsity import EarlyBirdState
from zosam_jax.training import build, devices, search, structure
from zosam_jax.training.feed import Batch
from zosam_jax.training.problem import Examples, Network, Problem
from zosam_jax.trees import Array, PyTree

# Apart from the optimizer's random directions, which start from the seed itself.
_AUGMENTATION_STREAM = 1


class RunState(NamedTuple):
    """What a step turns into its successor; donated, so that memory is reused.

    Attributes:
      params, model_state, opt_state: the network and its optimizer.
      average: moving average of the network; None without.
      key: of the augmentation, as raw data; the same in every step.
      step: steps taken, on the schedule.
      loss_sum, correct, seen: sums over the steps of the epoch so far, as the steps' own passes
        saw them; the loss, and how many of how many images were labelled correctly.
      diagnostics, known: the sums of the steps' diagnostics where they were known, and how often
        each was.
      bad_steps: steps of this epoch whose loss or result was not finite; the sums leave them
        out.
      first_bad_step: the number of the first one of them, from 1; 0 as long as there is none.
      watch: of an early-bird ticket, what is known of the units to keep; None without.
    """

    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    average: Network | None
    key: Array
    step: Array
    loss_sum: Array
    correct: Array
    seen: Array
    diagnostics: Diagnostics
    known: Diagnostics
    bad_steps: Array
    first_bad_step: Array
    watch: EarlyBirdState | None = None


def start(
    problem: Problem, network: Network, opt_state: PyTree, *, seed: int, step: int
) -> RunState:
    """The state before a step, on all devices; nothing in it is the caller's or stands twice."""
    network = Network(
        sparsity.apply_masks(network.params, build.masks_of(opt_state)), network.model_state
    )
    key = jax.random.fold_in(keys.as_key(seed), _AUGMENTATION_STREAM)
    state = RunState(
        params=network.params,
        model_state=network.model_state,
        opt_state=opt_state,
        average=None if problem.config.ema_decay is None else network,
        key=jax.random.key_data(key),
        step=jnp.asarray(step, jnp.int32),
        loss_sum=jnp.zeros(()),
        correct=jnp.zeros((), jnp.int32),
        seen=jnp.zeros((), jnp.int32),
        diagnostics=Diagnostics(*(jnp.zeros(()) for _ in Diagnostics._fields)),
        known=Diagnostics(*(jnp.zeros((), jnp.int32) for _ in Diagnostics._fields)),
        bad_steps=jnp.zeros((), jnp.int32),
        first_bad_step=jnp.zeros((), jnp.int32),
    )
    placed: RunState = devices.replicate(jax.tree.map(_own_copy, state), problem.mesh)
    return placed


def compacted(problem: Problem, state: RunState, kept: structure.Kept) -> RunState:
    """The state without the units that are not kept, whose weights are zero under its masks.

    Nothing is left for masks to do; all else goes on as it stands.
    """
    units = problem.units
    assert units is not None
    of_groups = structure.as_arrays(kept, units)

    def cut(network: Network) -> Network:
        return Network(*(sparsity.cut(tree, units, of_groups) for tree in network))

    network = cut(Network(state.params, state.model_state))
    opt_state = build.without_masks(state.opt_state)
    smaller = state._replace(
        params=network.params,
        model_state=network.model_state,
        opt_state=sparsity.cut_state(opt_state, state.params, units, of_groups),
        average=None if state.average is None else cut(state.average),
    )
    placed: RunState = devices.replicate(jax.tree.map(_own_copy, smaller), problem.mesh)
    return placed


def _own_copy(array: Array) -> Array:
    return jnp.array(array, copy=True)


def compile_step(
    problem: Problem, tx: optax.GradientTransformation, state: RunState
) -> Callable[[RunState, Batch], RunState]:
    """(state, batch) → state, compiled for each shape of batches; the given state is donated."""
    arrays = problem.feed.arrays
    everywhere = devices.replicated(problem.mesh)
    program = jax.jit(
        lambda state, batch, arrays: train_step(problem, tx, state, batch, arrays),
        donate_argnums=0,
        out_shardings=everywhere,
        compiler_options=compiler_options(),
    )
    compiled = {
        _shape(batch): program.lower(state, batch, arrays).compile()
        for batch in problem.feed.batch_shapes()
    }
    return lambda state, batch: compiled[_shape(batch)](state, batch, arrays)


def _shape(batch: Batch) -> tuple[int, ...]:
    """That of its first array, by which batches differ."""
    first: Array = jax.tree.leaves(batch)[0]
    return first.shape


def train_step(
    problem: Problem,
    tx: optax.GradientTransformation,
    state: RunState,
    batch: Batch,
    arrays: PyTree,
) -> RunState:
    """One step, to be compiled; `arrays` are the feed's."""
    config = problem.config
    value, (model_state, metrics), params, opt_state = apply_loss(
        tx,
        search.loss(problem, problem.loss_of_examples(state.model_state), state.params),
        state.params,
        state.opt_state,
        has_aux=True,
        losses_fn=losses_fn(problem, state),
        bound_fn=bound_fn(problem, state),
        examples=problem.examples(arrays, batch, state.step, keys.from_data(state.key)),
    )
    good = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(params))
    if config.on_non_finite == "skip":
        params, model_state, opt_state = _keep_if(
            good,
            (params, model_state, opt_state),
            (state.params, state.model_state, state.opt_state),
        )
    average = state.average
    if average is not None and config.ema_decay is not None:
        average = averages.moved_towards(
            average, Network(params, model_state), 1.0 - config.ema_decay
        )
    first = (state.first_bad_step == 0) & ~good

    told = _diagnostics(opt_state)

    def summed(total: PyTree, of_step: PyTree) -> PyTree:
        return jax.tree.map(lambda t, x: t + jnp.where(good, x, jnp.zeros_like(x)), total, of_step)

    return RunState(
        params=params,
        model_state=model_state,
        opt_state=opt_state,
        average=average,
        key=state.key,
        step=state.step + 1,
        loss_sum=summed(state.loss_sum, value),
        correct=summed(state.correct, metrics.correct),
        seen=summed(state.seen, metrics.seen),
        diagnostics=summed(state.diagnostics, jax.tree.map(jnp.nan_to_num, told)),
        known=summed(state.known, jax.tree.map(lambda x: ~jnp.isnan(x), told)),
        bad_steps=state.bad_steps + ~good,
        first_bad_step=jnp.where(first, state.step + 1, state.first_bad_step),
        watch=state.watch,
    )


def value_fn(problem: Problem, state: RunState) -> Callable[[PyTree, Examples], Array]:
    """(params, examples) → the training loss of the sparse network, statistics as they stand."""
    loss = search.loss(problem, problem.loss_of_examples(state.model_state), state.params)
    masks = build.masks_of(state.opt_state)

    def value(params: PyTree, examples: Examples) -> Array:
        mean: Array = loss(sparsity.apply_masks(params, masks), examples)[0]
        return mean

    return value


def losses_fn(problem: Problem, state: RunState) -> Callable[[PyTree, Examples], Array]:
    """(params, examples) → the loss of each example."""
    return search.losses(problem, problem.losses_of_examples(state.model_state), state.params)


def bound_fn(problem: Problem, state: RunState) -> Callable[[PyTree, Examples], Array]:
    """(params, examples) → the bound on the network's errors that BiSAM climbs."""
    of_network = problem.losses_of_examples(state.model_state, misclassification_bound)
    bounds = search.losses(problem, of_network, state.params)
    return lambda params, examples: bounds(params, examples).mean()


def perturbation(
    problem: Problem,
    sam_tx: optax.GradientTransformationExtraArgs,
    state: RunState,
    examples: Examples,
    key: Array | None = None,
) -> PyTree:
    """The ε that the next step would take on these examples, by its optimizer.

    Args:
      problem: what is trained.
      sam_tx: the sharpness-aware transformation of its chain.
      state: before the step.
      examples: those of the step.
      key: for other random directions than the next step's.
    """
    (own_state,) = transform.states(state.opt_state)
    if key is not None:
        own_state = own_state._replace(key=jax.random.key_data(key))
    epsilon, _ = sam_tx.update(
        None,
        own_state,
        state.params,
        value_fn=value_fn(problem, state),
        losses_fn=losses_fn(problem, state),
        bound_fn=bound_fn(problem, state),
        examples=examples,
        mask=build.masks_of(state.opt_state),
        emit="perturbation",
    )
    return epsilon


def ascent_quality(
    problem: Problem,
    sam_tx: optax.GradientTransformationExtraArgs,
    state: RunState,
    examples: Examples,
    key: Array | None = None,
) -> PerturbationQuality:
    """Of `perturbation`'s ε, on its own examples."""
    epsilon = perturbation(problem, sam_tx, state, examples, key)
    loss = value_fn(problem, state)
    return perturbation_quality(lambda p: loss(p, examples), state.params, epsilon)


def _diagnostics(opt_state: PyTree) -> Diagnostics:
    """What the last step tells about its perturbation; NaN where nothing perturbs."""
    for state in transform.states(opt_state):
        return state.diagnostics
    return Diagnostics(*(jnp.asarray(jnp.nan) for _ in Diagnostics._fields))


def _keep_if(good: Array, new: PyTree, old: PyTree) -> PyTree:
    return jax.tree.map(lambda n, o: jnp.where(good, n, o), new, old)


def to_saved(tree: PyTree) -> PyTree:
    """A state or network as plain arrays: random keys as their data."""
    return jax.tree.map(lambda x: jax.random.key_data(x) if _is_key(x) else x, tree)


def from_saved(saved: PyTree, like: PyTree) -> PyTree:
    """The inverse of `to_saved`, for what is built like `like`."""

    def key(data: Array, own: Array) -> Array:
        if not _is_key(own):
            return data
        wrapped: Array = jax.random.wrap_key_data(data, impl=jax.random.key_impl(own))
        return wrapped

    return jax.tree.map(key, saved, like)


def _is_key(array: Any) -> bool:
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)


def begin_epoch(state: RunState, mesh: jax.sharding.Mesh) -> RunState:
    """The state at the start of an epoch: its sums and counts at zero."""
    names = ("loss_sum", "correct", "seen", "diagnostics", "known", "bad_steps", "first_bad_step")
    zeros = {
        name: jax.tree.map(lambda x: np.zeros((), x.dtype), getattr(state, name)) for name in names
    }
    return state._replace(**devices.replicate(zeros, mesh))
