"""Ascents against closed forms and against jax.grad."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    assert_close,
    assert_equal,
    direction,
    flatten,
    keys,
    mlp_batch,
    mlp_loss,
    mlp_params,
    uneven_mask,
    uneven_params,
)

import zosam_jax
from zosam_jax import ascent, directions, masks

SIZE, KEPT = 12, 7
KEY = jax.random.key(3)
every_distribution = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])


def quadratic(params):
    """Curved differently along every coordinate, with its minimum off the origin."""
    parts = [jnp.sum((1 + jnp.arange(p.size)) * (p.ravel() - 0.3) ** 2) for p in params.values()]
    return sum(parts) / 10


def wavy(params):
    """A loss with all of its derivatives different from zero."""
    return sum(jnp.sum(jnp.sin(2 * p) + p**3 / 3) for p in params.values()) + params["scalar"] ** 4


def many(estimate, loss, params, count, mask=None):
    """[count, d] directions found with different keys, leaves side by side."""
    found = jax.jit(jax.vmap(lambda key: direction(estimate, loss, params, key=key, mask=mask)))(
        keys(count)
    )
    return np.concatenate([np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(found)], 1)


# Random gradient estimation.


@every_distribution
@every_mask
def test_on_a_linear_loss_the_slope_along_a_direction_is_exact(distribution, mask):
    slopes = jax.tree.map(jnp.cos, uneven_params())
    estimate = ascent.random_gradient_estimate(3, delta=0.5, distribution=distribution)
    found = direction(
        estimate, lambda p: optax.tree.vdot(slopes, p), uneven_params(), key=KEY, mask=mask
    )
    draw = directions.get(distribution)
    u = [flatten(draw(jax.random.fold_in(KEY, i), uneven_params(), mask)) for i in range(3)]
    expected = np.mean([(flatten(slopes) @ u_i) * u_i for u_i in u], axis=0)
    np.testing.assert_allclose(flatten(found), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("distribution", "excess"), [("normal", 1), ("rademacher", -1), ("sphere", -1)]
)
@pytest.mark.parametrize("num_directions", [1, 3])
@every_mask
def test_the_estimate_is_unbiased_with_the_textbook_variance(
    distribution, excess, num_directions, mask
):
    """E‖ĝ − ∇L‖² = ‖∇L‖²·(d + 1)/m for normal directions, (d − 1)/m for the others."""
    estimate = ascent.random_gradient_estimate(num_directions, 0.1, distribution)
    found = many(estimate, quadratic, uneven_params(), 20_000, mask)
    gradient = flatten(masks.restrict(jax.grad(quadratic)(uneven_params()), mask))
    variance = ((SIZE if mask is None else KEPT) + excess) / num_directions
    errors = ((found - gradient) ** 2).sum(axis=1) / (gradient**2).sum()
    np.testing.assert_allclose(errors.mean(), variance, rtol=0.06)
    bias = ((found.mean(axis=0) - gradient) ** 2).sum() / (gradient**2).sum()
    assert bias < 4 * variance / len(found)


@pytest.mark.parametrize("num_directions", [1, 4, 16])
def test_the_cosine_with_the_gradient_is_the_root_of_m_over_d(num_directions):
    params = {"a": jnp.linspace(-1, 2, 300), "b": jnp.ones((10, 10))}
    estimate = ascent.random_gradient_estimate(num_directions, 0.1, batching="map")
    found = many(estimate, lambda p: quadratic(p) / 100, params, 1000)
    gradient = flatten(jax.grad(quadratic)(params))
    cosines = found @ gradient / np.linalg.norm(gradient) / np.linalg.norm(found, axis=1)
    expected = np.sqrt(num_directions / 400)
    np.testing.assert_allclose(np.sqrt((cosines**2).mean()), expected, rtol=0.08)
    assert num_directions == 1 or cosines.mean() > 0.9 * expected


def test_the_error_of_a_central_difference_is_of_second_order():
    with jax.enable_x64(True):
        params = uneven_params(jnp.float64)

        def found(delta):
            return direction(ascent.random_gradient_estimate(1, delta), wavy, params, key=KEY)

        u = directions.normal(jax.random.fold_in(KEY, 0), params)
        exact = flatten(optax.tree.scale(optax.tree.vdot(jax.grad(wavy)(params), u), u))
        coarse, fine = (np.linalg.norm(flatten(found(d)) - exact) for d in (2e-2, 1e-2))
    np.testing.assert_allclose(coarse / fine, 4, rtol=0.02)


@pytest.mark.parametrize("batching", ["vmap", "map", "auto"])
@pytest.mark.parametrize("num_directions", [1, 5])
def test_batching_does_not_change_the_estimate(batching, num_directions):
    with jax.enable_x64(True):
        params = uneven_params(jnp.float64)
        one, other = (
            direction(
                ascent.random_gradient_estimate(num_directions, batching=mode),
                wavy,
                params,
                key=KEY,
            )
            for mode in ("unroll", batching)
        )
        assert_close(other, one, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("batching", ["auto", "unroll"])
def test_a_traced_number_of_directions_runs_in_a_loop_and_says_so(batching):
    with jax.enable_x64(True):
        params = uneven_params(jnp.float64)

        def found(num_directions):
            estimate = ascent.random_gradient_estimate(num_directions, batching=batching)
            return direction(estimate, wavy, params, key=KEY)

        traced = jax.jit(found)
        with pytest.warns(UserWarning, match="num_directions is traced"):
            one = traced(1)
        assert_close(one, found(1), rtol=1e-9, atol=1e-9)
        assert_close(traced(3), found(3), rtol=1e-9, atol=1e-9)
        assert traced._cache_size() == 1


def test_two_steps_draw_different_directions():
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.random_gradient_estimate(), rho=0.1)
    params, batch = mlp_params(), mlp_batch()
    first = grad.init(params, 0)
    _, second = grad(params, first, **batch)
    one, two = (grad.perturbation(params, state, **batch) for state in (first, second))
    assert abs(flatten(one) @ flatten(two)) < 0.9 * np.linalg.norm(flatten(one)) ** 2
    assert_equal(first.key, second.key)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters_are_probed_in_float32(dtype):
    """With the step the documentation recommends, the slopes keep their signs and sizes."""
    params = jax.tree.map(lambda p: p.astype(dtype), uneven_params())
    estimate = ascent.random_gradient_estimate(8, delta=1e-2, distribution="rademacher")

    def loss(p):
        return quadratic(jax.tree.map(lambda x: x.astype(jnp.float32), p))

    found = flatten(direction(estimate, loss, params, key=KEY))
    wide = flatten(direction(estimate, loss, uneven_params(), key=KEY))
    assert found @ wide / np.linalg.norm(found) / np.linalg.norm(wide) > 0.95


# Coordinate-wise gradient estimation.


@every_mask
@pytest.mark.parametrize("chunk_size", [1, 5, 100])  # 5 divides neither 12 nor 7
def test_every_kept_coordinate_is_estimated_once(chunk_size, mask):
    with jax.enable_x64(True):
        params = uneven_params(jnp.float64)
        estimate = ascent.coordinate_gradient_estimate(1e-4, chunk_size)
        found = jax.jit(lambda: direction(estimate, wavy, params, mask=mask))()
        gradient = masks.restrict(jax.grad(wavy)(params), mask)
        assert_close(found, gradient, rtol=1e-6, atol=1e-7)
        assert_equal(
            jax.tree.map(lambda g: g != 0, found), jax.tree.map(lambda g: g != 0, gradient)
        )


def test_the_error_of_a_coordinate_estimate_is_of_second_order():
    with jax.enable_x64(True):
        params = uneven_params(jnp.float64)
        gradient = flatten(jax.grad(wavy)(params))
        errors = [
            flatten(direction(ascent.coordinate_gradient_estimate(delta), wavy, params)) - gradient
            for delta in (2e-2, 1e-2)
        ]
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.02)


def test_coordinate_estimates_in_float32():
    found = direction(ascent.coordinate_gradient_estimate(1e-2), wavy, uneven_params())
    assert_close(found, jax.grad(wavy)(uneven_params()), rtol=5e-3, atol=2e-3)


def test_coordinate_estimates_of_mixed_dtypes():
    params = uneven_params() | {"vector": uneven_params()["vector"].astype(jnp.bfloat16)}

    def loss(p):
        return quadratic(jax.tree.map(lambda x: x.astype(jnp.float32), p))

    found = direction(ascent.coordinate_gradient_estimate(0.125), loss, params)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float32")}
    assert_close(found, jax.grad(loss)(jax.tree.map(jnp.float32, params)), rtol=0.05, atol=0.02)


def test_with_nothing_kept_nothing_is_estimated():
    nothing = masks.resolve(False, uneven_params())
    found = direction(ascent.coordinate_gradient_estimate(), wavy, uneven_params(), mask=nothing)
    assert not flatten(found).any()


# The others, and what ascents have in common.


def test_backprop_is_the_gradient():
    assert_equal(
        direction(ascent.backprop(), wavy, uneven_params()), jax.grad(wavy)(uneven_params())
    )


@every_distribution
@every_mask
def test_a_random_direction_is_the_draw_itself(distribution, mask):
    found = direction(
        ascent.random_direction(distribution), wavy, uneven_params(), key=KEY, mask=mask
    )
    assert_equal(found, directions.get(distribution)(KEY, uneven_params(), mask))


LOOKING = {
    "backprop": ascent.backprop(),
    "random gradient": ascent.random_gradient_estimate(2),
    "coordinate gradient": ascent.coordinate_gradient_estimate(),
}
every_look = pytest.mark.parametrize("name", LOOKING)


@every_look
def test_at_a_stationary_point_the_gradient_is_the_plain_one(name):
    params = jax.tree.map(jnp.zeros_like, uneven_params())
    squared = functools.partial(optax.tree.norm, squared=True)
    grad = zosam_jax.value_and_grad(squared, ascent=LOOKING[name], rho=0.5)
    state = grad.init(params)
    assert not flatten(grad.perturbation(params, state)).any()
    (value, gradient), _ = grad(params, state)
    assert value == 0
    assert not flatten(gradient).any()


@every_look
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_loss_that_is_not_finite_nearby_gives_no_perturbation(name, bad):
    params = uneven_params()

    def loss(p):
        inside = optax.tree.norm(optax.tree.sub(p, params)) == 0
        return jnp.where(inside, 1.0, bad) * wavy(p)

    grad = zosam_jax.value_and_grad(loss, ascent=LOOKING[name], rho=0.5)
    epsilon = grad.perturbation(params, grad.init(params))
    if name != "backprop":  # whose gradient at θ knows nothing of the neighbourhood
        assert not flatten(epsilon).any()
    assert np.isfinite(flatten(epsilon)).all()


def test_a_gradient_that_is_not_finite_gives_no_perturbation():
    def loss(params):
        return jnp.sqrt(params["w"]).sum()  # infinitely steep at 0

    grad = zosam_jax.value_and_grad(loss, ascent=ascent.backprop(), rho=0.5)
    params = {"w": jnp.array([0.0, 4.0])}
    assert not flatten(grad.perturbation(params, grad.init(params))).any()


def test_an_ascent_may_learn_from_the_gradients_it_is_shown():
    """A previous-gradient ascent (S2-SAM), written here: ε_t ∝ ∇L(θ+ε) of the step before."""
    previous = ascent.Ascent(
        init=lambda params: jax.tree.map(jnp.zeros_like, params),
        direction=lambda objective, params, state, *, key, mask: ascent.AscentResult(state),
        observe=lambda state, gradient: gradient,
    )
    params, grad = uneven_params(), zosam_jax.value_and_grad(wavy, ascent=previous, rho=0.5)
    state = grad.init(params)
    (_, first), state = grad(params, state)
    assert_close(first, jax.grad(wavy)(params))
    assert_equal(state.ascent, first)
    epsilon = grad.perturbation(params, state)
    expected = 0.5 * flatten(first) / np.linalg.norm(flatten(first))
    np.testing.assert_allclose(flatten(epsilon), expected, rtol=1e-5)
