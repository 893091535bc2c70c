"""One training run: the loop around the compiled step, where it stands, what it reports."""

import functools
import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from zosam_jax import keys, sparsity
from zosam_jax.training import devices, optimizers, sparse, step
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.feed import Batch
from zosam_jax.training.interruption import InterruptedRunError, Interruption
from zosam_jax.training.problem import Network, Problem
from zosam_jax.training.progress import EpochRecord, Progress
from zosam_jax.training.step import TrainState
from zosam_jax.trees import Array, PyTree

# Reading a number from the devices makes the host wait for them; a few times a second is enough.
_SECONDS_BETWEEN_READINGS = 0.25
_STEPS_BETWEEN_READINGS = 50  # of several processes


class Diagnosis(NamedTuple):
    """How one perturbation stands to the loss on its minibatch.

    Attributes:
      cosine: cos(ε, ∇L(θ)) on the kept weights.
      ascent_gain: L(θ+ε) − L(θ).
    """

    cosine: float
    ascent_gain: float


class NonFiniteLossError(ArithmeticError):
    """A loss was not finite, and the options say to stop."""


class Observer:
    """Watches a run; every method may be left as it is."""

    def on_start(self, run: "Run") -> None:
        """Before the first step of each training, resumed or not."""

    def on_step(self, run: "Run") -> None:
        """After each step; reading from `run.state` would make the host wait for the devices."""

    def on_reading(self, run: "Run") -> None:
        """A few times a second, between two steps, when the devices have just been waited for."""

    def on_epoch(self, record: EpochRecord, run: "Run") -> None:
        """After each epoch."""


class Run:
    """One optimizer at one radius, from one seed.

    Attributes:
      problem, optimizer, rho, seed: what is run.
      first: the sharpness-aware transformation, None for plain optimizers.
      tx: the whole optimizer.
      cost: multiply-adds of passes under masks.
      state: the current TrainState.
      progress: where it stands.
      records: of the epochs so far.
    """

    def __init__(self, problem: Problem, optimizer: str, rho: float, seed: int) -> None:
        """Initialises the network and its masks; the training step is compiled on first use."""
        self.problem = problem
        self.optimizer, self.rho, self.seed = optimizer, rho, seed
        self.first = optimizers.perturbation(problem.config, optimizer, rho, seed, problem.steps)
        network = problem.init(seed)
        self.cost = sparse.Cost(problem, optimizer, network)
        self.tx = sparse.under_masks(
            problem.config,
            optimizers.transformation(problem.config, optimizer, self.first, problem.steps),
            sparse.masks_before_training(problem, network, seed),
            steps=problem.steps,
            seed=seed,
        )
        self.progress = Progress()
        self.records: list[EpochRecord] = []
        self.state = self._start(network, self.tx.init(network.params), epoch=0)

    def _start(self, network: Network, opt_state: PyTree, epoch: int) -> TrainState:
        first_step = epoch * self.problem.steps_per_epoch
        return step.start(self.problem, network, opt_state, seed=self.seed, step=first_step)

    @functools.cached_property
    def step(self) -> Callable[[TrainState, Batch], TrainState]:
        """(state, batch) → state, compiled; the given state is donated."""
        return step.compile_step(self.problem, self.tx, self.state)

    def train(
        self, observer: Observer | None = None, checkpoints: Checkpoints | None = None
    ) -> list[EpochRecord]:
        """Trains to the end, or from the newest checkpoint on; one record for each epoch.

        Raises:
          NonFiniteLossError: at a loss that is not finite, if the options say to stop.
          InterruptedRunError: after SIGTERM or SIGINT, once a checkpoint is written; without
            checkpoints these signals do what they always do.
        """
        observer = observer or Observer()
        if checkpoints is None:
            return _Loop(self, observer, None, None).go()
        with Interruption() as interruption:
            return _Loop(self, observer, checkpoints, interruption).go()

    def resume(self, state: TrainState, progress: Progress, records: list[EpochRecord]) -> None:
        """Takes up a run where it stood."""
        self.state, self.progress, self.records = state, progress, records

    def restart(self, network: Network, masks: PyTree, epoch: int) -> None:
        """Starts anew from a network under given masks, schedules and data at this epoch."""
        opt_state = self.tx.init(network.params)
        count = jnp.asarray(epoch * self.problem.steps_per_epoch, jnp.int32)
        # Those of schedules; fresh moments count from 0.
        opt_state = optax.tree.set(opt_state, _is_of_schedule, count=count)._replace(masks=masks)
        self.state = self._start(network, opt_state, epoch)

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

    def diagnose(self, batch: Batch) -> Diagnosis:
        """Measures the perturbation that the next step would take on this batch."""
        cosine, gain = self._measure(self.state, batch, self.problem.feed.arrays)
        return Diagnosis(float(cosine), float(gain))

    @functools.cached_property
    def _measure(self) -> Callable[[TrainState, Batch, PyTree], tuple[Array, Array]]:
        first = self.first
        if first is None:
            raise ValueError(f"{self.optimizer} perturbs nothing; there is nothing to diagnose.")

        def measure(state: TrainState, batch: Batch, arrays: PyTree) -> tuple[Array, Array]:
            key = keys.from_data(state.key)
            examples = self.problem.examples(arrays, batch, state.step, key)
            return step.aim(self.problem, first, state, examples)

        return jax.jit(measure)


