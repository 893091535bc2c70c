"""`zosam train`: trains one network, shows and records progress, and resumes."""

import contextlib
import functools
import math
import sys
import traceback
from collections.abc import Callable, Collection
from typing import Any

from rich.console import Console

from zosam_jax import sparsity
from zosam_jax.commands import pictures
from zosam_jax.commands.refusal import REFUSALS, RefusedError, refused, refusing
from zosam_jax.training import build, devices, lock, run_folder, supervision
from zosam_jax.training.callbacks import ProgressLogger
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import ProblemConfig, TrainConfig
from zosam_jax.training.feed import BrokenDataError
from zosam_jax.training.interruption import InterruptedRunError
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder, UnreadableRunError, UnwritableError
from zosam_jax.training.trainer import NonFiniteLossError, Run


def run(config: TrainConfig, console: Console) -> None:
    """Trains, or goes on with a run that was interrupted."""
    if config.coordinator is not None:
        with refusing():
            supervision.supervise()
    try:
        _run(config, console)
    except RefusedError:
        raise
    except Exception:
        if devices.is_alone():
            raise
        supervision.end(traceback.format_exc(), status=1)


def _run(config: TrainConfig, console: Console) -> None:
    with contextlib.ExitStack() as whole_run:
        with refusing():
            devices.join(config.coordinator, config.num_processes, config.process_id)
            console.quiet = not devices.is_first()
            folder = _same_on_all(lambda: _opened(config, whole_run, console))
            if _is_complete(folder, console):
                console.print(f"{folder.path} is complete; its results are in {run_folder.SUMMARY}")
                return
            problem = checked_problem(config, [config.optimizer])
        whole_run.enter_context(contextlib.closing(problem.feed))
        _train(config, problem, folder, console)


def _opened(config: TrainConfig, whole_run: contextlib.ExitStack, console: Console) -> RunFolder:
    """The run folder, which is this run's alone until it ends."""
    folder = run_folder.for_training(config)
    if devices.is_first():
        say = functools.partial(console.print, markup=False)
        whole_run.enter_context(lock.held(folder.path, say))
    return folder


def _train(config: TrainConfig, problem: Problem, folder: RunFolder, console: Console) -> None:
    try:
        train(config, problem, folder, console)
    except NonFiniteLossError as error:
        raise RefusedError(
            f"{error} With --on-non-finite skip this run goes on from its newest checkpoint, if it "
            "has one; other options need another --output."
        ) from error
    except (BrokenDataError, UnreadableRunError, UnwritableError) as error:
        refusal = refused(error)
        if not devices.is_alone():
            supervision.end(f"zosam, process {config.process_id}: {error}", refusal.status)
        raise refusal from error
    except InterruptedRunError as interruption:
        console.print(f"{interruption}; the same command goes on from there ({folder.path})")
        # As shells report a process that its signal has ended.
        sys.exit(128 + interruption.signal)


def _same_on_all(make: Callable[[], RunFolder]) -> RunFolder:
    """What the first process refuses, all refuse; none waits for another then."""
    refusal: Exception | None = None
    folder: RunFolder | None = None
    try:
        folder = make()
    except REFUSALS as error:
        refusal = error
    if devices.agree(refusal is not None) or folder is None:
        raise refusal or ValueError("refused by process 0, which says why.")
    return folder


def _is_complete(folder: RunFolder, console: Console) -> bool:
    try:
        return folder.is_complete
    except UnreadableRunError as error:
        console.print(f"{error} It is made anew, from the newest checkpoint.", markup=False)
        return False


def checked_problem(config: ProblemConfig, names: Collection[str]) -> Problem:
    """What is trained; nothing has been computed yet that a wrong option could spoil."""
    build.check(config, names)
    devices.keep_compiled(config.compilation_cache)
    devices.compute_exactly(config.precision)
    problem = Problem(config)
    build.check_budget(problem)
    return problem


