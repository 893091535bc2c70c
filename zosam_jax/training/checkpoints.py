"""Checkpoints of a run, by Orbax: written in the background, complete or not there at all.

Each holds the checksums of its files, which are compared before anything else is read: a damaged
one is never taken.
"""

import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, TypedDict, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

from zosam_jax.training import devices, run_folder, step
from zosam_jax.training.problem import Network
from zosam_jax.training.progress import Progress
from zosam_jax.training.run_folder import UnreadableRunError, UnwritableError
from zosam_jax.training.step import RunState
from zosam_jax.trees import PyTree

STATE, PROGRESS = "state", "progress"
CHECKSUMS = "checksums.json"
# Orbax writes these when it has the checksums already; neither is needed to read the others.
_METADATA = "_CHECKPOINT_METADATA"
_LATER = (_METADATA, "commit_success.txt")

T = TypeVar("T")

Like: TypeAlias = RunState | Callable[[Progress], RunState]


class UnfitCheckpointError(UnreadableRunError):
    """A checkpoint is whole, and of another network or optimizer than was given; says where."""


class _Record(TypedDict):
    """What a checkpoint says beside its arrays.

    Attributes:
      progress: where the run stands.
      score: by which the best one is chosen; null if it is not known.
    """

    progress: Progress
    score: float


