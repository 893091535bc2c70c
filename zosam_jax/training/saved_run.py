"""A finished or interrupted run, opened again from its folder to be looked at."""

import dataclasses
import functools
import json
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax.data import TextInfo, tokenization
from zosam_jax.errors import check_count
from zosam_jax.training import build, contents, devices, predicting, run_folder, sources
from zosam_jax.training.applicable import OWN_OPTIMIZER
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import ProblemConfig, TrainConfig, is_own
from zosam_jax.training.feed import DataInfo, Described
from zosam_jax.training.generating import Generator
from zosam_jax.training.problem import Network, Parts, Problem
from zosam_jax.training.progress import EpochRecord, Progress
from zosam_jax.training.run_folder import (
    CHECKPOINTS,
    CONFIG,
    METRICS,
    SUMMARY,
    SWEEP,
    TUNING_RUNS,
    VERSIONS,
    RunFolder,
    UnreadableRunError,
)
from zosam_jax.training.sources import Data
from zosam_jax.training.trainer import Run
from zosam_jax.trees import Array, Float, PyTree

Say: TypeAlias = Callable[[str], object]
Step: TypeAlias = int | Literal["last", "best"]


class SavedRun:
    """A run at one of its checkpoints: the trained network, and what is known of it.

    Attributes:
      folder: the run folder.
      config: its options.
      run: the training where it stood; `run.problem` has the loss and, where it was opened with
        them, the data.
      say: is given a sentence where a damaged checkpoint is passed over.
    """

    def __init__(
        self,
        folder: RunFolder,
        config: TrainConfig,
        problem: Problem,
        step: Step = "last",
        say: Say = warnings.warn,
    ) -> None:
        """Restores the network; see `open_run`."""
        self.folder, self.config, self.say = folder, config, say
        self.run = Run(problem, config.optimizer, build.rho_of(config), config.seed)
        self._checkpoints = Checkpoints(folder.path, keep=1, seconds=0.0)
        if step == "best" and self.best is None:
            raise FileNotFoundError(f"{folder.path} has no best checkpoint: take the last one.")
        self.restore(self.best if step == "best" else None if step == "last" else step)

    @property
    def checkpoints(self) -> tuple[int, ...]:
        """The steps after which checkpoints were kept, in order."""
        return self._checkpoints.numbers

    @property
    def best(self) -> int | None:
        """The best checkpoint's number; None if none is known."""
        return self._checkpoints.best

    @property
    def model(self) -> Any:
        """The network, in inference mode, as its library has it (see `zosam_jax.fit`).

        It takes what `preprocess` gives.
        """
        return self.run.problem.model(self.run.network)

    @property
    def masks(self) -> PyTree:
        """Which weights are kept, shaped like the parameters; None for a dense network."""
        return self.run.masks

    @property
    def metrics(self) -> list[EpochRecord]:
        """The record of each epoch."""
        return self.folder.all_records

    @property
    def summary(self) -> dict[str, Any] | None:
        """What summary.json holds, NaN for null; None as long as the run has not ended."""
        return self.folder.summary

    @property
    def data(self) -> DataInfo:
        """What there is to know of the data set: shapes, classes, the scale of its pixels."""
        return self.run.problem.feed.info

    def preprocess(self, images: Any) -> Array:
        """Images as the network takes them: what the run did with those that it was tested on.

        Args:
          images: as `predict` takes them.
        """
        found = predicting.inputs(images, self.data, self.config)
        return self.run.problem.pixels(jnp.asarray(found))

    def predict(self, images: Any, *, batch_size: int = 64) -> Float[np.ndarray, "n ..."]:
        """What the network says of some images.

        Args:
          images: what the data set's images were: an array (n, height, width, channels) of uint8;
            or paths of image files or PIL images, or one of them, which are scaled and cropped to
            the size that the run had. Of a problem of one's own, inputs (n, …) like its own. Of
            texts that are classified, texts or pairs of them.
          batch_size: images a pass.

        Returns:
          Probabilities (n, classes); the outputs (n, …) of a network whose targets are no labels.

        Raises:
          ValueError: for images of another shape or dtype, or that cannot be read.
        """
        check_count("batch_size", batch_size)
        found = predicting.inputs(images, self.data, self.config)
        outputs = []
        for start in range(0, len(found), batch_size):
            batch = found[start : start + batch_size]
            # Filled up, so that one program serves them all.
            missing = min(batch_size, len(found)) - len(batch)
            whole = np.concatenate([batch, np.zeros((missing, *batch.shape[1:]), batch.dtype)])
            outputs.append(np.asarray(self._outputs(self.run.network, whole))[: len(batch)])
        return np.concatenate(outputs)

    def generate(
        self, prompt: str, *, tokens: int = 100, temperature: float = 0.0, seed: int = 0
    ) -> str:
        """What a language model says behind a text; see `generating.Generator.tokens`.

        Args:
          prompt: the text that it goes on with.
          tokens: how many, at most; it may end the text before.
          temperature: 0 takes the likeliest token each time; 1 draws as the network says.
          seed: of the draws.

        Raises:
          ValueError: if the run is of another task.
        """
        if self.config.task != "lm" or self.data.text is None:
            raise ValueError(
                f"{self.folder.path} was trained with task={self.config.task!r}: only networks of "
                "task='lm' go on with a text."
            )
        return self._generator.text(
            self.run.network, prompt, tokens, temperature=temperature, seed=seed
        )

    @functools.cached_property
    def _generator(self) -> Generator:
        assert self.data.text is not None
        known = tokenization.tokenizer(self.data.text.tokenizer, f"{self.folder.path}'s tokenizer")
        return Generator(self.run.problem, known)

    @functools.cached_property
    def _outputs(self) -> Callable[[Network, Any], Array]:
        return jax.jit(self.run.problem.predict)

    def restore(self, number: int | None = None) -> Progress:
        """Puts the run where a checkpoint left it, by default the newest one that is whole.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if it is damaged.
        """
        # An optimizer that was given whole is not there; its network is.
        partly = self.config.optimizer == OWN_OPTIMIZER
        if number is None:
            state, progress = self._checkpoints.restore_newest(
                self.run.like, self.say, partly=partly
            )
        elif number not in self.checkpoints:
            raise FileNotFoundError(
                f"{self.folder.path} has no checkpoint of step {number}; those are "
                f"{', '.join(map(str, self.checkpoints)) or 'none'}."
            )
        else:
            state, progress = self._checkpoints.restore(self.run.like, number, partly=partly)
        self.run.resume(state, progress, [])
        return progress

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Stops the background threads."""
        self._checkpoints.__exit__(*exception)
        self.run.problem.feed.close()


def open_run(
    path: str | Path,
    step: Step = "last",
    *,
    model: Any = None,
    loss: Callable[..., Any] | None = None,
    data: Any = None,
    say: Say = warnings.warn,
) -> SavedRun:
    """Opens a run folder: its trained network, on the devices there are now.

        run = zosam_jax.open_run("runs/mine")
        run.predict(["cat.jpg", "dog.jpg"])

    Nothing of the data set is loaded, and no code that the folder names is executed.

    Args:
      path: the run folder.
      step: "last" for the last checkpoint, which summary.json is about; "best" for that of the best
        epoch; or the number of steps after which one was kept (`SavedRun.checkpoints`).
      model: of a run whose network is no name of ours, that network, as `zosam_jax.fit` took it.
      loss: likewise.
      data: to evaluate the network on, a `zosam_jax.data.Dataset` or (train, test), as `fit` took
        them; by default there are none.
      say: is given a sentence where a damaged checkpoint is passed over.

    Raises:
      FileNotFoundError: if `path` holds no run, or none of its checkpoints is of that step.
      UnreadableRunError: if a file of it is damaged.
      ValueError: if the network or the loss is code, and was not given.
    """
    path = Path(path)
    if not (step in ("last", "best") or (isinstance(step, int) and not isinstance(step, bool))):
        raise ValueError(f"step={step!r} must be 'last', 'best' or the number of a step.")
    config = read_config(path)
    found = None
    if data is not None:
        found = sources.as_data(*(data if type(data) is tuple else (data, None)))
    given = found if found is not None else _described(path)
    return _opened(path, step, config, _problem(config, Parts(model, loss), given), say)


def _described(path: Path) -> Data | None:
    """What data.json says of the data; None for a run of a time before there were such files."""
    info = _info(path)
    return None if info is None else Data("", lambda mesh: Described(info))


def texts_of(path: Path) -> TextInfo | None:
    """What a run folder's data.json says of its texts; None where there are none."""
    info = _info(path)
    return info and info.text


