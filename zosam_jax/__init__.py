"""Sharpness-aware and sparse training for JAX; the tour starts at `zosam_jax.zo_sam`."""

from zosam_jax import ascent, descent, directions, probes, radius, sparsity
from zosam_jax.optimizers import (
    ESTIMATORS,
    REGISTRY,
    antithetic_sam,
    asam,
    esam,
    fast_sam,
    forward_gradient,
    gsam,
    gsam_rho,
    guided_zo_sam,
    look_sam,
    m_sharpness,
    mezo,
    random_weight_perturbation,
    s2_sam,
    sam,
    zo_sam,
)
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
    "ESTIMATORS",
    "REGISTRY",
    "Diagnostics",
    "SharpnessAwareGradient",
    "SharpnessAwareState",
    "antithetic_sam",
    "asam",
    "ascent",
    "descent",
    "directions",
    "esam",
    "fast_sam",
    "forward_gradient",
    "gsam",
    "gsam_rho",
    "guided_zo_sam",
    "look_sam",
    "m_sharpness",
    "mezo",
    "pop_aux",
    "probes",
    "radius",
    "random_weight_perturbation",
    "s2_sam",
    "sam",
    "sharpness_aware",
    "sparsity",
    "value_and_grad",
    "zo_sam",
]
