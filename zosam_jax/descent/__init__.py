"""Which gradient is handed on from the perturbed point? One file for each descent.

Each is a function that returns a Descent. At construction it raises ValueError or TypeError for an
argument out of range.
"""

from zosam_jax.descent.at_perturbed import at_perturbed
from zosam_jax.descent.base import Descent, DescentResult, PerturbedPoint, perturbed, stateless
from zosam_jax.descent.estimate import estimate
from zosam_jax.descent.extrapolated import ARC_POINTS, extrapolated, extrapolated_as_measured
from zosam_jax.descent.looksam import looksam
from zosam_jax.descent.sharpness_sensitive_selection import sharpness_sensitive_selection
from zosam_jax.descent.surrogate_gap import surrogate_gap
from zosam_jax.descent.worst_side import worst_side

__all__ = [
    "ARC_POINTS",
    "Descent",
    "DescentResult",
    "PerturbedPoint",
    "at_perturbed",
    "estimate",
    "extrapolated",
    "extrapolated_as_measured",
    "looksam",
    "perturbed",
    "sharpness_sensitive_selection",
    "stateless",
    "surrogate_gap",
    "worst_side",
]
