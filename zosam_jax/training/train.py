"""`zosam train`: one run, watched and recorded."""

import math
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from zosam_jax import sparsity
from zosam_jax.training import optimizers
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.run_folder import RunFolder
from zosam_jax.training.sparse import is_dense
from zosam_jax.training.trainer import EpochRecord, Observer, Run, TrainState

# Reading a number from the device makes the host wait for it; a few times a second is enough.
_SECONDS_BETWEEN_READINGS = 0.25


def train(
    config: TrainConfig, problem: Problem, folder: RunFolder, console: Console
) -> dict[str, Any]:
    """Trains one network, fills the run folder, and returns the summary.

    The summary's `seconds` are the whole run's, compilation and evaluation included;
    `images_per_second` is the median epoch's, without them. `training_cost` and `inference_cost`
    are multiply-adds relative to training the dense network with SGD and to its forward pass
    (`zosam_jax.training.sparse.Cost`); masks.txt says what is kept, layer by layer.
    """
    rho = config.rho
    if rho is None:
        rho = optimizers.default_rho(config.optimizer, config.radius)
    run = Run(problem, config.optimizer, rho, config.seed)
    console.print(
        f"{config.model} on {config.dataset}, {_budget(config)}, {config.optimizer}"
        + (f" (rho={rho:g}, {config.radius})" if run.first else "")
    )
    with _Watcher(problem, folder, console) as watcher:
        records = run.train(watcher)
    last = records[-1]
    summary = {
        "test_accuracy": last.test_accuracy,
        "best_test_accuracy": max(r.test_accuracy for r in records if r.test_accuracy >= 0),
        "train_loss": last.train_loss,
        "sparse": "none" if is_dense(config) else config.sparse,
        "sparsity": last.sparsity,
        "training_cost": last.training_cost / config.epochs,
        "inference_cost": run.cost.inference(run.masks),
        "steps": last.step,
        "seconds": last.seconds,
        "images_per_second": sorted(r.images_per_second for r in records)[len(records) // 2],
        "optimizer": config.optimizer,
        "rho": rho,
        "seed": config.seed,
    }
    folder.write_json("summary.json", summary)
    if run.masks is not None:
        folder.write_text("masks.txt", f"{sparsity.summary(run.state.params, run.masks)}\n")
    folder.draw_curves(records, f"{config.model}, {config.dataset}, {config.optimizer}")
    if not math.isfinite(last.train_loss):
        console.print("[bold]The loss is not finite[/]: try a smaller rho or learning rate.")
    console.print(
        f"test accuracy {last.test_accuracy:.2%}, sparsity {last.sparsity:.2%}, training cost "
        f"{summary['training_cost']:.1%} of dense SGD's multiply-adds; {last.step} steps in "
        f"{last.seconds:.1f} s; results in {folder.path}"
    )
    return summary


def _budget(config: TrainConfig) -> str:
    if is_dense(config):
        return "dense"
    return f"{100 * config.sparsity:g}% sparse by {config.sparse}"


class _Watcher(Observer):
    """Shows progress and appends to the run folder as the run goes."""

    def __init__(self, problem: Problem, folder: RunFolder, console: Console) -> None:
        self._folder = folder
        self._batch_size = problem.config.batch_size
        self._steps, self._steps_per_epoch = problem.steps, problem.steps_per_epoch
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn(
                "loss {task.fields[loss]:.4f}  accuracy {task.fields[accuracy]:.2%}  "
                "{task.fields[speed]:,.0f} images/s"
            ),
            TimeRemainingColumn(),
            console=console,
        )
        self._task = self._bar.add_task(
            "", total=problem.steps, epoch=1, loss=math.nan, accuracy=0.0, speed=0.0
        )
        self._last_reading = (0, time.perf_counter())

    def on_start(self, run: Run) -> None:
        if run.round:
            self._bar.console.print(f"round {run.round}, sparsity {run.sparsity:.1%}")
        self._bar.reset(self._task, total=self._steps)
        self._last_reading = (0, time.perf_counter())

    def __enter__(self) -> "_Watcher":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def on_step(self, step: int, state: TrainState) -> None:
        last_step, last_time = self._last_reading
        if time.perf_counter() - last_time < _SECONDS_BETWEEN_READINGS:
            return
        done = (step - 1) % self._steps_per_epoch + 1  # steps of this epoch
        loss, correct = float(state.loss_sum), int(state.correct)
        now = time.perf_counter()
        self._bar.update(
            self._task,
            completed=step,
            epoch=(step - 1) // self._steps_per_epoch + 1,
            loss=loss / done,
            accuracy=correct / (done * self._batch_size),
            speed=(step - last_step) * self._batch_size / (now - last_time),
        )
        self._last_reading = (step, now)

    def on_epoch(self, record: EpochRecord, run: Run) -> None:
        del run
        self._folder.append_metrics(record)
        self._bar.update(
            self._task,
            completed=record.step,
            epoch=record.epoch,
            loss=record.train_loss,
            accuracy=record.train_accuracy,
            speed=record.images_per_second,
        )