class Checkpoints:
    """The newest checkpoints of a run and the best one, in its folder.

    Attributes:
      seconds: the longest time between two of them.
      every: those after a multiple of so many steps stay for good; None for none of them.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int,
        seconds: float,
        every: int | None = None,
    ) -> None:
        """Opens `folder`/checkpoints, new or not; nothing is written before something is saved.

        Args:
          folder: the run folder.
          keep: how many of the newest checkpoints to keep; the best one stays beside them.
          seconds: the longest time between two.
          every: keep those after a multiple of so many steps, too.

        Raises:
          UnreadableRunError: if it is no folder of checkpoints.
        """
        # Orbax logs every step of a save, and by hundreds of lines a failure that it raises, too.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        if not isinstance(sys.unraisablehook, functools.partial):
            sys.unraisablehook = functools.partial(_without_closed_loops, sys.unraisablehook)
        self.seconds, self.every, self._keep = seconds, every, keep
        self._run = folder.absolute()
        self._folder = self._run / run_folder.CHECKPOINTS
        if os.path.lexists(self._folder) and not self._folder.is_dir():
            raise UnreadableRunError(f"{self._folder} is damaged: it is no folder.")
        self._ranks: dict[int, float] = {}
        self._saving = 0
        for number in self.numbers:
            # What is wrong is said when it would be taken.
            with contextlib.suppress(UnreadableRunError):
                self._note_rank(number, self._record(number))

    @functools.cached_property
    def _manager(self) -> Any:
        for file in self._folder.glob(f"*/{_METADATA}"):
            # Orbax can do without, but not with one that is damaged.
            if not _is_json(file):
                file.unlink()
        policies = ocp.checkpoint_managers
        milestones = [] if self.every is None else [policies.EveryNSteps(self.every)]
        return ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [*milestones, policies.LatestN(self._keep), _Best(self.best_of)]
                ),
                async_options=_sealing(lambda: self._folder / str(self._saving)),
                # What a killed run left half written.
                cleanup_tmp_directories=True,
            ),
        )

    def save(self, state: RunState, progress: Progress, score: float | None = None) -> None:
        """Copies the state to the host, writes it in the background, and forgets older ones.

        Does nothing if the newest checkpoint is of the same step.

        Args:
          state: the training's state.
          progress: where the run stands.
          score: by which the best one is chosen, between 0 and 1; None if it is not known here.

        Raises:
          UnwritableError: if it cannot be written, or the one before could not be.
        """
        self.wait()
        if self.newest == progress.total_steps:
            return
        self._saving = progress.total_steps
        record = {"progress": progress._asdict(), "score": score}
        self._note_rank(progress.total_steps, record)
        args = {
            STATE: ocp.args.StandardSave(step.to_saved(state)),
            PROGRESS: ocp.args.JsonSave(record),
        }
        with _writing(self._folder):
            self._manager.save(progress.total_steps, args=ocp.args.Composite(**args))

    def wait(self) -> None:
        """Waits until everything is written.

        Raises:
          UnwritableError: if something could not be.
        """
        if "_manager" in vars(self):
            with _writing(self._folder):
                self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits, and stops the background threads.

        Raises:
          UnwritableError: if something could not be written, unless another error is on its way.
        """
        if "_manager" in vars(self):
            try:
                with _writing(self._folder):
                    self._manager.close()
            except UnwritableError:
                if exception[0] is None:
                    raise

    @property
    def newest(self) -> int | None:
        """The number of the newest checkpoint; None if there is none."""
        return max(self.numbers, default=None)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all that there are, in order: steps since the start of the run."""
        there = self._folder.iterdir() if self._folder.is_dir() else ()
        return tuple(sorted(int(p.name) for p in there if p.name.isdecimal() and p.is_dir()))

    @property
    def best(self) -> int | None:
        """The number of the best one (of the last round, for lth); None if none is known."""
        return self.best_of(self.numbers)

    def best_of(self, numbers: Iterable[int]) -> int | None:
        """The same among some of them."""
        known = [number for number in numbers if number in self._ranks]
        return max(known, key=lambda number: (self._ranks[number], number), default=None)

    def restore(
        self, like: Like, number: int, *, partly: bool = False
    ) -> tuple[RunState, Progress]:
        """The state and the position of a checkpoint.

        Args:
          like: a state of the same shapes, on the devices to restore to; or where the run stood →
            such a state.
          number: which one.
          partly: whether it may hold more than `like` has.

        Raises:
          UnreadableRunError: if it is damaged.
          UnfitCheckpointError: if it is of another network or optimizer.
        """
        record = self._record(number)
        place, progress = self._folder / str(number), Progress(**record["progress"])
        if not isinstance(like, RunState):
            _understood(place, lambda: _check_whole(place))  # what is wrong in it has no shapes
            like = like(progress)
        if not partly:
            return step.from_saved(_restore(place, like, STATE), like), progress
        # What has no arrays here may have some there, and so is left out.
        held = _with_arrays(like)
        if "opt_state" in held:
            held["opt_state"] = _with_arrays(like.opt_state)
        found = _restore(place, held, STATE, partly=True)
        opt_state = like.opt_state._replace(**found.pop("opt_state", {}))
        restored = like._replace(**found, opt_state=opt_state)
        return step.from_saved(restored, like), progress

    def restore_newest(
        self,
        like: Like,
        say: Callable[[str], object],
        *,
        records: int | None = None,
        partly: bool = False,
    ) -> tuple[RunState, Progress]:
        """The same of the newest checkpoint that is whole.

        Args:
          like: as in `restore`.
          say: is given a sentence about newer ones, if they are damaged.
          records: the lines of metrics.jsonl; checkpoints that go with more of them are passed
            over, too. None if it does not matter.
          partly: as in `restore`.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if none is whole.
          UnfitCheckpointError: if one is of another network or optimizer, as all are then.
        """
        if not self.numbers:
            raise FileNotFoundError(f"{self._run} holds no checkpoint.")
        wrong: list[str] = []
        for number in reversed(self.numbers):
            found, reason = self._restored(like, number, records, partly)
            # Processes that train together go on from the same one.
            if devices.agree(found is not None):
                if found is None:
                    raise UnreadableRunError(f"{reason}.")
                if wrong:
                    say(f"{'; '.join(wrong)}; taken instead: the checkpoint of step {number}")
                return found
            wrong.append(reason)
        raise UnreadableRunError(
            f"none of its checkpoints can be taken: {'; '.join(wrong)}; move {self._run} away to "
            "train anew."
        )

    def newest_arrays(self) -> tuple[PyTree, PyTree]:
        """The parameters and the state of the newest checkpoint's network, whatever it is.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if it is damaged.
        """
        if self.newest is None:
            raise FileNotFoundError(f"{self._run} holds no checkpoint.")
        place = self._folder / str(self.newest)

        def read() -> tuple[PyTree, PyTree]:
            _check_whole(place)
            with ocp.PyTreeCheckpointer() as checkpointer:
                kept = checkpointer.metadata(place / STATE).item_metadata.tree
                kept = {name: kept[name] for name in ("params", "model_state")}
                how = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), kept)
                args = ocp.args.PyTreeRestore(kept, how, partial_restore=True)
                found = checkpointer.restore(place / STATE, args)
            return found["params"], found["model_state"]

        return _understood(place, read)

    def _restored(
        self, like: Like, number: int, records: int | None, partly: bool
    ) -> tuple[tuple[RunState, Progress] | None, str]:
        """What `restore` returns, and why it is not to be taken."""
        try:
            found = self.restore(like, number, partly=partly)
        except UnfitCheckpointError:
            raise
        except UnreadableRunError as error:
            return None, str(error).rstrip(".")
        needed = found[1].records
        if records is not None and needed > records:
            file = self._run / run_folder.METRICS
            return None, f"{file} has {records} of the {needed} lines up to step {number}"
        return found, ""

    def set_aside(self, after: int) -> None:
        """Moves the checkpoints after a step, which are damaged, out of the way of new ones.

        Raises:
          UnwritableError: if they cannot be moved.
        """
        later = [number for number in self.numbers if number > after]
        if not later:
            return
        if devices.is_first():
            for number in later:
                aside = self._run / run_folder.DAMAGED / str(number)
                with _writing(aside):
                    shutil.rmtree(aside, ignore_errors=True)
                    aside.parent.mkdir(exist_ok=True)
                    (self._folder / str(number)).rename(aside)
        devices.agree(True)  # waits until they are moved

    def _record(self, number: int) -> Any:
        """What a checkpoint says beside its arrays."""
        place = self._folder / str(number)
        record = _understood(
            place, lambda: run_folder.read_json(place / PROGRESS / "metadata", _Record)
        )
        if record["progress"]["total_steps"] != number:
            raise UnreadableRunError(f"{place} is damaged: it is of another step.")
        return record

    def _note_rank(self, number: int, record: Any) -> None:
        if record["score"] is not None:
            # A later round's worst is better than an earlier round's best: it is sparser.
            self._ranks[number] = record["progress"]["round"] + record["score"]

    def save_network(self, training: int, network: Network) -> None:
        """Writes what a training of a lottery ticket ended with, and waits for it.

        Raises:
          UnwritableError: if it cannot be written.
        """
        place = self._run / run_folder.ROUNDS / str(training)
        handler, options = ocp.StandardCheckpointHandler(), _sealing(lambda: place)
        with (
            _writing(place),
            ocp.AsyncCheckpointer(handler, async_options=options) as checkpointer,
        ):
            args = ocp.args.StandardSave(step.to_saved(network))
            checkpointer.save(place, args=args, force=True)

    def restore_network(self, training: int, like: Network) -> Network:
        """What that training ended with.

        Raises:
          UnreadableRunError: if it is damaged.
        """
        saved = _restore(self._run / run_folder.ROUNDS / str(training), like)
        network: Network = step.from_saved(saved, like)
        return network


class _Best(ocp.checkpoint_managers.PreservationPolicy):  # type: ignore[misc]  # it has no types
    """Keeps the best one."""

    def __init__(self, best_of: Callable[[Iterable[int]], int | None]) -> None:
        self._best_of = best_of

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        best = self._best_of(one.step for one in checkpoints)
        return [one.step == best for one in checkpoints]


def _sealing(place: Callable[[], Path]) -> Any:
    """Orbax's options by which it writes checksums before it moves what it saved into `place`."""

    def seal() -> None:
        final = place()
        (written,) = (p for p in final.parent.iterdir() if p.name.split(".")[0] == final.name)
        sums = json.dumps(_checksums(written), indent=2, sort_keys=True)
        (written / CHECKSUMS).write_text(f"{sums}\n")

    return ocp.AsyncOptions(post_finalization_callback=seal)


