"""Training steps of every model, dense and sparse, in float32 and bfloat16."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from networks import SHAPES, SMALL, avals, batch, create, small, stepping, train
from problems import slow_but

import zosam_jax
from zosam_jax import models, sparsity
from zosam_jax.integrations.nnx import split

# ResNet-50 needs more than a pixel in its last stage: over two numbers, BatchNorm's gradient
# overflows.
FULL_SHAPES = {
    "resnet50": (64, 64, 3),
    "resnet50-cifar": (16, 16, 3),
    "deit-tiny": (16, 16, 3),
    "deit-small": (16, 16, 3),
}


def full(name, dtype):
    """A model of the registry for small images, and two of them."""
    image_shape = FULL_SHAPES.get(name, (8, 8, 3))
    options = {"patch": 8, "drop_path_rate": 0.1} if name.startswith("deit") else {}
    make = functools.partial(models.create, name, 10, image_shape=image_shape, dtype=dtype)
    return create(make, **options), *batch(image_shape, size=2)


def check_steps(model, tx, images, labels):
    """Takes three steps and returns the trained parameters and the optimizer states."""
    _, params, model_state = split(model)
    values, trained, after, states = train(model, tx, images, labels)
    assert np.isfinite(values).all()
    assert values[-1] < values[0]
    assert avals(trained) == avals(params)
    assert avals(after) == avals(model_state)
    assert {p.dtype for p in jax.tree.leaves(trained)} == {jnp.dtype("float32")}
    return trained, states


def check_dense(model, images, labels, *, inner):
    check_steps(model, optax.chain(zosam_jax.zo_sam(0.05), inner), images, labels)


def check_sparse(model, images, labels):
    inner = optax.chain(zosam_jax.zo_sam(0.05), optax.sgd(0.02, momentum=0.9))
    tx = sparsity.rigl(
        inner, sparsity=0.9, total_steps=4, every=1, replaces_step=False, where=r"kernel"
    )
    trained, states = check_steps(model, tx, images, labels)
    before, after = (named(sparsity.get_masks(state)) for state in states)
    weights = named(trained)
    assert set(after) == {path for path in weights if path.endswith("['kernel']")}
    assert any((after[path] != before[path]).any() for path in after)
    for path, mask in after.items():
        assert mask.sum() == before[path].sum()
        assert not weights[path][~mask].any()
    size = sum(mask.size for mask in after.values())
    assert abs(sum(mask.sum() for mask in after.values()) - 0.1 * size) <= len(after)


def named(tree):
    """{path: NumPy array} of a tree's leaves."""
    return {jax.tree_util.keystr(p): np.asarray(x) for p, x in jax.tree.leaves_with_path(tree)}


@pytest.mark.parametrize(
    ("name", "dtype"),
    slow_but(
        [("lenet-300-100", jnp.float32), ("resnet8", jnp.bfloat16)],
        [
            *((name, jnp.bfloat16) for name in SMALL if name != "bottlenecks-cifar"),
            *((n, jnp.float32) for n in ("lenet-300-100", "bottlenecks-cifar", "wide-resnet")),
        ],
    ),
)
def test_three_steps_of_zo_sam(name, dtype):
    check_dense(small(name, dtype), *batch(SHAPES[name]), inner=optax.sgd(0.02))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet8", "deit"])
def test_three_steps_of_zo_sam_under_rigl(name):
    check_sparse(small(name), *batch(SHAPES[name]))


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet32", "deit-tiny"])
def test_three_steps_of_zo_sam_at_full_size(name):
    check_dense(
        *full(name, jnp.bfloat16), inner=optax.adam(1e-4)
    )  # gradients' lengths differ a lot


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*models.MODELS} - {"resnet32", "deit-tiny"}))
def test_a_step_of_zo_sam_has_a_program_at_full_size(name):
    """Compiling all of them takes minutes; their small forms take steps above."""
    model, images, labels = full(name, jnp.bfloat16)
    tx = optax.chain(zosam_jax.zo_sam(0.05), optax.adam(1e-4))
    graphdef, params, model_state = split(model)
    step = stepping(graphdef, tx, images, labels)
    taken = jax.eval_shape(step, params, model_state, jax.eval_shape(tx.init, params))
    assert taken.value.shape == ()
    assert avals(taken.params) == avals(params)


@pytest.mark.long
@pytest.mark.slow
def test_three_steps_of_zo_sam_under_rigl_at_full_size():
    check_sparse(*full("resnet32", jnp.float32))
