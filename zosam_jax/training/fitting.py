"""A whole run, from a network and data to a run folder; `zosam train` is a caller of it."""

import contextlib
import functools
import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optax
from rich.console import Console

from zosam_jax import sparsity, trees
from zosam_jax.errors import REFUSALS
from zosam_jax.models import pretrained
from zosam_jax.training import build, devices, lock, pictures, run_folder, saved_run, sources
from zosam_jax.training.applicable import OWN_OPTIMIZER, has_rho
from zosam_jax.training.callbacks import Callback, Callbacks, ProgressLogger
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import ProblemConfig, TrainConfig, is_own, replacing, start_of
from zosam_jax.training.problem import Parts, Problem
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder, UnreadableRunError
from zosam_jax.training.sources import Data, as_data, origin
from zosam_jax.training.trainer import Run
from zosam_jax.trees import PyTree

# Of options that are for data in memory.
_IN_MEMORY = ("train_images", "validation_fraction", "shrink", "label_noise", "crop_and_flip")


class FitResult(NamedTuple):
    """What a run came to.

    Attributes:
      model: the trained network, in inference mode, as its library has it: an NNX module; a Linen
        module that is bound to its variables; an Equinox module, or (module, state); or inputs →
        outputs for a pair of functions.
      masks: which weights are kept, shaped like the parameters; None for a dense network.
      history: the record of each epoch (`EpochRecord`), of all trainings of a lottery ticket.
      summary: what summary.json holds.
      path: the run folder; `zosam_jax.open_run` opens it again.
    """

    model: Any
    masks: PyTree
    history: list[EpochRecord]
    summary: dict[str, Any]
    path: Path


def fit(
    model: Any,
    data: Any,
    *,
    test: Any = None,
    validation: Any = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
    optimizer: str | optax.GradientTransformation = "zo_sam",
    loss: str | Callable[..., Any] = "cross_entropy",
    sparse: str = "none",
    callbacks: Sequence[Callback] = (),
    console: Console | None = None,
    **options: Any,
) -> FitResult:
    """Trains a network, as `zosam train` does, and leaves a run folder.

        result = zosam_jax.fit(Net, (x, y), test=(x_test, y_test), epochs=5, output="runs/mine")

    The same call again resumes an interrupted run, bit for bit, and opens a finished one. Data and
    code are not kept in the folder: config.json says where the parts come from, and of arrays a
    checksum, so that a run does not go on with others unnoticed. Of functions, batches and optax
    transformations only the name and the arrays' shapes are compared, as is said then.

    Args:
      model: a name that `zosam train` knows; an NNX module or its class, a Linen module, an Equinox
        module (for one example at a time) or its (module, state), a pair of functions init(key) →
        params and apply(params, inputs) → outputs; or a function that makes one of these, from
        those of rngs, key, num_classes and image_shape that it has parameters for. An
        "package.module:name" is imported.
      data: (inputs, targets) of the training examples, as arrays of shape [n, …] (see
        `zosam_jax.data.from_arrays`: uint8 pixels are scaled, integers are labels); a
        `zosam_jax.data.Dataset`, which brings its test split; a name that `zosam train` knows; or
        an iterable of batches (inputs, targets) of one size that has a length. Each pass over it is
        an epoch, whose number its set_epoch is told if it has one; resumed runs are the same if its
        batches are.
      test: (inputs, targets) or an iterable of batches that are no larger.
      validation: likewise; the best epoch is then chosen on it.
      num_classes: by default one more than the largest label; a network that is made by a name or
        from num_classes needs it where data are batches.
      class_names: what the classes are called.
      optimizer: a name that `zosam train` knows; or an optax transformation, sharpness-aware or
        not, which is then the whole optimizer.
      loss: "cross_entropy" (labels, or distributions), "squared_error", or a function (outputs,
        targets) → losses of shape [batch, …], such as optax.huber_loss. Where targets are no labels
        accuracies are NaN, and the best epoch is that of the lowest loss.
      sparse: the sparse method, "none" for a dense network; `sparsity` says how sparse.
      callbacks: told of each step and epoch (`zosam_jax.training.callbacks.Callback`).
      console: where progress is shown; by default standard output.
      **options: the others of `zosam train`, by name: output (the run folder), epochs, batch_size,
        learning_rate, sparsity, rho, seed, mesh, …

    Returns:
      The trained network, its masks, the history and the run folder.

    Raises:
      ValueError: for an argument that cannot be right, or contradicts the run in `output`.
      NonFiniteLossError: at a loss that is not finite.
      InterruptedRunError: after SIGTERM or SIGINT, once a checkpoint is written.
    """
    if model is None:
        raise ValueError(
            "model=None: pass a network, a function that makes one, or a name of zosam train's."
        )
    found = as_data(data, test, validation, num_classes, class_names)
    name_of_data = data if found is None else found.name
    parts = Parts(
        None if isinstance(model, str) else model,
        None if isinstance(loss, str) else loss,
        None if isinstance(optimizer, str) else optimizer,
    )
    if parts.tx is not None and not hasattr(parts.tx, "update"):
        raise ValueError(f"optimizer={optimizer!r:.80} is neither a name nor of optax.")
    given = {
        "model": model if parts.model is None else origin(model),
        "dataset": os.fspath(name_of_data),
        "optimizer": optimizer if parts.tx is None else OWN_OPTIMIZER,
        "loss": loss if parts.loss is None else origin(loss),
        "sparse": sparse,
        **{name: v.item() if isinstance(v, np.generic) else v for name, v in options.items()},
    }
    if "recipe" in options:
        raise ValueError("recipe= is for the command line: pass the recipe's options.")
    if found is not None and found.batch_size is not None:
        _check_batches(found.batch_size, given)
        given["batch_size"] = found.batch_size
    start = start_of(options["task"]) if "task" in options else TrainConfig()
    config = replacing(start, saved_run.typed(given))
    with Fitting(config, console or Console(), parts, found) as fitting:
        return fitting.run(callbacks)


