"""The model card: what an export is, how well it does, and how each of its files is loaded."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from zosam_jax.export.verified import FILES, LATENCY_BATCHES, NETWORK, Verified

_LOADING = {
    "stablehlo": """With jax, on a CPU, a GPU or a TPU:

```python
import jax
program = jax.export.deserialize(bytearray(open("model.stablehlo", "rb").read()))
{output} = program.call(images)
```""",
    "onnx": """With ONNX Runtime:

```python
import onnxruntime
session = onnxruntime.InferenceSession("model.onnx")
({output},) = session.run(None, {{"images": images}})
```""",
    "safetensors": """The arrays alone, with zosam_jax:

```python
from zosam_jax.export import read_safetensors
arrays, metadata = read_safetensors("model.safetensors")
kernel = arrays["{kernel}"]
```""",
}

_SCALED = "; pixels less {pixel_mean}, divided by {pixel_sd}, channel by channel"

HEADINGS = (
    *("", "bytes", "of float32", "difference", "accuracy (%)"),
    *(f"ms for {size}" for size in LATENCY_BATCHES),
)


def rows(found: Mapping[str, Verified]) -> list[list[str]]:
    """What was measured, a row for the network and one for each file, under HEADINGS."""
    whole = found[NETWORK].bytes
    return [
        [
            "network in JAX" if name == NETWORK else FILES[name],
            f"{one.bytes:,}",
            f"{one.bytes / whole:.1%}",
            f"{one.difference:.1e}",
            "" if math.isnan(one.accuracy) else f"{100 * one.accuracy:.2f}",
            *(f"{one.latency[str(n)]:.2f}" if one.latency else "" for n in LATENCY_BATCHES),
        ]
        for name, one in found.items()
    ]


def card(about: Mapping[str, Any], found: Mapping[str, Verified], kernel: str) -> str:
    """README.md.

    Args:
      about: what export.json says of the program and of the run.
      found: what was measured.
      kernel: the name of one of the network's arrays.
    """
    program, int8 = about["program"], " Weights are rounded to 8 bits." if about["int8"] else ""
    output = program["output"].rpartition(" ")[2]
    facts = {
        "model": f"{program['model']}, trained on {program['dataset']} by {about['optimizer']}",
        "parameters": f"{about['parameters']:,} of {about['dense_parameters']:,}",
        "sparsity": f"{about['sparsity']:.2%} of the weights are zero or gone ({about['sparse']})",
        "multiply-adds of a prediction": f"{about['inference_cost']:.1%} of the dense network's",
        "multiply-adds of training": f"{about['training_cost']:.1%} of dense SGD's",
        "input": program["input"] + (_SCALED.format(**program) if about["raw"] else ""),
        "output": program["output"],
        "classes": program["classes"],
    }
    parts = [
        f"# {program['model']} on {program['dataset']}",
        f"Made by `zosam export` from the checkpoint of step {about['checkpoint']}.{int8}",
        _table(("", ""), facts.items()),
        f"## Measured on {about['images']} test images",
        _table(HEADINGS, rows(found)),
        f"Times are medians of calls that took turns, on {about['device']}. Multiply-adds are what "
        "kernels that skip zeros would do. These programs do not skip zeros; units that have been "
        "removed are not there.",
        "## How to load it",
        *(_LOADING[name].format(output=output, kernel=kernel) for name in found if name in FILES),
    ]
    return "\n\n".join(parts) + "\n"


def _table(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rule = ["---"] * len(headings)
    return "\n".join(f"| {' | '.join(line)} |" for line in (headings, rule, *lines))
