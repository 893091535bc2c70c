"""LookSAM's memory and its condition."""

import functools
import importlib

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
    mlp_params,
    stepper,
)

import zosam_jax


def six_steps(tx, batches=None):
    params, state, step = mlp_params(), tx.init(mlp_params()), stepper(tx)
    for t in range(6):
        params, state = step(params, state, mlp_batch() if batches is None else batches[t])
    return params


def test_a_look_without_a_perturbation_leaves_no_bend():
    """Rounding apart ∇L(θ+0) is ∇L(θ): the difference must not be blown up to ∇L's length."""
    looking = zosam_jax.look_sam(optax.constant_schedule(0.0), interval=3)
    plain = zosam_jax.sam(0.0)
    assert_equal(*(six_steps(optax.chain(tx, optax.sgd(0.1))) for tx in (looking, plain)))


def test_a_bad_batch_at_a_look_is_forgotten():
    tx = zosam_jax.look_sam(RHO, interval=3)
    bad = mlp_batch() | {"x": mlp_batch()["x"].at[0].set(jnp.nan)}
    params, state = mlp_params(), tx.init(mlp_params())
    update = jax.jit(functools.partial(tx.update, value_fn=mlp_loss))
    updates, state = update(None, state, params, **bad)
    assert not jnp.isfinite(updates["out"]["bias"]).any()
    updates, _ = update(None, state, params, **mlp_batch())
    assert_close(updates, jax.grad(mlp_loss)(params, **mlp_batch()))


def convolving(params, x, y):
    kernel = params["hidden"]["kernel"][:, :1, None]
    layout = ("NHC", "HIO", "NHC")
    channel = jax.lax.conv_general_dilated(
        x[..., None], kernel, (1,), "SAME", dimension_numbers=layout
    )
    return mlp_loss(params, channel[..., 0], y)


@pytest.mark.parametrize(("loss", "conditions"), [(mlp_loss, 1), (convolving, 0)])
def test_no_convolution_is_put_under_a_condition_on_a_cpu(loss, conditions):
    tx, params = zosam_jax.look_sam(RHO), mlp_params()
    program = jax.make_jaxpr(lambda s: tx.update(None, s, params, value_fn=loss, **mlp_batch()))
    assert str(program(tx.init(params))).count("cond[") == conditions


def test_computing_every_look_gives_the_same_numbers(monkeypatch):
    tx = optax.chain(zosam_jax.look_sam(RHO, interval=2), optax.sgd(0.1))
    skipped = six_steps(tx)
    module = importlib.import_module("zosam_jax.descent.looksam")  # the function hides it
    monkeypatch.setattr(module, "_is_slow_under_a_condition", lambda *_: True)
    assert_close(six_steps(tx), skipped)


def rosenbrock(w):
    return (1 - w[0]) ** 2 + 100 * (w[1] - w[0] ** 2) ** 2


def by_the_published_rule(w, rho, steps, *, interval=5, alpha=0.7, rate=1e-3):
    """LookSAM as its paper writes it, in NumPy."""

    def gradient(w):
        across = w[1] - w[0] ** 2
        return np.array([-2 * (1 - w[0]) - 400 * w[0] * across, 200 * across])

    across = np.zeros(2)
    for t in range(steps):
        g = gradient(w)
        unit = g / np.linalg.norm(g)
        if t % interval == 0:
            step = gradient(w + rho * unit)
            across = step - (step @ unit) * unit
        else:
            step = g + alpha * np.linalg.norm(g) / np.linalg.norm(across) * across
        w = w - rate * step
    return w


def test_on_rosenbrocks_function_it_ends_where_the_published_rule_does():
    """Far off the minimum, since the reused part does not shrink with ρ: the rule, not its code."""
    steps = 10_000
    with jax.enable_x64(True):
        tx = optax.chain(zosam_jax.look_sam(1e-3), optax.sgd(1e-3))
        params = jnp.zeros(2)

        def step(carry, _):
            updates, state = tx.update(None, carry[1], carry[0], value_fn=rosenbrock)
            return (optax.apply_updates(carry[0], updates), state), None

        run = jax.jit(lambda carry: jax.lax.scan(step, carry, length=steps)[0])
        found = np.asarray(run((params, tx.init(params)))[0])
    np.testing.assert_allclose(found, by_the_published_rule(np.zeros(2), 1e-3, steps), atol=1e-6)
    assert rosenbrock(found) > 0.01