def _check_batches(batch_size: int, given: dict[str, Any]) -> None:
    if given.get("batch_size", batch_size) != batch_size:
        raise ValueError(
            f"batch_size={given['batch_size']!r} is not that of the data's batches, {batch_size}."
        )
    for name in _IN_MEMORY:
        if given.get(name):
            raise ValueError(f"{name}={given[name]!r} is for data in memory, not for batches.")


class Fitting:
    """A run whose options have been checked, and that can begin; entered around it.

    Attributes:
      folder: the run folder.
      is_complete: whether the run has ended already.
    """

    def __init__(
        self,
        config: TrainConfig,
        console: Console,
        parts: Parts | None = None,
        data: Data | None = None,
    ) -> None:
        """Loads the data, unless the run is complete.

        Raises:
          ValueError, OSError, ModuleNotFoundError: for what the options ask for and cannot be had.
        """
        devices.join(config.coordinator, config.num_processes, config.process_id)
        console.quiet = console.quiet or not devices.is_first()
        self.config, self._console = config, console
        self._given = parts, data
        self._problem = None
        with contextlib.ExitStack() as opened:
            self.folder = _same_on_all(lambda: _own_folder(config, opened, console))
            self.is_complete = _is_complete(self.folder, console)
            if not self.is_complete:
                self._problem = checked_problem(config, [config.optimizer], parts, data)
                opened.callback(self._problem.feed.close)
                _check_same_texts(self.folder, self._problem)
            self._opened = opened.pop_all()

    def run(self, callbacks: Sequence[Callback] = ()) -> FitResult:
        """Trains, or goes on; of a complete run what it came to."""
        if self._problem is not None:
            return train(self.config, self._problem, self.folder, self._console, callbacks)
        parts, _ = sources.named_parts(self.config, *self._given)
        path = self.folder.path
        self._console.print(
            f"{path} is complete and is opened as it is{_not_compared(self.config)}", markup=False
        )
        with saved_run.open_run(path, model=parts.model, loss=parts.loss) as run:
            return FitResult(run.model, run.masks, run.metrics, run.summary or {}, path)

    def __enter__(self) -> "Fitting":
        return self

    def __exit__(self, *exception: object) -> None:
        self._opened.close()


