"""The small problems that the tests share, and how to compare what comes out of them."""

import collections

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zosam_jax import objective
from zosam_jax.binding import Call

RHO = 0.3
KEY = jax.random.key(3)


def slow_but(quick, values):
    """A parametrization by `values` of which those not in `quick` run with -m slow."""
    return [
        v
        if v in quick
        else pytest.param(*v if isinstance(v, tuple) else (v,), marks=pytest.mark.slow)
        for v in values
    ]


def mlp_params(dtype=jnp.float32, seed=0):
    """A 3-5-2 network of 32 weights: unequal shapes, unequal scales, biases away from zero."""
    rng = np.random.default_rng(seed)

    def array(*shape, scale):
        return jnp.asarray(scale * rng.normal(size=shape), dtype)

    return {
        "hidden": {"bias": array(5, scale=0.3), "kernel": array(3, 5, scale=0.9)},
        "out": {"bias": array(2, scale=0.1), "kernel": array(5, 2, scale=1.3)},
    }


def mlp_mask():
    """Keeps 16 of the 32 weights: one dense leaf, one empty one, two in between."""
    return {
        "hidden": {"bias": None, "kernel": jnp.arange(15).reshape(3, 5) % 2 == 0},
        "out": {"bias": jnp.zeros(2, bool), "kernel": jnp.arange(10).reshape(5, 2) % 3 == 1},
    }


def mlp_batch(rows=8, seed=1):
    """{"x": [rows, 3], "y": [rows]}, the keyword arguments of `mlp_loss`."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, 3)).astype(np.float32) + 0.2
    return {"x": jnp.asarray(x), "y": jnp.asarray(rng.integers(0, 2, rows))}


def mlp_logits(params, x):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    return hidden @ params["out"]["kernel"] + params["out"]["bias"]


def mlp_loss(params, x, y):
    """Mean cross-entropy over the batch, in float32 for the narrower dtypes too."""
    return optax.losses.softmax_cross_entropy_with_integer_labels(mlp_logits(params, x), y).mean()


def stepper(tx, value_fn=mlp_loss, **static):
    """A jitted training step (params, state, batch) → (params, state)."""

    def step(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=value_fn, **static, **batch)
        return optax.apply_updates(params, updates), state

    return jax.jit(step)


def train(tx, steps=3, params=None):
    """Parameters and optimizer state after a few jitted steps on one batch."""
    params = mlp_params() if params is None else params
    state, step, batch = tx.init(params), stepper(tx), mlp_batch()
    for _ in range(steps):
        params, state = step(params, state, batch)
    return params, state


def emitted(tx, value_fn=mlp_loss, **extra_args):
    """The first step's updates and state, compiled."""
    params = mlp_params()
    return jax.jit(
        lambda state, batch: tx.update(
            None, state, params, value_fn=value_fn, **extra_args, **batch
        )
    )(tx.init(params), mlp_batch())


def find(ascent, loss, params, state=None, *, key=KEY, mask=None, **options):
    """What an ascent finds for a loss of the parameters alone."""
    problem = objective.Objective(Call(loss), name="loss", **options)
    state = ascent.init(params) if state is None else state
    return ascent.direction(problem, params, state, key=key, mask=mask)


def direction(ascent, loss, params, **options):
    """The direction that an ascent finds for a loss of the parameters alone."""
    return find(ascent, loss, params, **options).direction


def quadratic(params):
    """Curved differently along every coordinate, with its minimum off the origin."""
    parts = [jnp.sum((1 + jnp.arange(p.size)) * (p.ravel() - 0.3) ** 2) for p in params.values()]
    return sum(parts) / 10


def wavy(params):
    """A loss with all of its derivatives different from zero."""
    return sum(jnp.sum(jnp.sin(2 * p) + p**3 / 3) for p in params.values()) + params["scalar"] ** 4


def uneven_params(dtype=jnp.float32):
    """12 coordinates in a vector, a matrix and a scalar; none is zero."""
    rng = np.random.default_rng(2)

    def array(*shape):
        return jnp.asarray(rng.uniform(0.5, 1.5, shape) * rng.choice([-1, 1], shape), dtype)

    return {"matrix": array(2, 3), "scalar": array(), "vector": array(5)}


def uneven_mask():
    """Keeps 7 of the 12 coordinates of `uneven_params`."""
    return {
        "matrix": jnp.array([[True, False, True], [False, True, False]]),
        "scalar": jnp.array(False),
        "vector": jnp.array([True, True, False, True, True]),
    }


def flatten(tree):
    """All leaves in one float64 vector."""
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves)


def keys(count, seed=0):
    return jax.random.split(jax.random.key(seed), count)


class PassCounter:
    """Counts how often a loss runs, in whole batches, by callbacks in the compiled program."""

    def __init__(self, batch_size=8):
        self.passes = collections.Counter()
        self._batch_size = batch_size

    def _tick(self, what, value, rows):
        part = {what: rows / self._batch_size}
        jax.debug.callback(lambda _: self.passes.update(part), value)  # seen by vmap
        return value

    def loss(self, params, x, y):
        @jax.custom_vjp
        def count(value):
            return self._tick("forward alone", value, len(y))

        count.defvjp(
            lambda value: (self._tick("forward with gradient", value, len(y)), None),
            lambda _, cotangent: (self._tick("backward", cotangent, len(y)),),
        )
        return count(mlp_loss(params, x, y))


def assert_equal(actual, expected):
    """The same trees bit for bit: structure, shapes, dtypes and values."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert jnp.result_type(a) == jnp.result_type(b)
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), strict=True)


def assert_close(actual, expected, rtol=1e-5, atol=1e-6):
    """The same trees up to rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), rtol=rtol, atol=atol
        )
