"""Masks chosen before training."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_equal, mlp_params

from zosam_jax import sparsity
from zosam_jax.sparsity import distributions

SPARSITY = 0.6


def conv_params():
    return {
        "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
        "norm": {"scale": jnp.ones(8)},
        "dense": {"kernel": jnp.ones((16, 10))},
        "steps": jnp.zeros((2, 2), jnp.int32),
    }


def counts(masks):
    return [int(m.sum()) for m in jax.tree.leaves(masks)]


def test_weights_of_two_dimensions_or_more_are_masked():
    masks = sparsity.random(conv_params(), SPARSITY)
    assert masks["conv"]["bias"] is masks["norm"]["scale"] is masks["steps"] is None
    assert masks["conv"]["kernel"].shape == (3, 3, 4, 8)
    assert masks["conv"]["kernel"].dtype == masks["dense"]["kernel"].dtype == bool


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
@pytest.mark.parametrize("level", [0.0, 0.3, 0.9])
def test_arrays_keep_what_the_distribution_says(name, level):
    masks = sparsity.random(conv_params(), level, distribution=name)
    expected = distributions.get(name)([(3, 3, 4, 8), (16, 10)], level)
    assert counts(masks) == expected
    total = 3 * 3 * 4 * 8 + 160
    assert sum(counts(masks)) == round((1 - level) * total)
    assert sparsity.sparsity_of(masks, conv_params()) == pytest.approx(level, abs=1 / total)


def test_sparsity_zero_masks_nothing():
    masks = sparsity.random(conv_params(), 0.0)
    assert_equal(sparsity.apply_masks(conv_params(), masks), conv_params())


def test_where_sees_path_and_leaf():
    seen = {}

    def kernels_of_dense(path, leaf):
        seen[path] = leaf.shape
        return "dense" in path

    masks = sparsity.random(conv_params(), SPARSITY, where=kernels_of_dense)
    assert masks["conv"]["kernel"] is None
    assert counts(masks) == [64]
    assert seen["['conv']['kernel']"] == (3, 3, 4, 8)


def test_the_key_decides_which_weights_stay():
    one, same, other = (sparsity.random(mlp_params(), SPARSITY, key=key) for key in (1, 1, 2))
    assert_equal(one, same)
    assert counts(one) == counts(other)
    assert not jnp.array_equal(one["hidden"]["kernel"], other["hidden"]["kernel"])


@pytest.mark.parametrize(
    "key",
    [np.int32(1), jnp.asarray(1), jax.random.key(1), jax.random.PRNGKey(1)],
    ids=["numpy", "jax", "key", "raw key"],
)
def test_every_kind_of_key_is_a_seed(key):
    assert_equal(
        sparsity.random(mlp_params(), 0.5, key=key), sparsity.random(mlp_params(), 0.5, key=1)
    )


def test_arrays_of_the_same_shape_get_different_masks():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    masks = sparsity.random(params, 0.5)
    assert not jnp.array_equal(masks["a"], masks["b"])


def test_every_weight_is_as_likely_to_stay():
    stays = [sparsity.random({"w": jnp.ones((4, 5))}, 0.75, key=key)["w"] for key in range(400)]
    np.testing.assert_allclose(np.mean(stays, axis=0), 0.25, atol=5 * np.sqrt(0.1875 / 400))
