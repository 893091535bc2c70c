"""One training run: the loop around the compiled step, where it stands, what it reports."""

import functools
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import sparsity, transform
from zosam_jax.training import build, devices, lottery, search, step, structure
from zosam_jax.training.callbacks import Callback
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.feed import Batch
from zosam_jax.training.interruption import InterruptedRunError, Interruption
from zosam_jax.training.problem import Evaluation, Network, Problem
from zosam_jax.training.progress import EpochRecord, Progress
from zosam_jax.training.step import RunState
from zosam_jax.trees import PyTree

# Reading a number from the devices makes the host wait for them; a few times a second is enough.
_SECONDS_BETWEEN_READINGS = 0.25
_STEPS_BETWEEN_READINGS = 50  # of several processes


class NonFiniteLossError(ArithmeticError):
    """A loss was not finite, and the options say to stop."""


class Run:
    """One optimizer at one radius, from one seed.

    Attributes:
      problem, optimizer, rho, seed: what is run.
      tx, sam_tx, cost: the optimizer (`zosam_jax.training.build.RunOptimizer`).
      whole: zeros of the parameters' shapes before anything was removed; they take no memory.
      state: the current RunState.
      progress: where it stands.
      records: of the epochs so far.
    """

    def __init__(self, problem: Problem, optimizer: str, rho: float, seed: int) -> None:
        """Initialises the network and its masks; the training step is compiled on first use."""
        self.problem = problem
        self.optimizer, self.rho, self.seed = optimizer, rho, seed
        network = problem.init(seed)
        self.tx, self.sam_tx, self.cost, self._at = build.build(
            problem, network, optimizer, rho, seed
        )
        self.progress = Progress()
        self.records: list[EpochRecord] = []
        self.whole = jax.tree.map(
            lambda p: np.broadcast_to(np.zeros((), p.dtype), p.shape), network.params
        )
        self.state = self._initial(network)

    def _initial(self, network: Network) -> RunState:
        network = network._replace(params=search.begun(self.problem, network.params))
        state = self._start(network, self.tx.init(network.params), epoch=0)
        if self.problem.config.sparse != "early-bird" or not self.problem.config.searches:
            return state
        watch = search.watcher(self.problem).init(network.params)
        return state._replace(watch=devices.replicate(watch, self.problem.mesh))

    def _start(self, network: Network, opt_state: PyTree, epoch: int) -> RunState:
        first_step = epoch * self.problem.steps_per_epoch
        return step.start(self.problem, network, opt_state, seed=self.seed, step=first_step)

    @functools.cached_property
    def step(self) -> Callable[[RunState, Batch], RunState]:
        """(state, batch) → state, compiled; the given state is donated."""
        compiled = {
            tx: step.compile_step(self.problem, tx, self.state)
            for tx in {self._at(self._number), self.tx}
        }

        def by_number(state: RunState, batch: Batch) -> RunState:
            tx = self._at(self._number)
            if tx not in compiled:  # resumed in its late phase, a lottery ticket begins anew
                compiled[tx] = step.compile_step(self.problem, tx, state)
            return compiled[tx](state, batch)

        return by_number

    @property
    def _number(self) -> int:
        """Of the next step on the schedule."""
        return self.progress.epoch * self.problem.steps_per_epoch + self.progress.step

    def train(
        self, callback: Callback | None = None, checkpoints: Checkpoints | None = None
    ) -> list[EpochRecord]:
        """Trains to the end, or from the newest checkpoint on; one record for each epoch.

        Raises:
          NonFiniteLossError: at a loss that is not finite, if the options say to stop.
          InterruptedRunError: after SIGTERM or SIGINT, once a checkpoint is written; without
            checkpoints these signals do what they always do.
        """
        with Interruption() if checkpoints is not None else nullcontext() as interruption:
            loop = TrainingLoop(self, callback or Callback(), checkpoints, interruption)
            if self.problem.config.is_lottery:
                lottery.train(loop)
            else:
                loop.train_until(self.problem.config.epochs)
        return [r for r in self.records if r.round == self.progress.round]

    def resume(self, state: RunState, progress: Progress, records: list[EpochRecord]) -> None:
        """Takes up a run where it stood."""
        self.state, self.progress, self.records = state, progress, records

    def restart(self, network: Network, masks: PyTree, epoch: int) -> None:
        """Starts anew from a network under given masks, schedules and data at this epoch."""
        opt_state = self.tx.init(network.params)
        count = jnp.asarray(epoch * self.problem.steps_per_epoch, jnp.int32)
        # Those of schedules; fresh moments count from 0.
        opt_state = optax.tree.set(opt_state, _is_of_schedule, count=count)._replace(masks=masks)
        self.state = self._start(network, opt_state, epoch)

    def like(self, progress: Progress) -> RunState:
        """A state of the shapes that it has at some point of the run."""
        if progress.kept == self.progress.kept:
            return self.state
        network = self.problem.init(self.seed)
        if progress.kept is None:
            return self._initial(network)
        return self._without_units(network, progress.kept)

    def _without_units(self, network: Network, kept: structure.Kept) -> RunState:
        """The start of a run with the smaller network."""
        start = self._start(network, self.tx.init(network.params), epoch=0)
        return step.compacted(self.problem, start, kept)

    def compact(self) -> None:
        """Removes the units that the masks leave out, for good; the run goes on without them.

        After a search those with the smallest coefficients go; an early-bird ticket then begins
        anew, with its initial weights.
        """
        units, config = self.problem.units, self.problem.config
        assert units is not None
        masks = search.draw(self.problem, self.state.params) if config.searches else self.masks
        kept = structure.kept_by(masks, self.whole, units)
        self.progress = self.progress._replace(kept=kept)
        vars(self).pop("step", None)  # is compiled anew
        if config.sparse == "early-bird":
            self.state = self._without_units(self.problem.init(self.seed), kept)
            self.progress = self.progress._replace(round=1, epoch=0, step=0, best=-1.0)
            return
        state = self.state
        if config.searches:
            state = state._replace(
                params=search.plain(self.problem, state.params),
                opt_state=search.without_coefficients(state.opt_state),
                average=_plain(self.problem, state.average),
            )
        self.state = step.compacted(self.problem, state, kept)

    @property
    def network(self) -> Network:
        """The network as it stands."""
        params = search.plain(self.problem, self.state.params)
        return Network(params, self.state.model_state)

    @property
    def masks(self) -> PyTree:
        """The masks as they stand; None for a dense network."""
        return build.masks_of(self.state.opt_state)

    @property
    def masks_of_whole(self) -> PyTree:
        """The masks of the network as it began: units that have been removed are zero in them."""
        units = self.problem.units
        if units is None or self.progress.kept is None:
            return self.masks
        return structure.masks_of(self.progress.kept, self.whole, units)

    @property
    def sparsity(self) -> float:
        """The fraction of the maskable weights that are zero or have been removed."""
        return sparsity.sparsity_of(self.masks_of_whole, self.whole)