@contextlib.contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Around what writes by Orbax, which may also say only now what failed in the background."""
    try:
        yield
    except Exception as error:
        cause = _of_system(error)
        if cause is None:
            raise
        raise run_folder.unwritable(place, cause) from error


def _without_closed_loops(hook: Callable[[Any], object], raised: Any) -> None:
    """Leaves out what TensorStore's threads say of futures that Orbax gave up, a traceback each."""
    if str(raised.exc_value) != "Event loop is closed":
        hook(raised)


def _of_system(error: BaseException | None) -> OSError | None:
    """The system's error among the causes of one; TensorStore puts its number into words."""
    while error is not None and not isinstance(error, OSError):
        if numbered := re.search(r"(?:os_error_code='|OS error )(\d+)", str(error)):
            return OSError(int(numbered[1]), os.strerror(int(numbered[1])))
        error = error.__cause__ or error.__context__
    return error


def _is_json(file: Path) -> bool:
    try:
        return bool(run_folder.read_json(file, dict[str, Any]))
    except UnreadableRunError:
        return False


def _checksums(place: Path) -> dict[str, str]:
    """Of all files in a folder, by their names below it."""
    files = [p for p in sorted(place.rglob("*")) if p.name != CHECKSUMS and p.is_file()]
    return {
        str(file.relative_to(place)): _checksum(file)
        for file in files
        if str(file.relative_to(place)) not in _LATER
    }


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_whole(place: Path) -> None:
    """Raises UnreadableRunError unless all files of a checkpoint are those that were written."""
    expected = run_folder.read_json(place / CHECKSUMS, dict[str, str])
    found = _checksums(place)
    for file in sorted(expected.keys() | found.keys()):
        if file not in found:
            raise UnreadableRunError(f"{place} is damaged: it lacks {file}.")
        if found[file] != expected.get(file):
            raise UnreadableRunError(f"{place / file} is damaged: its checksum differs.")


