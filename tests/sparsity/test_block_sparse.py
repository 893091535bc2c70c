"""Products that skip the blocks of a mask: equal to the masked dense ones, forward and back."""

import functools
import inspect
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import zosam_jax
from zosam_jax import sparsity
from zosam_jax.integrations.nnx import Optimizer
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.sparsity import patterns
from zosam_jax.sparsity.block_sparse import BlockLayout, block_layout, block_sparse_matmul

# The package has the function of this name.
MODULE = sys.modules["zosam_jax.sparsity.block_sparse"]

PATTERN = patterns.block(4, 8, per_column=True)
WAYS = ("dense", "gathered", "kernel")


def draw(shape, layout, batch=(6,), dtype=jnp.float32, seed=0):
    """x, W, M and a cotangent; a mask of the layout at random."""
    keys = jax.random.split(jax.random.key(seed), 4)
    pattern = patterns.block(layout.rows, layout.columns, per_column=True)
    level = 1 - layout.kept * layout.rows / shape[0]
    mask = sparsity.random({"w": jnp.ones(shape)}, level, pattern=pattern, key=keys[0])["w"]
    x = jax.random.normal(keys[1], (*batch, shape[0])).astype(dtype)
    weights = jax.random.normal(keys[2], shape).astype(dtype)
    return x, weights, mask, jax.random.normal(keys[3], (*batch, shape[1])).astype(dtype)


def passes(product, x, weights, cotangent):
    y, backward = jax.vjp(product, x, weights)
    return y, *backward(cotangent)


def masked(x, weights, mask):
    return x @ jnp.where(mask, weights, 0)


def in_parts(monkeypatch, rows):
    monkeypatch.setattr(MODULE, "_rows_at_once", lambda batch: rows)


@pytest.mark.parametrize("seed", range(6))
def test_it_equals_the_masked_product(seed, monkeypatch):
    """Any shape, blocks, density and dtype, in parts of the batch too; W is NaN where pruned."""
    rng = np.random.default_rng(seed)
    rows, columns, up, across = (int(n) for n in rng.integers(1, 6, 4))
    layout = BlockLayout(rows, columns, int(rng.integers(1, up + 1)))
    dtype = (jnp.float32, jnp.bfloat16)[seed % 2]
    batch = ((12,), (3, 4), ())[seed % 3]
    in_parts(monkeypatch, 4 if seed < 3 and batch else max(int(np.prod(batch)), 1))
    x, w, mask, cotangent = draw((rows * up, columns * across), layout, batch, dtype, seed)
    assert block_layout(mask, rows, columns) == layout
    broken = jnp.where(mask, w, jnp.nan)
    found = passes(lambda x, w: block_sparse_matmul(x, w, mask, layout), x, broken, cotangent)
    wide = [a.astype(jnp.float32) for a in (x, w, cotangent)]
    expected = passes(lambda x, w: masked(x, w, mask), *wide)
    tolerance = 2e-2 if dtype == jnp.bfloat16 else 1e-5
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        np.testing.assert_allclose(
            one.astype(jnp.float32), other, rtol=tolerance, atol=tolerance * np.abs(other).max()
        )
    assert not np.asarray(found[2].astype(jnp.float32))[~np.asarray(mask)].any()


def test_bfloat16_sums_in_float32(monkeypatch):
    """Summing 512 ones of bfloat16 in bfloat16 stops at 256, and so would gradients."""
    in_parts(monkeypatch, 4)
    x, w = jnp.ones((512, 512), jnp.bfloat16), jnp.ones((512, 512), jnp.bfloat16)
    layout, mask = BlockLayout(1, 1, 512), jnp.ones((512, 512), bool)
    product = jax.jit(lambda x, w: block_sparse_matmul(x, w, mask, layout))
    assert all((a == 512).all() for a in passes(product, x, w, jnp.ones_like(x)))


