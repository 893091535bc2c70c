"""Every ready-made transformation and every sparse wrapper, for what is asked of all of them."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax
from zosam_jax import sparsity
from zosam_jax.sparsity import patterns

STEPS = 8

# Differences by steps that rounding does not reach.
ROWS = {
    name: lambda record=record, **options: (
        record.make(*[0.05] * record.has_rho, **{"delta": 0.01} | options)
        if "delta" in record.defaults
        else record.make(*[0.05] * record.has_rho, **options)
    )
    for name, record in zosam_jax.RECORDS.items()
}


def half(params):
    return sparsity.random(params, 0.5)


def _neurons():
    """The hidden units of `params`."""
    hidden = [("hidden", "kernel", 1, "output"), ("hidden", "bias", 0, "elementwise")]
    members = [
        sparsity.Member(f"['{layer}']['{part}']", axis, np.arange(8), role)
        for layer, part, axis, role in [*hidden, ("out", "kernel", 0, "input")]
    ]
    return sparsity.Units((sparsity.Group("['hidden']", "neurons", 8, tuple(members)),))


UNITS = _neurons()
DSR = {"every": (1, 2, 2, 2), "threshold": 0.1}
WRAPPERS = {
    "fixed": lambda tx: sparsity.fixed(tx, half),
    "set": lambda tx: sparsity.set_(tx, 0.5, total_steps=STEPS, every=1),
    "rigl": lambda tx: sparsity.rigl(tx, 0.5, total_steps=STEPS, every=1),
    "dsr": lambda tx: sparsity.dsr(tx, 0.5, total_steps=STEPS, **DSR),
    "mest": lambda tx: sparsity.mest(tx, 0.5, total_steps=STEPS, every=2, gradient_weight=0.1),
    "svite": lambda tx: sparsity.svite(tx, 0.5, total_steps=STEPS, every=1),
    "gradual": lambda tx: sparsity.gradual(tx, 0.5, total_steps=STEPS, every=1),
    "gradual, units": lambda tx: sparsity.gradual(
        tx, 0.5, total_steps=STEPS, every=1, score="taylor", units=UNITS, distribution="global"
    ),
    "s2vite": lambda tx: sparsity.s2vite(tx, 0.5, units=UNITS, total_steps=STEPS, every=1),
    "2:4": lambda tx: sparsity.rigl(
        tx, 0.5, total_steps=STEPS, every=1, pattern=patterns.n_m(2, 4)
    ),
    "blocks": lambda tx: sparsity.set_(
        tx, 0.5, total_steps=STEPS, every=1, pattern=patterns.block(2, 2)
    ),
}


def base(learning_rate=0.1):
    return optax.sgd(learning_rate, momentum=0.9)


def row(name, **options):
    """One row before momentum."""
    return lambda: optax.chain(ROWS[name](**options), base())


def wrapper(name):
    """One wrapper around a row that remembers something, and momentum."""
    return lambda: WRAPPERS[name](optax.chain(zosam_jax.friendly_sam(0.05), base()))


MAKERS = {name: row(name) for name in ROWS} | {name: wrapper(name) for name in WRAPPERS}
every_one = pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)


def some_of(names):
    """These in each run, the others with the slow tests."""
    marked = [
        pytest.param(make, id=name, marks=() if name in names else pytest.mark.slow)
        for name, make in MAKERS.items()
    ]
    return pytest.mark.parametrize("make", marked)


def params(dtype=jnp.float32):
    """A 4-8-4 network, whose arrays four devices can share and patterns fit."""
    scale = {"hidden": (8, 4), "out": (4, 8)}
    return {
        name: {
            "bias": jnp.linspace(-0.5, 0.4, size).astype(dtype),
            "kernel": jnp.sin(jnp.arange(1.0, 1 + size * fan_in) * 2.4)
            .reshape(fan_in, size)
            .astype(dtype),
        }
        for name, (size, fan_in) in scale.items()
    }


def batch(rows=16):
    grid = jnp.arange(rows * 4, dtype=jnp.float32).reshape(rows, 4)
    return {"x": jnp.cos(grid * 1.3), "y": jnp.arange(rows) % 4}


def loss(params, x, y):
    hidden = jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])
    logits = hidden @ params["out"]["kernel"] + params["out"]["bias"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()
