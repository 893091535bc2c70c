"""One training run: the compiled step, the loop around it, what it reports."""

import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import sparsity, transform, trees
from zosam_jax.integrations.step import apply_loss
from zosam_jax.training import optimizers
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
      epoch, step: epochs and steps completed.
      train_loss, train_accuracy: means over the epoch, at the points where gradients were taken.
      test_accuracy: at the end of the epoch.
      seconds: since the start of the run, compilation included.
      images_per_second: of this epoch's training steps.
    """

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float
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

    def on_step(self, step: int, state: TrainState) -> None:
        """After step number `step` (from 1); reading from `state` waits for the device."""

    def on_epoch(self, record: EpochRecord, network: Network) -> None:
        """After each epoch."""


class Run:
    """One optimizer at one radius, from one seed.

    Attributes:
      first: the sharpness-aware transformation, None for SGD.
      state: the current TrainState.
      masks: the masks trained under, None for a dense network.
    """

    def __init__(self, problem: Problem, optimizer: str, rho: float, seed: int) -> None:
        """Initialises the network; nothing is compiled yet."""
        self.problem = problem
        self.optimizer, self.rho, self.seed = optimizer, rho, seed
        network = problem.init(seed)
        self.masks = network.masks
        self.first = optimizers.perturbation(problem.config, optimizer, rho, seed)
        self.tx = optimizers.transformation(
            problem.config, self.first, network.masks, problem.steps
        )
        self.state = TrainState(
            params=network.params,
            rest=network.rest,
            opt_state=self.tx.init(network.params),
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
        """Trains to the end; one record for each epoch."""
        observer = observer or Observer()
        started = time.perf_counter()
        step_fn, steps, records = self.step, 0, []
        for epoch in range(self.problem.config.epochs):
            epoch_started = time.perf_counter()
            for indices in self.problem.epoch(self.seed, epoch):
                self.state = step_fn(self.state, jnp.asarray(indices, jnp.int32))
                steps += 1
                observer.on_step(steps, self.state)
            loss, correct = float(self.state.loss_sum), int(self.state.correct)
            epoch_seconds = time.perf_counter() - epoch_started
            images = self.problem.steps_per_epoch * self.problem.config.batch_size
            records.append(
                EpochRecord(
                    epoch=epoch + 1,
                    step=steps,
                    train_loss=loss / self.problem.steps_per_epoch,
                    train_accuracy=correct / images,
                    test_accuracy=self.problem.test_accuracy(self.state.params, self.state.rest),
                    seconds=time.perf_counter() - started,
                    images_per_second=images / epoch_seconds,
                )
            )
            observer.on_epoch(records[-1], self.network)
            self.state = self.state._replace(
                loss_sum=jnp.zeros(()), correct=jnp.zeros((), jnp.int32)
            )
        return records

    @property
    def network(self) -> Network:
        """The network as it stands."""
        return Network(self.state.params, self.state.rest, self.masks)

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

            def value_fn(params: PyTree) -> Array:
                value: Array = loss(sparsity.apply_masks(params, self.masks))[0]
                return value

            (own_state,) = transform.states(state.opt_state)
            epsilon, _ = first.update(
                None,
                own_state,
                state.params,
                value_fn=value_fn,
                mask=self.masks,
                emit="perturbation",
            )
            value, gradient = jax.value_and_grad(value_fn)(state.params)
            lengths = trees.norm(epsilon) * trees.norm(gradient)
            cosine = optax.tree.vdot(epsilon, gradient) / jnp.where(lengths > 0, lengths, 1.0)
            return cosine, value_fn(trees.displace(state.params, epsilon)) - value

        return jax.jit(measure)
