"""What a network gains from losing half of its heads and neurons, or half of its channels.

    python benchmarks/paying/structured.py --output benchmarks/results/paying/structured.json
    taskset -c 0 python benchmarks/paying/structured.py --output one_core.json

DeiT-Tiny on images of 32×32 pixels in patches of 4 loses half of the neurons of each block and half
of its heads: 18 of 36, since three heads have no half: two stay in one block, one in the next.
ResNet-32 loses half of the channels inside each block. Which units go does not matter here: those
with the highest numbers. Dense and smaller network take turns in one process, and ratios are
medians over the rounds: of training steps, and of calls in ONNX Runtime. Bytes are those of files.
"""

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np

from zosam_jax import trees
from zosam_jax.data import from_arrays
from zosam_jax.export import onnx, safetensors, stablehlo
from zosam_jax.export.program import Program
from zosam_jax.training import step
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.trainer import Run

_DEIT = {"patch": 4, "structure": "heads,neurons", "optimizer": "adamw"}
NETWORKS: dict[str, dict[str, Any]] = {
    "deit-tiny": _DEIT,
    "deit-small": _DEIT,
    "resnet32": {"structure": "channels", "optimizer": "sgd"},
}
BATCHES = (1, 64)
FORMATS = ("onnx", "stablehlo", "safetensors")
_IMAGES = 256


def half(run: Run) -> None:
    """Removes half of the units: the last ones, and of an odd number one more in every other."""
    units = run.problem.units
    assert units is not None
    counts: dict[tuple[str, int], int] = {}
    kept = {}
    for group in units.groups:
        seen = counts[group.kind, group.size] = counts.get((group.kind, group.size), 0) + 1
        kept[group.name] = list(range((group.size + seen % 2) // 2))
    run.state = step.compacted(run.problem, run.state, kept)


def in_turn(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each function, once a round; the first two rounds do not count."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds + 2):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: found[2:] for name, found in seconds.items()}


def compared(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Medians, and the median of the ratios within a round."""
    ratios = [a / b for a, b in zip(seconds["smaller"], seconds["dense"], strict=True)]
    medians = {name: 1e3 * statistics.median(found) for name, found in seconds.items()}
    return {"ratio": statistics.median(ratios), **{f"{n}_ms": ms for n, ms in medians.items()}}


def training(run: Run, steps: int) -> Callable[[], object]:
    """Some training steps on one batch."""
    batch = next(run.problem.feed.epoch(0, 0))
    jax.block_until_ready(batch)

    def function() -> None:
        for _ in range(steps):
            run.state = run.step(run.state, batch)
        jax.block_until_ready(run.state)

    return function


def session(path: Path, images: np.ndarray[Any, Any]) -> Callable[[], object]:
    """Calls of an ONNX file, for 64 images in all."""
    program = onnx.load(path)

    def calls() -> None:
        for _ in range(max(BATCHES) // len(images)):
            program(images)

    return calls


def dense_and_smaller(name: str, **options: Any) -> dict[str, Run]:
    """A network as it is and without half of its units, before training on random images.

    Args:
      name: of NETWORKS.
      **options: of `zosam train`, in the place of its own.
    """
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (_IMAGES, 32, 32, 3), np.uint8)
    labels = np.arange(_IMAGES, dtype=np.int32) % 10
    dataset = from_arrays((images, labels), (images, labels))
    common = {"model": name, "mesh": "data=1", **NETWORKS[name], **options}
    smaller = TrainConfig(sparse="magnitude", sparsity=0.5, **common)
    dense = dataclasses.replace(smaller, sparse="none", sparsity=0.0, structure=None)
    runs = {
        name: Run(Problem(config, dataset), config.optimizer, 0.0, 0)
        for name, config in (("dense", dense), ("smaller", smaller))
    }
    half(runs["smaller"])
    return runs


def measured(model: str, rounds: int, steps: int, batch_size: int) -> dict[str, Any]:
    """All figures of a network."""
    images = np.random.default_rng(0).integers(0, 256, (max(BATCHES), 32, 32, 3), np.uint8)
    runs = dense_and_smaller(model, batch_size=batch_size)
    sizes = {name: trees.size(run.network.params) for name, run in runs.items()}
    found: dict[str, Any] = {
        "parameters": {"ratio": sizes["smaller"] / sizes["dense"], **sizes},
        "step": compared(in_turn({n: training(r, steps) for n, r in runs.items()}, rounds)),
    }
    with TemporaryDirectory() as folder:
        files: dict[str, dict[str, Path]] = {}
        for name, run in runs.items():
            program = Program(run.problem, run.network)
            files[name] = {f: Path(folder) / f"{name}.{f}" for f in FORMATS}
            onnx.save(files[name]["onnx"], program)
            stablehlo.save(files[name]["stablehlo"], program)
            safetensors.save(
                files[name]["safetensors"], program.arrays, "dense", int8=False, metadata={}
            )
        for kind in FORMATS:
            of_kind = {name: paths[kind].stat().st_size for name, paths in files.items()}
            ratio = of_kind["smaller"] / of_kind["dense"]
            found[f"bytes of {kind}"] = {"ratio": ratio, **of_kind}
        for size in BATCHES:
            calls = {n: session(paths["onnx"], images[:size]) for n, paths in files.items()}
            found[f"latency of {size}"] = compared(in_turn(calls, 4 * rounds))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--models", nargs="+", default=["deit-tiny", "resnet32"], choices=list(NETWORKS)
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=4, help="training steps a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = {}
    for model in options.models:
        results[model] = measured(model, options.rounds, options.steps, options.batch_size)
        for name, row in results[model].items():
            print(f"{model} | {name} | {json.dumps(row)}", flush=True)
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