@pytest.mark.parametrize("flag", [False, jnp.bool_(False)], ids=["never dense", "not dense now"])
def test_it_differentiates_twice_and_forward_and_maps(flag):
    layout = BlockLayout(4, 2, 1)
    x, w, mask, _ = draw((12, 6), layout)

    def loss(product, w, x):
        return jnp.sum(jnp.tanh(product(x, w)) ** 2)

    def sparse(x, w):
        return block_sparse_matmul(x, w, mask, layout, dense_gradient=flag)

    for change in (
        lambda f: jax.jvp(jax.grad(f), (w, x), (jnp.where(mask, jnp.sin(w), 0), x))[1],
        lambda f: jax.grad(lambda w: jnp.sum(jax.grad(f)(w, x) ** 2))(w),
        lambda f: jax.vmap(jax.grad(f), (0, None))(jnp.stack([w, 2 * w]), x),
        lambda f: jax.vmap(jax.grad(f), (None, 0))(w, jnp.stack([x, 2 * x])),
    ):
        np.testing.assert_allclose(
            change(functools.partial(loss, sparse)),
            change(functools.partial(loss, lambda x, w: masked(x, w, mask))),
            rtol=1e-4,
            atol=1e-5,
        )


def test_the_gradient_is_dense_when_it_is_said_to_be():
    layout = BlockLayout(4, 2, 1)
    x, w, mask, cotangent = draw((12, 6), layout)

    @jax.jit
    def gradients(flag):
        def product(x, w):
            return block_sparse_matmul(x, w, mask, layout, dense_gradient=flag)

        return passes(product, x, w, cotangent)

    y, of_x, of_w = passes(lambda x, w: masked(x, w, mask), x, w, cotangent)
    for flag, expected in ((True, x.T @ cotangent), (False, of_w)):
        for found, other in zip(gradients(flag), (y, of_x, expected), strict=True):
            np.testing.assert_allclose(found, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)
@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_a_batch_in_four_pieces_stays_in_them(kind):
    layout = BlockLayout(4, 2, 1)
    x, w, mask, cotangent = draw((12, 6), layout, batch=(8, 3))
    mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
    split = NamedSharding(mesh, PartitionSpec("data"))

    @jax.jit
    def run(x, w, mask, cotangent):
        def product(x, w):
            return block_sparse_matmul(x, w, mask, layout)

        return passes(product, x, w, cotangent)

    whole = run(x, w, mask, cotangent)
    with jax.set_mesh(mesh):
        x, cotangent = (jax.device_put(a, split) for a in (x, cotangent))
        w, mask = (jax.device_put(a, NamedSharding(mesh, PartitionSpec())) for a in (w, mask))
        pieces = run(x, w, mask, cotangent)
    for one, other in zip(pieces, whole, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    assert pieces[0].sharding.is_equivalent_to(split, 3)
    assert pieces[1].sharding.is_equivalent_to(split, 3)


def params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 3)
    return {
        "a": {"kernel": jax.random.normal(keys[0], (16, 32)) / 4, "bias": jnp.zeros(32)},
        "b": {"kernel": jax.random.normal(keys[1], (32, 16)) / 6},
        "out": {"kernel": jax.random.normal(keys[2], (16, 3)) / 4},
    }


@jax.jit
def hidden(kernel, x):
    """A function with a program of its own, as layers of libraries have."""
    return jax.nn.gelu(x @ kernel)


def loss(params, x, y):
    h = hidden(params["a"]["kernel"].astype(jnp.float32), x) + params["a"]["bias"]
    logits = hidden(params["b"]["kernel"], h) @ params["out"]["kernel"]
    penalty = sum(jnp.sum(p**2) for p in jax.tree.leaves(params))  # reads the arrays otherwise
    return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean() + 1e-3 * penalty


def batch():
    x = jax.random.normal(jax.random.key(7), (8, 16))
    return {"x": x, "y": jnp.arange(8) % 3}


def products(function, *args):
    """The shapes of the matrices in the dot products of a program, inner programs included."""
    found = []

    def walk(jaxpr):
        for eqn in jaxpr.eqns:
            if eqn.primitive.name == "dot_general":
                found.append(tuple(v.aval.shape for v in eqn.invars))
            for inner in jax.tree.leaves(
                list(eqn.params.values()),
                is_leaf=lambda p: hasattr(p, "eqns") or hasattr(p, "jaxpr"),
            ):
                if hasattr(inner, "eqns") or hasattr(inner, "jaxpr"):
                    walk(getattr(inner, "jaxpr", inner))

    walk(jax.make_jaxpr(function)(*args).jaxpr)
    return found


