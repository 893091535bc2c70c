"""What is called while a run goes on: progress bar, metrics.jsonl, TensorBoard events."""

import math
import statistics
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import optax
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zosam_jax import trees
from zosam_jax.training import run_folder
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder

if TYPE_CHECKING:
    from zosam_jax.training.trainer import Run


# How many times longer than usual a perturbation is that has got out of hand.
_EXPLODED = 20.0


class Callback:
    """Called by a run as it goes on; override what you need."""

    def on_start(self, run: "Run") -> None:
        """Before the first step of each training, resumed or not."""

    def on_step(self, run: "Run") -> None:
        """After each step; reading from `run.state` would make the host wait for the devices."""

    def on_reading(self, run: "Run") -> None:
        """A few times a second, between two steps, when the devices have just been waited for."""

    def on_epoch(self, record: EpochRecord, run: "Run") -> None:
        """After each epoch."""

    def on_compaction(self, run: "Run") -> None:
        """When units have been removed, between two epochs."""


class Callbacks(Callback):
    """Several, told in turn."""

    def __init__(self, *callbacks: Callback) -> None:
        self._callbacks = callbacks

    def on_start(self, run: "Run") -> None:
        """Each one's."""
        for callback in self._callbacks:
            callback.on_start(run)

    def on_step(self, run: "Run") -> None:
        """Each one's."""
        for callback in self._callbacks:
            callback.on_step(run)

    def on_reading(self, run: "Run") -> None:
        """Each one's."""
        for callback in self._callbacks:
            callback.on_reading(run)

    def on_epoch(self, record: EpochRecord, run: "Run") -> None:
        """Each one's."""
        for callback in self._callbacks:
            callback.on_epoch(record, run)

    def on_compaction(self, run: "Run") -> None:
        """Each one's."""
        for callback in self._callbacks:
            callback.on_compaction(run)


