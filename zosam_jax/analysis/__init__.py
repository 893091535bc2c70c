"""Measurements of a trained network's loss and of its gradients: pure functions.

They take

- loss_fn: (params, batch) → the batch's mean loss. BatchNorm is its affair: it closes over running
  statistics, or takes the batch's own;
- params: θ, the parameters;
- batches: of equal size, iterated over as often as a function says;
- mask: the kept weights (`zosam_jax.sparsity.get_masks`), None for all: what is measured is
  measured on these alone;
- key: a seed or a random key; the same one gives other networks the same random numbers,

and raise ValueError or TypeError for an argument out of range, a direction, distances or a mask
that do not fit the parameters, too few batches, a loss that is no scalar, or a Hessian that is not
finite.
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
