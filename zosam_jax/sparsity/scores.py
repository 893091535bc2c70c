"""Scores that decide which weights are dropped and which are grown.

A score takes some of these by name, all float32 arrays of one layer's shape, and returns another:

- weights: θ where active, 0 elsewhere;
- gradient: ∂L/∂(m⊙θ), at pruned weights too;
- noise: uniform in [0, 1), drawn anew for each update of the masks.
"""

from typing import Any, Protocol

import jax.numpy as jnp

from zosam_jax.trees import Array, Float


class Score(Protocol):
    """What decides which weights of a layer are dropped, or grown.

    Any function of some of `weights`, `gradient` and `noise`, taken by name, serves as one.
    """

    def __call__(self, *args: Any, **arrays: Any) -> Float[Array, "*layer"]:
        """Scores the weights of one layer.

        Args:
          *args: none; they let a type checker accept parameters of any names.
          **arrays: those of `zosam_jax.sparsity.scores` that its parameters name, all of the
            layer's shape, in float32 or wider.

        Returns:
          The scores, of the layer's shape.
        """


def magnitude(weights: Float[Array, "*layer"]) -> Float[Array, "*layer"]:
    """|θ|."""
    return jnp.abs(weights)


def gradient_magnitude(gradient: Float[Array, "*layer"]) -> Float[Array, "*layer"]:
    """|∂L/∂(m⊙θ)|."""
    return jnp.abs(gradient)


def taylor(
    weights: Float[Array, "*layer"], gradient: Float[Array, "*layer"]
) -> Float[Array, "*layer"]:
    """|θ ⊙ ∂L/∂(m⊙θ)|, the change of the loss without a weight, to first order."""
    return jnp.abs(weights * gradient)


def uniform_random(noise: Float[Array, "*layer"]) -> Float[Array, "*layer"]:
    """A score that prefers nothing."""
    return noise