def test_a_function_s_products_become_sparse_and_it_stays_the_same():
    masks = sparsity.random(params(), 0.7, where="'a'|'b'", pattern=PATTERN)
    sparse = sparsity.block_sparse(loss, masks, 4, 8, use="always")
    given = batch()
    found = jax.value_and_grad(sparse)(params(), **given)
    expected = jax.value_and_grad(lambda p: loss(sparsity.apply_masks(p, masks), **given))(params())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )
    shapes = products(sparse, params(), given["x"], given["y"])
    assert ((8, 16), (16, 32)) not in shapes
    assert ((8, 32), (32, 16)) not in shapes
    assert ((8, 16), (16, 3)) in shapes  # dense, and left so


@pytest.mark.parametrize("first", [None, zosam_jax.sam(0.1)], ids=["sgd", "sam"])
@pytest.mark.parametrize("route", ["apply_loss", "by hand"])
def test_rigl_moves_the_same_blocks_and_nothing_is_compiled_again(first, route):
    inner = optax.sgd(0.1, momentum=0.9) if first is None else optax.chain(first, optax.sgd(0.1))
    tx = sparsity.rigl(
        inner, 0.5, total_steps=40, every=2, fraction=0.7, where="'a'|'b'", pattern=PATTERN
    )
    start = tx.init(params())
    masks = sparsity.get_masks(start)

    def run(function):
        @jax.jit
        def step(current, state):
            if route == "apply_loss":
                taken = apply_loss(tx, function, current, state, **batch())
                return taken.params, taken.opt_state
            at_hand = function
            if isinstance(function, sparsity.BlockSparse):
                at_hand = function.under(sparsity.get_masks(state))
            grads = jax.grad(at_hand)(current, **batch()) if first is None else None
            updates, state = tx.update(grads, state, current, value_fn=function, **batch())
            return optax.apply_updates(current, updates), state

        current, state = sparsity.apply_masks(params(), masks), start
        for _ in range(7):
            current, state = step(current, state)
        assert step._cache_size() == 1
        return current, sparsity.get_masks(state)

    sparse, sparse_masks = run(sparsity.block_sparse(loss, masks, 4, 8, use="always"))
    dense, dense_masks = run(loss)
    for name in ("a", "b"):
        one, other = sparse_masks[name]["kernel"], dense_masks[name]["kernel"]
        assert jnp.array_equal(one, other)
        assert not jnp.array_equal(one, masks[name]["kernel"])
        assert block_layout(one, 4, 8) == block_layout(masks[name]["kernel"], 4, 8)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), sparse, dense)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16], ids=lambda d: d.__name__)
