"""Which way is up? One file for each way of finding it."""

from zosam_jax.ascent.backprop import backprop
from zosam_jax.ascent.base import Ascent, Climb, stateless
from zosam_jax.ascent.coordinate_gradient import coordinate_gradient_estimate
from zosam_jax.ascent.random_direction import random_direction
from zosam_jax.ascent.random_gradient import random_gradient_estimate

__all__ = [
    "Ascent",
    "Climb",
    "backprop",
    "coordinate_gradient_estimate",
    "random_direction",
    "random_gradient_estimate",
    "stateless",
]
