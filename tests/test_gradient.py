"""The algorithm as a function: against the transformation, and against jax.grad at θ+ε."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from problems import (
    RHO,
    assert_close,
    assert_equal,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
)

import zosam_jax
from zosam_jax import ascent

ROWS = {
    "sam": ascent.backprop(),
    "zo_sam": ascent.random_gradient_estimate(),
    "random_weight_perturbation": ascent.random_direction(),
}


@pytest.mark.parametrize("radius", ["global", "layerwise", "adaptive"])
@pytest.mark.parametrize("name", ROWS)
def test_the_transformation_and_the_function_agree_bit_for_bit(name, radius):
    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ROWS[name], rho=RHO, radius=radius)
    options = {} if name == "sam" else {"key": 5}
    tx = zosam_jax.REGISTRY[name](RHO, radius=radius, **options)
    state, opt_state = grad.init(params, 5), tx.init(params)
    for _ in range(2):
        (value, gradient), state = grad(params, state, batch["x"], y=batch["y"])
        updates, opt_state = tx.update(None, opt_state, params, value_fn=mlp_loss, **batch)
        assert_equal(updates, gradient)
        assert_equal(opt_state.value, value)


@pytest.mark.parametrize("name", ROWS)
def test_the_gradient_is_taken_at_the_perturbed_point(name):
    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ROWS[name], rho=RHO, mask=mlp_mask())
    state = grad.init(params, 5)
    epsilon = grad.perturbation(params, state, **batch)
    there = jax.tree.map(jnp.add, params, epsilon)
    np.testing.assert_allclose(optax.tree.norm(epsilon), RHO, rtol=1e-5)
    (value, gradient), _ = grad(params, state, **batch)
    expected = jax.value_and_grad(mlp_loss)(there, **batch)
    assert_close((value, gradient), expected)


@pytest.mark.parametrize("name", ROWS)
def test_aux_comes_from_one_pass(name):
    """From the pass at θ where the ascent makes one with gradients, else from the descent's."""

    def loss(params, x, y):
        return mlp_loss(params, x, y), params

    params, batch = mlp_params(), mlp_batch()
    grad = zosam_jax.value_and_grad(loss, ascent=ROWS[name], rho=RHO, has_aux=True)
    state = grad.init(params)
    epsilon = grad.perturbation(params, state, **batch)
    ((_, seen_at), _), _ = grad(params, state, **batch)
    at = params if name == "sam" else jax.tree.map(jnp.add, params, epsilon)
    assert_close(seen_at, at)


def test_probe_fn_is_used_at_probes_and_nowhere_else():
    """Its slope decides the sign of ε; the value and the gradient are the loss's."""
    params, batch = mlp_params(), mlp_batch()

    def negated(params, y, x):
        return -mlp_loss(params, x, y)

    estimate = ascent.random_gradient_estimate()
    plain, misled = (
        zosam_jax.value_and_grad(mlp_loss, ascent=estimate, rho=RHO, probe_fn=probe)
        for probe in (None, negated)
    )
    state = plain.init(params)
    uphill, downhill = (g.perturbation(params, state, **batch) for g in (plain, misled))
    assert_close(downhill, jax.tree.map(jnp.negative, uphill))
    there = jax.tree.map(jnp.add, params, downhill)
    expected = jax.value_and_grad(mlp_loss)(there, **batch)
    assert_close(misled(params, state, **batch)[0], expected)

    tx = zosam_jax.zo_sam(RHO)
    updates, _ = tx.update(
        None, tx.init(params), params, value_fn=mlp_loss, probe_fn=negated, **batch
    )
    assert_close(updates, expected[1])


def test_probe_fn_takes_its_own_arguments_by_name():
    def on_a_slice(params, small):
        return mlp_loss(params, **small)

    tx, params, batch = zosam_jax.zo_sam(RHO), mlp_params(), mlp_batch()
    small = {k: v[:4] for k, v in batch.items()}
    updates, _ = tx.update(
        None, tx.init(params), params, value_fn=mlp_loss, probe_fn=on_a_slice, small=small, **batch
    )
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.random_gradient_estimate(), rho=RHO)
    epsilon = grad.perturbation(params, grad.init(params), **small)
    expected = jax.grad(mlp_loss)(jax.tree.map(jnp.add, params, epsilon), **batch)
    assert_close(updates, expected)


def test_rho_follows_its_schedule(factory):
    radii = [0.3, 0.2, 0.1]
    schedule = optax.piecewise_interpolate_schedule("linear", 0.3, {2: 1 / 3})
    np.testing.assert_allclose([schedule(t) for t in range(3)], radii, rtol=1e-5)
    tx, batch, params = factory(schedule), mlp_batch(), mlp_params()
    state = tx.init(params)
    for rho in radii:
        expected, _ = factory(rho).update(None, state, params, value_fn=mlp_loss, **batch)
        updates, state = tx.update(None, state, params, value_fn=mlp_loss, **batch)
        assert_close(updates, expected)
