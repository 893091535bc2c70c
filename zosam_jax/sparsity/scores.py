"""Scores that decide which weights are dropped and which are grown.

A score takes some of these by name, all float32 arrays of one layer's shape, and returns another:

- weights: θ where active, 0 elsewhere;
- gradient: ∂L/∂(m⊙θ), at pruned weights too;
- noise: uniform in [0, 1), drawn anew for each update of the masks.
"""

import jax.numpy as jnp

from zosam_jax.trees import Array


def magnitude(weights: Array) -> Array:
    """|θ|."""
    return jnp.abs(weights)


def gradient_magnitude(gradient: Array) -> Array:
    """|∂L/∂(m⊙θ)|."""
    return jnp.abs(gradient)


def uniform_random(noise: Array) -> Array:
    """A score that prefers nothing."""
    return noise
