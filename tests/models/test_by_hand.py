"""What the models compute, against NumPy."""

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import SHAPES, batch, quick_jit, small
from problems import slow_but

from zosam_jax.integrations.nnx import split
from zosam_jax.models import layers

BY_HAND = {
    "resnet8": lambda p, s, x: by_hand.resnet(p, s, x, by_hand.basic_block, (1, 2, 2)),
    "bottlenecks-cifar": lambda p, s, x: by_hand.resnet(p, s, x, by_hand.bottleneck, (1, 2)),
    "bottlenecks-imagenet": lambda p, s, x: by_hand.resnet(
        p, s, x, by_hand.bottleneck, (1, 2), stem="imagenet"
    ),
    "wide-resnet": lambda p, s, x: by_hand.wide_resnet(p, s, x, (1, 2, 2)),
    "deit": lambda p, s, x: by_hand.deit(p, x, patch=4, heads=3),
}


def random_like(tree, seed):
    """Positive variances and scales, nothing at its initial value."""
    rng = np.random.default_rng(seed)

    def leaf(path, x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        noise = rng.normal(size=x.shape)
        name = path[-1].key
        values = {"var": 0.5 + noise**2, "scale": 1 + 0.3 * noise}.get(name, 0.3 * noise)
        return jnp.asarray(values, x.dtype)

    return jax.tree.map_with_path(leaf, tree)


def in_float64(tree):
    return jax.tree.map(
        lambda x: np.asarray(x, np.float64) if jnp.issubdtype(x.dtype, jnp.floating) else None, tree
    )


@pytest.mark.parametrize("name", slow_but({"lenet-300-100", "resnet8", "deit"}, BY_HAND))
def test_inference(name):
    model = small(name)
    model.eval()
    graphdef, params, model_state = split(model)
    params, model_state = random_like(params, 1), random_like(model_state, 2)
    images, _ = batch(SHAPES[name])
    logits = quick_jit(lambda p, s, x: nnx.merge(graphdef, p, s)(x))(params, model_state, images)
    expected = BY_HAND[name](in_float64(params), in_float64(model_state), in_float64(images))
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())


def test_batch_norm_in_training():
    norm = layers.batch_norm(5, jnp.bfloat16, nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(1, 2, (3, 4, 6, 5)), jnp.bfloat16)
    y = norm(x)
    exact = np.asarray(x, np.float64)
    mean, variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(
        y.astype(jnp.float32), (exact - mean) / np.sqrt(variance + 1e-5), rtol=2**-8, atol=1e-5
    )
    np.testing.assert_allclose(norm.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * variance, rtol=1e-5)


def test_batch_norm_rounds_no_running_statistics():
    norm = layers.batch_norm(1, jnp.bfloat16, nnx.Rngs(0))
    norm.mean[...] = jnp.array([100.3])
    norm.eval()
    x = jnp.full((1, 1, 1, 1), 101.0, jnp.bfloat16)
    np.testing.assert_allclose(norm(x).astype(jnp.float32).item(), 0.7, rtol=2**-8)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_layer_norm(dtype):
    """Of numbers so small that epsilon counts."""
    norm = layers.layer_norm(7, dtype, nnx.Rngs(0))
    x = jnp.asarray(1e-3 * np.random.default_rng(0).normal(1, 1, (4, 7)), dtype)
    expected = by_hand.layer_norm({"scale": 1.0, "bias": 0.0}, np.asarray(x, np.float64))
    assert norm(x).dtype == dtype
    np.testing.assert_allclose(norm(x).astype(jnp.float32), expected, rtol=2**-8, atol=1e-5)
