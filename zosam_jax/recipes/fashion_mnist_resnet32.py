"""ResNet-32 on Fashion-MNIST: the paper's model where CIFAR is not at hand.

    zosam train --recipe fashion_mnist-resnet32-rigl-95-zo_sam --data-dir DIR

Run on: one x86-64 core, RigL at 95%, cut to 5,000 images of 14×14 pixels and 10 epochs
(benchmarks/resnet32_fashion_mnist.toml); not run in full.
Expected: nothing is published; the settings are CIFAR's.
"""

from collections.abc import Iterator

from zosam_jax.recipes.cifar_resnet32 import settings
from zosam_jax.recipes.recipe import Recipe, cell, cells


def recipes() -> Iterator[Recipe]:
    """Nine methods × three sparsities × all optimizers."""
    for one in cells():
        options = settings(one[0]) | {"dataset": "fashion-mnist", "model": "resnet32"}
        recipe = cell("fashion_mnist-resnet32", *one, **options)
        yield recipe._replace(run_on="2 CPU cores, reduced")
