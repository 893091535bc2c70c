"""The kernels of block-sparse products: interpreted they equal the gathered products; lowered to
Triton, which needs no GPU, they are programs. Nothing here says that they run on one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax import sparsity
from zosam_jax.sparsity import block_sparse_kernel, patterns
from zosam_jax.sparsity.block_sparse import BlockLayout, block_sparse_matmul, timings

LAYOUT = BlockLayout(16, 32, 2)
CUSTOM_CALL = "__gpu$xla.gpu.triton"


def draw(layout, up, across, batch, dtype=jnp.float32):
    keys = jax.random.split(jax.random.key(0), 4)
    shape = (layout.rows * up, layout.columns * across)
    pattern = patterns.block(layout.rows, layout.columns, per_column=True)
    level = 1 - layout.kept / up
    mask = sparsity.random({"w": jnp.ones(shape)}, level, pattern=pattern, key=keys[0])["w"]
    x = jax.random.normal(keys[1], (batch, shape[0]), dtype)
    weights = jax.random.normal(keys[2], shape, dtype)
    return x, weights, mask, jax.random.normal(keys[3], (batch, shape[1]), dtype)


def passes(x, weights, mask, cotangent, *, layout, kernel):
    def product(x, w):
        return block_sparse_matmul(x, w, mask, layout, kernel=kernel)

    y, backward = jax.vjp(product, x, weights)
    return y, *backward(cotangent)


@pytest.mark.parametrize(
    ("layout", "up", "across", "batch", "dtype"),
    [
        (LAYOUT, 5, 3, 70, jnp.float32),  # more than a tile, and no multiple of it
        (BlockLayout(32, 16, 1), 3, 4, 7, jnp.bfloat16),  # some rows of blocks are in no column
    ],
)
def test_it_equals_the_gathered_product(layout, up, across, batch, dtype):
    """W is NaN where it is pruned: nothing of that is read."""
    x, w, mask, cotangent = draw(layout, up, across, batch, dtype)
    broken = jnp.where(mask, w, jnp.nan)
    run = jax.jit(passes, static_argnames=("layout", "kernel"))
    found = run(x, broken, mask, cotangent, layout=layout, kernel=True)
    expected = run(x, broken, mask, cotangent, layout=layout, kernel=False)
    tolerance = 1e-2 if dtype == jnp.bfloat16 else 1e-5
    assert {a.dtype for a in found} == {jnp.dtype(dtype)}
    found, expected = ([np.asarray(a, np.float32) for a in arrays] for arrays in (found, expected))
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=tolerance, atol=tolerance * abs(other).max())
    assert not found[2][~np.asarray(mask)].any()


def test_columns_with_fewer_blocks_than_the_layout_has():
    """As traced masks may be, which nobody checks."""
    x, w, mask, cotangent = draw(LAYOUT, 3, 2, 8)
    mask = mask.at[:, : LAYOUT.columns].set(False).at[: LAYOUT.rows, : LAYOUT.columns].set(True)
    masked = jnp.where(mask, w, 0)
    y, of_x, of_w = jax.jit(passes, static_argnames=("layout", "kernel"))(
        x, w, mask, cotangent, layout=LAYOUT, kernel=True
    )
    np.testing.assert_allclose(y, x @ masked, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_x, cotangent @ masked.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(of_w, jnp.where(mask, x.T @ cotangent, 0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: lambda w, x: jax.jvp(jax.grad(f), (w, x), (jnp.sin(w), jnp.cos(x)))[1],
        lambda f: jax.grad(lambda w, x: jnp.sum(jax.grad(f)(w, x) ** 2), 1),
        lambda f: (
            lambda w, x: jax.grad(
                lambda w: jnp.sum(jax.vmap(f, (0, None))(jnp.stack([w, 2 * w]), x))
            )(w)
        ),
    ],
    ids=["jvp of grad", "grad of grad", "grad of vmap"],
)
def test_it_differentiates_twice_and_forward_and_maps(change):
    x, w, mask, _ = draw(LAYOUT, 3, 2, 5)
    flag = jnp.bool_(False)

    def loss(w, x, *, kernel, dense_gradient):
        y = block_sparse_matmul(x, w, mask, LAYOUT, kernel=kernel, dense_gradient=dense_gradient)
        return jnp.sum(jnp.tanh(y) ** 2)

    expected = jax.jit(change(functools.partial(loss, kernel=False, dense_gradient=False)))(w, x)
    for dense_gradient in (False, flag):
        found = functools.partial(loss, kernel=True, dense_gradient=dense_gradient)
        np.testing.assert_allclose(jax.jit(change(found))(w, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=str)
@pytest.mark.parametrize("size", [16, 128])
def test_forward_and_backward_become_triton_programs_without_a_gpu(dtype, size, monkeypatch):
    layout = BlockLayout(size, size, 2)
    x, w, mask, cotangent = draw(layout, 3, 2, 70, dtype)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")  # else they are interpreted
    exported = jax.export.export(
        jax.jit(lambda *arrays: passes(*arrays, layout=layout, kernel=True)),
        platforms=["cuda"],
        disabled_checks=[jax.export.DisabledSafetyCheck.custom_call(CUSTOM_CALL)],
    )(x, w, mask, cotangent)
    assert exported.mlir_module().count(f"custom_call @{CUSTOM_CALL}(") == 3


def test_a_kernel_that_fails_is_left_out_with_a_warning(monkeypatch):
    def product(*args, **options):
        raise RuntimeError("out of shared memory")

    monkeypatch.setattr(block_sparse_kernel, "product", product)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    with pytest.warns(UserWarning, match="'kernel' here, which fails: .*: out of shared memory"):
        found = timings((32, 64), LAYOUT, 4, "float32", rounds=1)
    assert {way: len(seconds) for way, seconds in found.items()} == {"dense": 1, "gathered": 1}


def test_blocks_without_a_kernel_are_refused():
    for layout, dtype in (
        (BlockLayout(8, 16, 1), "float32"),
        (BlockLayout(16, 48, 1), "float32"),
        (BlockLayout(256, 16, 1), "float32"),
        (BlockLayout(16, 16, 1), "float64"),
    ):
        assert not block_sparse_kernel.fits(layout, dtype)
    assert block_sparse_kernel.fits(BlockLayout(64, 128, 3), "bfloat16")
    x, w, mask, _ = draw(BlockLayout(8, 16, 1), 2, 2, 4)
    with pytest.raises(
        ValueError, match="kernel=True: there is none for blocks of 8×16 in float32"
    ):
        block_sparse_matmul(x, w, mask, BlockLayout(8, 16, 1), kernel=True)
