"""Feature maps against a forward pass made by hand, block by block."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from zosam_jax import models
from zosam_jax.analysis import features


class Repeated(nnx.Module):
    """One layer, used twice."""

    def __init__(self, rngs):
        self.layer = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.layer(self.layer(x))


class Stack(nnx.Module):
    """Eleven layers, one after another."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])

    def __call__(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


def create(make, **options):
    """A model whose weights are drawn in one program, which compiles faster than many."""
    graphdef, _ = nnx.split(nnx.eval_shape(lambda: make(10, rngs=nnx.Rngs(0), **options)))
    draw = jax.jit(lambda: nnx.state(make(10, rngs=nnx.Rngs(0), **options)))
    return nnx.merge(graphdef, draw())


@functools.cache
def trained():
    """The structure of a ResNet-8, and arrays whose statistics are not their initial values."""
    graphdef, state = nnx.split(create(models.resnet8, image_shape=(8, 8, 1)))

    @jax.jit
    def seen(state, x):
        model = nnx.merge(graphdef, state, copy=True)
        model.train()
        model(x)
        return nnx.state(model)

    return graphdef, seen(state, images((8, 8, 1), seed=9))


def resnet():
    return nnx.merge(*trained(), copy=True)


def images(shape, seed=0, size=4):
    return 1 + 2 * jax.random.normal(jax.random.key(seed), (size, *shape))


def in_inference(model, function, *args):
    """What a function (model, *args) returns, the model being in inference mode."""
    graphdef, state = nnx.split(model)

    @jax.jit
    def run(state, *args):
        copy = nnx.merge(graphdef, state, copy=True)
        copy.eval()
        return function(copy, *args)

    return run(state, *args)


def assert_maps(maps, expected):
    assert list(maps) == list(expected)
    for path, value in expected.items():
        np.testing.assert_allclose(maps[path], value, rtol=1e-4, atol=1e-5)


def test_residual_blocks_and_layers_inside_them():
    model, x = resnet(), images((8, 8, 1))
    maps = features.feature_maps(model, x, [r"blocks\.\d+", "stem", "blocks.1.projection"])

    def by_hand(model, x):
        stem = model.stem(x)
        first = model.blocks[0](nnx.relu(model.stem_norm(stem)))
        second = model.blocks[1](first)
        return {
            "blocks.0": first,
            "blocks.1": second,
            "blocks.1.projection": model.blocks[1].projection(first),
            "blocks.2": model.blocks[2](second),
            "stem": stem,
        }

    assert_maps(maps, in_inference(model, by_hand, x))
    assert maps["blocks.1"].shape == (4, 4, 4, 32)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_is(training):
    """Neither its statistics nor its mode change, nor the methods of its class."""
    model = resnet()
    model.train() if training else model.eval()
    graphdef, state = nnx.split(model)
    before = jax.tree.map(jnp.copy, state)
    call = type(model.stem_norm).__call__
    features.feature_maps(model, images((8, 8, 1)), "stem")
    assert type(model.stem_norm).__call__ is call
    after_graphdef, after = nnx.split(model)
    assert after_graphdef == graphdef
    assert jax.tree.structure(after) == jax.tree.structure(before)
    jax.tree.map(np.testing.assert_array_equal, after, before)


def test_wide_resnet():
    model = create(models.wide_resnet, depth=10, widen=1, image_shape=(8, 8, 3))
    x = images((8, 8, 3))
    maps = features.feature_maps(model, x, features.shallow_middle_deep(model))

    def by_hand(model, x):
        y, outputs = model.stem(x), {}
        for i, block in enumerate(model.blocks):
            outputs[f"blocks.{i}"] = y = block(y)
        return outputs

    assert_maps(maps, in_inference(model, by_hand, x))


def test_transformer_blocks_without_drop_path():
    model = create(
        models.deit,
        dim=12,
        depth=2,
        heads=3,
        patch=4,
        image_shape=(8, 8, 3),
        drop_path_rate=0.5,
    )
    x = images((8, 8, 3))
    maps = features.feature_maps(model, x, r"blocks\.\d+")
    assert maps["blocks.0"].shape == (4, 5, 12)

    def on_from_there(model, maps):
        logits = model.head(model.norm(maps["blocks.1"][:, 0]))
        return {"blocks.1": model.blocks[1](maps["blocks.0"]), "logits": logits}

    expected = {
        "blocks.1": maps["blocks.1"],
        "logits": in_inference(model, type(model).__call__, x),
    }
    assert_maps(in_inference(model, on_from_there, maps), expected)


def test_the_eleventh_layer_comes_last():
    maps = features.feature_maps(Stack(nnx.Rngs(0)), jnp.ones((1, 3)), r"layers\.\d+")
    assert list(maps) == [f"layers.{i}" for i in range(11)]


def test_of_a_layer_that_is_used_twice_the_last_output():
    model, x = Repeated(nnx.Rngs(0)), jnp.arange(6.0).reshape(2, 3)
    (maps,) = features.feature_maps(model, x, "layer").values()
    np.testing.assert_allclose(maps, model(x), rtol=1e-6)


def test_shallow_middle_and_deep():
    def structure(make, **options):
        return nnx.eval_shape(lambda: make(10, rngs=nnx.Rngs(0), **options))

    six_blocks = structure(models.cifar_resnet, depth=14)
    assert features.shallow_middle_deep(six_blocks) == ("blocks.0", "blocks.3", "blocks.5")
    assert features.shallow_middle_deep(resnet()) == ("blocks.0", "blocks.1", "blocks.2")
    with pytest.raises(ValueError, match="LeNet300100 has 0 blocks"):
        features.shallow_middle_deep(structure(models.lenet_300_100))


@pytest.mark.parametrize("layers", ["block", ["stem", "block"], r"blocks\.3"])
def test_a_layer_that_is_not_there_is_answered_with_those_that_are(layers):
    with pytest.raises(
        ValueError, match=r"layers='block.*matches no layer; there are: .*stem_norm"
    ):
        features.feature_maps(resnet(), images((8, 8, 1)), layers)
