"""Coordinate-wise gradient estimation against jax.grad."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    assert_close,
    assert_equal,
    direction,
    flatten,
    quadratic,
    uneven_mask,
    uneven_params,
    wavy,
)

from zosam_jax import ascent, directions, masks

every_distribution = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])


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
