"""Sizes, shapes and training steps of the models."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import zosam_jax
from zosam_jax import models
from zosam_jax.integrations.nnx import Optimizer


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


@pytest.mark.parametrize(
    ("name", "image_shape", "parameters"),
    [
        ("lenet-300-100", (28, 28, 1), 266_610),
        ("lenet-300-100", (8, 8, 1), 50_610),
        ("resnet8", (28, 28, 1), 77_754),
        ("resnet8", (8, 8, 1), 77_754),
    ],
)
def test_parameter_counts(name, image_shape, parameters):
    model = models.create(name, 10, rngs=nnx.Rngs(0), image_shape=image_shape)
    assert count(model) == parameters


def test_the_paper_s_resnet32_is_this_family_at_depth_32_and_width_32():
    model = models.cifar_resnet(10, depth=32, width=32, rngs=nnx.Rngs(0))
    assert count(model) == 1_860_522


@pytest.mark.parametrize("name", models.MODELS)
@pytest.mark.parametrize("image_shape", [(8, 8, 1), (28, 28, 1)])
def test_three_steps_of_zo_sam(name, image_shape):
    model = models.create(name, 10, rngs=nnx.Rngs(0), image_shape=image_shape)
    tx = optax.chain(zosam_jax.zo_sam(0.1, radius="layerwise"), optax.sgd(0.1))
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    images = jax.random.normal(jax.random.key(0), (16, *image_shape))
    labels = jnp.arange(16) % 10

    def loss(model, images, labels):
        logits = model(images)
        assert logits.shape == (16, 10)
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    step = nnx.jit(lambda model, optimizer: optimizer.apply_loss(model, loss, images, labels))
    values = [float(step(model, optimizer)) for _ in range(3)]
    assert all(jnp.isfinite(jnp.array(values)))
    assert values[-1] < values[0]


def test_evaluation_uses_running_statistics():
    model = models.resnet8(10, rngs=nnx.Rngs(0), image_shape=(8, 8, 1))
    images = jax.random.normal(jax.random.key(0), (16, 8, 8, 1)) + 3
    model.eval()
    alone = model(images[:1])
    together = model(images)[:1]
    assert jnp.allclose(alone, together, atol=1e-5)
    model.train()
    assert not jnp.allclose(model(images)[:1], together, atol=1e-2)


def test_unknown_names_and_depths():
    with pytest.raises(ValueError, match="model='vgg' is not known; choose one of lenet-300-100"):
        models.create("vgg", 10, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"depth=9 must be 6n \+ 2"):
        models.cifar_resnet(10, depth=9, rngs=nnx.Rngs(0))
