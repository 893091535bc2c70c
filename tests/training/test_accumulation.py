"""Gradients summed part by part equal those of the whole batch."""

import jax
import jax.numpy as jnp
import pytest
from problems import assert_close, mlp_batch, mlp_loss, mlp_params

import zosam_jax
from zosam_jax.training.accumulation import accumulated


def loss(params, model_state, part):
    x, y = part
    value = mlp_loss(params, x=x, y=y)
    return value, (model_state + jnp.mean(x), {"images": jnp.asarray(len(x))})


def whole():
    batch = mlp_batch()
    return batch["x"], batch["y"]


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_value_and_gradient_are_the_batch_s(parts):
    params, batch = mlp_params(), whole()
    total = accumulated(loss, jnp.zeros(()), batch, parts)
    (value, (model_state, sums)), gradient = jax.jit(jax.value_and_grad(total, has_aux=True))(
        params
    )
    (expected, _), expected_gradient = jax.value_and_grad(loss, has_aux=True)(
        params, jnp.zeros(()), batch
    )
    assert_close(value, expected, rtol=1e-5)
    assert_close(gradient, expected_gradient, rtol=1e-4, atol=1e-6)
    assert sums["images"] == len(batch[0])
    # What is handed from part to part has seen all of them, one after another.
    assert_close(model_state, parts * jnp.mean(batch[0]), rtol=1e-4)


def test_a_probe_makes_no_backward_pass():
    params, batch = mlp_params(), whole()
    total = accumulated(loss, jnp.zeros(()), batch, 2)
    products = str(jax.make_jaxpr(lambda p: total(p)[0])(params)).count("dot_general")
    both = str(jax.make_jaxpr(jax.grad(lambda p: total(p)[0]))(params)).count("dot_general")
    assert products == 2  # one for each layer
    assert both > products


@pytest.mark.parametrize("make", [zosam_jax.sam, zosam_jax.zo_sam])
def test_sharpness_aware_steps_are_those_of_the_whole_batch(make):
    params, batch = mlp_params(), whole()

    def updates(parts):
        tx = make(0.05)
        total = accumulated(loss, jnp.zeros(()), batch, parts)
        return tx.update(None, tx.init(params), params, value_fn=lambda p: total(p)[0])[0]

    assert_close(updates(4), updates(1), rtol=1e-3, atol=1e-5)


def test_memory_is_that_of_a_part():
    wide = {"w": jnp.ones((32, 2048)), "v": jnp.ones((2048, 1))}

    def deep(params, model_state, x):
        return jnp.mean(jnp.tanh(x @ params["w"]) @ params["v"]), (model_state, {})

    def temporary(parts):
        total = accumulated(deep, jnp.zeros(()), jnp.ones((512, 32)), parts)
        compiled = jax.jit(jax.grad(lambda p: total(p)[0])).lower(wide).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(8) < 0.5 * temporary(1)


@pytest.mark.parametrize("make", [zosam_jax.sam, zosam_jax.zo_sam])
def test_a_step_is_compiled_whose_batch_is_an_argument(make):
    """The loss is traced once for all passes, and differentiated after that trace has ended."""
    params, batch = mlp_params(), whole()
    tx = make(0.05)

    def value(params, batch):
        return accumulated(loss, jnp.zeros(()), batch, 2)(params)[0]

    def step(params, batch):
        return tx.update(None, tx.init(params), params, value_fn=value, batch=batch)[0]

    compiled = jax.jit(step).lower(params, batch).compile()
    assert_close(compiled(params, batch), step(params, batch), rtol=1e-3, atol=1e-5)
