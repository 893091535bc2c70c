"""What is compared: transformations of the library, each with the radii that tuning tries."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

import zosam_jax
from zosam_jax import ascent
from zosam_jax.training.build import default_rho
from zosam_jax.trees import Array

FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
# ρ rises over this part of a run, for everyone alike.
RHO_WARMUP = 0.2


class Method(NamedTuple):
    """What is compared.

    Attributes:
      make: ρ, a schedule → the sharpness-aware transformation; None for plain descent.
      default: the default of what is tuned.
      factors: what tuning multiplies it by; a single one leaves nothing to tune.
      length: of the run, in those of the problem's epochs.
      tunes_decay: whether the weight decay is tuned, as a multiple of the problem's, not a radius.
      tests_default: whether the default is tested beside what tuning chooses.
    """

    make: Callable[..., optax.GradientTransformation] | None
    default: float = 1.0
    factors: tuple[float, ...] = (1.0,)
    length: float = 1.0
    tunes_decay: bool = False
    tests_default: bool = False

    @property
    def grid(self) -> tuple[float, ...]:
        """What to choose from, rising."""
        return tuple(factor * self.default for factor in self.factors)

    def first(self, chosen: Array, steps: Array) -> optax.GradientTransformation | None:
        """The first link of the chain for a run of so many steps."""
        if self.make is None:
            return None
        return self.make(lambda count: chosen * jnp.minimum(count / (RHO_WARMUP * steps), 1.0))

    def decay(self, chosen: Array) -> Array | float:
        """The multiple of the problem's weight decay."""
        return chosen if self.tunes_decay else 1.0


def family(name: str, radius: str, *, tests_default: bool = False, **options: Any) -> Method:
    """A ready-made transformation with these options, its radius tuned like everyone's."""
    make = functools.partial(zosam_jax.REGISTRY[name], radius=radius, **options)
    return Method(make, default_rho(name, radius), FACTORS, tests_default=tests_default)


def composed(climb: Callable[[], ascent.Ascent], default: float, radius: str) -> Method:
    """An ascent that has no name of its own."""
    return Method(
        lambda rho: zosam_jax.sharpness_aware(climb(), rho, radius=radius), default, FACTORS
    )


def slice_and_random() -> ascent.Ascent:
    return ascent.mixture((ascent.backprop(0.125), 1.0), (ascent.random_direction(), 5.0))


SIGNS = {"distribution": "rademacher"}
METHODS = {
    "sgd": Method(None),
    "sgd-x1.15": Method(None, length=1.15),
    "sgd-x2": Method(None, length=2.0),
    "sgd-weight-decay": Method(None, factors=(0.5, 1.0, 2.0, 4.0, 8.0), tunes_decay=True),
    "sam-global": family("sam", "global"),
    "sam-layerwise": family("sam", "layerwise", tests_default=True),
    "random-layerwise": family("random_weight_perturbation", "layerwise", **SIGNS),
    "random-filterwise": family(
        "random_weight_perturbation", "filterwise", tests_default=True, **SIGNS
    ),
    "subbatch-sam": family("subbatch_sam", "adaptive_layerwise", tests_default=True),
    "zo-sam-global": family("zo_sam", "global"),
    "zo-sam-layerwise": family("zo_sam", "layerwise", tests_default=True),
    "s2-sam-layerwise": family("s2_sam", "layerwise"),
    "random-calibrated": Method(
        functools.partial(zosam_jax.random_weight_perturbation, radius="calibrated", **SIGNS), 0.2
    ),
    "subbatch-sam-layerwise": family("subbatch_sam", "layerwise"),
    "subbatch-sam-random": composed(slice_and_random, 0.2, "layerwise"),
    "sam-adaptive-layerwise": family("sam", "adaptive_layerwise"),
    "random-adaptive-layerwise": family(
        "random_weight_perturbation", "adaptive_layerwise", **SIGNS
    ),
    "antithetic": family("antithetic_sam", "filterwise", **SIGNS),
    "guided-zo-sam": family("guided_zo_sam", "layerwise"),
    "asam": Method(zosam_jax.asam, default_rho("asam", "adaptive"), FACTORS),
    "gsam": family("gsam", "layerwise"),
    "esam": family("esam", "layerwise"),
    "look-sam": family("look_sam", "layerwise"),
    "m-sharpness-4": family("msam", "layerwise", microbatches=4),
    "random-global": family("random_weight_perturbation", "global"),
}
# What the others are compared with, at equal epochs and at equal wall time.
BASELINES = ("sgd", "sam-layerwise", "random-layerwise")
LENGTHENED_SGD = ("sgd", "sgd-x1.15", "sgd-x2")
