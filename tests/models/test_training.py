"""Training steps of every model, dense and sparse, in float32 and bfloat16."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx
from networks import SHAPES, SMALL, avals, batch, train

import zosam_jax
from zosam_jax import models, sparsity
from zosam_jax.integrations.nnx import Optimizer, split

DTYPES = [jnp.float32, jnp.bfloat16]

# Large enough for BatchNorm to have more than two values in the last stage.
TRUE_SHAPES = {"resnet50": (64, 64, 3), "deit-tiny": (16, 16, 3), "deit-small": (16, 16, 3)}


def zo_sam(learning_rate=0.02):
    return optax.chain(zosam_jax.zo_sam(0.05), optax.sgd(learning_rate, momentum=0.9))


def true_model(name, dtype):
    """A model of the registry for small images, and their shape."""
    image_shape = TRUE_SHAPES.get(name, (8, 8, 3))
    options = {"patch": 8, "drop_path_rate": 0.1} if name.startswith("deit") else {}
    make = functools.partial(
        models.create, name, 10, image_shape=image_shape, dtype=dtype, **options
    )
    return make(rngs=nnx.Rngs(0)), image_shape


def check_dense(model, images, labels):
    _, params, rest = split(model)
    values, trained, after, _ = train(model, zo_sam(), images, labels)
    assert all(jnp.isfinite(jnp.array(values)))
    assert values[-1] != values[0]
    assert avals(trained) == avals(params)
    assert avals(after) == avals(rest)
    assert {p.dtype for p in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    assert all(bool(jnp.isfinite(p).all()) for p in jax.tree.leaves(trained))


def check_sparse(model, images, labels):
    tx = sparsity.rigl(zo_sam(), sparsity=0.9, total_steps=4, every=1, where=r"kernel")
    _, params, _ = split(model)
    initial = tx.init(params)
    values, trained, _, state = train(model, tx, images, labels)
    assert all(jnp.isfinite(jnp.array(values)))
    assert avals(trained) == avals(params)
    before, after = sparsity.get_masks(initial), sparsity.get_masks(state)
    masked = {jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(after)}
    everything = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    assert masked == {path for path in everything if path.endswith("['kernel']")}
    counts = [[int(m.sum()) for m in jax.tree.leaves(masks)] for masks in (before, after)]
    assert counts[0] == counts[1]
    size = sum(m.size for m in jax.tree.leaves(after))
    assert abs(sum(counts[1]) - 0.1 * size) <= len(masked)
    moved = [(a != b).any() for a, b in zip(*map(jax.tree.leaves, (before, after)), strict=True)]
    assert any(moved)
    zeros = sparsity.apply_masks(trained, after)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), zeros, trained)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", SMALL)
def test_three_steps_of_zo_sam(name, dtype):
    check_dense(SMALL[name](10, rngs=nnx.Rngs(0), dtype=dtype), *batch(SHAPES[name]))


@pytest.mark.parametrize("name", ["resnet", "deit"])
def test_three_steps_of_zo_sam_under_rigl(name):
    check_sparse(SMALL[name](10, rngs=nnx.Rngs(0)), *batch(SHAPES[name]))


@pytest.mark.parametrize("name", ["lenet-300-100", "resnet8"])
def test_the_loss_falls(name):
    model = models.create(name, 10, rngs=nnx.Rngs(0), image_shape=(8, 8, 1))
    tx = optax.chain(zosam_jax.zo_sam(0.1, radius="layerwise"), optax.sgd(0.1))
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    images, labels = batch((8, 8, 1), size=16)

    def loss(model, images, labels):
        return optax.softmax_cross_entropy_with_integer_labels(model(images), labels).mean()

    step = nnx.jit(lambda model, optimizer: optimizer.apply_loss(model, loss, images, labels))
    values = [float(step(model, optimizer)) for _ in range(3)]
    assert values[-1] < values[0]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", models.MODELS)
def test_three_steps_of_zo_sam_at_full_size(name, dtype):
    model, image_shape = true_model(name, dtype)
    check_dense(model, *batch(image_shape, size=2))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["resnet32", "deit-tiny"])
def test_three_steps_of_zo_sam_under_rigl_at_full_size(name, dtype):
    model, image_shape = true_model(name, dtype)
    check_sparse(model, *batch(image_shape, size=2))
