"""How ZO-SAM's forward passes are best run: its ways of batching them, relative to jax.grad.

    python benchmarks/step_cost.py --output benchmarks/results/step_cost.json

`zosam bench` sets optimizers side by side; this sets the modes of one beside each other, on the
three kinds of networks for which they differ. The steps are whole (perturbation, gradient, SGD with
momentum, new parameters; the state donated). All steps of one model are compiled first and then
take turns in one process, so that a busy machine slows all of them alike; a ratio is the median
over rounds of the ratio to jax.grad in the same round, with the quartiles beside it. Temporary
memory is XLA's own figure.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import zosam_jax
from zosam_jax import models
from zosam_jax.integrations.nnx import functional_loss, split

MODES = ("auto", "unroll", "vmap", "map")


class Case(NamedTuple):
    """A model's training loss on one fixed random batch, as a function of its parameters."""

    name: str
    loss: Callable[[Any], jax.Array]
    params: Any


class Encoder(nnx.Module):
    """A pre-norm transformer encoder over patch tokens: matrix products and little else."""

    def __init__(self, tokens: int, width: int, depth: int, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Linear(48, width, rngs=rngs)
        self.position = nnx.Param(jax.random.normal(rngs.params(), (tokens, width)) * 0.02)
        self.blocks = nnx.List(
            [
                nnx.Dict(
                    norm1=nnx.LayerNorm(width, rngs=rngs),
                    attention=nnx.MultiHeadAttention(
                        3, width, decode=False, deterministic=True, rngs=rngs
                    ),
                    norm2=nnx.LayerNorm(width, rngs=rngs),
                    up=nnx.Linear(width, 4 * width, rngs=rngs),
                    down=nnx.Linear(4 * width, width, rngs=rngs),
                )
                for _ in range(depth)
            ]
        )
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        n, height, width, channels = images.shape
        patches = images.reshape(n, height // 4, 4, width // 4, 4, channels)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(n, -1, 48)
        x = self.embed(patches) + self.position[...]
        for block in self.blocks:
            x = x + block.attention(block.norm1(x))
            x = x + block.down(nnx.gelu(block.up(block.norm2(x))))
        return self.head(x.mean(axis=1))


def cases() -> dict[str, Callable[[], Case]]:
    rngs = nnx.Rngs(0)
    return {
        "lenet-300-100": lambda: _case(
            "LeNet-300-100, batch 128", models.lenet_300_100(10, rngs=rngs), (128, 28, 28, 1)
        ),
        "resnet14": lambda: _case(
            "ResNet-14, width 24, batch 128, 32×32",
            models.cifar_resnet(10, depth=14, width=24, rngs=rngs),
            (128, 32, 32, 3),
        ),
        "encoder": lambda: _case(
            "Transformer encoder, 2 blocks of width 192, 64 tokens, batch 64",
            Encoder(64, 192, 2, rngs),
            (64, 32, 32, 3),
        ),
    }


def _case(name: str, model: nnx.Module, shape: tuple[int, ...]) -> Case:
    model.train()
    graphdef, params, model_state = split(model)
    images = jax.random.normal(jax.random.key(1), shape)
    labels = jnp.arange(shape[0]) % 10

    def cross_entropy(model: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        logits = model(images)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    functional = functional_loss(cross_entropy, graphdef, model_state)
    return Case(name, lambda p: functional(p, images, labels)[0], params)


def steps(case: Case) -> dict[str, tuple[Callable[[Any], Any], Any]]:
    """For each row of the table a function state → state, and its first state."""
    sgd = optax.sgd(1e-3, momentum=0.9)

    def plain(state: Any) -> Any:
        params, opt_state = state
        updates, opt_state = sgd.update(jax.grad(case.loss)(params), opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    def gradient_only(state: Any) -> Any:
        return jax.grad(case.loss)(state)

    def with_first(first: optax.GradientTransformation) -> Any:
        tx = optax.chain(first, sgd)

        def step(state: Any) -> Any:
            params, opt_state = state
            updates, opt_state = tx.update(None, opt_state, params, value_fn=case.loss)
            return optax.apply_updates(params, updates), opt_state

        return step, (case.params, tx.init(case.params))

    return {
        "jax.grad": (gradient_only, case.params),
        "sgd": (plain, (case.params, sgd.init(case.params))),
        **{f"zo_sam, {mode}": with_first(zosam_jax.zo_sam(1.0, batching=mode)) for mode in MODES},
        "zo_sam, rademacher": with_first(zosam_jax.zo_sam(1.0, distribution="rademacher")),
        **{
            f"zo_sam m=8, {mode}": with_first(
                zosam_jax.zo_sam(1.0, num_directions=8, batching=mode)
            )
            for mode in MODES
        },
    }


def measure(case: Case, rounds: int, many: bool) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    compiled, states, seconds = {}, {}, {}
    for name, (function, state) in steps(case).items():
        if not many and "m=8" in name:
            continue
        state = jax.tree.map(jnp.copy, state)
        donate = () if name == "jax.grad" else 0
        started = time.perf_counter()
        program = jax.jit(function, donate_argnums=donate).lower(state).compile()
        rows[name] = {
            "model": case.name,
            "step": name,
            "compile_seconds": time.perf_counter() - started,
            "temp_bytes": program.memory_analysis().temp_size_in_bytes,
            "flops": (program.cost_analysis() or {}).get("flops"),
        }
        compiled[name], states[name], seconds[name] = program, state, []
    base_state = states["jax.grad"]
    for round_number in range(rounds + 1):
        for name, program in compiled.items():
            state = base_state if name == "jax.grad" else states[name]
            jax.block_until_ready(state)
            started = time.perf_counter()
            result = jax.block_until_ready(program(state))
            if round_number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
            if name != "jax.grad":
                states[name] = result
    base = rows["jax.grad"]
    for name, row in rows.items():
        ratios = [a / b for a, b in zip(seconds[name], seconds["jax.grad"], strict=True)]
        quartiles = statistics.quantiles(ratios, n=4)
        row |= {
            "milliseconds": 1e3 * statistics.median(seconds[name]),
            "time_ratio": quartiles[1],
            "time_ratio_quartiles": [quartiles[0], quartiles[2]],
            "memory_ratio": row["temp_bytes"] / max(base["temp_bytes"], 1),
            "flops_ratio": row["flops"] / base["flops"] if row["flops"] else None,
        }
    return list(rows.values())


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| step | time / jax.grad (quartiles) | ms | temp. memory / jax.grad | MB | compile s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        "| {step} | {time_ratio:.2f} ({low:.2f}–{high:.2f}) | {milliseconds:.1f} | "
        "{memory_ratio:.2f} | {megabytes:.1f} | {compile_seconds:.1f} |".format(
            **row,
            low=row["time_ratio_quartiles"][0],
            high=row["time_ratio_quartiles"][1],
            megabytes=row["temp_bytes"] / 1e6,
        )
        for row in rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=cases(), default=list(cases()))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--many", action="store_true", help="also eight directions (m=8)")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    rows = []
    for name in options.models:
        case = cases()[name]()
        count = sum(np.size(leaf) for leaf in jax.tree.leaves(case.params))
        measured = measure(case, options.rounds, options.many)
        rows += measured
        print(f"\n{case.name} ({count:,} parameters)\n\n{table(measured)}", flush=True)
    if options.output:
        machine = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "rounds": options.rounds,
        }
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
