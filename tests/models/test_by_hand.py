"""What the models compute, against NumPy."""

import by_hand
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import SHAPES, SMALL, batch

from zosam_jax.integrations.nnx import split

BY_HAND = {
    "resnet": lambda p, s, x: by_hand.resnet(p, s, x, by_hand.basic_block, (1, 2, 2)),
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


@pytest.mark.parametrize("name", BY_HAND)
def test_inference(name):
    model = SMALL[name](10, rngs=nnx.Rngs(0))
    model.eval()
    graphdef, params, rest = split(model)
    params, rest = random_like(params, 1), random_like(rest, 2)
    images, _ = batch(SHAPES[name])
    logits = jax.jit(lambda p, s, x: nnx.merge(graphdef, p, s)(x))(params, rest, images)
    expected = BY_HAND[name](in_float64(params), in_float64(rest), in_float64(images))
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_batch_norm_in_training():
    model = SMALL["resnet"](10, rngs=nnx.Rngs(0))
    images, _ = batch(SHAPES["resnet"])
    model(images)
    x = by_hand.conv(in_float64(split(model)[1]["stem"]), in_float64(images))
    norm = model.stem_norm
    np.testing.assert_allclose(norm.mean[...], 0.1 * x.mean((0, 1, 2)), atol=1e-6)
    np.testing.assert_allclose(norm.var[...], 0.9 + 0.1 * x.var((0, 1, 2)), rtol=1e-5)
