"""ResNet-50 (23.5M parameters, 3×3 stem) on CIFAR-10 and CIFAR-100.

    zosam train --recipe cifar10-resnet50-mest-em-90-zo_sam --data-dir DIR --precision bfloat16

Run on: not run. Expected: no accuracy of the paper's is known to us.

Settings: those of ResNet-32. Which layers the paper prunes here is not known; MEST and DSR leave
stem, projections and classifier dense, as they do in ResNet-32.
"""

from collections.abc import Iterator

from zosam_jax.recipes.cifar_resnet32 import settings
from zosam_jax.recipes.recipe import Recipe, cell, cells


def recipes() -> Iterator[Recipe]:
    """Two data sets × nine methods × three sparsities × all optimizers."""
    for dataset in ("cifar10", "cifar100"):
        for one in cells():
            options = settings(one[0]) | {"dataset": dataset, "model": "resnet50-cifar"}
            yield cell(f"{dataset}-resnet50", *one, **options)
