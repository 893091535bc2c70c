"""What exports of trained networks weigh, how they differ from the network, and how fast they run.

    zosam train --model lenet-300-100 --sparse rigl --sparsity 0.95 --epochs 10 --output runs/lenet
    zosam train --model resnet8 --sparse rigl --sparsity 0.95 --epochs 5 --output runs/resnet8
    zosam train --model resnet32 --sparse rigl --sparsity 0.95 --epochs 2 --optimizer sgd \
        --output runs/resnet32
    zosam train --model deit-tiny --patch 4 --sparse rigl --sparsity 0.95 --epochs 10 \
        --optimizer sgd --base-optimizer adamw --learning-rate 0.0005 --output runs/deit-tiny
    python benchmarks/export.py runs/lenet runs/resnet8 runs/resnet32 runs/deit-tiny \
        --output benchmarks/results/export.json

Bytes are relative to the dense safetensors in float32. Within a row of latencies the programs take
turns in one process; the dense network is the network in JAX, whose program skips no zeros.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console

from zosam_jax.commands.export import ExportConfig, export
from zosam_jax.export import safetensors
from zosam_jax.export.verified import FILES, MismatchError

PROGRAMS = ("stablehlo", "onnx")


def variants(run: Path) -> dict[str, Any]:
    """Every layout in float32 and int8; the programs with the first of each."""
    found: dict[str, Any] = {}
    for int8 in (False, True):
        for layout in safetensors.LAYOUTS:
            formats = ["safetensors"]
            if layout == "dense":
                formats += PROGRAMS[int8:]  # StableHLO has no int8
            for formats_ in [[name] for name in formats] if int8 else [formats]:
                found |= measured(run, tuple(formats_), layout, int8=int8)
    return found


def measured(run: Path, formats: Any, layout: str, *, int8: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"layout": layout} if "safetensors" in formats else {}
    suffix = "int8" if int8 else "float32"
    with tempfile.TemporaryDirectory() as folder:
        config = ExportConfig(
            run=run, format=formats, output=Path(folder), int8=int8, checkpoint="best", **options
        )
        try:
            rows = export(config, Console(quiet=True))
        except MismatchError as error:
            return {f"{name}, {suffix}": str(error) for name in formats}
    return {
        name_of(name, layout, suffix): one._asdict()
        for name, one in rows.items()
        if keeps(name, layout, int8)
    }


def keeps(name: str, layout: str, int8: bool) -> bool:
    return name in FILES or (layout == "dense" and not int8)


def name_of(name: str, layout: str, suffix: str) -> str:
    if name == "network":
        return name
    return f"{name}, {layout}, {suffix}" if name == "safetensors" else f"{name}, {suffix}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    results = {}
    for run in options.runs:
        results[run.name] = found = variants(run)
        dense = found["safetensors, dense, float32"]["bytes"]
        for name, one in found.items():
            if isinstance(one, str):
                print(f"{run.name} | {name} | {one}")
                continue
            one["relative"] = one["bytes"] / dense
            times = " | ".join(f"{ms:.2f}" for ms in one["latency"].values())
            cells = f"{one['relative']:.1%} | {one['difference']:.1e} | {one['accuracy']:.2%}"
            print(f"{run.name} | {name} | {cells} | {times}")
    options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