def _is_of_schedule(path: tuple[Any, ...], value: Any) -> bool:
    del value
    return bool(path[-1].tuple_name != "ScaleByAdamState")


class _Loop:
    """What `Run.train` goes through once."""

    def __init__(
        self,
        run: Run,
        observer: Observer,
        checkpoints: Checkpoints | None,
        interruption: Interruption | None,
    ) -> None:
        self._run, self._problem, self._config = run, run.problem, run.problem.config
        self._observer, self._checkpoints = observer, checkpoints
        self._interruption = interruption
        self._started = time.perf_counter() - run.progress.seconds
        self._asked = self._round = 0  # trainings and prunings of lth
        self._last_save = self._last_reading = time.perf_counter()

    def go(self) -> list[EpochRecord]:
        """The one training there is, or for lth those of all rounds."""
        if self._config.sparse == "lth" and not self._config.is_dense:
            self._lottery()
        else:
            self._train(self._config.epochs)
        return [r for r in self._run.records if r.round == self._run.progress.round]

    def _lottery(self) -> None:
        steps = self._problem.steps_per_epoch

        def train(
            params: PyTree, rest: PyTree, masks: PyTree, start: int, stop: int
        ) -> tuple[PyTree, PyTree]:
            return self._round_of_lottery(
                Network(params, rest), masks, range(start // steps, stop // steps)
            )

        rounds = sparsity.lottery_ticket(
            train,
            *self._problem.init(self._run.seed),
            self._config.sparsity,
            total_steps=self._problem.steps,
            levels=self._config.lottery_levels,
            rewind_to=self._config.rewind_epochs * steps,
            **sparse.options(self._config),
        )
        for level in rounds:
            self._round = level.index + 1

    def _round_of_lottery(self, network: Network, masks: PyTree, epochs: range) -> Network:
        """One training of many; a resumed run asks for the completed ones again, and gets them."""
        run, index = self._run, self._asked
        self._asked += 1
        if index < run.progress.training and self._checkpoints is not None:
            return self._checkpoints.restore_network(index, network)
        if not run.progress.under_way:
            run.restart(network, masks, epochs.start)
            run.progress = run.progress._replace(
                round=self._round, under_way=True, epoch=epochs.start, step=0, best=-1.0
            )
        self._train(epochs.stop)
        trained = Network(*jax.tree.map(jnp.copy, run.network))
        if self._checkpoints is not None:
            self._checkpoints.save_network(index, trained)
        run.progress = run.progress._replace(training=index + 1, under_way=False)
        return trained

    def _train(self, stop: int) -> None:
        """Goes on from where the run stands to the end of the last epoch before `stop`."""
        _ = self._run.step  # compiles, so that no epoch's speed has it in it
        self._observer.on_start(self._run)
        while self._run.progress.epoch < stop:
            self._epoch(last=self._run.progress.epoch + 1 == stop)
        self._save(wait=True)

    def _epoch(self, last: bool) -> None:
        run, problem = self._run, self._problem
        started, first = time.perf_counter(), run.progress.step
        batches = problem.feed.epoch(run.seed, run.progress.epoch, first)
        waited = time.perf_counter() - started
        for _ in range(first, problem.steps_per_epoch):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            run.state = run.step(run.state, batch)
            run.progress = run.progress._replace(
                step=run.progress.step + 1, total_steps=run.progress.total_steps + 1
            )
            self._observer.on_step(run)
            if run.progress.step < problem.steps_per_epoch:
                self._between_steps()
        self._check_finite()  # waits for the devices
        seconds = time.perf_counter() - started
        images = (problem.steps_per_epoch - first) * self._config.batch_size
        self._end_epoch(last, speed=images / seconds, data_wait=waited / seconds)

    def _between_steps(self) -> None:
        now = time.perf_counter()
        if self._reads(now):
            self._check_finite()
            self._observer.on_reading(self._run)
            self._last_reading = time.perf_counter()
        if self._checkpoints is None:
            return
        # Several processes would not agree on the time; they save at the end of epochs.
        if devices.is_alone() and now - self._last_save > self._checkpoints.seconds:
            self._save()
        self._stop_if_interrupted()

    def _reads(self, now: float) -> bool:
        # What a reading finds may end the run, for several processes after the same step.
        if devices.is_alone():
            return now - self._last_reading > _SECONDS_BETWEEN_READINGS
        return self._run.progress.total_steps % _STEPS_BETWEEN_READINGS == 0

    def _end_epoch(self, last: bool, speed: float, data_wait: float) -> None:
        run, config = self._run, self._config
        evaluates = last or (run.progress.epoch + 1) % config.evaluate_every == 0
        gradients = sparse.dense_gradients(config, run.state.opt_state)
        cost = run.progress.cost + self._run.cost.training(
            run.masks,
            self._problem.steps_per_epoch,
            gradients - run.progress.dense_gradients,
        )
        record = self._record(cost, evaluates, speed, data_wait)
        run.records.append(record)
        is_best = evaluates and record.score > run.progress.best
        run.state = step.begin_epoch(run.state, self._problem.mesh)
        run.progress = run.progress._replace(
            epoch=run.progress.epoch + 1,
            step=0,
            records=len(run.records),
            best=max(run.progress.best, record.score) if evaluates else run.progress.best,
            cost=cost,
            dense_gradients=gradients,
            seconds=record.seconds,
        )
        self._observer.on_epoch(record, run)
        if self._checkpoints is None:
            return
        every = self._checkpoints.every
        due = time.perf_counter() - self._last_save > self._checkpoints.seconds
        is_milestone = every is not None and run.progress.total_steps % every == 0
        if devices.agree(is_best or due or is_milestone):
            self._save(score=record.score if evaluates else None)
        self._stop_if_interrupted()

    def _record(self, cost: float, evaluates: bool, speed: float, data_wait: float) -> EpochRecord:
        run, problem = self._run, self._problem
        steps = problem.steps_per_epoch
        bad = int(run.state.bad_steps)

        def accuracy(network: Network | None, split: str) -> float:
            if not evaluates or network is None or split not in problem.feed.splits:
                return math.nan
            return problem.accuracy(network, split)

        epoch, good = run.progress.epoch + 1, steps - bad
        average = run.state.average
        if average is not None:
            average = average._replace(params=sparsity.apply_masks(average.params, run.masks))
        return EpochRecord(
            round=run.progress.round,
            epoch=epoch,
            step=epoch * steps,
            train_loss=float(run.state.loss_sum) / good if good else math.nan,
            train_accuracy=int(run.state.correct) / int(run.state.seen) if good else math.nan,
            test_accuracy=accuracy(run.network, "test"),
            validation_accuracy=accuracy(run.network, "validation"),
            average_test_accuracy=accuracy(average, "test"),
            sparsity=run.sparsity,
            training_cost=cost / steps,
            bad_steps=bad,
            seconds=time.perf_counter() - self._started,
            images_per_second=speed,
            data_wait=data_wait,
            **{
                name: float(total) / int(known) if known else math.nan
                for name, total, known in zip(
                    run.state.climb._fields, run.state.climb, run.state.climbs, strict=True
                )
            },
        )

    def _check_finite(self) -> None:
        first = int(self._run.state.first_bad_step)
        if first and self._config.on_non_finite == "stop":
            raise NonFiniteLossError(
                f"the loss of step {first} (epoch {self._run.progress.epoch + 1}) is not finite: "
                "try a smaller rho or learning rate, clip_norm, or on_non_finite='skip'."
            )

    def _save(self, *, score: float | None = None, wait: bool = False) -> None:
        if self._checkpoints is None:
            return
        run = self._run
        self._check_finite()
        run.progress = run.progress._replace(seconds=time.perf_counter() - self._started)
        self._checkpoints.save(run.state, run.progress, score)
        if wait:
            self._checkpoints.wait()
        self._last_save = time.perf_counter()

    def _stop_if_interrupted(self) -> None:
        if self._interruption is None or self._checkpoints is None:
            return
        if self._interruption.requested(self._run.progress.total_steps):
            self._save(wait=True)
            raise InterruptedRunError(self._interruption.signal, self._run.progress.total_steps)
