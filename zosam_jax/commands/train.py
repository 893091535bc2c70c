"""`zosam train`: trains one network, shows and records progress, and resumes."""

import os
import sys

from rich.console import Console

from zosam_jax.commands.refusal import RefusedError
from zosam_jax.errors import REFUSALS
from zosam_jax.training import devices, run_folder
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.feed import BrokenDataError
from zosam_jax.training.fitting import Fitting
from zosam_jax.training.interruption import InterruptedRunError
from zosam_jax.training.run_folder import UnreadableRunError, UnwritableError
from zosam_jax.training.trainer import NonFiniteLossError


def run(config: TrainConfig, console: Console) -> None:
    """Trains, or goes on with a run that was interrupted."""
    try:
        devices.keep_compiled(config.compilation_cache)
        fitting = Fitting(config, console)
    except REFUSALS as error:
        raise RefusedError(str(error)) from error
    path = fitting.folder.path
    if fitting.is_complete:
        console.print(f"{path} is complete; its results are in {run_folder.SUMMARY}")
        return
    try:
        with fitting:
            fitting.run()
    except NonFiniteLossError as error:
        raise RefusedError(
            f"{error} With --on-non-finite skip this run goes on from its newest checkpoint, if it "
            "has one; other options need another --output."
        ) from error
    except (BrokenDataError, UnreadableRunError, UnwritableError) as error:
        if devices.is_alone():
            raise RefusedError(str(error)) from error
        # Where one process fails the others wait for it, and so must not be waited for.
        print(f"zosam, process {config.process_id}: {error}", file=sys.stderr, flush=True)
        os._exit(2)
    except InterruptedRunError as interruption:
        console.print(f"{interruption}; the same command goes on from there ({path})")
        # As shells report a process that its signal has ended.
        sys.exit(128 + interruption.signal)
