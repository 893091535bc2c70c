"""Part 4: block-sparse and 2:4 products against dense ones, smaller networks, export for CUDA."""

import functools
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import Cell, Work

from zosam_jax import sparsity
from zosam_jax.export import stablehlo
from zosam_jax.export.program import Program
from zosam_jax.sparsity.block_sparse import BlockLayout, timings
from zosam_jax.training import devices

sys.path.append(str(Path(__file__).parents[1] / "paying"))  # what they measure on a CPU

PRECISIONS = ("bfloat16", "float32")
NO_BINDING = (
    "JAX has no binding of cuSPARSELt: no product of a 2:4 sparse matrix to measure, in which the "
    "hardware would skip zeros."
)


def _layers(tiny: bool) -> list[tuple[tuple[int, int], int, BlockLayout]]:
    """(inputs, outputs), rows of x, and the blocks that stay: 75 to 96% zeros."""
    if tiny:
        return [((64, 32), 32, BlockLayout(16, 16, 1))]
    return [
        (shape, rows, BlockLayout(size, size, kept))
        for shape in ((384, 1536), (1024, 4096), (4096, 16384))
        for rows in (128, 64 * 65, 64 * 197)
        for size, share in ((64, 4), (64, 8), (128, 8), (64, 16))
        if (kept := shape[0] // size // share)
    ]


def _name(shape: tuple[int, int], rows: int, layout: BlockLayout) -> str:
    blocks = f"{layout.kept} of {shape[0] // layout.rows} blocks of {layout.rows}"
    return f"{shape[0]} to {shape[1]}, {rows} rows, {blocks}"


def cells(tiny: bool) -> list[Cell]:
    precisions = PRECISIONS[:1] if tiny else PRECISIONS
    products = [
        Cell(
            4,
            f"block-sparse products, {precision}",
            [_name(*layer) for layer in _layers(tiny)],
            6.0,
            lambda work, precision=precision: _block_sparse(work, precision),
        )
        for precision in precisions
    ]
    networks = ("resnet32",) if tiny else ("deit-small", "deit-tiny", "resnet32")
    return [
        *products,
        Cell(4, "2:4 products", ("sparse", "masked dense"), 1.0, _two_of_four),
        Cell(4, "smaller networks", networks, 8.0, _smaller_networks),
        Cell(4, "export for CUDA", ("resnet32",), 2.0, _export),
    ]


def _block_sparse(work: Work, precision: str) -> None:
    devices.compute_exactly(precision)
    missing = work.missing
    for shape, rows, layout in _layers(work.tiny):
        name = _name(shape, rows, layout)
        if name not in missing:
            continue
        with (
            work.attempting(name, precision=precision),
            warnings.catch_warnings(record=True) as told,
        ):
            warnings.simplefilter("always")
            found = timings(shape, layout, rows, precision, rounds=1 if work.tiny else 20)
            # On a CPU the kernel is interpreted: right, and too slow to time.
            ways = [*found, "kernel"] if jax.default_backend() == "cpu" else [*found]
            work.add(
                name,
                precision=precision,
                sparsity=1 - layout.kept * layout.rows / shape[0],
                seconds={way: float(np.median(seconds)) for way, seconds in found.items()},
                to_dense={way: _ratio(found[way], found["dense"]) for way in found},
                largest_error=_largest_error(shape, rows, layout, precision, ways),
                failed=[str(warning.message) for warning in told],
            )


def _ratio(some: list[float], others: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return float(np.median(np.divide(some, others)))


def _largest_error(
    shape: tuple[int, int], rows: int, layout: BlockLayout, precision: str, ways: Sequence[str]
) -> dict[str, float]:
    """Of y and both gradients, relative to the largest entry of the masked dense product's."""
    keys = jax.random.split(jax.random.key(0), 4)
    pattern = sparsity.patterns.block(layout.rows, layout.columns, per_column=True)
    level = 1 - layout.kept * layout.rows / shape[0]
    mask = sparsity.random({"w": jnp.ones(shape)}, level, pattern=pattern, key=keys[0])["w"]
    x = jax.random.normal(keys[1], (rows, shape[0]), precision)
    weights = jax.random.normal(keys[2], shape, precision)
    cotangent = jax.random.normal(keys[3], (rows, shape[1]), precision)

    @functools.partial(jax.jit, static_argnums=0)
    def passes(kernel: bool | None, x: Any, weights: Any, mask: Any, cotangent: Any) -> Any:
        def product(x: Any, w: Any) -> Any:
            if kernel is None:
                return x @ jnp.where(mask, w, 0)
            return sparsity.block_sparse_matmul(x, w, mask, layout, kernel=kernel)

        y, backward = jax.vjp(product, x, weights)
        return [a.astype(jnp.float32) for a in (y, *backward(cotangent))]

    expected = passes(None, x, weights, mask, cotangent)

    def error(kernel: bool) -> float:
        found = zip(passes(kernel, x, weights, mask, cotangent), expected, strict=True)
        return max(float(jnp.abs(a - b).max() / jnp.abs(b).max()) for a, b in found)

    return {way: error(way == "kernel") for way in ways if way != "dense"}


def _two_of_four(work: Work) -> None:
    missing = work.missing
    if "sparse" in missing:
        work.add("sparse", error=NO_BINDING)
    if "masked dense" in missing:
        shape, rows = ((64, 32), 32) if work.tiny else ((1024, 4096), 64 * 197)
        keys = jax.random.split(jax.random.key(0), 2)
        weights = jax.random.normal(keys[0], shape, jnp.bfloat16)
        mask = sparsity.magnitude({"w": weights}, 0.5, pattern=sparsity.patterns.n_m(2, 4))["w"]
        x = jax.random.normal(keys[1], (rows, shape[0]), jnp.bfloat16)

        def both(product: Callable[[Any], Any]) -> Callable[[], Any]:
            passes = jax.jit(jax.value_and_grad(product, (0, 1)))
            return lambda: passes(x, weights, mask)

        found = _in_turn(
            {
                "dense": both(lambda x, w, m: jnp.sum((x @ w).astype(jnp.float32) ** 2)),
                "masked": both(
                    lambda x, w, m: jnp.sum((x @ jnp.where(m, w, 0)).astype(jnp.float32) ** 2)
                ),
            },
            1 if work.tiny else 20,
        )
        work.add(
            "masked dense",
            precision="bfloat16",
            shape=shape,
            rows_of_x=rows,
            to_dense=_ratio(found["masked"], found["dense"]),
        )


def _in_turn(functions: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    import structured  # noqa: PLC0415 (benchmarks/paying)

    waiting = {
        name: lambda function=function: jax.block_until_ready(function())
        for name, function in functions.items()
    }
    found: dict[str, list[float]] = structured.in_turn(waiting, rounds)
    return found


def _smaller_networks(work: Work) -> None:
    """Half of the heads and neurons, or channels, gone: a step and a forward pass."""
    for name in work.missing:
        with work.attempting(name, precision="bfloat16"):
            work.add(name, precision="bfloat16", **_smaller(work, name))


def _networks(work: Work, name: str, **options: Any) -> dict[str, Any]:
    """A network dense and without half of its units."""
    import structured  # noqa: PLC0415 (benchmarks/paying)

    own = {"model": "resnet8"} if work.tiny else {}
    found: dict[str, Any] = structured.dense_and_smaller(name, **options, **own)
    return found


def _smaller(work: Work, name: str) -> dict[str, Any]:
    import structured  # noqa: PLC0415 (benchmarks/paying)

    tiny, batch = work.tiny, 8 if work.tiny else 256
    runs = _networks(work, name, batch_size=batch, precision="bfloat16")
    steps = {name: structured.training(run, 1 if tiny else 10) for name, run in runs.items()}
    programs = {name: jax.jit(Program(run.problem, run.network)) for name, run in runs.items()}
    images = jnp.zeros((batch, 32, 32, 3), jnp.uint8)
    calls = {name: lambda program=program: program(images) for name, program in programs.items()}
    rounds = 1 if tiny else 15
    return {
        "model": runs["dense"].problem.config.model,
        "batch_size": batch,
        "step": structured.compared(structured.in_turn(steps, rounds)),
        "forward": structured.compared(_in_turn(calls, rounds)),
    }


def _export(work: Work) -> None:
    """The file of `zosam export`, which names CUDA, loaded and run where this runs."""
    devices.compute_exactly("float32")
    run = _networks(work, "resnet32", batch_size=32)["dense"]
    program = Program(run.problem, run.network)
    file = work.output / "resnet32.stablehlo"
    stablehlo.save(file, program)
    platforms = jax.export.deserialize(bytearray(file.read_bytes())).platforms
    images = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), np.uint8)
    error = np.abs(stablehlo.load(file)(images) - np.asarray(jax.jit(program)(images))).max()
    work.add(
        "resnet32",
        precision="float32",
        model=run.problem.config.model,
        platforms=list(platforms),
        largest_difference=float(error),
        bytes=file.stat().st_size,
    )
