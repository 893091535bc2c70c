"""WRN-28-10 (36.5M parameters) on CIFAR-10 and CIFAR-100: the paper measures its throughput.

    zosam train --recipe cifar10-wrn-28-10-mest-em-90-zo_sam --precision bfloat16 --epochs 1

Run on: not run. Expected: images per second 752 with SGD, 355 with SAM, 576 with ZO-SAM on the
paper's hardware, as secondary notes on it have them; summary.json has `images_per_second`.
"""

from collections.abc import Iterator

from zosam_jax.recipes.cifar_resnet32 import settings
from zosam_jax.recipes.recipe import OPTIMIZERS, Recipe, cell


def recipes() -> Iterator[Recipe]:
    """Two data sets × MEST at 90% × all optimizers."""
    for dataset in ("cifar10", "cifar100"):
        for optimizer in OPTIMIZERS:
            options = {"dataset": dataset, "model": "wrn-28-10", **settings("mest-em")}
            yield cell(f"{dataset}-wrn-28-10", "mest-em", 0.9, optimizer, **options)
