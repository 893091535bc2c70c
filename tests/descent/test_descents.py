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