def _plain(problem: Problem, network: Network | None) -> Network | None:
    """A network without the coefficients of a search."""
    return network and network._replace(params=search.plain(problem, network.params))


def _is_of_schedule(path: tuple[Any, ...], value: Any) -> bool:
    del value
    return bool(path[-1].tuple_name != "ScaleByAdamState")


class TrainingLoop:
    """The loop around the compiled step of a run.

    Attributes:
      run: what is trained; its state and progress move.
      checkpoints: None to keep none.
    """

    def __init__(
        self,
        run: Run,
        callback: Callback,
        checkpoints: Checkpoints | None,
        interruption: Interruption | None,
    ) -> None:
        self.run, self._problem, self._config = run, run.problem, run.problem.config
        self._observer, self.checkpoints = callback, checkpoints
        self._interruption = interruption
        self._started = time.perf_counter() - run.progress.seconds
        self._last_save = self._last_reading = time.perf_counter()

    def train_until(self, stop: int) -> None:
        """Goes on from where the run stands to the end of the last epoch before `stop`."""
        if self.run.progress.step == 0:
            self._compact()
        _ = self.run.step  # compiles, so that no epoch's speed has it in it
        self._observer.on_start(self.run)
        while self.run.progress.epoch < stop:
            self._epoch(last=self.run.progress.epoch + 1 == stop)
        self._save(wait=True)

    def _epoch(self, last: bool) -> None:
        run, problem = self.run, self._problem
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
        if reads := self._reads(now):
            self._check_finite()
            self._observer.on_reading(self.run)
            self._last_reading = time.perf_counter()
        if self.checkpoints is None:
            return
        # Several processes agree on the time every so many steps.
        is_due = now - self._last_save > self.checkpoints.seconds
        if (devices.is_alone() or reads) and devices.agree(is_due):
            self._save()
        self._stop_if_interrupted()

    def _reads(self, now: float) -> bool:
        # What a reading finds may end the run, for several processes after the same step.
        if devices.is_alone():
            return now - self._last_reading > _SECONDS_BETWEEN_READINGS
        return self.run.progress.total_steps % _STEPS_BETWEEN_READINGS == 0

    def _end_epoch(self, last: bool, speed: float, data_wait: float) -> None:
        run, config = self.run, self._config
        evaluates = last or (run.progress.epoch + 1) % config.evaluate_every == 0
        gradients = build.dense_gradients(config, run.state.opt_state)
        first = run.progress.epoch * self._problem.steps_per_epoch
        cost = run.progress.cost + self.run.cost.training(
            run.masks_of_whole,
            range(first, first + self._problem.steps_per_epoch),
            gradients - run.progress.dense_gradients,
        )
        record = self._record(cost, evaluates, speed, data_wait)
        transform.warn_of_plain_step(self.run.state.opt_state)
        run.records.append(record)
        counts = evaluates and build.is_final(self._problem, record)
        is_best = counts and record.score > run.progress.best
        run.state = step.begin_epoch(run.state, self._problem.mesh)
        run.progress = run.progress._replace(
            epoch=run.progress.epoch + 1,
            step=0,
            records=len(run.records),
            best=max(run.progress.best, record.score) if counts else run.progress.best,
            cost=cost,
            dense_gradients=gradients,
            seconds=record.seconds,
        )
        self._observer.on_epoch(record, run)
        self._compact()
        if self.checkpoints is None:
            return
        every = self.checkpoints.every
        due = time.perf_counter() - self._last_save > self.checkpoints.seconds
        is_milestone = every is not None and run.progress.total_steps % every == 0
        if devices.agree(is_best or due or is_milestone):
            self._save(score=record.score if counts else None)
        self._stop_if_interrupted()

    def _compact(self) -> None:
        """Removes what the masks leave out, once they stand; between two epochs."""
        run, problem = self.run, self._problem
        if problem.units is None or run.progress.kept is not None:
            return
        steps, watch = run.progress.epoch * problem.steps_per_epoch, run.state.watch
        if watch is not None and steps:
            watch = search.watcher(problem).update(run.state.params, watch)
            run.state = run.state._replace(watch=devices.replicate(watch, problem.mesh))
        if build.masks_stand(problem, steps) or (watch is not None and bool(watch.drawn)):
            run.compact()
            self._observer.on_compaction(run)
            if run.progress.epoch < self._config.epochs:
                _ = run.step

    def _record(self, cost: float, evaluates: bool, speed: float, data_wait: float) -> EpochRecord:
        run, problem = self.run, self._problem
        steps = problem.steps_per_epoch
        bad = int(run.state.bad_steps)

        def evaluated(network: Network | None, split: str) -> Evaluation:
            if not evaluates or network is None or split not in problem.feed.splits:
                return Evaluation(math.nan, math.nan)
            return problem.evaluate(network, split)

        epoch, good = run.progress.epoch + 1, steps - bad
        average = _plain(problem, run.state.average)
        if average is not None:
            average = average._replace(params=sparsity.apply_masks(average.params, run.masks))
        test, validation = evaluated(run.network, "test"), evaluated(run.network, "validation")
        seen = int(run.state.seen)
        return EpochRecord(
            round=run.progress.round,
            epoch=epoch,
            step=epoch * steps,
            train_loss=float(run.state.loss_sum) / good if good else math.nan,
            train_accuracy=int(run.state.correct) / seen if seen else math.nan,
            test_accuracy=test.accuracy,
            validation_accuracy=validation.accuracy,
            validation_loss=validation.loss,
            test_loss=test.loss,
            ema_test_accuracy=evaluated(average, "test").accuracy,
            ema_validation_accuracy=evaluated(average, "validation").accuracy,
            sparsity=run.sparsity,
            training_cost=cost / steps,
            bad_steps=bad,
            seconds=time.perf_counter() - self._started,
            images_per_second=speed,
            data_wait=data_wait,
            **{
                name: float(total) / int(known) if known else math.nan
                for name, total, known in zip(
                    run.state.diagnostics._fields,
                    run.state.diagnostics,
                    run.state.known,
                    strict=True,
                )
            },
        )

    def _check_finite(self) -> None:
        first = int(self.run.state.first_bad_step)
        if first and self._config.on_non_finite == "stop":
            raise NonFiniteLossError(
                f"the loss of step {first} (epoch {self.run.progress.epoch + 1}) is not finite: "
                "try a smaller rho or learning rate, clip_norm, or on_non_finite='skip'."
            )

    def _save(self, *, score: float | None = None, wait: bool = False) -> None:
        if self.checkpoints is None:
            return
        run = self.run
        self._check_finite()
        run.progress = run.progress._replace(seconds=time.perf_counter() - self._started)
        self.checkpoints.save(run.state, run.progress, score)
        if wait:
            self.checkpoints.wait()
        self._last_save = time.perf_counter()

    def _stop_if_interrupted(self) -> None:
        if self._interruption is None or self.checkpoints is None:
            return
        if self._interruption.requested(self.run.progress.total_steps):
            self._save(wait=True)
            raise InterruptedRunError(self._interruption.signal, self.run.progress.total_steps)
