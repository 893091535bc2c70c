"""Rises of the loss against closed forms on quadratics, and against a search by brute force."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from problems import (
    assert_close,
    assert_equal,
    flatten,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    uneven_mask,
    uneven_params,
)

from zosam_jax import directions, radius, sparsity
from zosam_jax.analysis import sharpness

RHO = 0.4
BATCHES = [mlp_batch(seed=seed) for seed in (1, 2)]
WHOLE = {name: jnp.concatenate([batch[name] for batch in BATCHES]) for name in ("x", "y")}
every_ball = pytest.mark.parametrize("name", ["global", "adaptive", "layerwise"])


def loss_fn(params, batch):
    return mlp_loss(params, **batch)


def rise_at(params, epsilon):
    """The rise of `loss_fn` on BATCHES."""
    rises = [_rise_on_batch(params, epsilon, batch) for batch in BATCHES]
    return np.mean(rises)


@jax.jit
def _rise_on_batch(params, epsilon, batch):
    moved = jax.tree.map(jnp.add, params, epsilon)
    return loss_fn(moved, batch) - loss_fn(params, batch)


def kept_of(params, mask):
    ones = jax.tree.map(lambda p: jnp.ones(p.shape, bool), params)
    return flatten(sparsity.apply_masks(ones, mask)) == 1


def spread_matrix(seed=3):
    """A positive definite matrix for the 12 weights of `uneven_params`, one direction steepest."""
    rng = np.random.default_rng(seed)
    basis, _ = np.linalg.qr(rng.normal(size=(12, 12)))
    return basis @ np.diag([*np.linspace(0.2, 2.0, 11), 8.0]) @ basis.T


def bowl(matrix):
    """½ (θ−θ₀)ᵀA(θ−θ₀) with the minimum at `uneven_params`; the batch is a factor on it."""
    matrix, centre = jnp.asarray(matrix, jnp.float32), ravel_pytree(uneven_params())[0]

    def loss(params, factor):
        away = ravel_pytree(params)[0] - centre
        return factor * away @ matrix @ away / 2

    return loss


@pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])
@pytest.mark.parametrize("distribution", ["normal", "rademacher"])
def test_the_average_rise_in_a_bowl_is_that_of_its_trace(mask, distribution):
    params, matrix = uneven_params(), spread_matrix()
    kept = kept_of(params, mask)
    found = sharpness.average_rise(
        bowl(matrix), params, [0.5, 1.5], RHO, mask=mask, num_samples=300, distribution=distribution
    )
    expected = RHO**2 * np.diag(matrix)[kept].sum() / (2 * kept.sum())
    assert len(found.samples) == 300
    assert 0 < found.standard_error < 0.05 * expected
    assert abs(found.mean - expected) < 4 * found.standard_error


def test_the_average_rise_is_exact_where_all_directions_are_alike():
    found = sharpness.average_rise(bowl(2 * np.eye(12)), uneven_params(), [1.0], RHO)
    np.testing.assert_allclose(found.samples, RHO**2, rtol=1e-5)


@pytest.mark.parametrize("name", radius.RULES)
def test_the_average_rise_moves_by_the_radius_rule(name):
    params, mask, key = mlp_params(), mlp_mask(), jax.random.key(5)
    found = sharpness.average_rise(
        loss_fn, params, BATCHES, RHO, radius=name, mask=mask, num_samples=3, key=5
    )
    expected = []
    for k in jax.random.split(key, 3):
        u = directions.normal(k, params, mask)
        epsilon = radius.perturbation(radius.RULES[name], u, params, jnp.asarray(RHO), mask)
        expected.append(rise_at(params, epsilon))
    np.testing.assert_allclose(found.samples, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.mean, np.mean(expected), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        found.standard_error, np.std(expected, ddof=1) / np.sqrt(3), rtol=1e-3
    )


@pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])
def test_the_worst_rise_in_a_bowl_is_that_of_the_largest_eigenvalue(mask):
    params, matrix = uneven_params(), spread_matrix()
    kept = kept_of(params, mask)
    found = sharpness.worst_rise(bowl(matrix), params, [0.5, 1.5], RHO, mask=mask, num_steps=60)
    largest = np.linalg.eigvalsh(matrix[np.ix_(kept, kept)])[-1]
    np.testing.assert_allclose(found.rise, RHO**2 * largest / 2, rtol=1e-3)
    assert not flatten(found.epsilon)[~kept].any()
    np.testing.assert_allclose(np.linalg.norm(flatten(found.epsilon)), RHO, rtol=1e-5)


@pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])
def test_the_worst_adaptive_rise_is_that_of_the_scaled_matrix(mask):
    params, matrix = uneven_params(), spread_matrix()
    kept, theta = kept_of(params, mask), flatten(params)
    found = sharpness.worst_rise(
        bowl(matrix), params, [1.0], RHO, radius="adaptive", mask=mask, num_steps=60
    )
    scaled = np.outer(theta, theta) * matrix
    largest = np.linalg.eigvalsh(scaled[np.ix_(kept, kept)])[-1]
    np.testing.assert_allclose(found.rise, RHO**2 * largest / 2, rtol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(flatten(found.epsilon) / theta), RHO, rtol=1e-5)


def test_the_worst_layerwise_rise_fills_every_ball():
    params = uneven_params()
    found = sharpness.worst_rise(
        bowl(np.eye(12)), params, [1.0], RHO, radius="layerwise", num_steps=5
    )
    np.testing.assert_allclose(found.rise, RHO**2 * np.sum(flatten(params) ** 2) / 2, rtol=1e-4)
    for epsilon, theta in zip(jax.tree.leaves(found.epsilon), jax.tree.leaves(params), strict=True):
        moved, length = np.linalg.norm(epsilon), np.linalg.norm(theta)
        np.testing.assert_allclose(moved, RHO * length, rtol=1e-5)


def test_the_worst_rise_on_a_slope_is_that_of_the_trust_region():
    """max gᵀε + ½ εᵀAε on a sphere: ε = (μ − A)⁻¹ g with μ > λ_max such that ‖ε‖ = ρ."""
    matrix, g = spread_matrix(), np.linspace(-1, 1, 12)
    centre = flatten(uneven_params())

    def loss(params, batch):
        away = ravel_pytree(params)[0] - centre.astype(np.float32)
        return batch * (away @ g.astype(np.float32) + away @ matrix.astype(np.float32) @ away / 2)

    low, high = 8.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        epsilon = np.linalg.solve(middle * np.eye(12) - matrix, g)
        low, high = (middle, high) if np.linalg.norm(epsilon) > RHO else (low, middle)
    expected = g @ epsilon + epsilon @ matrix @ epsilon / 2
    found = sharpness.worst_rise(loss, uneven_params(), [1.0], RHO, num_steps=40)
    np.testing.assert_allclose(found.rise, expected, rtol=1e-4)
    np.testing.assert_allclose(flatten(found.epsilon), epsilon, atol=5e-3)


@every_ball
@pytest.mark.parametrize("mask", [None, mlp_mask()], ids=["dense", "masked"])
def test_the_first_point_is_sams_and_none_is_below(name, mask):
    params = mlp_params()
    gradient = jax.grad(lambda p: (loss_fn(p, BATCHES[0]) + loss_fn(p, BATCHES[1])) / 2)(params)
    epsilon = radius.perturbation(radius.RULES[name], gradient, params, jnp.asarray(RHO), mask)
    sam = rise_at(params, epsilon)
    one = sharpness.worst_rise(loss_fn, params, BATCHES, RHO, radius=name, mask=mask, num_steps=1)
    assert_close(one.epsilon, epsilon, rtol=1e-4)
    np.testing.assert_allclose(one.rise, sam, rtol=1e-4)
    many = sharpness.worst_rise(loss_fn, params, BATCHES, RHO, radius=name, mask=mask, num_steps=15)
    np.testing.assert_allclose(many.rises[0], one.rise, rtol=1e-6)
    assert len(many.rises) == 15
    assert many.rise == many.rises.max() > one.rise
    np.testing.assert_allclose(rise_at(params, many.epsilon), many.rise, rtol=1e-4)


@every_ball
def test_no_random_point_of_the_ball_is_worse(name):
    params, rng = mlp_params(), np.random.default_rng(0)
    found = sharpness.worst_rise(loss_fn, params, BATCHES, RHO, radius=name)
    for key in rng.integers(0, 2**31, 50):
        u = directions.normal(jax.random.key(int(key)), params)
        epsilon = radius.perturbation(radius.RULES[name], u, params, jnp.asarray(RHO))
        assert rise_at(params, epsilon) < found.rise


def test_a_peak_has_no_rise():
    found = sharpness.worst_rise(bowl(-spread_matrix()), uneven_params(), [1.0], RHO)
    assert found.rise == 0
    assert not flatten(found.epsilon).any()
    assert (found.rises < 0).all()


def test_an_overshoot_is_taken_back():
    """A ring of maxima well inside the ball: the steps have to shorten to find it."""

    def loss(params, batch):
        distance = jnp.sum(jnp.square(ravel_pytree(params)[0]))
        return batch * distance * jnp.exp(-distance)

    params = jax.tree.map(lambda p: 0.1 * p, uneven_params())
    found = sharpness.worst_rise(loss, params, [1.0], 4.0, num_steps=40)
    start = np.sum(flatten(params) ** 2)
    np.testing.assert_allclose(found.rise, np.exp(-1) - start * np.exp(-start), rtol=1e-3)
    assert found.rises[0] < 0  # SAM's point is far beyond the ring
    assert np.linalg.norm(flatten(found.epsilon)) < 2


def test_a_loss_that_is_nowhere_finite_says_so():
    found = sharpness.worst_rise(
        lambda p, b: jnp.nan * loss_fn(p, b), mlp_params(), BATCHES, RHO, num_steps=2
    )
    assert np.isnan(found.rise)
    assert np.isnan(found.rises).all()


def test_several_batches_are_one_large_one():
    several, one = (
        sharpness.worst_rise(loss_fn, mlp_params(), batches, RHO, num_steps=3)
        for batches in (BATCHES, [WHOLE])
    )
    np.testing.assert_allclose(several.rises, one.rises, rtol=1e-4)
    several, one = (
        sharpness.average_rise(loss_fn, mlp_params(), batches, RHO)
        for batches in (BATCHES, [WHOLE])
    )
    np.testing.assert_allclose(several.samples, one.samples, rtol=1e-3, atol=1e-6)


def test_keys_decide():
    averages = [
        sharpness.average_rise(loss_fn, mlp_params(), BATCHES, RHO, key=key).samples
        for key in (1, jax.random.key(1), 2)
    ]
    np.testing.assert_array_equal(averages[0], averages[1])
    assert (averages[0] != averages[2]).all()
    worst = [
        sharpness.worst_rise(
            bowl(spread_matrix()), uneven_params(), [1.0], RHO, num_steps=1, key=key
        )
        for key in (1, 1, 2)
    ]
    assert_equal(worst[0].epsilon, worst[1].epsilon)
    assert worst[0].rise != worst[2].rise


def test_small_displacements_of_narrow_parameters_are_not_lost():
    narrow = mlp_params(jnp.bfloat16)
    wide = jax.tree.map(lambda p: p.astype(jnp.float32), narrow)
    for rise in (sharpness.average_rise, sharpness.worst_rise):
        found = rise(loss_fn, narrow, BATCHES, 1e-3)
        assert_equal(found, rise(loss_fn, wide, BATCHES, 1e-3))
    assert 1e-4 < found.rise < 1e-2


def test_parameters_that_are_no_numbers_stay():
    params = mlp_params() | {"steps": jnp.arange(3)}

    def loss(params, batch):
        assert params["steps"].dtype == jnp.int32
        return loss_fn({name: params[name] for name in ("hidden", "out")}, batch)

    found = sharpness.worst_rise(loss, params, BATCHES, RHO, radius="adaptive", num_steps=2)
    expected = sharpness.worst_rise(
        loss_fn, mlp_params(), BATCHES, RHO, radius="adaptive", num_steps=2
    )
    assert found.epsilon.pop("steps") is None
    assert_close(found.epsilon, expected.epsilon)
    assert sharpness.average_rise(loss, params, BATCHES, RHO).standard_error > 0


@pytest.mark.parametrize(
    ("rise", "options", "error", "sentence"),
    [
        (sharpness.worst_rise, {"rho": 0.0}, ValueError, "rho=0.0 must be a finite number greater"),
        (sharpness.average_rise, {"rho": "1"}, TypeError, "rho='1' must be a number greater"),
        (sharpness.worst_rise, {"num_steps": 0}, ValueError, "num_steps=0 must be at least 1"),
        (sharpness.average_rise, {"num_samples": 0}, ValueError, "num_samples=0 must be at least"),
        (
            sharpness.worst_rise,
            {"radius": "filterwise"},
            ValueError,
            "radius='filterwise' is not known; choose one of 'global', 'adaptive', 'layerwise'.",
        ),
        (
            sharpness.average_rise,
            {"radius": "calibrated"},
            ValueError,
            "radius='calibrated' is not",
        ),
        (sharpness.average_rise, {"distribution": "cauchy"}, ValueError, "distribution='cauchy'"),
        (
            sharpness.worst_rise,
            {"mask": mlp_mask() | {"out": jnp.ones(3, bool)}},
            ValueError,
            r"mask\['out'\]\['bias'\] has the shape \(3,\)",
        ),
        (sharpness.worst_rise, {"batches": []}, ValueError, "batches is empty"),
        (
            sharpness.average_rise,
            {"loss_fn": lambda params, batch: (0.0, batch)},
            TypeError,
            "loss_fn returned a tuple of 2",
        ),
    ],
)
def test_wrong_arguments(rise, options, error, sentence):
    arguments = {"loss_fn": loss_fn, "params": mlp_params(), "batches": BATCHES, "rho": RHO}
    with pytest.raises(error, match=sentence):
        rise(**arguments | options)
