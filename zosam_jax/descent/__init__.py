"""And how down from there? One file for each way of coming down from the perturbed point."""

from zosam_jax.descent.at_perturbed import at_perturbed
from zosam_jax.descent.base import Descent, Landing, Summit, perturbed, stateless
from zosam_jax.descent.estimate import estimate
from zosam_jax.descent.hardest import hardest_examples
from zosam_jax.descent.look import look
from zosam_jax.descent.surrogate_gap import surrogate_gap
from zosam_jax.descent.worst_side import worst_side

__all__ = [
    "Descent",
    "Landing",
    "Summit",
    "at_perturbed",
    "estimate",
    "hardest_examples",
    "look",
    "perturbed",
    "stateless",
    "surrogate_gap",
    "worst_side",
]
