"""LookSAM's memory and its condition."""

import functools
import importlib

import jax
import jax.numpy as jnp
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
