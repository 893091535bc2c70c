"""What a step of fine-tuning takes of memory: MeZO beside AdamW, on the same prompts.

    python benchmarks/text/memory.py --output benchmarks/results/text_memory.json

A step of each method is compiled for BERT-base (a masked language model) and GPT-2, with the loss
of MeZO: cross entropy over two words at one place of each of 8 rows of tokens. Nothing is computed
and no weights are needed: figures are those of the compiled program, for the machine on which this
runs (jax.stages.Compiled.memory_analysis), in MB of 10⁶ bytes:

- kept: parameters, the state of the optimizer, the batch;
- besides: what the program needs for the time of a step, such as activations and gradients;
- the sum, and how often that of a forward pass it is.
"""

import argparse
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

import zosam_jax
from zosam_jax.integrations import plain
from zosam_jax.integrations.nnx import functional_loss, split
from zosam_jax.models import TEXT_MODELS, MaskedLanguageModel, add_adapters, word_logits

ROWS, WORDS, RANK = 8, 2, 8

Options = dict[str, Any]
# Of each method the optimizer, the variables that it trains, and options of the network.
METHODS: dict[str, tuple[Callable[[], Any], Any, Options]] = {
    "forward pass": (optax.identity, nnx.Param, {}),
    "mezo": (lambda: optax.chain(zosam_jax.mezo(), optax.sgd(1e-6)), nnx.Param, {}),
    "adamw": (lambda: optax.adamw(1e-5), nnx.Param, {}),
    "adamw, activations computed again": (lambda: optax.adamw(1e-5), nnx.Param, {"remat": True}),
    "sam(adamw)": (
        lambda: optax.chain(zosam_jax.sam(0.05), optax.adamw(1e-5)),
        nnx.Param,
        {},
    ),
    "mezo in adapters": (
        lambda: optax.chain(zosam_jax.mezo(), optax.sgd(1e-3)),
        nnx.LoRAParam,
        {},
    ),
    "adamw in adapters": (lambda: optax.adamw(1e-3), nnx.LoRAParam, {}),
}


def network(name: str, wrt: Any, options: Options) -> nnx.Module:
    """The network that finds words, with adapters if they are trained."""
    rngs = nnx.Rngs(0)
    model: nnx.Module = TEXT_MODELS[name](rngs=rngs, **options)
    if name.startswith("bert"):
        model = MaskedLanguageModel(model, rngs=rngs)
    if wrt is nnx.LoRAParam:
        add_adapters(model, RANK, rngs=rngs)
    return model


def compiled(name: str, length: int, method: str) -> Any:
    """A step of a method, as XLA has compiled it."""
    make, wrt, options = METHODS[method]
    if name.startswith("bert"):
        options = options | {"pooler": False}
    graphdef, params, rest = split(nnx.eval_shape(lambda: network(name, wrt, options)), wrt)
    words = jnp.arange(WORDS)

    def loss(model: Any, tokens: Any, places: Any, labels: Any) -> Any:
        logits = word_logits(model, tokens, places, words)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    tx = make()

    def step(params: Any, rest: Any, state: Any, *batch: Any) -> Any:
        of_params = functional_loss(loss, graphdef, rest, wrt=wrt)
        if method == "forward pass":
            return of_params(params, *batch)[0], params, state
        return plain.apply_loss(tx, lambda p: of_params(p, *batch)[0], params, state)

    state = jax.eval_shape(tx.init, params)
    row = functools.partial(jax.ShapeDtypeStruct, dtype=jnp.int32)
    batch = (row((ROWS, length)), row((ROWS,)), row((ROWS,)))
    return jax.jit(step, donate_argnums=(0, 2)).lower(params, rest, state, *batch).compile()


def figures(program: Any) -> dict[str, float]:
    """Megabytes of a compiled step."""
    found = program.memory_analysis()
    new = found.output_size_in_bytes - found.alias_size_in_bytes
    kept, besides = found.argument_size_in_bytes, found.temp_size_in_bytes + new
    return {"kept": kept / 1e6, "besides": besides / 1e6, "sum": (kept + besides) / 1e6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=["bert-base", "gpt2"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[128, 512])
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    results = []
    print("| network | tokens | method | kept | besides | sum, MB | forward passes |")
    print("|---|---|---|---|---|---|---|")
    for name in options.models:
        for length in options.lengths:
            least = None
            for method in METHODS:
                found = figures(compiled(name, length, method))
                least = least or found["sum"]
                row = {"model": name, "tokens": length, "method": method, **found}
                results.append(row | {"forward_passes": found["sum"] / least})
                shown = " | ".join(f"{found[k]:.0f}" for k in ("kept", "besides", "sum"))
                print(
                    f"| {name} | {length} | {method} | {shown} | {found['sum'] / least:.2f} |",
                    flush=True,
                )
    if options.output:
        device = jax.devices()[0]
        about = {"jax": jax.__version__, "device": device.device_kind, "rows": ROWS, "rank": RANK}
        options.output.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
