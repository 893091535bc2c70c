"""Small members of every family, which compile in seconds, and a training step for any model."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from zosam_jax import models
from zosam_jax.integrations import step
from zosam_jax.integrations.nnx import functional_loss, split
from zosam_jax.models import layers, resnet


def bottlenecks(num_classes, *, rngs, stem, dtype=jnp.float32, image_shape=(16, 16, 3)):
    """ResNet-50's parts: two stages of one bottleneck, 8 features wide."""
    return resnet.ResNet(
        num_classes,
        layers.ConvLayers(layers.KAIMING_FAN_OUT, layers.layer_dtype(dtype), rngs),
        block=resnet.Bottleneck,
        stages=(1, 1),
        width=8,
        channels=image_shape[-1],
        stem=stem,
        head=lambda features, classes, rngs: nnx.Linear(features, classes, rngs=rngs),
    )


SMALL = {
    "lenet": functools.partial(models.lenet_300_100, image_shape=(8, 8, 3)),
    "resnet": functools.partial(models.cifar_resnet, depth=8, width=8, image_shape=(8, 8, 3)),
    "bottlenecks-imagenet": functools.partial(bottlenecks, stem="imagenet"),
    "bottlenecks-cifar": functools.partial(bottlenecks, stem="cifar", image_shape=(8, 8, 3)),
    "wide-resnet": functools.partial(models.wide_resnet, depth=10, widen=1, image_shape=(8, 8, 3)),
    "deit": functools.partial(
        models.deit,
        dim=24,
        depth=2,
        heads=3,
        patch=4,
        image_shape=(8, 12, 3),
        drop_path_rate=0.3,
    ),
}
SHAPES = {name: make.keywords.get("image_shape", (16, 16, 3)) for name, make in SMALL.items()}


def batch(image_shape, size=4):
    """Images (size, height, width, channels) and labels of 10 classes."""
    return jax.random.normal(jax.random.key(0), (size, *image_shape)), jnp.arange(size) % 10


def train(model, tx, images, labels, steps=3):
    """(losses, parameters, rest, optimizer state) after a few steps on one batch."""
    graphdef, params, rest = split(model)

    def cross_entropy(model, images, labels):
        logits = model(images)
        assert logits.dtype == jnp.float32
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    # The program runs three times: compiling it is what takes long.
    @functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
    def take(params, rest, state):
        loss = functional_loss(cross_entropy, graphdef, rest)
        value, (rest, _), params, state = step.apply_loss(
            tx, lambda p: loss(p, images, labels), params, state, has_aux=True
        )
        return value, params, rest, state

    state, values = tx.init(params), []
    for _ in range(steps):
        value, params, rest, state = take(params, rest, state)
        values.append(float(value))
    return values, params, rest, state


def avals(tree):
    """The shapes and dtypes of a tree's arrays, in its structure."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)
