"""Products x·(W ⊙ M) under block masks that skip the blocks that are not there.

The kept blocks of W are gathered, and the blocks of x that they read; one batched product over the
columns of blocks does the rest, forward and backward. W and M stay the dense arrays that wrappers,
checkpoints and exports know, and the program is compiled once: each column of blocks keeps the same
number of them (`patterns.block(rows, columns, per_column=True)`), wherever RigL moves them.
"""

import functools
import math
import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.extend import core

from zosam_jax import masks as mask_trees
from zosam_jax import shardings
from zosam_jax.errors import check_count, check_one_of, is_traced
from zosam_jax.trees import Array, Bool, Float, Int, PyTree, wide_dtype

USES = ("measured", "always")

# On a CPU so many rows of x are taken at a time, that what is gathered stays in the caches.
_ROWS_IN_CACHE = 128


class BlockLayout(NamedTuple):
    """What a program knows of a block mask when it is compiled.

    Attributes:
      rows, columns: of a block, along the input and the output features.
      kept: the number of blocks that each column of blocks keeps.
    """

    rows: int
    columns: int
    kept: int


def block_layout(mask: Bool[Array, "n m"], rows: int, columns: int) -> BlockLayout:
    """The layout of a mask whose columns of blocks keep the same number of blocks.

    Args:
      mask: of a kernel (input features, output features); known, not traced.
      rows, columns: of a block.

    Raises:
      ValueError: for a shape that blocks do not divide, blocks kept in part, or unequal numbers.
    """
    check_count("rows", rows)
    check_count("columns", columns)
    _check_shape(jnp.shape(mask), rows, columns)
    tiles = mask.reshape(mask.shape[0] // rows, rows, mask.shape[1] // columns, columns)
    blocks = tiles.any(axis=(1, 3))
    if bool((blocks != tiles.all(axis=(1, 3))).any()):
        raise ValueError(
            f"mask keeps a part of a block of {rows}×{columns}: it must keep all or none."
        )
    counts = blocks.sum(axis=0)
    if int(counts.min()) != int(counts.max()) or int(counts.min()) == 0:
        raise ValueError(
            f"mask keeps from {counts.min()} to {counts.max()} blocks in a column of blocks: they "
            "must be as many in each, at least one; patterns.block(..., per_column=True) makes "
            "such masks."
        )
    return BlockLayout(rows, columns, int(counts[0]))


def block_sparse_matmul(
    x: Float[Array, "*batch n"],
    weights: Float[Array, "n m"],
    mask: Bool[Array, "n m"],
    layout: BlockLayout,
    *,
    dense_gradient: bool | Bool[Array, ""] = False,
    kernel: bool = False,
) -> Float[Array, "*batch m"]:
    """x·(W ⊙ M) in the time of the kept blocks, differentiable as often as wanted.

        y[:, j] = Σ_{i kept in column j} x[:, i]·W[i, j]        i, j counting blocks

    Gradients reach the kept blocks of W alone. Sums are taken in float32 or wider.

    Args:
      x: the inputs.
      weights: W; what it holds where the mask is 0 is not read.
      mask: M, traced or not, of that layout; a traced one is not checked.
      layout: see `block_layout`.
      dense_gradient: whether the gradient with respect to W is xᵀ·∂L/∂y at all its entries, as
        methods that grow weights by it need; traced, it may be so at some steps only.
      kernel: whether a kernel for one GPU makes the products and their gradients, which gathers
        nothing; there is one for blocks whose sides are 16, 32, 64 or 128.

    Returns:
      y, in the dtype that x and W promote to.

    Raises:
      ValueError: for shapes that do not fit, or a kernel that there is not.
    """
    _check_shape(weights.shape, layout.rows, layout.columns)
    if mask.shape != weights.shape or x.shape[-1] != weights.shape[0]:
        raise ValueError(
            f"x of shape {x.shape}, weights of {weights.shape} and a mask of {mask.shape} do not "
            "fit: they must be (..., n), (n, m) and (n, m)."
        )
    dtype = str(jnp.result_type(x, weights))
    if kernel and not _has_kernel(layout, dtype):
        raise ValueError(
            f"kernel=True: there is none for blocks of {layout.rows}×{layout.columns} in {dtype}, "
            "but for sides of 16, 32, 64 or 128 in float32, bfloat16 or float16."
        )
    rows = _kept_rows(shardings.gathered(mask), layout)
    flat = x.reshape(-1, x.shape[-1])
    product = functools.partial(_product, layout=layout, kernel=kernel)
    if is_traced(dense_gradient) or dense_gradient:
        y = _with_dense_gradient(flat, weights, rows, jnp.asarray(dense_gradient), product)
    else:
        y = product(flat, weights, rows)
    return y.reshape(*x.shape[:-1], -1)


def _check_shape(shape: tuple[int, ...], rows: int, columns: int) -> None:
    if len(shape) != 2 or shape[0] % rows or shape[1] % columns:
        raise ValueError(
            f"blocks of {rows}×{columns} do not divide weights of shape {shape}: they must have "
            "two axes, multiples of both."
        )


def _kept_rows(mask: Bool[Array, "n m"], layout: BlockLayout) -> Int[Array, "c kept"]:
    """Which rows of blocks are kept in each column; one too many where there are fewer."""
    before = jnp.cumsum(mask[:: layout.rows, :: layout.columns], axis=0, dtype=jnp.int32)
    return jnp.sum(before[:, :, None] <= jnp.arange(layout.kept), axis=0, dtype=jnp.int32)


def _has_kernel(layout: BlockLayout, dtype: str) -> bool:
    from zosam_jax.sparsity import block_sparse_kernel  # noqa: PLC0415 (Pallas is not always needed)

    return block_sparse_kernel.fits(layout, dtype)


def _product(
    x: Float[Array, "batch n"],
    weights: Float[Array, "n m"],
    rows: Int[Array, "c kept"],
    layout: BlockLayout,
    kernel: bool,
) -> Float[Array, "batch m"]:
    if not kernel:
        return _gathered_product(x, weights, rows, layout)
    from zosam_jax.sparsity import block_sparse_kernel  # noqa: PLC0415 (Pallas is not always needed)

    is_interpreted = jax.default_backend() == "cpu"
    return block_sparse_kernel.product(x, weights, rows, layout, interpret=is_interpreted)


def _gathered_product(
    x: Float[Array, "batch n"],
    weights: Float[Array, "n m"],
    rows: Int[Array, "c kept"],
    layout: BlockLayout,
) -> Float[Array, "batch m"]:
    dtype, (columns, kept) = jnp.result_type(x, weights), rows.shape
    # In the wide dtype, so that gradients are summed over columns and parts of the batch in it.
    wide = wide_dtype(jnp.zeros((), dtype))
    tiles = weights.astype(wide).reshape(-1, layout.rows, columns, layout.columns)
    blocks = tiles.at[rows, :, jnp.arange(columns)[:, None], :].get(
        unique_indices=True, mode="fill", fill_value=0
    )
    blocks = blocks.reshape(columns, kept * layout.rows, layout.columns)

    def of_part(x: Float[Array, "part n"]) -> Float[Array, "part m"]:
        of_rows = x.astype(wide).reshape(len(x), -1, layout.rows).swapaxes(0, 1)
        read = of_rows.at[rows].get(mode="clip")  # [c, kept, part, rows of a block]
        read = read.swapaxes(1, 2).reshape(columns, len(x), -1).astype(dtype)
        y = jnp.matmul(read, blocks.astype(dtype), preferred_element_type=wide)
        return y.swapaxes(0, 1).reshape(len(x), -1).astype(dtype)

    part = _rows_at_once(len(x))
    if part == len(x):
        return of_part(x)
    parts = x.reshape(-1, part, x.shape[-1])
    # What is gathered is gathered again on the way back, which is cheaper than to write it out.
    y: Array = jax.lax.map(jax.checkpoint(of_part, prevent_cse=False), parts)
    return y.reshape(len(x), -1)


def _rows_at_once(batch: int) -> int:
    """All of the batch, but where one CPU computes it: a divisor, which caches hold."""
    if jax.default_backend() != "cpu" or jax.device_count() > 1:
        return batch
    divisors = [n for n in range(_ROWS_IN_CACHE // 4, _ROWS_IN_CACHE + 1) if batch % n == 0]
    return max(divisors, default=batch)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _with_dense_gradient(
    x: Array, weights: Array, rows: Array, dense_gradient: Array, product: Callable[..., Array]
) -> Array:
    return product(x, weights, rows)


@_with_dense_gradient.defjvp
def _(product: Callable[..., Array], primals: Any, tangents: Any) -> tuple[Array, Array]:
    x, weights, rows, dense_gradient = primals
    of_weights = jax.lax.cond(
        dense_gradient,
        lambda change: jnp.matmul(x, change, preferred_element_type=wide_dtype(x)).astype(
            jnp.result_type(x, change)
        ),
        lambda change: product(x, change, rows),
        tangents[1],
    )
    y = _with_dense_gradient(*primals, product)
    return y, product(tangents[0], weights, rows) + of_weights


class BlockSparse:
    """A function of parameters whose products skip missing blocks; made by `block_sparse`."""

    def __init__(
        self,
        function: Callable[..., Any],
        masks: PyTree,
        layouts: tuple[BlockLayout | None, ...],
        use: str,
    ) -> None:
        functools.update_wrapper(self, function)  # arguments are bound by its signature
        self.function = function
        self._masks, self._layouts, self._use = masks, layouts, use

    def of(self, function: Callable[..., Any]) -> "BlockSparse":
        """The same for another function of the same parameters."""
        return BlockSparse(function, self._masks, self._layouts, self._use)

    def under(
        self, masks: PyTree, *, dense_gradient: bool | Bool[Array, ""] = False
    ) -> Callable[..., Any]:
        """The function of params ⊙ masks, for other masks of the same layouts.

        Args:
          masks: a pytree like the parameters, traced or not.
          dense_gradient: whether gradients reach pruned weights too (see `block_sparse_matmul`).
        """

        @functools.wraps(self.function)
        def sparse(params: PyTree, *args: Any, **kwargs: Any) -> Any:
            resolved = mask_trees.resolve(masks, params)
            is_dense = is_traced(dense_gradient) or dense_gradient
            restrict = mask_trees.straight_through if is_dense else mask_trees.restrict
            program, shape = jax.make_jaxpr(
                lambda p: self.function(p, *args, **kwargs), return_shape=True
            )(params)
            weights = jax.tree.leaves(params)
            if len(weights) != len(self._layouts):
                raise ValueError(
                    f"block_sparse was given masks of {len(self._layouts)} leaves, and the "
                    f"parameters have {len(weights)}: give one leaf for each, None for dense ones, "
                    "as get_masks does."
                )
            mask_of = mask_trees.leaves(resolved, params)

            def product(i: int, x: Array, read: Array) -> Array | None:
                layout, mask = self._layouts[i], mask_of[i]
                if layout is None or mask is None:
                    return None
                way = self._way(x, read, layout)
                if way == "dense":
                    return None
                # Not what is read, ⊙ M: the kept blocks are taken without it.
                own = weights[i].astype(read.dtype)
                return block_sparse_matmul(
                    x, own, mask, layout, dense_gradient=dense_gradient, kernel=way == "kernel"
                )

            values = jax.tree.leaves(restrict(params, resolved))
            outputs = _evaluate(program, values, list(range(len(values))), product)
            return jax.tree.unflatten(jax.tree.structure(shape), outputs)

        return sparse

    def __call__(self, params: PyTree, *args: Any, **kwargs: Any) -> Any:
        """The function of params ⊙ the masks that it was made with."""
        return self.under(self._masks)(params, *args, **kwargs)

    def _way(self, x: Array, weights: Array, layout: BlockLayout) -> str:
        if self._use == "always":
            return "gathered"
        return fastest(weights.shape, layout, math.prod(x.shape[:-1]), str(weights.dtype))


def block_sparse(
    function: Callable[..., Any],
    masks: PyTree,
    rows: int,
    columns: int,
    *,
    use: str = "measured",
) -> BlockSparse:
    """The same function of params ⊙ masks, with products that skip the missing blocks.

        tx = sparsity.rigl(chain, 0.9, total_steps=..., where="fc",
                           pattern=sparsity.patterns.block(64, 64, per_column=True))
        state = tx.init(params)
        loss = sparsity.block_sparse(loss, sparsity.get_masks(state), 64, 64)
        ...
        updates, state = tx.update(None, state, params, value_fn=loss, x=x, y=y)

    The function is traced, and each product of an array with a masked kernel (n, m) along its first
    axis is replaced, as dense layers of any library that keeps kernels so have it (Flax's do);
    whatever else reads a masked array (convolutions, products in loops or under jax.checkpoint)
    reads W ⊙ M.

    A sparse wrapper around a sharpness-aware chain, and the steps for Flax and plain loops, put the
    masks of the moment in the place of `masks`, and see to it that RigL gets the gradient at all
    weights when it grows. In a loop of one's own without these it is
    jax.grad(loss.under(sparsity.get_masks(state)))(params, ...), and a method that grows by the
    gradient takes value_fn=loss beside it: another pass, where masks are due.

    Args:
      function: (params, *args, **kwargs) → arrays; a loss or a network.
      masks: a pytree like the parameters (`get_masks`), known, of which the kernels' have as many
        blocks in each column of blocks; those of arrays of more axes may be any.
      rows, columns: of a block.
      use: "measured" (as a measurement says that it pays: `fastest`) or "always" (gathered).

    Raises:
      ValueError: for a mask of another shape, naming the array, or none that fits.
    """
    check_one_of("use", use, USES)
    paths = jax.tree_util.tree_leaves_with_path(masks, is_leaf=lambda x: x is None)
    layouts: list[BlockLayout | None] = []
    for path, mask in paths:
        try:
            is_kernel = mask is not None and jnp.ndim(mask) == 2
            layouts.append(block_layout(jnp.asarray(mask), rows, columns) if is_kernel else None)
        except ValueError as error:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"masks{name}: {error} Or leave it dense with where=.") from error
    if not any(layouts):
        raise ValueError("masks has no mask of two axes: there is no product to make sparse.")
    return BlockSparse(function, masks, tuple(layouts), use)


def worth_it(
    shape: tuple[int, int], layout: BlockLayout, batch: int, dtype: str = "float32"
) -> bool:
    """Whether a product that skips blocks is faster here than the masked dense one: `fastest`."""
    return fastest(shape, layout, batch, dtype) != "dense"


@functools.cache
def fastest(shape: tuple[int, int], layout: BlockLayout, batch: int, dtype: str) -> str:
    """How the product is made fastest here, forward and backward: "dense", "gathered" or "kernel".

    All are run on random arrays and timed, once for each set of arguments in a process; they take
    turns, and the medians are compared. The kernel is among them on one GPU. With several
    processes, which must agree on their program, the dense one is taken.

    Args:
      shape: of the weights.
      layout: of their mask.
      batch: the number of rows of x.
      dtype: of x and the weights.
    """
    if jax.process_count() > 1:
        return "dense"
    with jax.ensure_compile_time_eval():
        medians = {
            way: statistics.median(seconds)
            for way, seconds in timings(shape, layout, batch, dtype).items()
        }
    return min(medians, key=medians.__getitem__)


def timings(
    shape: tuple[int, int], layout: BlockLayout, batch: int, dtype: str, rounds: int = 5
) -> dict[str, list[float]]:
    """Seconds of forward and backward passes of the masked dense product and of the others.

    What fails, for want of memory or of a compiler, is left out with a warning.
    """
    inputs, outputs = shape
    blocks = jnp.arange(inputs // layout.rows)[:, None] < layout.kept
    mask = jnp.broadcast_to(jnp.repeat(blocks, layout.rows, axis=0), shape)
    x = jnp.ones((batch, inputs), dtype)
    weights, cotangent = jnp.ones(shape, dtype), jnp.ones((batch, outputs), dtype)

    def passes(product: Callable[[Array, Array, Array], Array]) -> Callable[[], Any]:
        @jax.jit
        def run(x: Array, weights: Array, mask: Array, cotangent: Array) -> Any:
            y, backward = jax.vjp(lambda x, w: product(x, w, mask), x, weights)
            return y, backward(cotangent)

        return lambda: jax.block_until_ready(run(x, weights, mask, cotangent))

    ways = {
        "dense": passes(lambda x, w, m: x @ jnp.where(m, w, jnp.zeros((), w.dtype))),
        "gathered": passes(lambda x, w, m: block_sparse_matmul(x, w, m, layout)),
    }
    is_one_gpu = jax.default_backend() == "gpu" and jax.device_count() == 1
    if is_one_gpu and _has_kernel(layout, dtype):
        ways["kernel"] = passes(lambda x, w, m: block_sparse_matmul(x, w, m, layout, kernel=True))
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for number in range(rounds + 1):
        for way, run in tuple(ways.items()):
            started = time.perf_counter()
            try:
                run()
            except Exception as error:
                if way == "dense":
                    raise
                warnings.warn(
                    f"block-sparse products of {shape} in {layout} are not made by way of "
                    f"{way!r} here, which fails: {type(error).__name__}: {error}",
                    stacklevel=2,
                )
                del ways[way], seconds[way]
                continue
            if number:  # the first round compiles
                seconds[way].append(time.perf_counter() - started)
    return seconds


_JIT = ("jit", "pjit")  # jax.jit's own primitive, by its newer and older name
_KEEPS_VALUES = ("convert_element_type", "copy", "sharding_constraint")

#: (which weights, x, the weights as the product reads them) → y, None to leave it as it is.
Replace: TypeAlias = Callable[..., Array | None]


def _evaluate(
    program: core.ClosedJaxpr, values: list[Array], known: list[int | None], replace: Replace
) -> list[Any]:
    """Runs a program with other products of weights; known[i] says which are its i-th input."""
    jaxpr = program.jaxpr
    env = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*program.consts, *values], strict=True))
    which = {v: i for v, i in zip(jaxpr.invars, known, strict=True) if i is not None}

    def read(v: Any) -> Any:
        return v.val if isinstance(v, core.Literal) else env[v]

    for eqn in jaxpr.eqns:
        inputs = [read(v) for v in eqn.invars]
        weights = [None if isinstance(v, core.Literal) else which.get(v) for v in eqn.invars]
        of = next((i for i in weights if i is not None), None)
        if of is not None and eqn.primitive.name in _JIT:
            outputs = _evaluate(eqn.params["jaxpr"], inputs, weights, replace)
        elif (y := replace(of, *inputs) if _is_product(eqn, weights) else None) is not None:
            outputs = [y.astype(eqn.outvars[0].aval.dtype)]
        else:
            outputs = _run(eqn, inputs)
        if of is not None and eqn.primitive.name in _KEEPS_VALUES:
            which[eqn.outvars[0]] = of
        env.update(zip(eqn.outvars, outputs, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _is_product(eqn: Any, weights: list[int | None]) -> bool:
    """Whether it is x·W over the last axis of x and the first of W, which are all of its axes."""
    if eqn.primitive.name != "dot_general" or weights[1] is None or weights[0] is not None:
        return False
    x, w = (v.aval for v in eqn.invars)
    over = (((x.ndim - 1,), (0,)), ((), ()))
    return w.ndim == 2 and bool(eqn.params["dimension_numbers"] == over)


def _run(eqn: Any, inputs: list[Any]) -> list[Any]:
    with eqn.ctx.manager:
        outputs = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return outputs if eqn.primitive.multiple_results else [outputs]
