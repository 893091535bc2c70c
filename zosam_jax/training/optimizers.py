"""From the command line's options to an optax transformation."""

from typing import Any

import optax

from zosam_jax.optimizers import REGISTRY
from zosam_jax.training.config import ProblemConfig

# Radii to try, from gentle to strong, for perturbations along the gradient and along (nearly)
# random directions; the middle one is the default. The README has a study of both.
_ALONG_GRADIENT = {
    "global": (0.025, 0.05, 0.1, 0.2, 0.4),
    "layerwise": (0.0025, 0.005, 0.01, 0.02, 0.04),
    "adaptive": (0.125, 0.25, 0.5, 1.0, 2.0),
}
_RANDOM = {
    "global": (2.5, 3.5, 5.0, 7.0, 10.0),
    "layerwise": (0.1, 0.15, 0.2, 0.3, 0.4),
    "adaptive": (10.0, 15.0, 20.0, 30.0, 40.0),
}
RHO_GRIDS = {"sam": _ALONG_GRADIENT, "zo_sam": _RANDOM, "random_weight_perturbation": _RANDOM}

# The options of the configuration that each transformation of the registry takes.
_OPTIONS = {
    "sam": (),
    "random_weight_perturbation": ("distribution",),
    "zo_sam": ("num_directions", "delta", "distribution", "batching"),
}


def rho_grid(optimizer: str, radius: str) -> tuple[float, ...]:
    """The radii that tuning tries for this optimizer; (0,) for SGD, which has none."""
    return (0.0,) if optimizer == "sgd" else RHO_GRIDS[optimizer][radius]


def default_rho(optimizer: str, radius: str) -> float:
    """The radius to use when none is given: the middle of the grid."""
    grid = rho_grid(optimizer, radius)
    return grid[len(grid) // 2]


def perturbation(
    config: ProblemConfig, optimizer: str, rho: float, seed: int
) -> optax.GradientTransformationExtraArgs | None:
    """The sharpness-aware first link of the chain; None for SGD."""
    if optimizer == "sgd":
        return None
    options: dict[str, Any] = {name: getattr(config, name) for name in _OPTIONS[optimizer]}
    if optimizer != "sam":
        options["key"] = seed
    return REGISTRY[optimizer](rho, radius=config.radius, **options)


def transformation(
    config: ProblemConfig, first: optax.GradientTransformation | None, steps: int
) -> optax.GradientTransformationExtraArgs:
    """Perturbation, weight decay, SGD with momentum on a warmup-cosine schedule."""
    schedule = optax.warmup_cosine_decay_schedule(
        init_value=0.0,
        peak_value=config.learning_rate,
        warmup_steps=round(config.warmup * steps),
        decay_steps=steps,
    )
    return optax.chain(
        *([] if first is None else [first]),
        optax.add_decayed_weights(config.weight_decay),
        optax.sgd(schedule, momentum=config.momentum),
    )


def passes(config: ProblemConfig, optimizer: str) -> tuple[int, int]:
    """The forward and backward passes of one step."""
    return {
        "sgd": (1, 1),
        "random_weight_perturbation": (1, 1),
        "sam": (2, 2),
        "zo_sam": (1 + 2 * config.num_directions, 1),
    }[optimizer]
