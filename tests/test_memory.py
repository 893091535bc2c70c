"""What a step needs beside its arguments, as the compiler accounts for it."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

import zosam_jax

SGD = optax.sgd(0.1)


def temporary_bytes(step, params, x):
    compiled = jax.jit(step).lower(params, x).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def bytes_of(tree):
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def sgd_step(loss):
    def step(params, x):
        updates, _ = SGD.update(jax.grad(loss)(params, x), SGD.init(params))
        return optax.apply_updates(params, updates)

    return step


def perturbed_step(loss, transformation):
    tx = optax.chain(transformation, SGD)

    def step(params, x):
        updates, _ = tx.update(None, tx.init(params), params, value_fn=loss, x=x)
        return optax.apply_updates(params, updates)

    return step


# A stack of convolutions: little to store but activations.


def conv_params():
    kernel = jnp.full((8, 8, 3, 3), 0.05)
    return {f"layer{i}": kernel + 0.01 * i for i in range(4)}


def conv_loss(params, x):
    for kernel in params.values():
        x = jnp.tanh(jax.lax.conv(x, kernel, (1, 1), "SAME"))
    return jnp.mean(x**2)


CONV_INPUT = jnp.ones((32, 8, 24, 24))


@functools.cache
def conv_bytes_of_sgd():
    return temporary_bytes(sgd_step(conv_loss), conv_params(), CONV_INPUT)


@pytest.mark.parametrize("num_directions", [1, 8])
def test_zo_sam_needs_the_activations_of_one_pass(num_directions):
    tx = zosam_jax.zo_sam(0.05, num_directions=num_directions, batching="unroll")
    needed = temporary_bytes(perturbed_step(conv_loss, tx), conv_params(), CONV_INPUT)
    assert conv_bytes_of_sgd() > 20 * bytes_of(conv_params())
    assert needed <= 1.05 * conv_bytes_of_sgd()


# A perceptron on few rows: little to store but weights.


def mlp_params():
    return {f"layer{i}": jnp.eye(256) * (1 + 0.1 * i) for i in range(3)}


def mlp_loss(params, x):
    for kernel in params.values():
        x = jnp.tanh(x @ kernel)
    return jnp.mean(x**2)


@functools.cache
def mlp_copies(num_directions, batching):
    """How many copies of the parameters a ZO-SAM step keeps beside its arguments."""
    tx = zosam_jax.zo_sam(0.05, num_directions=num_directions, batching=batching)
    step = perturbed_step(mlp_loss, tx)
    return temporary_bytes(step, mlp_params(), jnp.ones((4, 256))) / bytes_of(mlp_params())


@pytest.mark.parametrize("batching", ["unroll", "map"])
@pytest.mark.slow
def test_more_directions_need_no_more_copies_of_the_parameters(batching):
    """From two on; the second direction itself needs the sum so far beside it."""
    assert mlp_copies(8, batching) - mlp_copies(2, batching) < 0.25


def test_vmapped_directions_are_what_the_other_modes_avoid():
    """The control: with all directions at once each costs copies of its own."""
    assert mlp_copies(8, "vmap") - mlp_copies(2, "vmap") > 5
