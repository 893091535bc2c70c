"""Random gradient estimation against closed forms and jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    KEY,
    assert_close,
    assert_equal,
    direction,
    flatten,
    keys,
    mlp_batch,
    mlp_loss,
    mlp_params,
    quadratic,
    slow_but,
    uneven_mask,
    uneven_params,
    wavy,
)

import zosam_jax
from zosam_jax import ascent, directions, masks

SIZE, KEPT = 12, 7
every_distribution = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])


def many(estimate, loss, params, count, mask=None):
    """[count, d] directions found with different keys, leaves side by side."""
    found = jax.jit(jax.vmap(lambda key: direction(estimate, loss, params, key=key, mask=mask)))(
        keys(count)
    )
    return np.concatenate([np.reshape(leaf, (count, -1)) for leaf in jax.tree.leaves(found)], 1)


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
    ("distribution", "excess"),
    slow_but([("rademacher", -1)], [("normal", 1), ("rademacher", -1), ("sphere", -1)]),
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


@pytest.mark.parametrize("num_directions", slow_but([4], [1, 4, 16]))
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
