"""`zosam train`: trains one network, shows and records progress, and resumes."""

import sys
import traceback

from rich.console import Console

from zosam_jax.commands.refusal import RefusedError, refused, refusing
from zosam_jax.training import devices, run_folder, supervision
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.feed import BrokenDataError
from zosam_jax.training.fitting import Fitting
from zosam_jax.training.interruption import InterruptedRunError
from zosam_jax.training.run_folder import UnreadableRunError, UnwritableError
from zosam_jax.training.trainer import NonFiniteLossError


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
    with refusing():
        devices.keep_compiled(config.compilation_cache)
        fitting = Fitting(config, console)
    with fitting:
        path = fitting.folder.path
        if fitting.is_complete:
            console.print(
                f"{path} is complete; its results are in {run_folder.SUMMARY}", markup=False
            )
        else:
            _train(fitting, console)


def _train(fitting: Fitting, console: Console) -> None:
    try:
        fitting.run()
    except NonFiniteLossError as error:
        raise RefusedError(
            f"{error} With --on-non-finite skip this run goes on from its newest checkpoint, if it "
            "has one; other options need another --output."
        ) from error
    except (BrokenDataError, UnreadableRunError, UnwritableError) as error:
        refusal = refused(error)
        if not devices.is_alone():
            supervision.end(f"zosam, process {fitting.config.process_id}: {error}", refusal.status)
        raise refusal from error
    except InterruptedRunError as interruption:
        console.print(
            f"{interruption}; the same command goes on from there ({fitting.folder.path})",
            markup=False,
        )
        # As shells report a process that its signal has ended.
        sys.exit(128 + interruption.signal)