class ProgressLogger(Callback):
    """Shows progress, and appends to the run folder as the run goes; entered around the training.

    Where there is no terminal, each epoch leaves a line instead of moving a bar.
    """

    def __init__(
        self, problem: Problem, folder: RunFolder, console: Console, *, tensorboard: bool
    ) -> None:
        """Nothing is shown or written before it is entered."""
        self._problem, self._folder, self._console = problem, folder, console
        self._tensorboard = tensorboard
        self._unit = "images" if problem.config.task == "image" else "rows"
        self._events: Any = None
        self._has_warned = False
        self._speed_before = math.nan  # of the last epoch before units were removed
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.4f}  {task.fields[accuracy]}"
                f"{{task.fields[speed]:,.0f}} {self._unit}/s"
            ),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task(
            "", total=problem.steps, epoch=1, loss=math.nan, accuracy="", speed=0.0
        )
        self._last_reading = (0, time.perf_counter())

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()
        if self._events is not None:
            self._events.close()

    def on_start(self, run: "Run") -> None:
        """Sets the bar to where the training stands."""
        if self._tensorboard and self._events is None:
            self._events = _events(self._folder, run.progress.total_steps)
        if run.progress.round and run.problem.config.is_lottery:
            self._say(f"round {run.progress.round}, sparsity {run.sparsity:.1%}")
        done = run.progress.epoch * self._problem.steps_per_epoch + run.progress.step
        self._bar.reset(self._task, total=self._problem.steps, completed=done)
        self._last_reading = (run.progress.total_steps, time.perf_counter())

    def on_reading(self, run: "Run") -> None:
        """Moves the bar on."""
        last_step, last_time = self._last_reading
        now, batch_size = time.perf_counter(), self._problem.config.batch_size
        progress, state = run.progress, run.state
        loss = float(state.loss_sum) / max(1, progress.step - int(state.bad_steps))
        seen = int(state.seen)
        self._bar.update(
            self._task,
            completed=progress.epoch * self._problem.steps_per_epoch + progress.step,
            epoch=progress.epoch + 1,
            loss=loss,
            accuracy=_accuracy(int(state.correct) / seen if seen else math.nan),
            speed=(progress.total_steps - last_step) * batch_size / (now - last_time),
        )
        self._last_reading = (progress.total_steps, now)
        self._scalars({"train/running_loss": loss}, progress.total_steps)

    def on_epoch(self, record: EpochRecord, run: "Run") -> None:
        """Writes the record down."""
        self._folder.append_metrics(record)
        self._scalars(
            {
                f"epoch/{name}": value
                for name, value in record._asdict().items()
                if not math.isnan(value)
            },
            run.progress.total_steps,
        )
        self._warn_of_explosion(run)
        if record.bad_steps:
            self._say(
                f"epoch {record.epoch}: {record.bad_steps} steps left out, whose loss was not "
                "finite",
            )
        if not self._console.is_terminal:
            test = "" if math.isnan(record.test_loss) else f"  test loss {record.test_loss:.4f}"
            if not math.isnan(record.train_accuracy):
                skipped = math.isnan(record.test_accuracy)
                test = "" if skipped else f"  test {record.test_accuracy:.2%}"
                test = f"  train {record.train_accuracy:.2%}{test}"
            self._say(
                f"epoch {record.epoch}/{self._problem.config.epochs}  loss {record.train_loss:.4f}"
                f"{test}  "
                f"{record.images_per_second:,.0f} {self._unit}/s"
            )
        if not math.isnan(self._speed_before):
            self._say(
                f"{record.images_per_second:,.0f} {self._unit}/s, where it was "
                f"{self._speed_before:,.0f} before"
            )
            self._speed_before = math.nan
        self._bar.update(
            self._task,
            completed=record.step,
            epoch=record.epoch,
            loss=record.train_loss,
            accuracy=_accuracy(record.train_accuracy),
            speed=record.images_per_second,
        )

    def on_compaction(self, run: "Run") -> None:
        """Says what was removed."""
        units, kept = run.problem.units, run.progress.kept
        assert units is not None
        assert kept is not None
        before: dict[str, int] = {}
        after: dict[str, int] = {}
        for group in units.groups:
            before[group.kind] = before.get(group.kind, 0) + group.size
            after[group.kind] = after.get(group.kind, 0) + len(kept[group.name])
        left = ", ".join(f"{after[kind]:,} of {n:,} {kind}" for kind, n in before.items())
        parameters = f"{trees.size(run.network.params):,} of {trees.size(run.whole):,} parameters"
        self._say(f"left after {run.progress.total_steps} steps: {left}; {parameters}")
        if run.progress.round:
            self.on_start(run)
        self._speed_before = run.records[-1].images_per_second if run.records else math.nan

    def _warn_of_explosion(self, run: "Run") -> None:
        if self._has_warned or math.isnan(run.records[-1].epsilon_norm):
            return
        warning = explosion(run.records, float(optax.tree.norm(run.state.params)))
        if warning is not None:
            self._has_warned = True
            self._say(warning)

    def _say(self, text: str) -> None:
        self._bar.console.print(text, markup=False, highlight=False)

    def _scalars(self, values: dict[str, float], step: int) -> None:
        if self._events is not None:
            for name, value in values.items():
                self._events.add_scalar(name, value, step)


def _accuracy(value: float) -> str:
    """What the bar says of it, before what follows; nothing where there is none."""
    return "" if math.isnan(value) else f"accuracy {value:.2%}  "


def explosion(records: Sequence[EpochRecord], weights_norm: float) -> str | None:
    """A warning if the last epoch's perturbations were far longer than usual; else None.

    They are if their mean norm ‖ε‖ is above 20 times the median of the training's earlier epochs,
    each in relation to its ρ, which may warm up, or above the norm of the weights.

    Args:
      records: of the epochs so far.
      weights_norm: ‖θ‖ after the last one.
    """
    *earlier, last = records
    usual = _usual_norm([r for r in earlier if r.round == last.round], last.rho_used)
    if last.epsilon_norm > _EXPLODED * usual:
        compared = f"where {usual:.3g} was usual in the epochs before"
    elif last.epsilon_norm > weights_norm:
        compared = f"more than the weights' own norm of {weights_norm:.3g}"
    else:
        return None
    return (
        f"step {last.step}: the perturbations of epoch {last.epoch} had a mean norm of "
        f"{last.epsilon_norm:.3g}, {compared}; try --clip-norm or a smaller --rho."
    )


def _usual_norm(records: Sequence[EpochRecord], rho: float) -> float:
    """The median of ‖ε‖ / ρ over epochs, times this ρ; NaN where none is known."""
    ratios = [r.epsilon_norm / r.rho_used for r in records if r.rho_used > 0 and r.epsilon_norm > 0]
    return rho * statistics.median(ratios) if ratios else math.nan


def _events(folder: RunFolder, done: int) -> Any:
    # Here, since only those who ask for events need the library.
    from tensorboardX import SummaryWriter  # noqa: PLC0415

    return SummaryWriter(str(folder.path / run_folder.TENSORBOARD), purge_step=done + 1)
