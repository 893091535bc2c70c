"""What a condition or a loop costs a convolution's forward pass and its gradient.

    python benchmarks/under_a_condition.py --output benchmarks/results/under_a_condition.json

A ResNet-14's loss on one random batch, outside, inside lax.cond and inside lax.fori_loop, all
taking turns in one process; medians over rounds of the ratio to the same outside. On a CPU a
gradient loses XLA's fast path there, and a forward pass does not: which is why probes may be made
now and then, and LookSAM's second gradient may not.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from zosam_jax import models
from zosam_jax.integrations.nnx import functional_loss, split

BATCH = 64


def loss_and_params() -> tuple[Callable[[Any], jax.Array], Any]:
    model = models.cifar_resnet(10, depth=14, width=24, rngs=nnx.Rngs(0))
    model.train()
    graphdef, params, model_state = split(model)
    images = jax.random.normal(jax.random.key(1), (BATCH, 32, 32, 3))
    labels = jnp.arange(BATCH) % 10

    def cross_entropy(model: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    functional = functional_loss(cross_entropy, graphdef, model_state)
    return lambda p: functional(p)[0], params


def programs(loss: Callable[[Any], jax.Array]) -> dict[str, Callable[[Any, jax.Array], Any]]:
    """(params, 1) → the same result each way; the 1 is known only as the program runs."""

    def ways(what: str, function: Callable[[Any], Any], nothing: Callable[[Any], Any]) -> Any:
        return {
            f"{what}, outside": lambda p, one: function(p),
            f"{what}, cond": lambda p, one: jax.lax.cond(one > 0, function, nothing, p),
            f"{what}, loop": lambda p, one: jax.lax.fori_loop(
                0, one, lambda _, last: function(p), nothing(p)
            ),
        }

    return {
        **ways("forward pass", loss, lambda p: jnp.zeros(())),
        **ways("gradient", jax.grad(loss), lambda p: jax.tree.map(jnp.zeros_like, p)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    loss, params = loss_and_params()
    one = jnp.asarray(1, jnp.int32)
    compiled = {k: jax.jit(f).lower(params, one).compile() for k, f in programs(loss).items()}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for _ in range(options.rounds + 1):
        for name, program in compiled.items():
            started = time.perf_counter()
            jax.block_until_ready(program(params, one))
            seconds[name].append(time.perf_counter() - started)
    rows = []
    for name, times in seconds.items():
        base = seconds[f"{name.split(',')[0]}, outside"]
        ratios = [a / b for a, b in zip(times[1:], base[1:], strict=True)]  # the first warms up
        row = {
            "program": name,
            "milliseconds": 1e3 * statistics.median(times[1:]),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
        }
        rows.append(row)
        print(
            "{program:24} {milliseconds:9.1f} ms  {ratio:.2f} ({lowest:.2f}–{highest:.2f})".format(
                **row
            )
        )
    if options.output:
        machine = {"jax": jax.__version__, "device": jax.devices()[0].device_kind}
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
