"""Friendly SAM's average of past gradients, beyond the steps of test_optimizers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy_mlp import NumpyMLP, length, move, to_numpy
from problems import RHO, assert_close, assert_equal, mlp_batch, mlp_loss, mlp_params, stepper

import zosam_jax
from zosam_jax import ascent

DECAY = 0.6


def test_microbatches_perturb_each_its_own_way_and_share_one_average():
    """d_j = g_j − m on part j; m averages the gradients of the whole batch."""
    tx = zosam_jax.sharpness_aware(ascent.friendly(decay=DECAY), RHO, microbatches=2)
    tx, batches = optax.chain(tx, optax.sgd(0.1)), [mlp_batch(seed=i) for i in range(4)]
    params, step = mlp_params(), stepper(tx)
    state, p, m = tx.init(params), to_numpy(params), None
    for batch in batches:
        problem = NumpyMLP(**batch)
        parts = [problem.on(slice(j, None, 2)) for j in range(2)]
        found = []
        for part in parts:
            d = part.gradient(p) if m is None else move(part.gradient(p), m, -1.0)
            found.append(part.gradient(move(p, d, RHO / length(d))))
        g = problem.gradient(p)
        m = g if m is None else {k: DECAY * m[k] + (1 - DECAY) * g[k] for k in g}
        p = move(p, {k: (found[0][k] + found[1][k]) / 2 for k in g}, -0.1)
        params, state = step(params, state, batch)
    assert_close(to_numpy(params), p, rtol=1e-4, atol=1e-5)
    assert_close(to_numpy(state[0].ascent.average), m, rtol=1e-4, atol=1e-5)


def test_the_first_gradient_that_is_finite_starts_the_average():
    up, params = ascent.friendly(), mlp_params()
    grad = zosam_jax.value_and_grad(lambda p, c: c * mlp_loss(p, **mlp_batch()), ascent=up, rho=RHO)
    state = grad.init(params)
    _, state = grad(params, state, jnp.nan)
    assert not state.ascent.started
    assert not any(leaf.any() for leaf in jax.tree.leaves(state.ascent.average))
    _, state = grad(params, state, 1.0)
    assert state.ascent.started
    assert_close(state.ascent.average, jax.grad(mlp_loss)(params, **mlp_batch()))


def test_the_same_batch_at_the_same_weights_leaves_nothing_to_perturb_along():
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.friendly(), rho=RHO)
    params, state = mlp_params(), grad.init(mlp_params())
    _, state = grad(params, state, **mlp_batch())
    np.testing.assert_allclose(state.diagnostics.epsilon_norm, RHO, rtol=1e-5)
    epsilon = grad.perturbation(params, state, **mlp_batch())
    assert_equal(epsilon, jax.tree.map(jnp.zeros_like, params))
