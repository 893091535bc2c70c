"""ResNet-8 on scikit-learn's digits: every method in a minute on a laptop, nothing to download.

    zosam train --recipe digits-resnet8-rigl-90-zo_sam

Run on: two x86-64 cores, half a minute each, SGD, SAM, ZO-SAM and the random control, before ρ
warmed up. Expected: 98 to 99.5% at 90%.
"""

from collections.abc import Iterator

from zosam_jax.recipes.recipe import METHODS, OPTIMIZERS, SPARSITIES, Recipe, cell
from zosam_jax.training.applicable import has_rho

_RUN = ("sgd", "sam", "random_weight_perturbation", "zo_sam")


def recipes() -> Iterator[Recipe]:
    """Nine methods × three sparsities × all optimizers; the options are the defaults."""
    for sparse in METHODS:
        for sparsity in SPARSITIES:
            for optimizer in OPTIMIZERS:
                warmup = {"rho_warmup": 0.2} if has_rho(optimizer) else {}
                name, config = cell("digits-resnet8", sparse, sparsity, optimizer, **warmup)
                run_on = "2 CPU cores" if optimizer in _RUN else "not run"
                yield Recipe(name, config, None, "", run_on)
