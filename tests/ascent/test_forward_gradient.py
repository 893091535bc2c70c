"""Forward gradients against exact slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import (
    KEY,
    RHO,
    assert_close,
    find,
    flatten,
    mlp_batch,
    mlp_loss,
    mlp_params,
    quadratic,
    stepper,
    uneven_mask,
    uneven_params,
)

import zosam_jax
from zosam_jax import ascent, directions
from zosam_jax.binding import Call

every_distribution = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])


def drawn(count, distribution="normal", params=None, mask=None):
    """The draws of a step: the direction's key, folded with the index."""
    params = uneven_params() if params is None else params
    draw = directions.get(distribution)
    return [draw(jax.random.fold_in(KEY, i), params, mask) for i in range(count)]


@every_mask
@pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
def test_a_forward_gradient_is_the_mean_of_exact_slopes_times_directions(distribution, mask):
    params = uneven_params()
    found = find(ascent.forward_gradient(3, distribution), quadratic, params, mask=mask)
    gradient = flatten(jax.grad(quadratic)(params))
    u = [flatten(x) for x in drawn(3, distribution, mask=mask)]
    expected = np.mean([(gradient @ u_i) * u_i for u_i in u], axis=0)
    np.testing.assert_allclose(flatten(found.direction), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.value, quadratic(params), rtol=1e-6)
    slope = gradient @ expected / np.linalg.norm(expected)
    np.testing.assert_allclose(found.slope, slope, rtol=1e-4)


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_forward_gradients_do_not_depend_on_the_batching(batching):
    one, other = (
        find(ascent.forward_gradient(5, batching=mode), quadratic, uneven_params())
        for mode in ("unroll", batching)
    )
    assert_close(other, one)


def test_a_number_of_forward_gradients_may_be_traced():
    def found(count):
        return find(ascent.forward_gradient(count), quadratic, uneven_params())

    assert_close(jax.jit(found)(3), found(3))


def test_a_forward_gradient_of_narrow_parameters_has_the_sign_and_size_of_a_wide_one():
    def loss(params):
        return quadratic(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), uneven_params())
    found, wide = (find(ascent.forward_gradient(), loss, p) for p in (narrow, uneven_params()))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.direction)} == {jnp.dtype("float32")}
    assert_close(found.direction, wide.direction, rtol=0.03, atol=0.03)


def test_the_value_is_that_of_the_loss_on_the_whole_batch_or_unknown():
    """A stand-in's value is not the loss's, and neither is a part's."""
    up = ascent.forward_gradient()
    assert find(up, quadratic, uneven_params()).value is not None
    assert find(up, quadratic, uneven_params(), probe=Call(quadratic)).value is None


def test_a_fraction_of_the_batch_is_enough_for_the_slopes():
    """Each of them sees two of the eight examples, the descent all."""
    seen = []

    def loss(params, x, y):
        jax.debug.callback(lambda rows: seen.append(rows.shape[0]), x)
        return mlp_loss(params, x, y)

    tx = zosam_jax.sharpness_aware(ascent.forward_gradient(2, fraction=0.25), RHO)
    stepper(tx, loss)(mlp_params(), tx.init(mlp_params()), mlp_batch())
    jax.effects_barrier()
    assert sorted(seen) == [2, 2, 8]