def _info(path: Path) -> DataInfo | None:
    try:
        values = run_folder.read_json(path / run_folder.DATA, DataInfo)
    except FileNotFoundError:
        return None
    fields: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
    }
    if fields.get("text") is not None:
        fields["text"] = TextInfo(**fields["text"])
    return DataInfo(**fields)


def _problem(
    config: TrainConfig, parts: Parts, data: Data | None, data_dir: Path | None = None
) -> Problem:
    changes: dict[str, Any] = {"mesh": None, "data_dir": data_dir or config.data_dir, "init": None}
    if config.optimizer == OWN_OPTIMIZER:
        parts = parts._replace(tx=optax.identity())
    devices.compute_exactly(config.precision)
    config = dataclasses.replace(config, **changes)
    if data is None and is_own(config.dataset):
        raise ValueError(
            f"dataset={config.dataset!r} is not kept in the run: pass data=, or repeat --dataset "
            "PACKAGE.MODULE:FUNCTION."
        )
    return sources.problem(config, parts, data)


def _opened(path: Path, step: Step, config: TrainConfig, problem: Problem, say: Say) -> SavedRun:
    folder = RunFolder(path, "train", may_hold_results=True)
    _ = folder.is_complete  # a damaged summary is said now
    config = dataclasses.replace(config, mesh=None, data_dir=problem.config.data_dir)
    return SavedRun(folder, config, problem, step, say)


