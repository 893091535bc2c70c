"""ResNet-8 on scikit-learn's digits: every method in a minute on a laptop, nothing to download.

    zosam train --recipe digits-resnet8-rigl-90-zo_sam

Run on: two x86-64 cores, half a minute each, SGD, SAM, ZO-SAM and the random control, before ρ
warmed up. Expected: 98 to 99.5% at 90%.
"""

from collections.abc import Iterator
from typing import Any

from zosam_jax.recipes.recipe import Recipe, cell, cells
from zosam_jax.training.applicable import has_rho

_RUN = ("sgd", "sam", "random_weight_perturbation", "zo_sam")


def recipes() -> Iterator[Recipe]:
    """Nine methods × three sparsities × all optimizers; the options are the defaults."""
    for sparse, sparsity, optimizer in cells():
        warmup: dict[str, Any] = {"rho_warmup": 0.2} if has_rho(optimizer) else {}
        recipe = cell("digits-resnet8", sparse, sparsity, optimizer, **warmup)
        yield recipe._replace(run_on="2 CPU cores") if optimizer in _RUN else recipe