def _own_folder(config: TrainConfig, opened: contextlib.ExitStack, console: Console) -> RunFolder:
    """The run folder, which is this run's alone until it ends."""
    folder = run_folder.for_training(config)
    if devices.is_first():
        say = functools.partial(console.print, markup=False)
        opened.enter_context(lock.held(folder.path, say))
    return folder


def _check_same_texts(folder: RunFolder, problem: Problem) -> None:
    """Raises ValueError if a run began on other texts of the same name."""
    now, before = problem.feed.info.text, saved_run.texts_of(folder.path)
    if now is not None and before is not None and now.fingerprint != before.fingerprint:
        raise ValueError(
            f"dataset={problem.config.dataset!r} holds other texts than when the run in "
            f"{folder.path} began, or this Python has others: choose another --output."
        )


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


def checked_problem(
    config: ProblemConfig,
    names: Collection[str],
    parts: Parts | None = None,
    data: Data | None = None,
) -> Problem:
    """What is trained; nothing has been computed yet that a wrong option could spoil."""
    build.check(config, names)
    devices.compute_exactly(config.precision)
    parts, data = sources.named_parts(config, parts, data)
    if config.init is not None:
        parts = parts._replace(weights=_weights(config.init))
    return sources.problem(config, parts, data)


def _weights(path: Path) -> dict[str, Any]:
    """The arrays of a run's newest checkpoint, or of safetensors files, by name."""
    if not path.is_dir() or pretrained.is_checkpoint(path):
        return pretrained.read(path)
    saved_run.read_config(path)  # says what is wrong if it is no run
    with Checkpoints(path, keep=1, seconds=0.0) as checkpoints:
        return pretrained.named(checkpoints.newest_arrays())


def train(
    config: TrainConfig,
    problem: Problem,
    folder: RunFolder,
    console: Console,
    callbacks: Sequence[Callback] = (),
) -> FitResult:
    """Trains one network, or goes on with it, and fills the run folder.

    The summary's `test_accuracy` is that of the last epoch, `best_test_accuracy` the largest, and
    `chosen_test_accuracy` that of the epoch with the largest validation accuracy, where images are
    held out. Its `seconds` are the whole run's, compilation and evaluation included;
    `images_per_second` is the median epoch's, without them. A step sees `step_examples` of its
    batch, which a transformation that was given whole may halve again, and all steps together see
    `examples`, some more than once. `training_cost` and `inference_cost`
    are MACs relative to training the dense network with SGD and to its forward pass
    (`zosam_jax.training.build.Cost`); masks.txt says what is kept, layer by layer. `measures` are
    of the test split after the last epoch: of a language model perplexity, exp of the mean loss of
    a token, and bits_a_byte; of classes of texts accuracy, f1 and matthews; of scores of texts
    pearson and spearman.

    Raises:
      NonFiniteLossError, InterruptedRunError: as `Run.train`.
    """
    rho = build.rho_of(config)
    run = Run(problem, config.optimizer, rho, config.seed)
    console.print(
        f"{config.model} on {config.dataset}, {_budget(config, problem)}, {config.optimizer}"
        + (
            f" (rho={rho:g}, {build.radius_rule(config.optimizer, config.radius)})"
            if has_rho(config.optimizer)
            else ""
        )
        + (
            f", {build.step_examples(config)} of the {config.batch_size} examples of each batch"
            if config.batch_fraction
            else ""
        )
        + (f", {problem.mesh.size} devices" if problem.mesh.size > 1 else "")
    )
    _tell_versions(folder, console)
    if problem.started_from:
        console.print(problem.started_from, markup=False, highlight=False)
    folder.write_options(config)
    folder.write_json(run_folder.DATA, problem.feed.info._asdict())
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
            records = run.train(Callbacks(watcher, *callbacks), keeper)
    summary = _summary(config, run, rho, records)
    if devices.is_first():
        title = f"{config.model}, {config.dataset}, {config.optimizer}"
        pictures.curves(folder.path / run_folder.CURVES, records, title)
    if run.masks_of_whole is not None:
        folder.write_text(run_folder.MASKS, f"{sparsity.summary(run.whole, run.masks_of_whole)}\n")
    # Last: a run folder with a summary is complete.
    folder.write_json(run_folder.SUMMARY, summary)
    reached = f"test loss {summary['test_loss']:.4g}"
    if not math.isnan(summary["test_accuracy"]):
        reached = f"test accuracy {summary['test_accuracy']:.2%}"
    for name, value in summary["measures"].items():
        reached += "" if name == "accuracy" else f", {name.replace('_', ' ')} {value:.4g}"
    console.print(
        f"{reached}, sparsity {summary['sparsity']:.2%}, "
        f"training cost {summary['training_cost']:.1%} of dense SGD's MACs; "
        f"{run.progress.total_steps} steps in {summary['seconds']:.1f} s; results in {folder.path}",
        markup=False,
    )
    model = problem.model(run.network)
    return FitResult(model, run.masks, run.records, summary, folder.path)


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
    state, progress = keeper.restore_newest(run.like, say, records=len(records))
    keeper.set_aside(after=progress.total_steps)
    records = records[: progress.records]
    folder.write_metrics(records)
    run.resume(state, progress, records)
    console.print(
        f"resumed after step {progress.total_steps}, epoch {progress.epoch + 1}"
        f"{_not_compared(run.problem.config)}",
        markup=False,
    )


