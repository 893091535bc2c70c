"""Small members of every family, which compile in seconds, and a training step for any model."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from zosam_jax import models
from zosam_jax.integrations import plain
from zosam_jax.integrations.nnx import functional_loss, split
from zosam_jax.models import layers, resnet

# Programs here run a few times: compiling them is what takes long.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def bottlenecks(num_classes, *, rngs, stem, image_shape, dtype=jnp.float32):
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


SHAPES = {
    "lenet-300-100": (8, 8, 1),
    "resnet8": (8, 8, 1),
    "bottlenecks-imagenet": (16, 16, 3),
    "bottlenecks-cifar": (6, 8, 3),
    "wide-resnet": (8, 8, 3),
    "deit": (8, 12, 3),
}
_MAKE = {
    "lenet-300-100": models.lenet_300_100,
    "resnet8": models.resnet8,
    "bottlenecks-imagenet": functools.partial(bottlenecks, stem="imagenet"),
    "bottlenecks-cifar": functools.partial(bottlenecks, stem="cifar"),
    "wide-resnet": functools.partial(models.wide_resnet, depth=10, widen=1),
    "deit": functools.partial(models.deit, dim=24, depth=2, heads=3, patch=4, drop_path_rate=0.3),
}
SMALL = {
    name: functools.partial(make, 10, image_shape=SHAPES[name]) for name, make in _MAKE.items()
}


def create(make, **options):
    """The model that a function of `rngs` makes, in one program."""
    make = functools.partial(make, **options)
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, quick_jit(lambda: nnx.state(make(rngs=nnx.Rngs(0))))())


@functools.cache
def _small_state(name):
    return nnx.state(create(SMALL[name]))


def small(name, dtype=jnp.float32):
    """A model of SMALL. All start from the same weights, whatever they compute in."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: SMALL[name](rngs=nnx.Rngs(0), dtype=dtype)))
    return nnx.merge(graphdef, _small_state(name), copy=True)


def batch(image_shape, size=4):
    """Images (size, height, width, channels) and labels of 10 classes."""
    return jax.random.normal(jax.random.key(0), (size, *image_shape)), jnp.arange(size) % 10


def stepping(graphdef, tx, images, labels):
    """(parameters, model_state, optimizer state) → a step on one batch."""

    def cross_entropy(model, images, labels):
        losses = optax.softmax_cross_entropy_with_integer_labels(model(images), labels)
        return losses.mean()

    def step(params, model_state, state):
        loss = functional_loss(cross_entropy, graphdef, model_state)
        return plain.apply_loss(tx, lambda p: loss(p, images, labels), params, state, has_aux=True)

    return step


def train(model, tx, images, labels, steps=3):
    """(losses, parameters, model_state, first and last optimizer state) of steps on one batch."""
    graphdef, params, model_state = split(model)
    take = quick_jit(stepping(graphdef, tx, images, labels))
    state = initial = quick_jit(tx.init)(params)
    values = []
    for _ in range(steps):
        value, (model_state, _), params, state = take(params, model_state, state)
        values.append(float(value))
    return values, params, model_state, (initial, state)


def avals(tree):
    """The shapes and dtypes of a tree's arrays, in its structure."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)
