"""From the command line's options to an optax transformation."""

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import NamedTuple

import jax
import optax

from zosam_jax.optimizers import ESTIMATORS, REGISTRY
from zosam_jax.sparsity.layers import is_weight
from zosam_jax.training.config import ProblemConfig, TrainConfig
from zosam_jax.trees import PyTree

# Radii to try, from gentle to strong, for perturbations along the gradient and along (nearly)
# random directions. The middle one is the default: in the study (benchmarks/family_study) the one
# that loses least on its worst problem, where rho warms up.
_ALONG_GRADIENT = {
    "global": (0.05, 0.1, 0.2, 0.4, 0.8),
    "layerwise": (0.005, 0.01, 0.02, 0.04, 0.08),
    "filterwise": (0.005, 0.01, 0.02, 0.04, 0.08),
    "adaptive": (0.25, 0.5, 1.0, 2.0, 4.0),
    "adaptive_layerwise": (0.015, 0.03, 0.06, 0.12, 0.24),
    "calibrated": (0.005, 0.01, 0.02, 0.04, 0.08),
}
_RANDOM = {
    "global": (2.5, 5.0, 10.0, 20.0, 40.0),
    "layerwise": (0.1, 0.2, 0.4, 0.8, 1.6),
    "filterwise": (0.15, 0.3, 0.6, 1.2, 2.4),
    "adaptive": (10.0, 20.0, 40.0, 80.0, 160.0),
    "adaptive_layerwise": (0.15, 0.3, 0.6, 1.2, 2.4),
    "calibrated": (0.05, 0.1, 0.2, 0.4, 0.8),
}


class _Entry(NamedTuple):
    """How the command line makes an optimizer of the registry.

    Attributes:
      grids: the radii to try under each rule; empty for one without a radius.
      options: of the configuration, that it takes under the same name; None is left to its own
        default.
      passes: (configuration) → forward and backward passes of a step, in batches.
    """

    grids: Mapping[str, tuple[float, ...]]
    options: tuple[str, ...]
    passes: Callable[[ProblemConfig], tuple[float, float]]


def _twice(config: ProblemConfig) -> tuple[float, float]:
    del config
    return 2, 2


def _probes(config: ProblemConfig) -> int:
    m = config.num_directions
    return 2 * m if config.difference == "central" else m + 1


def _sam_on(fraction: float) -> tuple[float, float]:
    return 1 + fraction, 1 + fraction


def _once(config: ProblemConfig) -> tuple[float, float]:
    del config
    return 1, 1


_DRAWN = ("distribution",)
_PROBED = ("num_directions", "delta", "distribution", "batching")
_OPTIMIZERS = {
    "sam": _Entry(_ALONG_GRADIENT, ("fraction",), lambda c: _sam_on(c.fraction or 1.0)),
    "fast_sam": _Entry(_ALONG_GRADIENT, ("fraction",), lambda c: _sam_on(c.fraction or 0.125)),
    "random_weight_perturbation": _Entry(_RANDOM, _DRAWN, _once),
    "zo_sam": _Entry(
        _RANDOM,
        (*_PROBED, "difference", "fraction"),
        lambda c: (1 + _probes(c) * (c.fraction or 1.0), 1),
    ),
    "guided_zo_sam": _Entry(
        _ALONG_GRADIENT,
        (*_PROBED, "fraction"),
        lambda c: (3 + 2 * c.num_directions * (c.fraction or 1.0), 1),
    ),
    "antithetic_sam": _Entry(_RANDOM, _DRAWN, lambda c: (2, 1)),
    "s2_sam": _Entry(_ALONG_GRADIENT, (), _once),
    "asam": _Entry(dict.fromkeys(_ALONG_GRADIENT, _ALONG_GRADIENT["adaptive"]), (), _twice),
    "gsam": _Entry(_ALONG_GRADIENT, (), _twice),
    "look_sam": _Entry(
        _ALONG_GRADIENT, ("interval",), lambda c: (1 + 1 / c.interval, 1 + 1 / c.interval)
    ),
    # With a forward pass more, for the auxiliary output.
    "esam": _Entry(_ALONG_GRADIENT, ("beta", "gamma"), lambda c: (3 + c.gamma, 1 + c.gamma)),
    "m_sharpness": _Entry(_ALONG_GRADIENT, ("microbatches",), _twice),
    "mezo": _Entry({}, (*_PROBED, "difference"), lambda c: (1 + _probes(c), 0)),
    "forward_gradient": _Entry(
        {}, ("num_directions", "distribution", "batching"), lambda c: (1 + 2 * c.num_directions, 0)
    ),
}

