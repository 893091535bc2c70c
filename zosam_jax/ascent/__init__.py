"""Which way is up? One file for each way of finding it."""

from zosam_jax.ascent.backprop import backprop
from zosam_jax.ascent.base import Ascent, Climb, stateless
from zosam_jax.ascent.coordinate_gradient import coordinate_gradient_estimate
from zosam_jax.ascent.every import every
from zosam_jax.ascent.forward_gradient import forward_gradient
from zosam_jax.ascent.guided import guided_gradient_estimate
from zosam_jax.ascent.mixture import mixture
from zosam_jax.ascent.previous_gradient import previous_gradient
from zosam_jax.ascent.random_arrays import random_arrays
from zosam_jax.ascent.random_direction import random_direction
from zosam_jax.ascent.random_gradient import random_gradient_estimate
from zosam_jax.ascent.shaped_random import shaped_random_direction
from zosam_jax.ascent.worst_of import worst_of

__all__ = [
    "Ascent",
    "Climb",
    "backprop",
    "coordinate_gradient_estimate",
    "every",
    "forward_gradient",
    "guided_gradient_estimate",
    "mixture",
    "previous_gradient",
    "random_arrays",
    "random_direction",
    "random_gradient_estimate",
    "shaped_random_direction",
    "stateless",
    "worst_of",
]
