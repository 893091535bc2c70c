"""Sharpness-aware and sparse training for JAX; the tour starts at `zosam_jax.zo_sam`."""

from zosam_jax import ascent, descent, directions, optimizers, probes, radius, sparsity
from zosam_jax.gradient import (
    Diagnostics,
    SharpnessAwareGradient,
    SharpnessAwareState,
    value_and_grad,
)
from zosam_jax.optimizers import *  # noqa: F403  # each optimizer, by its own list
from zosam_jax.transform import diagnostics, pop_aux, sharpness_aware, value

__version__ = "0.1.0"

__all__ = [
    "Diagnostics",
    "SharpnessAwareGradient",
    "SharpnessAwareState",
    "ascent",
    "descent",
    "diagnostics",
    "directions",
    "pop_aux",
    "probes",
    "radius",
    "sharpness_aware",
    "sparsity",
    "value",
    "value_and_grad",
]
__all__ += optimizers.__all__
