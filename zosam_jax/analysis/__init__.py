"""Measurements of a trained network's loss and of its gradients: pure functions.

They take a loss `(params, batch) → scalar`, the parameters, batches, and the mask of a sparse
network; what is measured is measured on the kept weights alone. BatchNorm is the loss's affair: it
closes over running statistics, or takes the batch's own.
"""

from zosam_jax.analysis import (
    batches,
    convergence,
    estimator,
    features,
    hessian,
    sharpness,
    surface,
    variance,
)

__all__ = [
    "batches",
    "convergence",
    "estimator",
    "features",
    "hessian",
    "sharpness",
    "surface",
    "variance",
]