def _not_compared(config: ProblemConfig) -> str:
    """What of a run that is taken up may be other than it was: code, which has only a name."""
    named = {name: getattr(config, name, "") for name in ("model", "loss", "optimizer", "dataset")}
    code = [
        f"{name}={value!r}"
        for name, value in named.items()
        if (is_own(value) and not value.startswith(sources.ARRAYS)) or value == OWN_OPTIMIZER
    ]
    return f"; only the name of what it began with is compared: {', '.join(code)}" if code else ""


def _summary(
    config: TrainConfig, run: Run, rho: float, records: list[EpochRecord]
) -> dict[str, Any]:
    last = records[-1]
    # A loss may be NaN although the epoch was evaluated, as the last one always is.
    known = [r for r in records if not (math.isnan(r.test_loss) and math.isnan(r.test_accuracy))]
    evaluated = [r for r in known if build.is_final(run.problem, r)] or [last]
    held_out = "validation" in run.problem.feed.splits
    chosen = max(evaluated, key=lambda r: r.score)
    return {
        "test_accuracy": last.test_accuracy,
        "best_test_accuracy": max(r.test_accuracy for r in evaluated),
        "chosen_test_accuracy": chosen.test_accuracy if held_out else math.nan,
        "validation_accuracy": last.validation_accuracy,
        "validation_loss": last.validation_loss,
        "test_loss": last.test_loss,
        "ema_test_accuracy": last.ema_test_accuracy,
        "ema_validation_accuracy": last.ema_validation_accuracy,
        "train_loss": last.train_loss,
        "sparse": "none" if config.is_dense else config.sparse,
        "sparsity": last.sparsity,
        "training_cost": last.training_cost / config.epochs,
        "inference_cost": run.cost.inference(run.masks_of_whole),
        "bad_steps": sum(r.bad_steps for r in records),
        "steps": last.step,
        "step_examples": build.step_examples(config),
        "examples": build.step_examples(config) * run.progress.total_steps,
        "seconds": last.seconds,
        "images_per_second": sorted(r.images_per_second for r in records)[len(records) // 2],
        "data_wait": sorted(r.data_wait for r in records)[len(records) // 2],
        "optimizer": config.optimizer,
        "rho": rho,
        "seed": config.seed,
        "devices": run.problem.mesh.size,
        "parameters": trees.size(run.network.params),
        "dense_parameters": trees.size(run.whole),
        "measures": run.problem.measures(run.network, last.test_loss),
    }


def _budget(config: TrainConfig, problem: Problem) -> str:
    if config.is_dense:
        return "dense"
    if problem.units is None:
        return f"{100 * config.sparsity:g}% sparse by {config.sparse}"
    kinds = dict.fromkeys(group.kind for group in problem.units.groups)
    whole = {"units": "all", "weights": "the weights of", "macs": "the multiply-adds of"}
    share = f"{100 * config.sparsity:g}% of {whole[config.sparsity_budget]}"
    return f"{share} {' and '.join(kinds)} removed by {config.sparse}"


def _writes_events(config: TrainConfig) -> bool:
    return config.tensorboard and devices.is_first()
