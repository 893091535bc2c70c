"""What the trainer adds to the bare compiled step, and how long it waits for data.

    python benchmarks/trainer_overhead.py --output benchmarks/results/trainer_overhead.json

Epochs of the trainer (batches chosen on the host and sent to the device, progress read, records
written) take turns with as many bare steps on batches that are on the device already, in one
process. Evaluation and checkpoints are not in either; `checkpoint_seconds` is what one checkpoint
holds up the loop.
"""

import dataclasses
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console

from zosam_jax.training import build
from zosam_jax.training.callbacks import ProgressLogger
from zosam_jax.training.checkpoints import Checkpoints
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.run_folder import RunFolder
from zosam_jax.training.trainer import Run


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """What to measure."""

    models: tuple[str, ...] = ("lenet-300-100", "resnet8")
    """Networks, on the digits."""

    optimizer: str = "zo_sam"
    """Optimizer."""

    epochs: int = 12
    """Epochs of each kind; the first one does not count."""

    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None
    """JSON file to write."""


class TakingTurns(ProgressLogger):
    """After each epoch of the trainer, as many bare steps."""

    def __init__(self, problem: Problem, folder: RunFolder) -> None:
        super().__init__(problem, folder, Console(quiet=True), tensorboard=False)
        self.bare: list[float] = []
        self._batches = [*problem.feed.epoch(0, 0)]
        jax.block_until_ready(self._batches)

    def on_epoch(self, record: EpochRecord, run: Run) -> None:
        super().on_epoch(record, run)
        jax.block_until_ready(run.state)
        started = time.perf_counter()
        for batch in self._batches:
            run.state = run.step(run.state, batch)
        jax.block_until_ready(run.state)
        self.bare.append((time.perf_counter() - started) / len(self._batches))


def measure(model: str, crop_and_flip: bool, options: Options) -> dict[str, object]:
    config = TrainConfig(
        model=model, optimizer=options.optimizer, crop_and_flip=crop_and_flip, epochs=options.epochs
    )
    problem = Problem(config)
    run = Run(problem, options.optimizer, build.default_rho(options.optimizer, "layerwise"), 0)
    with (
        tempfile.TemporaryDirectory() as path,
        Checkpoints(Path(path), keep=2, seconds=1e9) as kept,
    ):
        with TakingTurns(problem, RunFolder(Path(path) / "run", "train")) as watcher:
            records = run.train(watcher)[1:]
        started = time.perf_counter()
        kept.save(run.state, run.progress)
        checkpoint = time.perf_counter() - started
    trainer = [config.batch_size / r.images_per_second for r in records]
    ratios = [t / b for t, b in zip(trainer, watcher.bare[1:], strict=True)]
    return {
        "model": model,
        "crop_and_flip": crop_and_flip,
        "bare_step_ms": 1000 * statistics.median(watcher.bare[1:]),
        "trainer_step_ms": 1000 * statistics.median(trainer),
        "ratio": statistics.median(ratios),
        "ratio_quartiles": statistics.quantiles(ratios, n=4)[::2],
        "data_wait": statistics.median(r.data_wait for r in records),
        "checkpoint_seconds": checkpoint,
    }


def main(options: Options) -> None:
    rows = []
    for model in options.models:
        for crop_and_flip in (False, True):
            rows.append(measure(model, crop_and_flip, options))
            print(json.dumps(rows[-1]))
    if options.output is not None:
        machine = {"machine": platform.machine(), "device": jax.devices()[0].device_kind}
        options.output.write_text(json.dumps({**machine, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Options))