def test_an_nnx_model_trains_alike(dtype):
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.fc1 = nnx.Linear(16, 32, dtype=dtype, rngs=rngs)
            self.fc2 = nnx.Linear(32, 8, dtype=dtype, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.fc2(self.dropout(nnx.relu(self.fc1(x))))

    def loss(model, x):
        return jnp.mean(model(x).astype(jnp.float32) ** 2)

    x = jax.random.normal(jax.random.key(1), (8, 5, 16))

    def train(is_sparse):
        model = Network(nnx.Rngs(0))
        tx = sparsity.rigl(
            optax.sgd(0.1), 0.5, total_steps=20, every=2, where="kernel", pattern=PATTERN
        )
        optimizer = Optimizer(model, tx, wrt=nnx.Param)
        optimizer.apply_masks(model)
        function = loss
        if is_sparse:
            function = sparsity.block_sparse(loss, optimizer.masks, 4, 8, use="always")
        step = nnx.jit(lambda model, optimizer: optimizer.apply_loss(model, function, x))
        values = [step(model, optimizer) for _ in range(4)]
        return values, optimizer.masks

    sparse, dense = train(True), train(False)
    tolerance = 1e-5 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(sparse[0], dense[0], rtol=tolerance)
    if dtype == jnp.float32:
        assert all(jax.tree.leaves(jax.tree.map(jnp.array_equal, sparse[1], dense[1])))


def test_a_measurement_decides(monkeypatch):
    masks = sparsity.random(params(), 0.7, where="'a'|'b'", pattern=PATTERN)
    given, arguments = batch(), []

    def answer(shape, layout, rows, dtype):
        arguments.append((shape, layout, rows, dtype))
        return "gathered" if shape == (32, 16) else "dense"

    monkeypatch.setattr(MODULE, "fastest", answer)
    shapes = products(sparsity.block_sparse(loss, masks, 4, 8), params(), *given.values())
    assert ((8, 16), (16, 32)) in shapes
    assert ((8, 32), (32, 16)) not in shapes
    assert arguments[0] == ((16, 32), block_layout(masks["a"]["kernel"], 4, 8), 8, "float32")


@pytest.mark.parametrize("faster", ["dense", "gathered", "kernel"])
def test_the_fastest_median_wins_and_is_measured_once(faster, monkeypatch):
    calls = []

    def timings(*args):
        calls.append(args)
        return {way: [2.0 - (way == faster), 2.0 - (way == faster), 9.0] for way in WAYS}

    monkeypatch.setattr(MODULE, "timings", timings)
    sparsity.fastest.cache_clear()
    for _ in range(2):
        assert sparsity.fastest((8, 8), BlockLayout(4, 4, 1), 16, "float32") == faster
        assert sparsity.worth_it((8, 8), BlockLayout(4, 4, 1), 16) == (faster != "dense")
    sparsity.fastest.cache_clear()
    assert len(calls) == 1


def test_a_measurement_can_be_taken_while_a_step_is_traced():
    sparsity.fastest.cache_clear()
    masks = sparsity.random(params(), 0.7, where="'a'", pattern=PATTERN)
    sparse = sparsity.block_sparse(loss, masks, 4, 8)
    found = jax.jit(jax.grad(sparse))(params(), **batch())
    assert sparsity.fastest.cache_info().currsize == 1
    expected = jax.grad(lambda p: loss(sparsity.apply_masks(p, masks), **batch()))(params())
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), found, expected
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: block_layout(jnp.ones((6, 8), bool), 4, 4), r"4×4 do not divide .* \(6, 8\)"),
        (lambda: inspect.unwrap(block_layout)(jnp.ones((2, 8, 8), bool), 4, 4), r"two axes"),
        (lambda: block_layout(jnp.eye(8, dtype=bool), 4, 4), "keeps a part of a block of 4×4"),
        (lambda: block_layout(jnp.zeros((8, 8), bool), 4, 4), "from 0 to 0 blocks"),
        (
            lambda: block_layout(jnp.ones((8, 8), bool).at[:4, :4].set(False), 4, 4),
            "from 1 to 2 blocks in a column of blocks.*per_column=True",
        ),
        (lambda: block_layout(jnp.ones((8, 8), bool), 0, 4), "rows=0"),
        (
            lambda: inspect.unwrap(block_sparse_matmul)(  # past the tests' checks of shapes
                jnp.ones((3, 4)), jnp.ones((8, 8)), jnp.ones((8, 8), bool), BlockLayout(4, 4, 1)
            ),
            r"x of shape \(3, 4\), weights of \(8, 8\)",
        ),
        (
            lambda: sparsity.block_sparse(loss, {"a": jnp.eye(8, dtype=bool), "b": None}, 4, 4),
            r"masks\['a'\]: mask keeps a part",
        ),
        (lambda: sparsity.block_sparse(loss, {"a": None}, 4, 4), "no mask of two axes"),
        (
            lambda: sparsity.block_sparse(
                lambda p: p["w"].sum(), {"rest": None, "w": jnp.ones((8, 8), bool)}, 4, 4
            )({"rest": [jnp.ones(2), jnp.ones(2)], "w": jnp.ones((8, 8))}),
            "masks of 2 leaves, and the parameters have 3",
        ),
        (lambda: sparsity.block_sparse(loss, {}, 4, 4, use="never"), "use='never'"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
