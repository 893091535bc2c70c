"""The products of `block_sparse` as kernels for GPUs, written in Pallas and lowered to Triton.

Nothing is gathered: each program of a kernel makes one block of the result, and reads the blocks of
x and W that it needs from where they stand.

    forward  y[:, j] = Σ_{i kept in column j} x[:, i]·W[i, j]        i, j counting blocks
    of x     x̄[:, i] = Σ_{j that keeps i} ȳ[:, j]·W[i, j]ᵀ
    of W     W̄[i, j] = x[:, i]ᵀ·ȳ[:, j]                              0 where there is no block

Each is linear in both arrays, and the derivatives of each are the two others. They are therefore
primitives of their own, whose derivatives JAX takes forward and backward and as often as wanted;
a jax.custom_vjp could neither be pushed forward nor stand inside the rule for dense gradients.

Tiles and warps have been chosen by reason and not by measurement: no GPU was at hand.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.extend import core
from jax.interpreters import ad, batching, mlir

from zosam_jax.sparsity.block_sparse import BlockLayout
from zosam_jax.trees import Array, Float, Int

# Rows of x that a program takes at once; what a tensor core multiplies at least.
_TILE, _LEAST = 64, 16
_LARGEST_BLOCK = 128
_DTYPES = ("float32", "bfloat16", "float16")
_PARAMETERS = triton.CompilerParams(num_warps=4, num_stages=2)


def fits(layout: BlockLayout, dtype: str) -> bool:
    """Whether there is a kernel: for blocks whose sides are 16, 32, 64 or 128."""
    sides = (layout.rows, layout.columns)
    return dtype in _DTYPES and all(
        _LEAST <= side <= _LARGEST_BLOCK and side & (side - 1) == 0 for side in sides
    )


def product(
    x: Float[Array, "batch n"],
    weights: Float[Array, "n m"],
    rows: Int[Array, "c kept"],
    layout: BlockLayout,
    *,
    interpret: bool = False,
) -> Float[Array, "batch m"]:
    """x·W over the kept blocks alone, sums in float32; differentiable as often as wanted.

    Args:
      x: the inputs.
      weights: W; what it holds elsewhere is not read.
      rows: which rows of blocks each column of blocks keeps; one past the last where there are
        fewer.
      layout: the size of a block; see `fits`.
      interpret: whether to run the kernel step by step, as tests on a CPU do.
    """
    dtype = jnp.result_type(x, weights)
    y: Array = _forward.bind(
        x.astype(dtype), weights.astype(dtype), rows, height=layout.rows, interpret=interpret
    )
    return y


def _product(x: Array, weights: Array, rows: Array, *, height: int, interpret: bool) -> Array:
    columns, (n, m) = len(rows), weights.shape
    width = m // columns
    x, batch, tile = _padded(x)
    counts = jnp.sum(rows < n // height, axis=1, dtype=jnp.int32)  # the last ones may be missing

    def kernel(rows: Any, counts: Any, x: Any, weights: Any, y: Any) -> None:
        column = pl.program_id(1)

        def add(k: Array, total: Array) -> Array:
            at = pl.ds(rows[column, k] * height, height)
            return total + _dot(x[:, at], weights[at, :])

        zero = jnp.zeros((tile, width), jnp.float32)
        y[...] = jax.lax.fori_loop(0, counts[column], add, zero).astype(y.dtype)

    y: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((len(x), m), x.dtype),
        grid=(len(x) // tile, columns),
        in_specs=[
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec((tile, n), lambda i, j: (i, 0)),
            pl.BlockSpec((n, width), lambda i, j: (0, j)),
        ],
        out_specs=pl.BlockSpec((tile, width), lambda i, j: (i, j)),
        interpret=interpret,
        compiler_params=_PARAMETERS,
        name="block_sparse_product",
    )(rows, counts, x, weights)
    return y[:batch]


def _of_x(y: Array, weights: Array, rows: Array, *, height: int, interpret: bool) -> Array:
    (columns, kept), (n, m) = rows.shape, weights.shape
    width = m // columns
    y, batch, tile = _padded(y)
    # The kept blocks by their rows: those of row i stand from starts[i] to starts[i + 1].
    order = jnp.argsort(rows.reshape(-1))
    starts = jnp.searchsorted(rows.reshape(-1)[order], jnp.arange(n // height + 1))
    column_of = (order // kept).astype(jnp.int32)

    def kernel(starts: Any, column_of: Any, y: Any, weights: Any, x: Any) -> None:
        row = pl.program_id(1)

        def add(k: Array, total: Array) -> Array:
            at = pl.ds(column_of[k] * width, width)
            return total + _dot(y[:, at], weights[:, at].T)

        zero = jnp.zeros((tile, height), jnp.float32)
        x[...] = jax.lax.fori_loop(starts[row], starts[row + 1], add, zero).astype(x.dtype)

    x: Array = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((len(y), n), y.dtype),
        grid=(len(y) // tile, n // height),
        in_specs=[
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec((tile, m), lambda i, j: (i, 0)),
            pl.BlockSpec((height, m), lambda i, j: (j, 0)),
        ],
        out_specs=pl.BlockSpec((tile, height), lambda i, j: (i, j)),
        interpret=interpret,
        compiler_params=_PARAMETERS,
        name="block_sparse_gradient_of_x",
    )(starts.astype(jnp.int32), column_of, y, weights)
    return x[:batch]


def _of_weights(x: Array, y: Array, rows: Array, *, height: int, interpret: bool) -> Array:
    (columns, kept), n, m = rows.shape, x.shape[1], y.shape[1]
    width, last = m // columns, n // height - 1
    x, _, tile = _padded(x)
    y, _, _ = _padded(y)
    tiles = len(x) // tile

    def kernel(rows: Any, x: Any, y: Any, block: Any) -> None:
        row = jnp.minimum(rows[pl.program_id(0), pl.program_id(1)], last)

        def add(k: Array, total: Array) -> Array:
            at = pl.ds(k * tile, tile)
            return total + _dot(x[at, pl.ds(row * height, height)].T, y[at, :])

        total = jax.lax.fori_loop(0, tiles, add, jnp.zeros((height, width), jnp.float32))
        block[0, 0] = total.astype(block.dtype)

    blocks = pl.pallas_call(
        kernel,
        out_shape=jax.ShapeDtypeStruct((columns, kept, height, width), x.dtype),
        grid=(columns, kept),
        in_specs=[
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec(memory_space=pl.ANY),
            pl.BlockSpec((len(y), width), lambda j, k: (0, j)),
        ],
        out_specs=pl.BlockSpec((1, 1, height, width), lambda j, k: (j, k, 0, 0)),
        interpret=interpret,
        compiler_params=_PARAMETERS,
        name="block_sparse_gradient_of_weights",
    )(rows, x, y)
    nothing = jnp.zeros((n // height, height, columns, width), x.dtype)
    at = (rows, slice(None), jnp.arange(columns)[:, None], slice(None))
    return nothing.at[at].set(blocks, mode="drop", unique_indices=True).reshape(n, m)


def _padded(x: Float[Array, "batch n"]) -> tuple[Float[Array, "padded n"], int, int]:
    """With rows of zeros up to a multiple of a tile; how many there were, and the tile's rows."""
    batch = len(x)
    tile = _TILE if batch > _TILE // 2 else max(_LEAST, pl.next_power_of_2(batch))
    return jnp.pad(x, ((0, -batch % tile), (0, 0))), batch, tile


