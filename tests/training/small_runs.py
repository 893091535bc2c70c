"""Small runs, made without the command line, that can be stopped as by a machine's failure."""

import json

from rich.console import Console

from zosam_jax.training import run_folder
from zosam_jax.training.callbacks import ProgressLogger
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.fitting import train
from zosam_jax.training.problem import Problem
from zosam_jax.training.step import to_saved
from zosam_jax.training.trainer import Run

QUIET = Console(quiet=True)
CLOCKS = ("seconds", "images_per_second", "data_wait")


def options(**changes):
    base = {"model": "lenet-300-100", "train_images": 256, "epochs": 3, "mesh": "data=1"}
    # A checkpoint after every step.
    return {**base, "checkpoint_minutes": 0.0, **changes}


def metrics(path):
    """The lines of metrics.jsonl without the times in them."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in CLOCKS} for line in lines]


def run_once(config):
    train(config, Problem(config), run_folder.for_training(config), QUIET)


class CrashError(Exception):
    pass


def crashing(monkeypatch, after):
    """Makes runs end in an error after so many steps, as a machine's failure would."""
    calls = 0

    def on_step(self, run):
        nonlocal calls
        calls += 1
        if calls == after:
            raise CrashError

    monkeypatch.setattr(ProgressLogger, "on_step", on_step)


def final_state(config):
    run = Run(Problem(config), config.optimizer, 0.01, config.seed)
    with Checkpoints(config.output, keep=2, seconds=0) as keeper:
        state, _ = keeper.restore(run.state, keeper.newest)
    return to_saved((state.params, state.model_state, state.average, state.opt_state))
