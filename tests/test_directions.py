"""Random directions: moments, masks, keys, dtypes."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_equal, flatten, keys, uneven_mask, uneven_params

from zosam_jax import directions, masks, trees

every_distribution = pytest.mark.parametrize("name", directions.DISTRIBUTIONS)
SIZE, KEPT = 12, 7


def draw(name, key=0, params=None, mask=None):
    params = uneven_params() if params is None else params
    return directions.get(name)(jax.random.key(key), params, mask)


def many(name, params, count, mask=None):
    """[count, d] draws with different keys, leaves side by side."""
    drawn = jax.vmap(lambda key: directions.get(name)(key, params, mask))(keys(count))
    flat = [np.asarray(leaf, np.float64).reshape(count, -1) for leaf in jax.tree.leaves(drawn)]
    return np.concatenate(flat, axis=1)


@every_distribution
def test_coordinates_have_mean_zero_and_unit_covariance(name):
    params = {"a": jnp.zeros((7, 5)), "b": jnp.zeros(()), "c": jnp.zeros(34)}  # > 2 random words
    u = many(name, params, 20_000)
    five_sigma = 5 * np.sqrt(3 / len(u))
    np.testing.assert_allclose(u.mean(axis=0), 0, atol=five_sigma)
    np.testing.assert_allclose(u.T @ u / len(u), np.eye(70), atol=five_sigma)


@pytest.mark.parametrize(
    ("name", "moment"),
    [("normal", 3.0), ("rademacher", 1.0), ("sphere", 3 * SIZE / (SIZE + 2))],
)
def test_fourth_moments_are_those_of_the_textbook(name, moment):
    np.testing.assert_allclose((many(name, uneven_params(), 20_000) ** 4).mean(), moment, rtol=0.02)


def test_normal_coordinates_have_the_distribution_of_the_normal():
    drawn = draw("normal", params={"a": jnp.zeros((256, 256))})["a"]
    u = np.sort(np.ravel(drawn).astype(np.float64))
    expected = 0.5 * (1 + np.vectorize(math.erf)(u / np.sqrt(2)))
    found = (np.arange(u.size) + 0.5) / u.size
    assert abs(found - expected).max() < 1.63 / np.sqrt(u.size)  # Kolmogorov and Smirnov's 1%
    assert 3.5 < u[-1] < 4.9


@pytest.mark.parametrize("name", ["normal", "rademacher"])
def test_weights_of_one_draw_and_of_draws_in_a_row_know_nothing_of_each_other(name):
    """Neither do their squares, nor neighbours along either axis."""
    rows = [draw(name, key, {"a": jnp.zeros((256, 256))})["a"] for key in range(4)]
    u = np.stack([np.ravel(row).astype(np.float64) for row in rows])
    bound = 5 / np.sqrt(u[0].size)
    for values in (u, u**2 - 1) if name == "normal" else (u,):
        spread = values.var()
        for shift in (1, 32, 256, 1024):
            assert abs((values[:, shift:] * values[:, :-shift]).mean()) < bound * spread
        for first, second in itertools.combinations(values, 2):
            assert abs((first * second).mean()) < bound * spread


def test_rademacher_draws_signs():
    assert set(many("rademacher", uneven_params(), 50).ravel()) == {-1.0, 1.0}


@pytest.mark.parametrize(
    ("mask", "dimension"), [(None, SIZE), (uneven_mask(), KEPT)], ids=["dense", "masked"]
)
def test_sphere_has_the_norm_of_the_square_root_of_the_dimension(mask, dimension):
    norms = np.linalg.norm(many("sphere", uneven_params(), 50, mask), axis=1)
    np.testing.assert_allclose(norms, np.sqrt(dimension), rtol=1e-5)


@every_distribution
@pytest.mark.parametrize("traced", [False, True])
def test_a_direction_is_exactly_zero_where_the_mask_is(name, traced):
    def masked(mask):
        return directions.get(name)(jax.random.key(0), uneven_params(), mask)

    drawn = jax.jit(masked)(uneven_mask()) if traced else masked(uneven_mask())
    np.testing.assert_array_equal(flatten(drawn) != 0, flatten(uneven_mask()).astype(bool))


@every_distribution
def test_a_none_leaf_keeps_all_of_its_coordinates(name):
    mask = uneven_mask() | {"matrix": None}
    full = uneven_mask() | {"matrix": jnp.ones((2, 3), bool)}
    assert_equal(draw(name, mask=mask), draw(name, mask=full))


@every_distribution
def test_an_all_ones_mask_draws_the_same_numbers_as_none(name):
    ones = masks.resolve(True, uneven_params())
    assert_equal(draw(name, mask=ones), draw(name))


@every_distribution
def test_where_nothing_is_kept_the_direction_is_zero(name):
    nothing = masks.resolve(False, uneven_params())
    assert not flatten(draw(name, mask=nothing)).any()


@every_distribution
def test_the_key_decides_the_draw(name):
    assert_equal(draw(name, key=1), draw(name, key=1))
    assert not np.array_equal(flatten(draw(name, key=1)), flatten(draw(name, key=2)))


@every_distribution
def test_leaves_of_the_same_shape_differ(name):
    drawn = draw(name, params={"a": jnp.zeros(40), "b": jnp.zeros(40)})
    assert not jnp.array_equal(drawn["a"], drawn["b"])


@every_distribution
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
def test_directions_are_never_narrower_than_float32(name, dtype):
    drawn = draw(name, params=uneven_params(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {np.dtype("float32")}
    assert jax.tree.map(jnp.shape, drawn) == jax.tree.map(jnp.shape, uneven_params())


@every_distribution
def test_float64_parameters_get_float64_directions(name):
    with jax.enable_x64(True):
        drawn = draw(name, params=uneven_params(jnp.float64))
        assert {leaf.dtype for leaf in jax.tree.leaves(drawn)} == {np.dtype("float64")}


@every_distribution
def test_large_arrays_are_drawn_as_well_as_small_ones(name):
    """Large enough to be drawn on their own, twice the same size, with small ones around them."""
    params = {
        "a": jnp.zeros(7),
        "b": jnp.zeros((250, 160)),
        "c": jnp.zeros(40_000),
        "d": jnp.zeros(9),
    }
    drawn = {k: np.ravel(v) for k, v in draw(name, params=params).items()}
    assert {k: v.size for k, v in drawn.items()} == {k: v.size for k, v in params.items()}
    five_sigma = 5 * np.sqrt(2 / 40_000)
    for leaf in ("b", "c"):
        np.testing.assert_allclose([drawn[leaf].mean(), drawn[leaf].var()], [0, 1], atol=five_sigma)
    assert abs(np.mean(drawn["b"] * drawn["c"])) < five_sigma
    assert not np.array_equal(drawn["a"], drawn["d"][:7])
    masked = draw(
        name, params=params, mask={"a": None, "b": None, "c": jnp.arange(40_000) < 10, "d": None}
    )
    np.testing.assert_array_equal(np.flatnonzero(masked["c"]), np.arange(10))


def test_a_function_is_a_distribution_too():
    def ones(key, params, mask=None):
        del key
        return masks.restrict(jax.tree.map(jnp.ones_like, params), mask)

    assert trees.norm(draw(ones, mask=uneven_mask())) == pytest.approx(np.sqrt(KEPT))
