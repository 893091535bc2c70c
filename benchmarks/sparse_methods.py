"""Test accuracy of every sparse training method with several optimizers, on Fashion-MNIST.

    python benchmarks/sparse_methods.py run DATA_DIR RESULTS.jsonl
    python benchmarks/sparse_methods.py table RESULTS.jsonl
    python benchmarks/sparse_methods.py tune DATA_DIR

resnet8 on 4,000 training images averaged to 14×14 pixels, 12 epochs of batches of 64 (744 steps),
tested once, at the end, on the 10,000 test images. ZO-SAM's ρ is 0.05 (layerwise), the best of
0.05, 0.1 and 0.2 for RigL at 95% on images held out of the training split, and so is that of its
control; every other option is the command line's default. Lottery tickets take three rounds of
pruning and rewind to the end of the first epoch. A run already among the results is not made again,
and `--part I/N` makes every N-th one, so that several processes can share the work. About two hours
of one core.
"""

import argparse
import contextlib
import itertools
import json
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from zosam_jax.commands.train import train
from zosam_jax.data.dataset import hold_out
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem, load_dataset
from zosam_jax.training.run_folder import RunFolder
from zosam_jax.training.trainer import Run

METHODS = (
    "random",
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "set",
    "dsr",
    "rigl",
    "mest",
    "mest EM&S",
    "svite",
    "lth",
)
OPTIMIZERS = ("sgd", "sam", "random_weight_perturbation", "zo_sam")
RHO = {"zo_sam": 0.05, "random_weight_perturbation": 0.05}
KEYS = ("sparse", "sparsity", "optimizer", "seed")


def config(data: Path, sparse: str, sparsity: float, optimizer: Any, seed: int) -> TrainConfig:
    method: Any = sparse.split(maxsplit=1)[0]
    return TrainConfig(
        dataset="fashion-mnist",
        data_dir=data,
        train_images=4000,
        shrink=2,
        epochs=12,
        evaluate_every=12,
        sparse=method,
        mest_soft_bound=sparse == "mest EM&S",
        lottery_levels=3 if method == "lth" else None,
        rewind_epochs=1 if method == "lth" else 0,
        sparsity=sparsity,
        optimizer=optimizer,
        rho=RHO.get(optimizer),
        seed=seed,
    )


def run(options: argparse.Namespace) -> None:
    done = {tuple(row[k] for k in KEYS) for row in read(options.results)}
    wanted = [("none", 0.0, o, s) for s in range(options.seeds) for o in options.optimizers]
    wanted += [
        (method, sparsity, optimizer, seed)
        for seed, method, sparsity, optimizer in itertools.product(
            range(options.seeds), options.methods, options.sparsities, options.optimizers
        )
    ]
    part, parts = map(int, options.part.split("/"))
    for i, key in enumerate(wanted):
        if i % parts != part or key in done:
            continue
        started = time.perf_counter()
        settings = config(options.data, *key)
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
            output = RunFolder(Path(folder) / "run", "train")
            problem = Problem(settings, load_dataset(settings))
            summary = train(settings, problem, output, Console(quiet=True))
        row = dict(zip(KEYS, key, strict=True)) | {
            "test_accuracy": summary["test_accuracy"],
            "train_loss": summary["train_loss"],
            "sparsity_reached": summary["sparsity"],
            "training_cost": summary["training_cost"],
            "seconds": time.perf_counter() - started,
        }
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)


def tune(options: argparse.Namespace) -> None:
    """ZO-SAM's ρ for RigL at 95%, two seeds, on a fifth of the training images held out."""
    settings = config(options.data, "rigl", 0.95, "zo_sam", seed=0)
    problem = Problem(settings, hold_out(load_dataset(settings), 0.2, seed=0))
    for optimizer, rho in (("sgd", 0.0), ("zo_sam", 0.05), ("zo_sam", 0.1), ("zo_sam", 0.2)):
        runs = [Run(problem, optimizer, rho, seed).train()[-1] for seed in (0, 1)]
        print(optimizer, rho, [run.test_accuracy for run in runs], flush=True)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def table(options: argparse.Namespace) -> None:
    """Accuracy in percent, mean ± standard deviation over seeds, and what the runs cost."""
    rows = read(options.results)
    optimizers = [o for o in OPTIMIZERS if any(row["optimizer"] == o for row in rows)]
    levels = sorted({row["sparsity"] for row in rows if row["sparse"] != "none"})
    cells = {
        key: {row["seed"]: row for row in found}
        for key, found in itertools.groupby(
            sorted(rows, key=lambda row: [row[k] for k in KEYS]),
            key=lambda row: tuple(row[k] for k in KEYS[:3]),
        )
    }
    print(f"| sparsity | method | {' | '.join(optimizers)} | zo_sam − sgd | cost, sgd |")
    print("|---" * (len(optimizers) + 4) + "|")
    for level, methods in [(0.0, ("none",)), *[(level, METHODS) for level in levels]]:
        pairs = []
        for method in methods:
            runs = [cells.get((method, level, o), {}) for o in optimizers]
            shown = [spread([accuracy(row) for row in found.values()]) for found in runs]
            zo, sgd = (cells.get((method, level, o), {}) for o in ("zo_sam", "sgd"))
            paired = [accuracy(zo[s]) - accuracy(sgd[s]) for s in zo if s in sgd]
            cost = statistics.fmean(row["training_cost"] for row in sgd.values())
            pairs += paired
            print(
                f"| {level:.0%} | {method} | {' | '.join(shown)} | {spread(paired, '+')} | "
                f"{cost:.2f} |"
            )
        error = statistics.stdev(pairs) / math.sqrt(len(pairs))
        blank = " | " * (len(optimizers) - 1)
        mean = f"{statistics.fmean(pairs):+.2f} ± {error:.2f} (standard error)"
        print(f"| {level:.0%} | all, paired | {blank} | {mean} | |")


def accuracy(row: dict[str, Any]) -> float:
    return 100 * row["test_accuracy"]


def spread(values: list[float], sign: str = "") -> str:
    if not values:
        return "–"
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.2f}{deviation}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run")
    runner.add_argument("data", type=Path)
    runner.add_argument("results", type=Path)
    runner.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    runner.add_argument("--sparsities", nargs="+", type=float, default=(0.9, 0.95, 0.98))
    runner.add_argument("--optimizers", nargs="+", default=("sgd", "zo_sam"), choices=OPTIMIZERS)
    runner.add_argument("--seeds", type=int, default=3)
    runner.add_argument("--part", default="0/1")
    runner.set_defaults(command=run)
    printer = commands.add_parser("table")
    printer.add_argument("results", type=Path)
    printer.set_defaults(command=table)
    tuner = commands.add_parser("tune")
    tuner.add_argument("data", type=Path)
    tuner.set_defaults(command=tune)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