def opener(
    *,
    data_dir: Path | None = None,
    code: Mapping[str, str | None] | None = None,
    loads: bool = True,
    precision: Literal["float32", "bfloat16"] | None = None,
    say: Say = warnings.warn,
) -> Callable[..., SavedRun]:
    """(path, step="last") → a run with its data, for several in turn.

    Each is closed before the next is opened. Neighbours that differ in nothing that a problem is
    made of share it: its data, and what has been compiled for it.

    Args:
      data_dir: where the data set's files are, if not where the runs found them.
      code: of model, loss and dataset those import paths that the user has repeated, which are
        imported for the runs that have them.
      loads: whether the data are wanted; else runs are as `open_run` opens them.
      precision: of the network's products, if not the run's.
      say: as for `open_run`.
    """
    problem: Problem | None = None
    options: ProblemConfig | None = None
    repeated = code or {}

    def open_next(path: Path, step: Step = "last") -> SavedRun:
        nonlocal problem, options
        config = read_config(path)
        if precision is not None:
            config = dataclasses.replace(config, precision=precision)
        following = config.problem
        if problem is None or following != options:
            parts, data = sources.repeated_parts(config, repeated)
            data = data if loads else _described(path)
            problem, options = _problem(config, parts, data, data_dir), following
        return _opened(path, step, config, problem, say)

    return open_next


def run_folders(path: Path) -> list[Path]:
    """A run folder, or all that a folder holds at any depth, in order.

    Raises:
      FileNotFoundError: if there is none.
    """
    # Of a run whose config.json is gone the metrics are left.
    folders = {file.parent for name in (CONFIG, METRICS) for file in path.rglob(name)}
    found = sorted(f for f in folders if counts(f, path) and _is_of_run(f))
    if not found:
        raise FileNotFoundError(
            f"{path} is neither a run folder (zosam train leaves config.json and summary.json "
            "there) nor a folder of run folders."
        )
    return found


def complete_runs(paths: Iterable[Path]) -> tuple[Path, ...]:
    """Run folders as they are named, and in other folders the runs that have ended, each once.

    Raises:
      FileNotFoundError: for a path without a run, or without one that has ended.
    """
    found = []
    for path in paths:
        folders = run_folders(path)
        ended = [f for f in folders if f == path or (f / SUMMARY).is_file()]
        if not ended:
            raise FileNotFoundError(f"{path}: none of its {len(folders)} runs has ended.")
        found += ended
    return tuple(dict.fromkeys(found))


def counts(folder: Path, path: Path) -> bool:
    """Whether a run counts in its own right: those of a sweep's tuning do not."""
    above = [path / parent for parent in (folder / CONFIG).relative_to(path).parents][:-1]
    return not any(f.name == TUNING_RUNS and (f.parent / SWEEP).is_dir() for f in above)


def _is_of_run(folder: Path) -> bool:
    """Another command's config.json names no optimizer, and has nothing of a run beside it."""
    beside = [name for name in (METRICS, CHECKPOINTS, SUMMARY) if (folder / name).exists()]
    if not (folder / CONFIG).is_file() or len(beside) > 1:
        return len(beside) > 1
    try:
        content = json.loads((folder / CONFIG).read_text())
    except (OSError, ValueError, RecursionError):
        return bool(beside)
    return isinstance(content, dict) and "optimizer" in content


def read_config(path: Path) -> TrainConfig:
    """The options in a run folder's config.json, None where they are the defaults.

    Raises:
      FileNotFoundError: if it is missing.
      UnreadableRunError: if it is damaged.
    """
    file = path / CONFIG
    try:
        values = run_folder.read_json(file, contents.Config)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path} is no run folder: it holds no {CONFIG}.") from None
    try:
        return build.canonical(TrainConfig(**typed(_without_versions(values))))
    except (ValueError, TypeError) as error:
        raise UnreadableRunError(f"{file} is damaged: {error}") from error


def _without_versions(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name != VERSIONS}


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """Options out of JSON or TOML, which know neither paths nor tuples, as `TrainConfig` has them.

    Raises:
      ValueError: for a name that is no option, or a value of another type.
    """
    kinds = contents.OPTIONS
    for name, value in values.items():
        if name not in kinds:
            raise ValueError(f"{name} is no option of zosam train.")
        contents.check(name, value, kinds[name])
    return {name: _typed(value, kinds[name]) for name, value in values.items()}


def _typed(value: Any, kind: Any) -> Any:
    if isinstance(value, str) and Path in typing.get_args(kind):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value
