"""Which way does the loss rise? One file for each way of finding the direction.

Each is a function that returns an Ascent. At construction it raises ValueError or TypeError for an
argument out of range. Those that take a `fraction` see that part of the batch, in (0, 1], at that
part of the price: the batch is then the loss's array arguments, examples along their first axes.

`misclassification_bound` is no ascent, but what one of them can climb.
"""

from zosam_jax.ascent.backprop import backprop
from zosam_jax.ascent.base import Ascent, AscentResult, stateless
from zosam_jax.ascent.coordinate_gradient import coordinate_gradient_estimate
from zosam_jax.ascent.forward_gradient import forward_gradient
from zosam_jax.ascent.friendly import friendly
from zosam_jax.ascent.misclassification import misclassification_bound
from zosam_jax.ascent.momentum import momentum
from zosam_jax.ascent.previous_gradient import previous_gradient
from zosam_jax.ascent.random_direction import random_direction
from zosam_jax.ascent.random_gradient import random_gradient_estimate
from zosam_jax.ascent.smoothed import smoothed
from zosam_jax.ascent.stochastic_weight_perturbation import stochastic_weight_perturbation

__all__ = [
    "Ascent",
    "AscentResult",
    "backprop",
    "coordinate_gradient_estimate",
    "forward_gradient",
    "friendly",
    "misclassification_bound",
    "momentum",
    "previous_gradient",
    "random_direction",
    "random_gradient_estimate",
    "smoothed",
    "stateless",
    "stochastic_weight_perturbation",
]
