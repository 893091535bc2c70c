"""Radius rules against NumPy, and the guards around them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_close, assert_equal, flatten, uneven_mask, uneven_params

from zosam_jax import directions, masks, radius

every_rule = pytest.mark.parametrize("name", radius.RULES)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])
RHO = 0.25


def uphill(params=None, dtype=jnp.float32):
    drawn = directions.normal(jax.random.key(5), uneven_params() if params is None else params)
    return jax.tree.map(lambda u: (3 * u).astype(dtype), drawn)


def perturb(name, direction, params=None, mask=None, rho=RHO):
    params = uneven_params() if params is None else params
    return radius.perturbation(radius.get(name).rule, direction, params, jnp.asarray(rho), mask)


def length(tree):
    return np.linalg.norm(flatten(tree))


def in_numpy(name, direction, params, mask=None):
    """The formulas of the documentation, leaf by leaf in float64."""
    g, theta, kept = (
        {k: np.asarray(v, np.float64) for k, v in tree.items()}
        for tree in (direction, params, mask or jax.tree.map(jnp.ones_like, params))
    )
    g = {k: g[k] * kept[k] for k in g}
    if name == "global":
        return {k: RHO * g[k] / np.linalg.norm(flatten(g)) for k in g}
    if name == "layerwise":
        return {k: RHO * norm(theta[k] * kept[k]) * g[k] / norm(g[k]) for k in g}
    relative = {k: np.abs(theta[k]) * g[k] for k in g}
    if name == "adaptive_layerwise":
        return {k: RHO * norm(theta[k] * kept[k]) * relative[k] / norm(relative[k]) for k in g}
    if name == "filterwise":
        columns = {k: 0 if g[k].ndim == 2 else None for k in g}
        return {
            k: RHO * norm(theta[k] * kept[k], columns[k]) * g[k] / norm(g[k], columns[k]) for k in g
        }
    return {k: RHO * theta[k] ** 2 * g[k] / norm(flatten(relative)) for k in g}


def norm(array, axis=None):
    """The Euclidean norm, or a tiny number for what is all zeros."""
    return np.maximum(np.sqrt((array**2).sum(axis=axis)), 1e-30)


@every_rule
@every_mask
def test_rules_equal_their_formulas(name, mask):
    params, direction = uneven_params(), uphill()
    epsilon = perturb(name, direction, params, mask)
    assert_close(epsilon, in_numpy(name, direction, params, mask))


@every_mask
def test_radii_are_what_rho_says(mask):
    params, direction = uneven_params(), uphill()
    epsilon = {name: perturb(name, direction, params, mask) for name in radius.RULES}
    np.testing.assert_allclose(length(epsilon["global"]), RHO, rtol=1e-5)
    relative = jax.tree.map(jnp.divide, epsilon["adaptive"], params)
    np.testing.assert_allclose(length(relative), RHO, rtol=1e-5)
    for leaf, theta in masks.restrict(params, mask).items():
        moved = length(epsilon["layerwise"][leaf])
        np.testing.assert_allclose(moved, RHO * length(theta), rtol=1e-5)


@every_rule
@pytest.mark.parametrize("factor", [1e-12, 7.0, 1e12])
def test_the_length_of_the_direction_means_nothing(name, factor):
    scaled = jax.tree.map(lambda g: factor * g, uphill())
    assert_close(perturb(name, scaled), perturb(name, uphill()))


@every_rule
def test_a_zero_direction_goes_nowhere(name):
    epsilon = perturb(name, jax.tree.map(jnp.zeros_like, uphill()))
    assert not flatten(epsilon).any()


@every_rule
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_direction_that_is_not_finite_goes_nowhere(name, bad):
    direction = uphill()
    direction["vector"] = direction["vector"].at[1].set(bad)
    assert not flatten(perturb(name, direction)).any()


@every_rule
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_what_is_not_finite_under_the_mask_does_not_matter(name, bad):
    direction = jax.tree.map(lambda g, m: jnp.where(m, g, bad), uphill(), uneven_mask())
    epsilon = perturb(name, direction, mask=uneven_mask())
    assert_equal(epsilon, perturb(name, uphill(), mask=uneven_mask()))
    assert not flatten(epsilon)[flatten(uneven_mask()) == 0].any()


def test_an_array_of_zeros_stays_in_place_where_radii_are_relative():
    params = uneven_params() | {"vector": jnp.zeros(5)}
    for name in ("layerwise", "adaptive", "adaptive_layerwise"):
        epsilon = perturb(name, uphill(), params)
        assert not epsilon["vector"].any()
        assert epsilon["matrix"].any()
        assert np.isfinite(flatten(epsilon)).all()


@pytest.mark.parametrize("mask", [None, [1, 1, 1, 0, 0]], ids=["dense", "masked"])
def test_adaptive_layerwise_moves_kept_zeros_like_a_typical_weight(mask):
    theta, g = jnp.asarray([0.0, -2.0, 1.0, 0.0, 3.0]), jnp.asarray([1.0, 1.0, -2.0, 5.0, 1.0])
    kept = np.ones(5) if mask is None else np.asarray(mask)
    epsilon = perturb("adaptive_layerwise", {"w": g}, {"w": theta}, {"w": jnp.asarray(kept, bool)})
    typical = np.sqrt(np.square(theta * kept).sum() / kept.sum())
    scaled = np.where(theta == 0, typical, np.abs(theta)) * g * kept
    expected = RHO * np.linalg.norm(theta * kept) * scaled / np.linalg.norm(scaled)
    np.testing.assert_allclose(epsilon["w"], expected, rtol=1e-6)


def test_an_array_without_slope_does_not_stop_the_others():
    direction = uphill() | {"vector": jnp.zeros(5)}
    for name in radius.RULES:
        epsilon = perturb(name, direction)
        assert not epsilon["vector"].any()
        assert epsilon["scalar"] != 0


@every_rule
@pytest.mark.parametrize("magnitude", [300.0, 1e-5])
def test_narrow_directions_neither_overflow_nor_vanish(name, magnitude):
    """300² does not fit in float16, (1e-5)² is 0 there."""
    params = {"w": jnp.full(1000, 0.5, jnp.float16)}
    epsilon = perturb(name, {"w": jnp.full(1000, magnitude, jnp.float16)}, params)
    assert epsilon["w"].dtype == jnp.float32
    expected = {
        "global": RHO / np.sqrt(1000),
        "layerwise": RHO * 0.5,
        "filterwise": RHO * 0.5,
        "adaptive": RHO * 0.5 / np.sqrt(1000),
        "adaptive_layerwise": RHO * 0.5,
    }
    np.testing.assert_allclose(epsilon["w"], expected[name], rtol=1e-5)


@every_rule
def test_rho_zero_goes_nowhere(name):
    assert not flatten(perturb(name, uphill(), rho=0.0)).any()


@every_rule
def test_under_vmap_each_row_has_its_own_guard(name):
    rows = jax.tree.map(lambda g: jnp.stack([g, 0 * g, jnp.inf * g]), uphill())
    epsilon = jax.jit(jax.vmap(lambda g: perturb(name, g)))(rows)
    assert_close(jax.tree.map(lambda e: e[0], epsilon), perturb(name, uphill()))
    assert not any(leaf[1:].any() for leaf in jax.tree.leaves(epsilon))


def test_a_function_is_a_rule_too():
    def by_sign(direction, params, rho, mask=None):
        del params, mask
        return jax.tree.map(lambda g: rho * jnp.sign(g), direction)

    np.testing.assert_allclose(np.abs(flatten(perturb(by_sign, uphill()))), RHO)


def test_asam_adds_eta_where_weights_are_and_leaves_biases_as_they_are():
    theta = {"kernel": jnp.asarray([[2.0, -1.0]]), "bias": jnp.asarray([3.0])}
    g = {"kernel": jnp.asarray([[1.0, 4.0]]), "bias": jnp.asarray([2.0])}
    epsilon = radius.asam(eta=0.5)(g, theta, jnp.asarray(RHO))
    scales = {"kernel": np.asarray([[2.5, 1.5]]), "bias": np.ones(1)}
    total = np.sqrt(sum(((scales[k] * np.asarray(g[k])) ** 2).sum() for k in g))
    expected = {k: jnp.asarray(RHO * scales[k] ** 2 * np.asarray(g[k]) / total) for k in g}
    assert_close(epsilon, expected)


def test_asam_without_eta_or_biases_is_the_adaptive_rule():
    epsilon = radius.asam(eta=0.0)(uphill(), uneven_params(), jnp.asarray(RHO))
    assert_close(epsilon, perturb("adaptive", uphill()))


def test_a_negative_eta_is_refused():
    with pytest.raises(ValueError, match=r"eta=-1.0 must be a finite number at least 0"):
        radius.asam(eta=-1.0)


@pytest.mark.parametrize("name", radius.RULES)
@pytest.mark.parametrize("rho", [-0.1, jnp.nan, jnp.inf, -jnp.inf])
def test_a_rho_that_is_none_goes_nowhere(name, rho):
    assert not length(perturb(name, uphill(), rho=jnp.asarray(rho)))


@pytest.mark.parametrize("name", radius.RULES)
def test_a_pruned_weight_that_is_nan_stops_no_other(name):
    mask = masks.resolve(uneven_mask(), uneven_params())
    broken = jax.tree.map(
        lambda p, m: p if m is None else jnp.where(m, p, jnp.nan), uneven_params(), mask
    )
    found, clean = (
        perturb(name, uphill(), params=params, mask=mask) for params in (broken, uneven_params())
    )
    assert length(found) > 0
    assert_equal(found, clean)
