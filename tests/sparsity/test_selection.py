"""The largest scores in exact counts, against a stable sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zosam_jax.sparsity.selection import largest, largest_in_each, largest_in_groups


def by_sorting(scores, count):
    """The mask of the `count` largest, ties to the lowest index, by NumPy's stable sort."""
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel().astype(np.float64), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def scores(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    return {
        "normal": rng.normal(size=shape),
        "ties": rng.integers(-2, 3, shape),
        "constant": np.full(shape, 3.0),
        "tiny": rng.normal(size=shape) * 1e-40,  # denormal in float32
        "infinite": rng.choice([-np.inf, -1.0, 0.0, 2.0, np.inf], shape),
        "zeros of both signs": rng.choice([-0.0, 0.0], shape),
    }[kind].astype(np.float32)


KINDS = ["normal", "ties", "constant", "infinite", "zeros of both signs"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 1, 17, 59, 60])
def test_as_a_stable_sort_does(kind, count):
    x = scores(kind, (3, 4, 5))
    (mask,) = largest([jnp.asarray(x)], count)
    np.testing.assert_array_equal(mask, by_sorting(x, count))


@pytest.mark.parametrize("kind", KINDS)
def test_several_arrays_compete_as_one(kind):
    parts = [scores(kind, (7,), 1), scores(kind, (2, 3), 2), scores(kind, (1,), 3)]
    together = np.concatenate([p.ravel() for p in parts])
    masks = largest([jnp.asarray(p) for p in parts], 6)
    np.testing.assert_array_equal(
        np.concatenate([m.ravel() for m in masks]), by_sorting(together, 6)
    )
    assert [m.shape for m in masks] == [p.shape for p in parts]


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_each_for_themselves(kind):
    parts = [scores(kind, (7,), 1), scores(kind, (20, 3), 2), scores(kind, (1,), 3)]
    counts = [3, 50, 0]
    masks = largest_in_each([jnp.asarray(p) for p in parts], jnp.asarray(counts))
    for mask, part, count in zip(masks, parts, counts, strict=True):
        np.testing.assert_array_equal(mask, by_sorting(part, count))


def test_the_count_may_be_traced():
    x = scores("normal", (50,))
    select = jax.jit(lambda s, n: largest([s], n)[0])
    for count in (0, 3, 50):
        np.testing.assert_array_equal(select(jnp.asarray(x), count), by_sorting(x, count))
    assert select._cache_size() == 1


def test_nan_comes_last():
    (mask,) = largest([jnp.array([jnp.nan, 1.0, -jnp.nan, -5.0])], 2)
    assert mask.tolist() == [False, True, False, True]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32])
def test_other_dtypes(dtype):
    x = scores("ties", (40,)).astype(np.float32)
    (mask,) = largest([jnp.asarray(x).astype(dtype)], 11)
    np.testing.assert_array_equal(mask, by_sorting(x, 11))


def test_vmap_over_problems():
    x = scores("ties", (6, 30))
    masks = jax.vmap(lambda s: largest([s], 7)[0])(jnp.asarray(x))
    np.testing.assert_array_equal(masks, np.stack([by_sorting(row, 7) for row in x]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [0, 2, 4])
def test_groups(kind, count):
    x = scores(kind, (5, 3, 4))
    expected = np.stack([[by_sorting(g, count) for g in row] for row in x])
    np.testing.assert_array_equal(largest_in_groups(jnp.asarray(x), count), expected)
