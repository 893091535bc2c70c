"""Drop-path, its random state, and what DeiT's options may be."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from networks import SHAPES, SMALL, avals, batch, create, quick_jit, small

from zosam_jax import models
from zosam_jax.integrations.nnx import split
from zosam_jax.models.deit import Block


def test_a_dropped_branch_is_left_out_and_the_others_make_up_for_it():
    @quick_jit
    def passes():
        block = Block(16, 2, 0.25, None, nnx.Rngs(0))
        block.fc2.kernel[...] = jnp.zeros_like(block.fc2.kernel[...])
        x = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (5, 16)), (400, 5, 16))
        in_training = block(x) - x
        block.eval()
        return in_training, block(x) - x

    in_training, branch = passes()
    times = np.sum(in_training * branch, axis=(1, 2)) / np.sum(branch * branch, axis=(1, 2))
    kept = times > 0.5
    np.testing.assert_allclose(times, np.where(kept, 1 / 0.75, 0.0), atol=1e-3)
    assert abs(kept.mean() - 0.75) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_branches_are_dropped_independently():
    @quick_jit
    def branches():
        block = Block(16, 2, 0.5, None, nnx.Rngs(0))
        return [block.drop_path(jnp.ones((400, 1, 1)))[:, 0, 0] > 0 for _ in range(2)]

    first, second = map(np.asarray, branches())
    for joint in (first & second, first & ~second, ~first & second, ~first & ~second):
        assert abs(joint.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / 400)


def test_drop_rates_rise_linearly():
    make = functools.partial(models.deit, 10, dim=8, depth=5, heads=2, drop_path_rate=0.2)
    model = nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))
    rates = [block.drop_path.rate for block in model.blocks]
    np.testing.assert_allclose(rates, [0, 0.05, 0.1, 0.15, 0.2])


def test_only_drop_path_keeps_random_state():
    model = create(SMALL["deit"], drop_path_rate=0.0)
    assert not jax.tree.leaves(split(model)[2])


def test_a_pass_is_random_in_training_repeatable_and_deterministic_in_inference():
    model = create(SMALL["deit"], drop_path_rate=0.8)
    images, _ = batch(SHAPES["deit"], size=16)
    _, _, model_state = split(model)
    for training in (True, False):
        model.train() if training else model.eval()
        graphdef, params, _ = split(model)

        @quick_jit
        def apply(model_state, graphdef=graphdef, params=params):
            model = nnx.merge(graphdef, params, model_state, copy=True)
            return model(images), split(model)[2]

        logits, after = apply(model_state)
        again, _ = apply(model_state)
        later, _ = apply(after)
        assert avals(after) == avals(model_state)
        np.testing.assert_array_equal(logits, again)
        assert np.allclose(logits, later) == (not training)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"image_shape": (28, 28, 1)},
            "patch=16 must divide the height and width of image_shape=(28, 28, 1); "
            "choose one of 1, 2, 4, 7, 14, 28.",
        ),
        ({"image_shape": (16, 24, 3)}, "choose one of 1, 2, 4, 8."),
        ({"patch": 0}, "patch=0 must be at least 1"),
        ({"drop_path_rate": 1.0}, "drop_path_rate=1.0 must be below 1"),
        ({"drop_path_rate": -0.1}, "drop_path_rate=-0.1 must be a finite number at least 0"),
        ({"dtype": jnp.int8}, "must be a floating-point type, such as"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        models.deit_tiny(10, rngs=nnx.Rngs(0), **options)


def test_heads_must_divide_the_features():
    with pytest.raises(ValueError, match="heads=3 must divide dim=16"):
        models.deit(10, dim=16, depth=1, heads=3, rngs=nnx.Rngs(0))


def test_images_of_another_shape():
    model = small("deit")
    with pytest.raises(ValueError, match=r"\(2, 12, 8, 3\) do not fit: .*image_shape=\(8, 12, 3\)"):
        model(jnp.ones((2, 12, 8, 3)))
