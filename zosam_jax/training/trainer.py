"""One training run: the compiled step, the loop around it, what it reports."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import sparsity, transform, trees
from zosam_jax.integrations.step import apply_loss
from zosam_jax.training import optimizers, sparse
from zosam_jax.training.problem import Network, Problem
from zosam_jax.trees import Array, PyTree


class TrainState(NamedTuple):
    """What a step turns into its successor; donated, so that memory is reused.

    Attributes:
      params, rest, opt_state: the network and its optimizer.
      loss_sum, correct: sums over the steps and images of the epoch so far, as the step's own
        passes saw them (at θ+ε where the optimizer perturbs).
    """

    params: PyTree
    rest: PyTree
    opt_state: PyTree
    loss_sum: Array
    correct: Array


class EpochRecord(NamedTuple):
    """One line of metrics.jsonl.

    Attributes:
      round: 0, or how often the network was pruned before this training (lth).
      epoch, step: epochs and steps completed, on the schedule.
      train_loss, train_accuracy: means over the epoch, at the points where gradients were taken.
      test_accuracy: at the end of the epoch; NaN where the options skip it.
      sparsity: the fraction of zeros among the maskable weights then.
      training_cost: multiply-adds since the start of the run, earlier rounds included, in epochs
        of the dense network with SGD (see `training.sparse.Cost`).
      seconds: since the start of the run, compilation included.
      images_per_second: of this epoch's training steps.
    """

    round: int
    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
    sparsity: float
    training_cost: float
    seconds: float
    images_per_second: float


class Diagnosis(NamedTuple):
    """How one perturbation stands to the loss on its minibatch.

    Attributes:
      cosine: cos(ε, ∇L(θ)) on the kept weights.
      ascent_gain: L(θ+ε) − L(θ).
    """

    cosine: float
    ascent_gain: float


class Observer:
    """Watches a run; every method may be left as it is."""

    def on_start(self, run: "Run") -> None:
        """Before the first epoch; for lth before that of each round."""

    def on_step(self, step: int, state: TrainState) -> None:
        """After step number `step` (from 1); reading from `state` waits for the device."""

    def on_epoch(self, record: EpochRecord, run: "Run") -> None:
        """After each epoch."""


class Run:
    """One optimizer at one radius, from one seed.

    Attributes:
      first: the sharpness-aware transformation, None for SGD.
      state: the current TrainState.
      cost: multiply-adds of passes under masks.
      round: how often the network was pruned (lth).
    """

    def __init__(self, problem: Problem, optimizer: str, rho: float, seed: int) -> None:
        """Initialises the network and its masks; the training step is compiled on first use."""
        self.problem = problem
        self.optimizer, self.rho, self.seed = optimizer, rho, seed
        self.first = optimizers.perturbation(problem.config, optimizer, rho, seed)
        self.cost = sparse.Cost(problem, optimizer)
        network = problem.init(seed)
        masks = sparse.masks_before_training(problem, network, seed)
        self.tx = sparse.under_masks(
            problem.config,
            optimizers.transformation(problem.config, self.first, problem.steps),
            masks,
            steps=problem.steps,
            seed=seed,
        )
        self.state = self._start(network, self.tx.init(network.params))
        self.round = 0
        self._cost_so_far = 0.0
        self._started = time.perf_counter()

    def _restart(self, network: Network, masks: PyTree, epoch: int) -> None:
        """Starts anew from a network under given masks, schedules and data at this epoch."""
        opt_state = self.tx.init(network.params)
        count = jnp.asarray(epoch * self.problem.steps_per_epoch, jnp.int32)
        opt_state = optax.tree.set(opt_state, count=count)._replace(masks=masks)
        # Copies: the state is donated, and so nothing in it may be the caller's or stand twice.
        self.state = jax.tree.map(jnp.copy, self._start(network, opt_state))

    def _start(self, network: Network, opt_state: PyTree) -> TrainState:
        return TrainState(
            params=sparsity.apply_masks(network.params, sparse.masks_of(opt_state)),
            rest=network.rest,
            opt_state=opt_state,
            loss_sum=jnp.zeros(()),
            correct=jnp.zeros((), jnp.int32),
        )

    @functools.cached_property
    def step(self) -> Callable[[TrainState, Any], TrainState]:
        """(state, batch indices) → state, compiled; the given state is donated."""

        def step(state: TrainState, indices: Array) -> TrainState:
            value, (rest, metrics), params, opt_state = apply_loss(
                self.tx,
                self.problem.loss(state.rest, indices),
                state.params,
                state.opt_state,
                has_aux=True,
            )
            return TrainState(
                params,
                rest,
                opt_state,
                state.loss_sum + value,
                state.correct + metrics.correct,
            )

        batch = jax.ShapeDtypeStruct((self.problem.config.batch_size,), jnp.int32)
        return jax.jit(step, donate_argnums=0).lower(self.state, batch).compile()

    def train(self, observer: Observer | None = None) -> list[EpochRecord]:
        """Trains to the end; one record for each epoch, for lth of the last round's training."""
        observer = observer or Observer()
        self._started = time.perf_counter()
        config, steps = self.problem.config, self.problem.steps_per_epoch
        if config.sparse != "lth" or sparse.is_dense(config):
            return self._train(observer, range(config.epochs))
        records: list[EpochRecord] = []

        def train(
            params: PyTree, rest: PyTree, masks: PyTree, start: int, stop: int
        ) -> tuple[PyTree, PyTree]:
            self._restart(Network(params, rest), masks, start // steps)
            records[:] = self._train(observer, range(start // steps, stop // steps))
            return self.network

        rounds = sparsity.lottery_ticket(
            train,
            *self.problem.init(self.seed),
            config.sparsity,
            total_steps=self.problem.steps,
            levels=config.lottery_levels,
            rewind_to=config.rewind_epochs * steps,
            **sparse.distribution(config),
        )
        for level in rounds:
            self.round = level.index + 1
        self.round -= 1
        return records

    def _train(self, observer: Observer, epochs: range) -> list[EpochRecord]:
        observer.on_start(self)
        problem, step_fn, records = self.problem, self.step, []
        images = problem.steps_per_epoch * problem.config.batch_size
        step = epochs.start * problem.steps_per_epoch
        for epoch in epochs:
            epoch_started = time.perf_counter()
            gradients_before = sparse.dense_gradients(problem.config, self.state.opt_state)
            for indices in problem.epoch(self.seed, epoch):
                self.state = step_fn(self.state, jnp.asarray(indices, jnp.int32))
                step += 1
                observer.on_step(step, self.state)
            loss, correct = float(self.state.loss_sum), int(self.state.correct)
            epoch_seconds = time.perf_counter() - epoch_started
            gradients = sparse.dense_gradients(problem.config, self.state.opt_state)
            self._cost_so_far += self.cost.training(
                self.masks, problem.steps_per_epoch, gradients - gradients_before
            )
            records.append(
                EpochRecord(
                    round=self.round,
                    epoch=epoch + 1,
                    step=step,
                    train_loss=loss / problem.steps_per_epoch,
                    train_accuracy=correct / images,
                    test_accuracy=(
                        problem.test_accuracy(*self.network)
                        if (epoch + 1) % problem.config.evaluate_every == 0 or epoch == epochs[-1]
                        else math.nan
                    ),
                    sparsity=self.sparsity,
                    training_cost=self._cost_so_far / problem.steps_per_epoch,
                    seconds=time.perf_counter() - self._started,
                    images_per_second=images / epoch_seconds,
                )
            )
            observer.on_epoch(records[-1], self)
            self.state = self.state._replace(
                loss_sum=jnp.zeros(()), correct=jnp.zeros((), jnp.int32)
            )
        return records

    @property
    def network(self) -> Network:
        """The network as it stands."""
        return Network(self.state.params, self.state.rest)

    @property
    def masks(self) -> PyTree:
        """The masks as they stand; None for a dense network."""
        return sparse.masks_of(self.state.opt_state)

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among the maskable weights."""
        return sparsity.sparsity_of(self.masks, self.state.params)

    def diagnose(self, indices: Any) -> Diagnosis:
        """Measures the perturbation that the next step would take on this batch."""
        cosine, gain = self._measure(self.state, jnp.asarray(indices, jnp.int32))
        return Diagnosis(float(cosine), float(gain))

    @functools.cached_property
    def _measure(self) -> Callable[[TrainState, Array], tuple[Array, Array]]:
        first = self.first
        if first is None:
            raise ValueError("SGD perturbs nothing; there is nothing to diagnose.")

        def measure(state: TrainState, indices: Array) -> tuple[Array, Array]:
            loss = self.problem.loss(state.rest, indices)
            masks = sparse.masks_of(state.opt_state)

            def value_fn(params: PyTree) -> Array:
                value: Array = loss(sparsity.apply_masks(params, masks))[0]
                return value

            (own_state,) = transform.states(state.opt_state)
            epsilon, _ = first.update(
                None,
                own_state,
                state.params,
                value_fn=value_fn,
                mask=masks,
                emit="perturbation",
            )
            value, gradient = jax.value_and_grad(value_fn)(state.params)
            lengths = trees.norm(epsilon) * trees.norm(gradient)
            cosine = optax.tree.vdot(epsilon, gradient) / jnp.where(lengths > 0, lengths, 1.0)
            return cosine, value_fn(trees.displace(state.params, epsilon)) - value

        return jax.jit(measure)