def _with_arrays(fields: Any) -> dict[str, Any]:
    return {name: tree for name, tree in fields._asdict().items() if jax.tree.leaves(tree)}


def _restore(place: Path, like: PyTree, item: str = "", *, partly: bool = False) -> PyTree:
    """The arrays of a checkpoint, or of one of its items; `partly`, of those that `like` has."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, step.to_saved(like))

    def read() -> PyTree:
        _check_whole(place)
        _check_fits(place, item, abstract, partly=partly)
        if not partly:
            with ocp.StandardCheckpointer() as checkpointer:
                return checkpointer.restore(place / item, abstract)
        how = ocp.checkpoint_utils.construct_restore_args(abstract)
        with ocp.PyTreeCheckpointer() as checkpointer:
            args = ocp.args.PyTreeRestore(abstract, how, partial_restore=True)
            return checkpointer.restore(place / item, args)

    return _understood(place, read)


def _check_fits(place: Path, item: str, like: PyTree, *, partly: bool) -> None:
    """Raises UnfitCheckpointError unless the arrays that are there have the shapes of `like`."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        there = _shapes(checkpointer.metadata(place / item).item_metadata.tree)
    here = _shapes(like)
    for name in here if partly else {**here, **there}:
        if here.get(name) != there.get(name):
            raise UnfitCheckpointError(
                f"{place} is of another network or optimizer than was given: its array {name} "
                f"is {_of_shape(there, name)} there, and {_of_shape(here, name)} here."
            )


def _shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree.leaves_with_path(tree)
    names = (jax.tree_util.keystr(path, simple=True, separator=".") for path, _ in leaves)
    return {
        name: tuple(leaf.shape)
        for name, (_, leaf) in zip(names, leaves, strict=True)
        if hasattr(leaf, "shape")
    }


def _of_shape(shapes: Mapping[str, tuple[int, ...]], name: str) -> str:
    return f"of shape {shapes[name]}" if name in shapes else "missing"


def _understood(place: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except UnreadableRunError:
        raise
    except Exception as error:  # Orbax, JSON and the file system each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableRunError(f"{place} cannot be read: {reason:.200}") from error
