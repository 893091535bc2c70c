"""Checkpoints of a run, by Orbax: written in the background, complete or not there at all.

Each has a checksum of its arrays and one of where the run stands. A damaged one is never taken.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as policies

from zosam_jax.training import devices, run_folder, step
from zosam_jax.training.problem import Network
from zosam_jax.training.progress import Progress
from zosam_jax.training.run_folder import UnreadableRunError
from zosam_jax.training.step import TrainState
from zosam_jax.trees import PyTree

STATE, PROGRESS = "state", "progress"
# Where a checkpoint has its own file, below its folder; the others are Orbax's.
_OWN = Path(PROGRESS, "metadata")

T = TypeVar("T")


class _Sealed(TypedDict):
    """What the network of a round says beside its arrays.

    Attributes:
      arrays: checksum of the arrays.
      checksum: of everything else here.
    """

    arrays: str
    checksum: str


class _Record(_Sealed):
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
        read_only: bool = False,
    ) -> None:
        """Opens `folder`/checkpoints, new or not.

        Args:
          folder: the run folder.
          keep: how many of the newest checkpoints to keep; the best one stays beside them.
          seconds: the longest time between two.
          every: keep those after a multiple of so many steps, too.
          read_only: only look; the run they are of may be under way.

        Raises:
          UnreadableRunError: if it is no folder of checkpoints.
        """
        # Orbax logs every step of a save.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.seconds, self.every = seconds, every
        self._run = folder.absolute()
        self._folder = self._run / run_folder.CHECKPOINTS
        if os.path.lexists(self._folder) and not self._folder.is_dir():
            raise UnreadableRunError(f"{self._folder} is damaged: it is no folder.")
        self._ranks: dict[int, float] = {}
        milestones = [] if every is None else [policies.EveryNSteps(every)]
        self._manager = _understood(
            self._folder,
            lambda: ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=policies.AnyPreservationPolicy(
                        [*milestones, policies.LatestN(keep), _Best(self)]
                    ),
                    # What a killed run left half written.
                    cleanup_tmp_directories=not read_only,
                    read_only=read_only,
                ),
            ),
        )
        for number in self.numbers:
            try:
                self._note_rank(number, self._record(number))
            except UnreadableRunError:  # said when it would be taken
                continue

    def save(self, state: TrainState, progress: Progress, score: float | None = None) -> None:
        """Copies the state to the host, writes it in the background, and forgets older ones.

        Does nothing if the newest checkpoint is of the same step.

        Args:
          state: the training's state.
          progress: where the run stands.
          score: by which the best one is chosen, between 0 and 1; None if it is not known here.
        """
        if self.newest == progress.total_steps:
            return
        arrays = step.to_saved(state)
        record = _sealed(arrays, progress=progress._asdict(), score=score)
        self._note_rank(progress.total_steps, record)
        self._manager.save(progress.total_steps, args=_to_save(arrays, record))

    def wait(self) -> None:
        """Waits until everything is written."""
        self._manager.wait_until_finished()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Waits, and stops the background threads."""
        self._manager.close()

    @property
    def newest(self) -> int | None:
        """The number of the newest checkpoint; None if there is none."""
        return max(self.numbers, default=None)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all that there are, in order: steps since the start of the run."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def best(self) -> int | None:
        """The number of the best one (of the last round, for lth); None if none is known."""
        known = [number for number in self.numbers if number in self._ranks]
        return max(known, key=lambda number: (self._ranks[number], number), default=None)

    def restore(self, like: TrainState, number: int) -> tuple[TrainState, Progress]:
        """The state and the position of a checkpoint.

        Args:
          like: a state of the same shapes, on the devices to restore to.
          number: which one.

        Raises:
          UnreadableRunError: if it is damaged, or of another network.
        """
        place, record = self._folder / str(number), self._record(number)
        saved = _restore(place, lambda args: self._manager.restore(number, args=args), like)
        _check_arrays(place, saved, record)
        return step.from_saved(saved, like), Progress(**record["progress"])

    def restore_newest(
        self, like: TrainState, say: Callable[[str], object], *, records: int | None = None
    ) -> tuple[TrainState, Progress]:
        """The same of the newest checkpoint that is whole.

        Args:
          like: a state of the same shapes, on the devices to restore to.
          say: is given a sentence about newer ones, if they are damaged.
          records: the lines of metrics.jsonl; checkpoints that go with more of them are passed
            over, too. None if it does not matter.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if none is whole.
        """
        if not self.numbers:
            raise FileNotFoundError(f"{self._run} holds no checkpoint.")
        wrong: list[str] = []
        for number in reversed(self.numbers):
            found, reason = self._restored(like, number, records)
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

    def _restored(
        self, like: TrainState, number: int, records: int | None
    ) -> tuple[tuple[TrainState, Progress] | None, str]:
        """What `restore` returns, and why it is not to be taken."""
        try:
            found = self.restore(like, number)
        except UnreadableRunError as error:
            return None, str(error).rstrip(".")
        needed = found[1].records
        if records is not None and needed > records:
            file = self._run / run_folder.METRICS
            return None, f"{file} has {records} of the {needed} lines up to step {number}"
        return found, ""

    def set_aside(self, after: int) -> None:
        """Moves the checkpoints after a step, which are damaged, out of the way of new ones."""
        later = [number for number in self.numbers if number > after]
        if not later:
            return
        if devices.is_first():
            for number in later:
                aside = self._run / run_folder.DAMAGED / str(number)
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                (self._folder / str(number)).rename(aside)
        devices.agree(True)  # waits until they are moved
        for number in later:
            self._ranks.pop(number, None)
        self._manager.reload()

    def _record(self, number: int) -> Any:
        """What a checkpoint says beside its arrays."""
        place = self._folder / str(number)
        record = _opened(place, _Record)
        if record["progress"]["total_steps"] != number:
            raise UnreadableRunError(f"{place} is damaged: it is of another step.")
        return record

    def _note_rank(self, number: int, record: Any) -> None:
        if record["score"] is not None:
            # A later round's worst is better than an earlier round's best: it is sparser.
            self._ranks[number] = record["progress"]["round"] + record["score"]

    def save_network(self, training: int, network: Network) -> None:
        """Writes what a training of a lottery ticket ended with, and waits for it."""
        arrays = step.to_saved(network)
        with _checkpointer() as checkpointer:
            path = self._run / run_folder.ROUNDS / str(training)
            checkpointer.save(path, args=_to_save(arrays, _sealed(arrays)), force=True)

    def restore_network(self, training: int, like: Network) -> Network:
        """What that training ended with.

        Raises:
          UnreadableRunError: if it is damaged.
        """
        place = self._run / run_folder.ROUNDS / str(training)
        record = _opened(place, _Sealed)
        with _checkpointer() as checkpointer:
            saved = _restore(place, lambda args: checkpointer.restore(place, args=args), like)
        _check_arrays(place, saved, record)
        network: Network = step.from_saved(saved, like)
        return network


