"""Sharpness-aware and sparse training for JAX; the tour starts at `zosam_jax.zo_sam`."""

import importlib
from typing import TYPE_CHECKING, Any

from zosam_jax import ascent, descent, directions, masks, optimizers, probes, radius, sparsity
from zosam_jax.averages import averaged, averaged_params
from zosam_jax.compiling import compiler_options
from zosam_jax.gradient import (
    Diagnostics,
    SharpnessAwareGradient,
    SharpnessAwareState,
    value_and_grad,
)
from zosam_jax.optimizers import *  # noqa: F403  # each optimizer, by its own list
from zosam_jax.phases import late_phase
from zosam_jax.transform import diagnostics, perturbing, pop_aux, sharpness_aware, value

if TYPE_CHECKING:
    from zosam_jax.training.fitting import fit as fit
    from zosam_jax.training.saved_run import open_run as open_run

__version__ = "0.1.0"

# Whole runs take the extra `train`: imported once they are asked for, and so not in __all__.
_RUNS = {"fit": "fitting", "open_run": "saved_run"}


def __getattr__(name: str) -> Any:
    if name not in _RUNS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(f"zosam_jax.training.{_RUNS[name]}"), name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"zosam_jax.{name} needs {error.name}, which comes with: pip install 'zosam_jax[train]'"
        ) from error


__all__ = [
    "Diagnostics",
    "SharpnessAwareGradient",
    "SharpnessAwareState",
    "ascent",
    "averaged",
    "averaged_params",
    "compiler_options",
    "descent",
    "diagnostics",
    "directions",
    "late_phase",
    "masks",
    "perturbing",
    "pop_aux",
    "probes",
    "radius",
    "sharpness_aware",
    "sparsity",
    "value",
    "value_and_grad",
]
__all__ += optimizers.__all__
