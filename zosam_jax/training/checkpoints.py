"""Checkpoints of a run, by Orbax: written in the background, complete or not there at all."""

import logging
from pathlib import Path
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from zosam_jax.training import run_folder, step
from zosam_jax.training.problem import Network
from zosam_jax.training.progress import Progress
from zosam_jax.training.run_folder import UnreadableRunError
from zosam_jax.training.step import TrainState

STATE, PROGRESS = "state", "progress"


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
        """
        # Orbax logs every step of a save.
        logging.getLogger("absl").setLevel(logging.ERROR)
        self.seconds, self.every = seconds, every
        self._folder = folder.absolute()
        policies = checkpoint_managers
        milestones = [] if every is None else [policies.EveryNSteps(every)]
        self._manager = ocp.CheckpointManager(
            self._folder / run_folder.CHECKPOINTS,
            options=ocp.CheckpointManagerOptions(
                preservation_policy=policies.AnyPreservationPolicy(
                    [
                        *milestones,
                        policies.LatestN(keep),
                        policies.BestN(
                            get_metric_fn=_rank, n=1, keep_checkpoints_without_metrics=False
                        ),
                    ]
                ),
                best_fn=_rank,
                # What a killed run left half written.
                cleanup_tmp_directories=not read_only,
                read_only=read_only,
            ),
        )

    def save(self, state: TrainState, progress: Progress, score: float | None = None) -> None:
        """Copies the state to the host, writes it in the background, and forgets older ones.

        Does nothing if the newest checkpoint is of the same step.

        Args:
          state: the training's state.
          progress: where the run stands.
          score: by which the best one is chosen, between 0 and 1; None if it is not known here.
        """
        if self._manager.latest_step() == progress.total_steps:
            return
        self._manager.save(
            progress.total_steps,
            args=ocp.args.Composite(
                **{
                    STATE: ocp.args.StandardSave(step.to_saved(state)),
                    PROGRESS: ocp.args.JsonSave(progress._asdict()),
                }
            ),
            metrics=None if score is None else {"round": progress.round, "score": score},
        )

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
        number: int | None = self._manager.latest_step()
        return number

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all that there are, in order: steps since the start of the run."""
        return tuple(sorted(self._manager.all_steps()))

    @property
    def best(self) -> int | None:
        """The number of the best one (of the last round, for lth); None if none is known."""
        number: int | None = self._manager.best_step()
        return number

    def restore(self, like: TrainState, number: int | None = None) -> tuple[TrainState, Progress]:
        """The state and the position of a checkpoint, the newest one by default.

        Args:
          like: a state of the same shapes, on the devices to restore to.
          number: which one.

        Raises:
          FileNotFoundError: if there is none.
          UnreadableRunError: if it is damaged, or of another network.
        """
        number = self.newest if number is None else number
        if number is None:
            raise FileNotFoundError(f"{self._folder} holds no checkpoint.")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, step.to_saved(like))
        wanted = {STATE: ocp.args.StandardRestore(abstract), PROGRESS: ocp.args.JsonRestore()}
        try:
            restored = self._manager.restore(number, args=ocp.args.Composite(**wanted))
        except Exception as error:  # Orbax, JSON and the file system each have their own
            damaged = self._folder / run_folder.CHECKPOINTS / str(number)
            raise UnreadableRunError(
                f"{damaged} cannot be read ({error}); without "
                "that folder the run goes on from the checkpoint before it."
            ) from error
        return step.from_saved(restored[STATE], like), Progress(**restored[PROGRESS])

    def save_network(self, training: int, network: Network) -> None:
        """Writes what a training of a lottery ticket ended with, and waits for it."""
        with ocp.StandardCheckpointer() as checkpointer:
            path = self._folder / run_folder.ROUNDS / str(training)
            checkpointer.save(path, step.to_saved(network), force=True)

    def restore_network(self, training: int, like: Network) -> Network:
        """What that training ended with."""
        with ocp.StandardCheckpointer() as checkpointer:
            abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, step.to_saved(like))
            saved = checkpointer.restore(self._folder / run_folder.ROUNDS / str(training), abstract)
        network: Network = step.from_saved(saved, like)
        return network


def _rank(metrics: Any) -> float:
    # A later round's worst is better than an earlier round's best: it is sparser.
    return float(metrics["round"] + metrics["score"])
