"""From the command line's options to an optax transformation."""

from typing import Any

import jax
import optax

from zosam_jax.optimizers import REGISTRY
from zosam_jax.sparsity.layers import is_weight
from zosam_jax.training.config import ProblemConfig
from zosam_jax.trees import PyTree

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
    "zo_sam": ("num_directions", "distribution", "batching"),
}

# Half of a bfloat16's digits: what the differences of the losses can be told from rounding with.
_DELTAS = {"float32": 1e-3, "bfloat16": 1e-2}


def is_plain(optimizer: str) -> bool:
    """Whether it takes the gradient where it is."""
    return optimizer in ("sgd", "adamw")


def rho_grid(optimizer: str, radius: str) -> tuple[float, ...]:
    """The radii that tuning tries for this optimizer; (0,) for those that perturb nothing."""
    return (0.0,) if is_plain(optimizer) else RHO_GRIDS[optimizer][radius]


def default_rho(optimizer: str, radius: str) -> float:
    """The radius to use when none is given: the middle of the grid."""
    grid = rho_grid(optimizer, radius)
    return grid[len(grid) // 2]


def perturbation(
    config: ProblemConfig, optimizer: str, rho: float, seed: int
) -> optax.GradientTransformationExtraArgs | None:
    """The sharpness-aware first link of the chain; None for plain optimizers."""
    if is_plain(optimizer):
        return None
    options: dict[str, Any] = {name: getattr(config, name) for name in _OPTIONS[optimizer]}
    if optimizer != "sam":
        options["key"] = seed
    if optimizer == "zo_sam":
        options["delta"] = config.delta or _DELTAS[config.precision]
    return REGISTRY[optimizer](rho, radius=config.radius, **options)


def transformation(
    config: ProblemConfig,
    optimizer: str,
    first: optax.GradientTransformation | None,
    steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Perturbation, clipping, then SGD with momentum and L2 penalty, or AdamW."""
    links = [] if first is None else [first]
    if config.clip_norm is not None:
        links.append(optax.clip_by_global_norm(config.clip_norm))
    rate = schedule(config, steps)
    if (optimizer if is_plain(optimizer) else config.base_optimizer) == "adamw":
        links.append(optax.adamw(rate, weight_decay=config.weight_decay, mask=_kernels))
    else:
        links.append(optax.add_decayed_weights(config.weight_decay))
        links.append(optax.sgd(rate, momentum=config.momentum, nesterov=config.nesterov))
    return optax.chain(*links)


def schedule(config: ProblemConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step: a linear warmup, then the cosine or the steps.

    Both fall as if they had begun at step 0 of what is left after the warmup (cosine) or of the
    whole run (steps).
    """
    warmup = round(config.warmup * steps)
    peak, end = config.learning_rate, config.final_learning_rate
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=end / peak)
    else:
        drops: dict[int, float] = {}
        for milestone in config.milestones:  # two may fall on one step of a short run
            at = max(1, round(milestone * steps) - warmup)
            drops[at] = 0.1 * drops.get(at, 1.0)
        falling = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return falling
    rising = optax.linear_schedule(config.initial_learning_rate, peak, warmup)
    return optax.join_schedules([rising, falling], [warmup])


def passes(config: ProblemConfig, optimizer: str) -> tuple[int, int]:
    """The forward and backward passes of one step."""
    return {
        "sgd": (1, 1),
        "adamw": (1, 1),
        "random_weight_perturbation": (1, 1),
        "sam": (2, 2),
        "zo_sam": (1 + 2 * config.num_directions, 1),
    }[optimizer]


def _kernels(params: PyTree) -> PyTree:
    """True at kernels: not at biases, norms, and embeddings, which AdamW leaves undecayed."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].key == "kernel" and is_weight("", leaf), params
    )