def train(
    config: TrainConfig, problem: Problem, folder: RunFolder, console: Console
) -> dict[str, Any]:
    """Trains one network, fills the run folder, and returns the summary.

    The summary's `test_accuracy` is that of the last epoch, `best_test_accuracy` the largest, and
    `chosen_test_accuracy` that of the epoch with the largest validation accuracy, where images are
    held out. Its `seconds` are the whole run's, compilation and evaluation included;
    `images_per_second` is the median epoch's, without them. `training_cost` and `inference_cost`
    are MACs relative to training the dense network with SGD and to its forward pass
    (`zosam_jax.training.build.Cost`); masks.txt says what is kept, layer by layer.

    Raises:
      NonFiniteLossError, InterruptedRunError: as `Run.train`.
    """
    rho = build.rho_of(config)
    run = Run(problem, config.optimizer, rho, config.seed)
    console.print(
        f"{config.model} on {config.dataset}, {_budget(config)}, {config.optimizer}"
        + (
            f" (rho={rho:g}, {build.radius_rule(config.optimizer, config.radius)})"
            if run.sam_tx
            else ""
        )
        + (f", {problem.mesh.size} devices" if problem.mesh.size > 1 else "")
    )
    _tell_versions(folder, console)
    folder.write_options(config)
    every = config.keep_every
    with Checkpoints(
        folder.path,
        keep=config.keep_checkpoints,
        seconds=60 * config.checkpoint_minutes,
        every=None if every is None else every * problem.steps_per_epoch,
    ) as keeper:
        _take_up(run, folder, keeper, console)
        with ProgressLogger(
            problem, folder, console, tensorboard=_writes_events(config)
        ) as watcher:
            records = run.train(watcher, keeper)
    summary = _summary(config, run, rho, records)
    if devices.is_first():
        title = f"{config.model}, {config.dataset}, {config.optimizer}"
        pictures.curves(folder.path / run_folder.CURVES, records, title)
    if run.masks is not None:
        folder.write_text(run_folder.MASKS, f"{sparsity.summary(run.state.params, run.masks)}\n")
    # Last: a run folder with a summary is complete.
    folder.write_json(run_folder.SUMMARY, summary)
    console.print(
        f"test accuracy {summary['test_accuracy']:.2%}, sparsity {summary['sparsity']:.2%}, "
        f"training cost {summary['training_cost']:.1%} of dense SGD's MACs; "
        f"{summary['steps']} steps in {summary['seconds']:.1f} s; results in {folder.path}"
    )
    return summary


def _tell_versions(folder: RunFolder, console: Console) -> None:
    """Says if a run goes on under other versions of its libraries than it began with."""
    before = folder.versions
    changed = [
        f"{name} {version} (was {before[name]})"
        for name, version in run_folder.versions().items()
        if name in before and before[name] != version
    ]
    if changed:
        console.print(f"this run began under other versions: {', '.join(changed)}", markup=False)


def _take_up(run: Run, folder: RunFolder, keeper: Checkpoints, console: Console) -> None:
    """Puts the run where its newest whole checkpoint left it, if there is one."""
    if keeper.newest is None:
        folder.write_metrics([])
        return
    records = folder.records
    say = functools.partial(console.print, markup=False)
    state, progress = keeper.restore_newest(run.state, say, records=len(records))
    keeper.set_aside(after=progress.total_steps)
    records = records[: progress.records]
    folder.write_metrics(records)
    run.resume(state, progress, records)
    console.print(f"resumed after step {progress.total_steps}, epoch {progress.epoch + 1}")


def _summary(
    config: TrainConfig, run: Run, rho: float, records: list[EpochRecord]
) -> dict[str, Any]:
    last = records[-1]
    evaluated = [r for r in records if not math.isnan(r.test_accuracy)]
    chosen = max(evaluated, key=lambda r: r.score)
    return {
        "test_accuracy": last.test_accuracy,
        "best_test_accuracy": max(r.test_accuracy for r in evaluated),
        "chosen_test_accuracy": chosen.test_accuracy if config.validation_fraction else math.nan,
        "validation_accuracy": last.validation_accuracy,
        "ema_test_accuracy": last.ema_test_accuracy,
        "train_loss": last.train_loss,
        "sparse": "none" if config.is_dense else config.sparse,
        "sparsity": last.sparsity,
        "training_cost": last.training_cost / config.epochs,
        "inference_cost": run.cost.inference(run.masks),
        "bad_steps": sum(r.bad_steps for r in records),
        "steps": last.step,
        "seconds": last.seconds,
        "images_per_second": sorted(r.images_per_second for r in records)[len(records) // 2],
        "data_wait": sorted(r.data_wait for r in records)[len(records) // 2],
        "optimizer": config.optimizer,
        "rho": rho,
        "seed": config.seed,
        "devices": run.problem.mesh.size,
    }


def _budget(config: TrainConfig) -> str:
    if config.is_dense:
        return "dense"
    return f"{100 * config.sparsity:g}% sparse by {config.sparse}"


def _writes_events(config: TrainConfig) -> bool:
    return config.tensorboard and devices.is_first()
