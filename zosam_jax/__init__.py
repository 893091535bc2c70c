"""Sharpness-aware and sparse training for JAX; the tour starts at `zosam_jax.zo_sam`."""

from zosam_jax import ascent, descent, directions, probes, radius, sparsity
from zosam_jax.optimizers import REGISTRY, random_weight_perturbation, sam, zo_sam
from zosam_jax.transform import (
    Diagnostics,
    SharpnessAwareGradient,
    SharpnessAwareState,
    pop_aux,
    sharpness_aware,
    value_and_grad,
)

__version__ = "0.1.0"

__all__ = [
    "REGISTRY",
    "Diagnostics",
    "SharpnessAwareGradient",
    "SharpnessAwareState",
    "ascent",
    "descent",
    "directions",
    "pop_aux",
    "probes",
    "radius",
    "random_weight_perturbation",
    "sam",
    "sharpness_aware",
    "sparsity",
    "value_and_grad",
    "zo_sam",
]
