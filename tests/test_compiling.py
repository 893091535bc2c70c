"""What XLA is told: barriers stay, so that blocks are not computed anew."""

import jax
import jax.numpy as jnp

import zosam_jax
from zosam_jax.models.layers import stored


def compiled(**options):
    """XLA's program of the gradient of a function that stores x² and uses it twice."""

    def loss(x):
        y = stored(x**2)
        return jnp.sum(y) + jnp.sum(jnp.sin(y))

    return jax.jit(jax.grad(loss), **options).lower(jnp.ones(3)).compile()


def test_barriers_are_kept_if_xla_is_told():
    assert "opt-barrier" not in compiled().as_text()
    told = compiled(compiler_options=zosam_jax.compiler_options())
    assert "opt-barrier" in told.as_text()
    x = jnp.array([0.5, -1.0, 2.0])
    assert jnp.allclose(told(x), 2 * x * (1 + jnp.cos(x**2)))


def test_other_backends_are_told_nothing(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert zosam_jax.compiler_options() == {}


def test_what_is_stored_is_differentiated_both_ways_and_batched():
    x = jnp.arange(3.0)
    value, slope = jax.jvp(lambda x: stored(x) ** 2, (x,), (jnp.ones(3),))
    assert jnp.array_equal(value, x**2)
    assert jnp.array_equal(slope, 2 * x)
    assert jnp.array_equal(jax.vmap(jax.grad(lambda x: stored(x) ** 2))(x), 2 * x)
