"""What sparse training costs beside the network's own passes.

    python benchmarks/mask_update.py --output benchmarks/results/mask_update.json

1. Whole training steps of a ResNet-14 (0.39M parameters, batch 64 of 32×32 images) under each
   wrapper, relative to the same optimizer without it, on steps without a mask update; all take
   turns in one process, ratios are medians over rounds with the quartiles beside them.
2. The time of a step with a mask update less that of one without, and what share of a run that is
   at the method's own period.
3. One RigL update of the masks of ResNet-50's convolutions and classifier (23.5M weights): the
   exchange alone, gradients given; and the same selection by sorting.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import zosam_jax
from zosam_jax import models, sparsity
from zosam_jax.integrations.nnx import functional_loss, split
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.sparsity.selection import largest_in_each

LEVEL = 0.9
# The lengths of run that the methods' periods are laid out over.
STEPS = 100_000

Wrap = Callable[[Any], Any]
WRAPPERS: dict[str, Wrap] = {
    "none": lambda tx: tx,
    "fixed": lambda tx: sparsity.fixed(tx, lambda p: sparsity.random(p, LEVEL)),
    **{
        name: lambda tx, method=method: method(tx, LEVEL, total_steps=STEPS)
        for name, method in sparsity.METHODS.items()
    },
}
# Steps between updates of the masks in a run of STEPS: the first period of DSR, which grows.
PERIODS = {"set": 100, "rigl": 100, "dsr": 100, "mest": 3125, "svite": 1000}
FIRSTS = {"sgd": lambda: None, "zo_sam": lambda: zosam_jax.zo_sam(1.0)}


def network() -> tuple[Callable[[Any], jax.Array], Any]:
    model = models.cifar_resnet(10, depth=14, width=24, rngs=nnx.Rngs(0))
    model.train()
    graphdef, params, model_state = split(model)
    images = jax.random.normal(jax.random.key(1), (64, 32, 32, 3))
    labels = jnp.arange(64) % 10

    def cross_entropy(model: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    functional = functional_loss(cross_entropy, graphdef, model_state)
    return lambda p: functional(p)[0], params


def compiled_step(first: Any, wrap: Wrap) -> tuple[Any, Any, float]:
    """(step, its first state, seconds to compile)."""
    loss, params = network()
    descent = optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(1e-3, momentum=0.9))
    tx = wrap(descent if first is None else optax.chain(first, descent))
    state = (params, tx.init(params))
    state = jax.tree.map(jnp.copy, state)

    def step(state: Any) -> Any:
        taken = apply_loss(tx, loss, *state)
        return taken.params, taken.opt_state

    started = time.perf_counter()
    program = jax.jit(step, donate_argnums=0).lower(state).compile()
    return program, state, time.perf_counter() - started


def at_step(state: Any, count: int) -> Any:
    params, opt_state = state
    if isinstance(opt_state, sparsity.DropAndGrowState):
        opt_state = opt_state._replace(count=jnp.int32(count))
    return params, opt_state


def overheads(optimizer: str, rounds: int) -> list[dict[str, Any]]:
    programs, states, compile_seconds = {}, {}, {}
    for name, wrap in WRAPPERS.items():
        program, state, seconds = compiled_step(FIRSTS[optimizer](), wrap)
        programs[name], states[name], compile_seconds[name] = program, state, seconds
    plain: dict[str, list[float]] = {name: [] for name in WRAPPERS}
    due: dict[str, list[float]] = {name: [] for name in WRAPPERS}
    for round_number in range(rounds + 1):
        # A step that no method updates its masks at; then one that all do.
        for times, count in ((plain, 1), (due, 50_000)):
            for name, program in programs.items():
                state = jax.block_until_ready(at_step(states[name], count))
                started = time.perf_counter()
                states[name] = jax.block_until_ready(program(state))
                if round_number:  # the first round warms up
                    times[name].append(time.perf_counter() - started)
    rows = []
    for name in WRAPPERS:
        low, ratio, high = statistics.quantiles(
            [a / b for a, b in zip(plain[name], plain["none"], strict=True)], n=4
        )
        row = {
            "optimizer": optimizer,
            "wrapper": name,
            "time_ratio": ratio,
            "time_ratio_quartiles": [low, high],
            "compile_seconds": compile_seconds[name],
        }
        if name in PERIODS:
            extra = [a / b - 1 for a, b in zip(due[name], plain[name], strict=True)]
            row["update_in_steps"] = statistics.median(extra)
            row["share_of_run"] = statistics.median(extra) / PERIODS[name]
        rows.append(row)
        print(row, flush=True)
    return rows


def resnet50_shapes() -> list[tuple[int, ...]]:
    """Kernels of ResNet-50 for CIFAR: 3×3 stem, bottlenecks [3, 4, 6, 3], projections, head."""
    shapes: list[tuple[int, ...]] = [(3, 3, 3, 64)]
    features = 64
    for blocks, width in ((3, 64), (4, 128), (6, 256), (3, 512)):
        for block in range(blocks):
            shapes += [(1, 1, features, width), (3, 3, width, width), (1, 1, width, 4 * width)]
            if block == 0:
                shapes.append((1, 1, features, 4 * width))
            features = 4 * width
    return [*shapes, (features, 10)]


def large_update(rounds: int) -> dict[str, Any]:
    """Seconds of one RigL update on 23.5M weights, and of its selections by sorting."""
    keys = jax.random.split(jax.random.key(0), len(resnet50_shapes()))
    params = {
        f"{i:02}": jax.random.normal(k, shape)
        for i, (k, shape) in enumerate(zip(keys, resnet50_shapes(), strict=True))
    }
    gradient = jax.tree.map(jnp.sin, params)
    tx = sparsity.rigl(optax.identity(), LEVEL, total_steps=STEPS)
    state = tx.init(params)
    update = jax.jit(lambda g, s, p: tx.update(g, s, p)[1].masks)

    def by_sorting(params: Any, gradient: Any) -> Any:
        def one(scores: jax.Array) -> jax.Array:
            order = jnp.argsort(-scores.ravel(), stable=True)
            ranks = jnp.zeros(scores.size, jnp.int32).at[order].set(jnp.arange(scores.size))
            return (ranks < scores.size // 10).reshape(scores.shape)

        return jax.tree.map(one, params), jax.tree.map(one, gradient)

    def by_search(params: Any, gradient: Any) -> Any:
        counts = jnp.asarray([p.size // 10 for p in jax.tree.leaves(params)])
        return [largest_in_each(jax.tree.leaves(t), counts) for t in (params, gradient)]

    due, idle = state, state._replace(count=jnp.int32(1))
    candidates = {
        "update": lambda: update(gradient, due, params),
        "no_update": lambda: update(gradient, idle, params),
        "selection_by_search": bound(by_search, params, gradient),
        "selection_by_sorting": bound(by_sorting, params, gradient),
    }
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for round_number in range(rounds + 1):
        for name, run in candidates.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if round_number:
                seconds[name].append(time.perf_counter() - started)
    row = {name: statistics.median(values) for name, values in seconds.items()}
    row["weights"] = sum(np.size(p) for p in jax.tree.leaves(params))
    print(row, flush=True)
    return row


def bound(function: Callable[..., Any], *args: Any) -> Callable[[], Any]:
    program = jax.jit(function)
    return lambda: program(*args)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--optimizers", nargs="+", default=list(FIRSTS), choices=FIRSTS)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    large = large_update(max(3, options.rounds // 5))
    rows = [row for name in options.optimizers for row in overheads(name, options.rounds)]
    if options.output:
        machine = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "rounds": options.rounds,
        }
        results = {"machine": machine, "steps": rows, "resnet50": large}
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
