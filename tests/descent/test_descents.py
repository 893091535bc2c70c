"""Where a step's auxiliary output comes from, and what descents that estimate give."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from problems import (
    RHO,
    assert_close,
    emitted,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
)

import zosam_jax
from zosam_jax import ascent, descent, masks

SEED = 11


def with_point(params, x, y):
    return mlp_loss(params, x, y), (params, y)


@pytest.mark.parametrize(
    "tx",
    [zosam_jax.gsam(RHO), zosam_jax.look_sam(RHO), zosam_jax.esam(RHO), zosam_jax.mezo()],
    ids=["gsam", "look_sam", "esam", "mezo"],
)
def test_aux_comes_from_the_whole_batch_at_the_point_itself(tx):
    _, state = emitted(tx, with_point, has_aux=True)
    point, seen = state.aux
    assert_close(point, mlp_params())
    assert seen.shape == (8,)


def test_aux_of_an_antithetic_pair_is_that_of_the_side_taken():
    tx = zosam_jax.antithetic_sam(RHO, key=SEED)
    taken = set()
    for sign in (1, -1):  # one of the two losses is larger on the other side

        def loss(params, x, y, sign=sign):
            value, aux = with_point(params, x, y)
            return sign * value, aux[0]

        gradient, state = emitted(tx, loss, has_aux=True)
        there = state.aux
        epsilon = jax.tree.map(jnp.subtract, there, mlp_params())
        opposite = jax.tree.map(jnp.subtract, mlp_params(), epsilon)
        np.testing.assert_allclose(optax.tree.norm(epsilon), RHO, rtol=1e-5)
        (value, _), expected = jax.value_and_grad(loss, has_aux=True)(there, **mlp_batch())
        assert_close((state.value, gradient), (value, expected))
        assert value > loss(opposite, **mlp_batch())[0]
        taken.add(bool(epsilon["out"]["bias"][0] > 0))
    assert taken == {True, False}


def test_an_estimate_is_the_direction_with_its_length_where_the_mask_is():
    exact, params = jax.grad(mlp_loss)(mlp_params(), **mlp_batch()), mlp_params()
    grad = zosam_jax.value_and_grad(
        mlp_loss,
        ascent=ascent.backprop(),
        rho=optax.constant_schedule(7.0),
        descent=descent.estimate(),
    )
    (value, found), _ = grad(params, grad.init(params), mask=mlp_mask(), **mlp_batch())
    assert_close(found, masks.apply_masks(exact, mlp_mask()))
    np.testing.assert_allclose(value, mlp_loss(params, **mlp_batch()), rtol=1e-6)


@pytest.mark.parametrize("name", zosam_jax.ESTIMATORS)
def test_estimators_keep_dtypes_and_perturb_nothing(name):
    params = mlp_params(jnp.bfloat16)
    tx = zosam_jax.ESTIMATORS[name]()
    updates, state = tx.update(None, tx.init(params), params, value_fn=mlp_loss, **mlp_batch())
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    assert state.diagnostics.epsilon_norm == 0
    assert jnp.isnan(state.diagnostics.slope)  # along an ε that there is none of


def test_an_estimate_on_a_part_of_the_batch_has_the_value_of_all_of_it():
    _, state = emitted(zosam_jax.mezo(fraction=0.5))
    np.testing.assert_allclose(state.value, mlp_loss(mlp_params(), **mlp_batch()), rtol=1e-6)


def test_without_a_perturbation_the_gap_is_closed_exactly():
    updates, _ = emitted(zosam_jax.gsam(jnp.zeros(()), alpha=100.0))
    assert_close(updates, jax.grad(mlp_loss)(mlp_params(), **mlp_batch()))


# Along the arc.


def extrapolated(loss, *, alpha=1.5, rho=RHO, mask=None):
    grad = zosam_jax.value_and_grad(
        loss, ascent=ascent.backprop(), rho=rho, descent=descent.extrapolated(alpha), mask=mask
    )
    params = {"w": jnp.array([2.0, 1.0])}
    return grad(params, grad.init(params))[0][1]["w"]


def test_where_the_gradient_is_along_epsilon_there_is_no_arc():
    np.testing.assert_allclose(extrapolated(lambda p: p["w"].sum()), [1.0, 1.0], rtol=1e-6)
    # The whole way back: ε and the gradient are opposed, and any arc would do as well.
    back = extrapolated(lambda p: -jnp.square(p["w"] @ jnp.ones(2) - 2.9), rho=1.0)
    np.testing.assert_allclose(back, jnp.full(2, 2 * (2.9 - 3 + jnp.sqrt(2.0))), rtol=1e-4)


def test_a_turned_gradient_is_as_long_and_lies_beyond_the_gradient():
    def loss(p):
        return p["w"] @ jnp.array([[1.0, 0.0], [0.0, -1.0]]) @ p["w"]

    epsilon, plain, turned = (extrapolated(loss, alpha=alpha) for alpha in (0.0, 1.0, 1.5))
    lengths = [jnp.linalg.norm(x) for x in (epsilon, plain, turned)]
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-5)

    def angle(x, y):
        return jnp.arccos(x @ y / jnp.linalg.norm(x) / jnp.linalg.norm(y))

    np.testing.assert_allclose(angle(epsilon, turned), 1.5 * angle(epsilon, plain), rtol=1e-3)


def test_the_first_measurement_waits_for_a_perturbation():
    """ρ warms up from 0; and no loss that is finite leaves α as it is."""
    tx = zosam_jax.xsam(lambda count: jnp.where(count < 2, 0.0, RHO), interval=3)
    params, state, alphas = mlp_params(), tx.init(mlp_params()), []
    for _ in range(7):
        updates, state = tx.update(None, state, params, value_fn=mlp_loss, **mlp_batch())
        alphas.append(float(state.descent.alpha))
        params = optax.apply_updates(params, optax.tree.scale(-1.0, updates))
    assert alphas[:2] == [1.0, 1.0]
    assert alphas[2] == alphas[3] == alphas[4] != 1.0
    assert alphas[5] == alphas[6]
    assert int(state.descent.wait) == 1