class _Best(policies.PreservationPolicy):  # type: ignore[misc]  # Orbax has no types
    """Keeps the best one."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        del context
        return [one.step == self._checkpoints.best for one in checkpoints]


def _checkpointer() -> Any:
    return ocp.Checkpointer(ocp.CompositeCheckpointHandler())


def _to_save(arrays: PyTree, record: Mapping[str, Any]) -> Any:
    args = {STATE: ocp.args.StandardSave(arrays), PROGRESS: ocp.args.JsonSave(record)}
    return ocp.args.Composite(**args)


def _restore(place: Path, read: Callable[[Any], Any], like: PyTree) -> PyTree:
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, step.to_saved(like))
    wanted = ocp.args.Composite(**{STATE: ocp.args.StandardRestore(abstract)})
    return _understood(place, lambda: read(wanted)[STATE])


def _understood(place: Path, read: Callable[[], T]) -> T:
    try:
        return read()
    except Exception as error:  # Orbax, JSON and the file system each have their own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableRunError(f"{place} cannot be read: {reason:.200}") from error


def _sealed(arrays: PyTree, **others: Any) -> dict[str, Any]:
    """What a checkpoint says beside its arrays, with the checksums."""
    record = {**others, "arrays": _checksum_of_arrays(arrays)}
    return {**record, "checksum": _checksum(record)}


def _opened(place: Path, kind: Any) -> Any:
    """What a checkpoint in a folder says beside its arrays.

    Raises:
      UnreadableRunError: if it is damaged.
    """
    file = place / _OWN
    try:
        record = run_folder.read_json(file, kind)
    except FileNotFoundError:
        raise UnreadableRunError(f"{place} is damaged: it lacks {_OWN}.") from None
    if record["checksum"] != _checksum({k: v for k, v in record.items() if k != "checksum"}):
        raise UnreadableRunError(f"{file} is damaged: its checksum differs.")
    return record


def _check_arrays(place: Path, arrays: PyTree, record: Mapping[str, Any]) -> None:
    if _checksum_of_arrays(arrays) != record["arrays"]:
        raise UnreadableRunError(f"{place} is damaged: the checksum of its arrays differs.")


def _checksum(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _checksum_of_arrays(tree: PyTree) -> str:
    """Of names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree.leaves_with_path(tree):
        array = np.asarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}\n".encode())
        digest.update(memoryview(np.ascontiguousarray(array).reshape(-1).view(np.uint8)))
    return digest.hexdigest()
