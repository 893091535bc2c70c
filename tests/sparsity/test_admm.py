"""SAFE's penalty against the authors' rule in NumPy, and what it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_mlp import NumpyMLP, length, move, to_numpy
from problems import RHO, assert_close, assert_equal, mlp_batch, mlp_params, train

import zosam_jax
from zosam_jax import sparsity

STEPS, EVERY, PENALTY, KERNELS = 5, 2, 0.8, ("W1", "W2")


def project(p):
    """The 10 largest of the 25 weights of kernels."""
    smallest = np.sort(np.concatenate([np.abs(p[k]).ravel() for k in KERNELS]))[-10]
    return {k: np.where(np.abs(p[k]) >= smallest, p[k], 0.0) for k in KERNELS}


def safe_in_numpy():
    """z and u move after every second step, by the weights that the step has led to."""
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())
    z, u = project(p), {k: np.zeros_like(p[k]) for k in KERNELS}
    for t in range(STEPS):
        g = problem.gradient(p)
        gradient = problem.gradient(move(p, g, RHO / length(g)))
        strength = PENALTY / 2 * (1 - np.cos(np.pi * t / STEPS))
        for k in KERNELS:
            gradient[k] = gradient[k] + strength * (p[k] - z[k] + u[k])
        p = move(p, gradient, -0.3)
        if t % EVERY == EVERY - 1:
            total = {k: p[k] + u[k] for k in KERNELS}
            z = project(total)
            u = {k: total[k] - z[k] for k in KERNELS}
    return p


def safe(**options):
    drawn = {"total_steps": STEPS, "penalty": PENALTY, "every": EVERY} | options
    return optax.chain(zosam_jax.sam(RHO), sparsity.admm_penalty(0.6, **drawn), optax.sgd(0.3))


def test_five_steps_are_safes():
    params, state = train(safe(), steps=STEPS)
    assert_close(to_numpy(params), safe_in_numpy(), rtol=1e-4, atol=1e-5)
    admm = state[1]
    assert admm.target["hidden"]["bias"] is None
    kept = sum(jnp.count_nonzero(leaf) for leaf in jax.tree.leaves(admm.target))
    assert kept == 10
    assert int(admm.count) == STEPS


def test_the_weights_come_close_to_sparse_ones():
    drawn, _ = train(safe(total_steps=60, penalty=2.0), steps=60)
    plain, _ = train(safe(total_steps=60, penalty=0.0), steps=60)

    def lost(params):
        kept = sparsity.apply_masks(params, sparsity.magnitude(params, 0.6, distribution="global"))
        return optax.tree.norm(optax.tree.sub(params, kept))

    assert lost(drawn) < 0.2 * lost(plain)


def test_without_a_penalty_it_changes_nothing_and_dtypes_are_kept():
    plain, _ = train(optax.chain(zosam_jax.sam(RHO), optax.sgd(0.3)))
    assert_equal(train(safe(penalty=0.0))[0], plain)
    params = mlp_params(jnp.bfloat16)
    tx = sparsity.admm_penalty(0.6, total_steps=STEPS)
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["out"]["kernel"].dtype == jnp.bfloat16
    assert state.dual["out"]["kernel"].dtype == jnp.float32


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"total_steps": None}, "total_steps is missing"),
        ({"penalty": -1}, "penalty=-1 .*at least 0"),
        ({"every": 0}, "every=0 must be"),
    ],
)
def test_wrong_input_is_told_what_would_be_right(options, sentence):
    with pytest.raises(ValueError, match=sentence):
        safe(**options)


@pytest.mark.parametrize(
    ("updates", "params", "sentence"),
    [(None, mlp_params(), "updates is missing"), (mlp_params(), None, "params is missing")],
)
def test_it_stands_after_a_gradient_and_is_given_the_parameters(updates, params, sentence):
    tx = sparsity.admm_penalty(0.6, total_steps=STEPS)
    with pytest.raises(ValueError, match=sentence):
        tx.update(updates, tx.init(mlp_params()), params)
