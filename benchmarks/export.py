"""What exports of trained networks weigh, how they differ from the network, and how fast they run.

    zosam train --model lenet-300-100 --sparse rigl --sparsity 0.95 --epochs 10 --output runs/lenet
    zosam train --model resnet8 --sparse rigl --sparsity 0.95 --epochs 5 --output runs/resnet8
    zosam train --model resnet32 --sparse rigl --sparsity 0.95 --epochs 2 --optimizer sgd \
        --output runs/resnet32
    zosam train --model deit-tiny --patch 4 --sparse rigl --sparsity 0.95 --epochs 5 \
        --optimizer adamw --learning-rate 0.0005 --output runs/deit-tiny
    python benchmarks/export.py runs/lenet runs/resnet8 runs/resnet32 runs/deit-tiny \
        --output benchmarks/results/export.json

Bytes are relative to the dense safetensors in float32. Within a row of latencies the programs take
turns in one process; the dense network is the network in JAX, whose program skips no zeros.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from zosam_jax.export.run import export_run
from zosam_jax.export.verified import MismatchError
from zosam_jax.training.saved_run import opener

# What is made together: formats, layout, int8. The first row has the programs in float32.
EXPORTS: list[tuple[list[str], str, bool]] = [
    (["stablehlo", "onnx", "safetensors"], "dense", False),
    (["safetensors"], "bitmask", False),
    (["safetensors"], "packed", False),
    (["onnx"], "dense", True),
    (["safetensors"], "dense", True),
    (["safetensors"], "bitmask", True),
    (["safetensors"], "packed", True),
]


def measured(run: Path) -> dict[str, Any]:
    """What each file of a run is called → what was measured of it, or why it was refused."""
    found: dict[str, Any] = {}
    with opener(precision="float32")(run, "best") as saved, TemporaryDirectory() as folder:
        for formats, layout, int8 in EXPORTS:
            names = {"network": "network"} if not found else {}
            for name in formats:
                words = [name, layout] if name == "safetensors" else [name]
                names[name] = ", ".join([*words, "int8" if int8 else "float32"])
            try:
                rows = export_run(saved, folder, formats=formats, layout=layout, int8=int8)
            except MismatchError as error:
                found |= dict.fromkeys(names.values(), str(error))
            else:
                found |= {names[name]: one._asdict() for name, one in rows.items() if name in names}
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    results = {}
    for run in options.runs:
        results[run.name] = found = measured(run)
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
