"""What products that skip the blocks of a mask cost, relative to dense ones.

    python benchmarks/paying/block_sparse.py --output benchmarks/results/paying/block_sparse.json

1. Linear layers 384 → 1536 and 1024 → 4096 on 128 rows and on 64 × 65 tokens: the forward pass, and
   forward and backward passes with the gradients of x and of the dense array W, to the dense
   product's. As many blocks stay in each column of blocks, so that sparsities are those that the
   number of rows of blocks allows.
2. A step of SGD of a DeiT (4 blocks of 192 features, 28×28 images in patches of 4, batch 64) whose
   feed-forward kernels are masked, 83% and 92% of them zero in blocks of 32, and of one of 384
   features (blocks of 64, 83% and 92%): the mask multiplied in, and blocks skipped, to the dense
   network's step.

All programs of a shape are compiled first and take turns in one process; a ratio is the median over
rounds of the ratio to the dense product in the same round, with the quartiles beside it.
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
import optax
from flax import nnx

from zosam_jax import models, sparsity
from zosam_jax.integrations.nnx import functional_loss, split
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.sparsity.block_sparse import BlockLayout, block_sparse_matmul

# (inputs, outputs) → size of a block → how many stay in each column of blocks.
LAYERS = {
    (384, 1536): {32: (3, 2, 1), 64: (2, 1), 128: (1,)},
    (1024, 4096): {32: (8, 5, 3), 64: (4, 3, 2, 1), 128: (2, 1)},
}
BATCHES = (128, 64 * 65)
# Features of the DeiT → size of a block.
NETWORKS = {192: 32, 384: 64}

Run = Callable[[], Any]


def compiled(function: Callable[..., Any], *args: Any) -> Run:
    program = jax.jit(function).lower(*args).compile()
    return lambda: program(*args)


def ratios(runs: dict[str, Run], rounds: int) -> dict[str, dict[str, Any]]:
    """Name → the ratio of its seconds to those of "dense", and its quartiles."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            jax.block_until_ready(run())
            if number:  # the first round warms up
                seconds[name].append(time.perf_counter() - started)
    found = {}
    for name, times in seconds.items():
        quotients = [a / b for a, b in zip(times, seconds["dense"], strict=True)]
        low, ratio, high = statistics.quantiles(quotients, n=4)
        found[name] = {
            "ratio": ratio,
            "quartiles": [low, high],
            "seconds": statistics.median(times),
        }
    return found


def random_mask(shape: tuple[int, int], layout: BlockLayout) -> jax.Array:
    sparse = sparsity.patterns.block(layout.rows, layout.columns, per_column=True)
    level = 1 - layout.kept * layout.rows / shape[0]
    return sparsity.random({"w": jnp.ones(shape)}, level, pattern=sparse)["w"]


def layer(shape: tuple[int, int], batch: int, rounds: int) -> list[dict[str, Any]]:
    keys = jax.random.split(jax.random.key(0), 3)
    x, weights = jax.random.normal(keys[0], (batch, shape[0])), jax.random.normal(keys[1], shape)
    cotangent = jax.random.normal(keys[2], (batch, shape[1]))
    products: dict[str, tuple[Any, Any]] = {"dense": (lambda x, w, m: x @ w, jnp.ones(()))}
    layouts = {}
    for size, counts in LAYERS[shape].items():
        for kept in counts:
            layout = BlockLayout(size, size, kept)
            name = f"blocks of {size}, {kept} of {shape[0] // size}"
            layouts[name] = layout
            products[name] = (
                lambda x, w, m, layout=layout: block_sparse_matmul(x, w, m, layout),
                random_mask(shape, layout),
            )
    masked = next(mask for name, (_, mask) in products.items() if name != "dense")
    products["mask multiplied in"] = (lambda x, w, m: x @ jnp.where(m, w, 0.0), masked)

    def both(product: Any) -> Any:
        def passes(x: Any, weights: Any, mask: Any, cotangent: Any) -> Any:
            y, backward = jax.vjp(lambda x, w: product(x, w, mask), x, weights)
            return y, backward(cotangent)

        return passes

    forward = ratios({n: compiled(p, x, weights, m) for n, (p, m) in products.items()}, rounds)
    passes = ratios(
        {n: compiled(both(p), x, weights, m, cotangent) for n, (p, m) in products.items()}, rounds
    )
    rows = []
    for name in products:
        layout = layouts.get(name)
        row = {
            "inputs": shape[0],
            "outputs": shape[1],
            "rows_of_x": batch,
            "product": name,
            "sparsity": 1 - layout.kept * layout.rows / shape[0] if layout else None,
            "forward": forward[name],
            "forward_and_backward": passes[name],
        }
        rows.append(row)
        print(
            f"{shape[0]} → {shape[1]}, {batch} rows, {name}: forward "
            f"{forward[name]['ratio']:.2f}, forward and backward {passes[name]['ratio']:.2f}",
            flush=True,
        )
    return rows


def network(dim: int, size: int, rounds: int) -> list[dict[str, Any]]:
    """Steps of a DeiT: dense, with masks multiplied in, and with blocks skipped."""
    model = models.deit(
        10, dim=dim, depth=4, heads=dim // 64, image_shape=(28, 28, 1), patch=4, rngs=nnx.Rngs(0)
    )
    images, labels = jax.random.normal(jax.random.key(1), (64, 28, 28, 1)), jnp.arange(64) % 10
    graphdef, params, model_state = split(model)

    def cross_entropy(model: Any) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    functional = functional_loss(cross_entropy, graphdef, model_state)

    def dense(params: Any) -> jax.Array:
        return functional(params)[0]

    pattern = sparsity.patterns.block(size, size, per_column=True)
    masks = sparsity.random(params, 0.9, where="fc", pattern=pattern, distribution="uniform")
    skipping = sparsity.block_sparse(dense, masks, size, size, use="always")
    sgd = optax.sgd(1e-3, momentum=0.9)
    fixed = sparsity.fixed(sgd, masks)
    runs = {}
    for name, tx, loss in (
        ("dense", sgd, dense),
        ("masks multiplied in", fixed, dense),
        ("blocks skipped", fixed, skipping),
    ):

        def step(params: Any, state: Any, tx: Any = tx, loss: Any = loss) -> Any:
            taken = apply_loss(tx, loss, params, state)
            return taken.params, taken.opt_state

        runs[name] = compiled(step, params, tx.init(params))
    found = ratios(runs, rounds)
    level = sparsity.sparsity_of(masks, params)
    for name, row in found.items():
        print(f"DeiT of {dim} features, blocks of {size}, {name}: {row['ratio']:.2f}", flush=True)
    return [
        {"features": dim, "block": size, "sparsity_of_masked": level, "step": name, **row}
        for name, row in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the results")
    options = parser.parse_args()
    layers = []
    for shape in LAYERS:
        for batch in BATCHES:
            # Rounds of small products are short, and noisy.
            rounds = options.rounds * (8 if batch == min(BATCHES) else 1)
            layers += layer(shape, batch, rounds)
    networks = [row for dim, size in NETWORKS.items() for row in network(dim, size, options.rounds)]
    if options.output:
        machine = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "rounds": options.rounds,
        }
        results = {"machine": machine, "layers": layers, "networks": networks}
        options.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