# Half of a bfloat16's digits: what the differences of the losses can be told from rounding with.
_DELTAS = {"float32": 1e-3, "bfloat16": 1e-2}


def is_plain(optimizer: str) -> bool:
    """Whether it takes the gradient where it is."""
    return optimizer in ("sgd", "adamw")


def check(config: ProblemConfig, names: Collection[str]) -> None:
    """Raises for options that do not go with any of these optimizers, or not with one of them."""
    takes = {o for name in names if name in _OPTIMIZERS for o in _OPTIMIZERS[name].options}
    if config.fraction is not None and "fraction" not in takes:
        able = ", ".join(name for name, entry in _OPTIMIZERS.items() if "fraction" in entry.options)
        raise ValueError(f"fraction={config.fraction!r} goes with {able}, not with {_list(names)}.")
    if "m_sharpness" in names and config.batch_size % config.microbatches:
        raise ValueError(
            f"microbatches={config.microbatches} must divide batch_size={config.batch_size}."
        )
    if "forward_gradient" in names and config.accumulate > 1:
        raise ValueError(
            f"accumulate={config.accumulate} does not go with forward_gradient, which keeps no "
            "activations that it could spare."
        )
    estimators = [name for name in names if name in ESTIMATORS]
    if estimators and config.sparse in ("rigl", "svite") and not config.is_dense:
        raise ValueError(
            f"sparse={config.sparse!r} grows masks by the gradient of pruned weights, which "
            f"{_list(estimators)} does not estimate; take set, dsr or mest."
        )


def _list(names: Collection[str]) -> str:
    return ", ".join(names)


def radius_rule(optimizer: str, radius: str) -> str:
    """Settles "auto"."""
    if radius != "auto":
        return radius
    return "adaptive_layerwise" if optimizer == "fast_sam" else "layerwise"


def rho_grid(optimizer: str, radius: str) -> tuple[float, ...]:
    """The radii that tuning tries for this optimizer; (0,) for those that have none."""
    if is_plain(optimizer) or not _OPTIMIZERS[optimizer].grids:
        return (0.0,)
    return _OPTIMIZERS[optimizer].grids[radius_rule(optimizer, radius)]


def default_rho(optimizer: str, radius: str) -> float:
    """The radius to use when none is given: the middle of the grid."""
    grid = rho_grid(optimizer, radius)
    return grid[len(grid) // 2]


def rho_of(config: TrainConfig) -> float:
    """The radius of a run: the one given, or the default; 0 for optimizers without one."""
    if config.rho is None or is_plain(config.optimizer):
        return default_rho(config.optimizer, config.radius)
    return config.rho


def perturbation(
    config: ProblemConfig, optimizer: str, rho: float, seed: int, steps: int
) -> optax.GradientTransformationExtraArgs | None:
    """The sharpness-aware first link of the chain; None for plain optimizers."""
    if is_plain(optimizer):
        return None
    options = {name: getattr(config, name) for name in _OPTIMIZERS[optimizer].options}
    if "delta" in options and options["delta"] is None:
        options["delta"] = _DELTAS[config.precision]
    if optimizer in ESTIMATORS:
        return ESTIMATORS[optimizer](key=seed, **options)
    make = REGISTRY[optimizer]
    accepted = inspect.signature(make).parameters
    if "key" in accepted:
        options["key"] = seed
    if "radius" in accepted:  # ASAM's is its own
        options["radius"] = radius_rule(optimizer, config.radius)
    return make(_warmed_up(rho, round(config.rho_warmup * steps)), **options)


def _warmed_up(rho: float, steps: int) -> float | optax.Schedule:
    # A radius that is zero for good costs nothing, which no schedule could say.
    return optax.linear_schedule(0.0, rho, steps) if steps and rho else rho


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


def passes(config: ProblemConfig, optimizer: str) -> tuple[float, float]:
    """The forward and backward passes of one step, in batches, averaged over steps."""
    return (1, 1) if is_plain(optimizer) else _OPTIMIZERS[optimizer].passes(config)


def _kernels(params: PyTree) -> PyTree:
    """True at kernels: not at biases, norms, and embeddings, which AdamW leaves undecayed."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: path[-1].key == "kernel" and is_weight("", leaf), params
    )
