"""The previous gradient against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_mlp import NumpyMLP, length, move, to_numpy
from problems import (
    RHO,
    assert_close,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    train,
    uneven_mask,
)

import zosam_jax
from zosam_jax import ascent, directions, masks

every_distribution = pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_four_steps_along_the_previous_gradients_equal_numpy(decay, masked):
    mask = masks.resolve(mlp_mask() if masked else None, mlp_params())
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())
    kept = to_numpy(masks.restrict(jax.tree.map(jnp.ones_like, mlp_params()), mask))
    average = {k: np.zeros_like(v) for k, v in p.items()}
    for count in range(4):
        up = {k: average[k] * kept[k] for k in p}
        there = move(p, up, RHO / length(up)) if count else p
        gradient = problem.gradient(there)
        average = {k: decay * average[k] + (1 - decay) * gradient[k] for k in p}
        p = move(p, gradient, -0.1)

    tx = zosam_jax.sharpness_aware(ascent.previous_gradient(decay), RHO, mask=mask)
    # Weight decay and momentum come later and stay out of what is remembered.
    params, state = train(optax.chain(tx, optax.sgd(0.1)), steps=4)
    assert_close(to_numpy(params), p, rtol=1e-4, atol=1e-5)
    assert_close(to_numpy(state[0].ascent.average), average, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_remembered_before_weight_decay():
    tx = optax.chain(
        zosam_jax.sharpness_aware(ascent.previous_gradient(), RHO),
        optax.add_decayed_weights(10.0),
        optax.sgd(0.1),
    )
    _, state = train(tx, steps=1)
    assert_close(state[0].ascent.average, jax.grad(mlp_loss)(mlp_params(), **mlp_batch()))