def _dot(a: Array, b: Array) -> Array:
    return jnp.dot(a, b, preferred_element_type=jnp.float32)


def _primitive(
    name: str, function: Callable[..., Array], shape: Callable[..., tuple[int, int]]
) -> core.Primitive:
    """(a, b, rows) → an array, linear in a and in b."""
    primitive = core.Primitive(name)
    primitive.def_impl(jax.jit(function, static_argnames=("height", "interpret")))
    primitive.def_abstract_eval(lambda a, b, rows, **static: a.update(shape=shape(a, b)))
    mlir.register_lowering(primitive, mlir.lower_fun(function, multiple_results=False))
    ad.defjvp(
        primitive,
        lambda change, a, b, rows, **static: primitive.bind(change, b, rows, **static),
        lambda change, a, b, rows, **static: primitive.bind(a, change, rows, **static),
        None,
    )
    batching.primitive_batchers[primitive] = functools.partial(_batch, primitive)
    return primitive


def _batch(primitive: core.Primitive, args: Any, axes: Any, **static: Any) -> tuple[Array, int]:
    """One after another, so that derivatives of what is mapped are there too."""
    mapped = [jnp.moveaxis(x, d, 0) for x, d in zip(args, axes, strict=True) if d is not None]

    def one(parts: list[Array]) -> Array:
        own = iter(parts)
        all_of_it = [x if d is None else next(own) for x, d in zip(args, axes, strict=True)]
        found: Array = primitive.bind(*all_of_it, **static)
        return found

    return jax.lax.map(one, mapped), 0


def _transpose(of_a: Any, of_b: Any, change: Any, *args: Any, **static: Any) -> Any:
    """The cotangent of a, or of b, whichever is not known."""
    a, b, rows = args
    if isinstance(change, ad.Zero):
        return None, None, None
    if ad.is_undefined_primal(a):
        return of_a(change, b, rows, **static), None, None
    return None, of_b(change, a, rows, **static), None


_forward = _primitive(
    "block_sparse_product", _product, lambda x, weights: (x.shape[0], weights.shape[1])
)
_backward_x = _primitive(
    "block_sparse_gradient_of_x", _of_x, lambda y, weights: (y.shape[0], weights.shape[0])
)
_backward_weights = _primitive(
    "block_sparse_gradient_of_weights", _of_weights, lambda x, y: (x.shape[1], y.shape[1])
)


def _swapped(primitive: core.Primitive) -> Callable[..., Array]:
    return lambda a, b, rows, **static: primitive.bind(b, a, rows, **static)


ad.primitive_transposes[_forward] = functools.partial(
    _transpose, _backward_x.bind, _swapped(_backward_weights)
)
ad.primitive_transposes[_backward_x] = functools.partial(
    _transpose, _forward.bind, _backward_weights.bind
)
ad.primitive_transposes[_backward_weights] = functools.partial(
    _transpose,
    lambda change, y, rows, **s: _backward_x.bind(y, change, rows, **s),
    _swapped(_forward),
)
