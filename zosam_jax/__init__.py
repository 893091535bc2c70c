"""Sharpness-aware and sparse training for JAX; the tour starts at `zosam_jax.zo_sam`."""

from zosam_jax import ascent, descent, directions, probes, radius, sparsity
from zosam_jax.gradient import (
    Diagnostics,
    SharpnessAwareGradient,
    SharpnessAwareState,
    value_and_grad,
)
from zosam_jax.optimizers import (
    ESTIMATORS,
    RECORDS,
    REGISTRY,
    antithetic_sam,
    asam,
    esam,
    forward_gradient,
    gsam,
    gsam_rho,
    look_sam,
    mezo,
    msam,
    random_weight_perturbation,
    s2_sam,
    sam,
    subbatch_sam,
    zo_sam,
)
from zosam_jax.transform import diagnostics, pop_aux, sharpness_aware, value

__version__ = "0.1.0"

__all__ = [
    "ESTIMATORS",
    "RECORDS",
    "REGISTRY",
    "Diagnostics",
    "SharpnessAwareGradient",
    "SharpnessAwareState",
    "antithetic_sam",
    "asam",
    "ascent",
    "descent",
    "diagnostics",
    "directions",
    "esam",
    "forward_gradient",
    "gsam",
    "gsam_rho",
    "look_sam",
    "mezo",
    "msam",
    "pop_aux",
    "probes",
    "radius",
    "random_weight_perturbation",
    "s2_sam",
    "sam",
    "sharpness_aware",
    "sparsity",
    "subbatch_sam",
    "value",
    "value_and_grad",
    "zo_sam",
]
