"""What is trained on what: networks that can fit their training set in seconds of one core."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from zosam_jax import models
from zosam_jax.trees import Array, PyTree

VALIDATION_IMAGES = 2_000


class Problem(NamedTuple):
    """Data, network and descent.

    Attributes:
      data: options of `ProblemConfig` that describe the images and the noise of their labels.
      model: (num_classes, rngs=, image_shape=) → the network.
      descent: learning rate schedule, multiple of the weight decay → the base optimizer.
      learning_rate: its peak, after a linear warmup and before a cosine to zero.
      sparsity: fraction of the kernels' weights that a random mask removes.
      epochs, batch_size, test_images: of a run; the first test images count.
      loops: whether steps run in a compiled loop, where a CPU is slow at convolutions.
    """

    data: dict[str, Any]
    model: Callable[..., nnx.Module]
    descent: Callable[[optax.Schedule, Array | float], optax.GradientTransformation]
    learning_rate: float
    sparsity: float
    epochs: int
    batch_size: int
    test_images: int = 10_000
    loops: bool = True


def sgd(rate: optax.Schedule, decay: Array | float) -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(5e-4 * decay), optax.sgd(rate, momentum=0.9))


def adamw(rate: optax.Schedule, decay: Array | float) -> optax.GradientTransformation:
    def kernels(params: PyTree) -> PyTree:
        return jax.tree.map_with_path(lambda path, _: path[-1].key == "kernel", params)

    return optax.adamw(rate, weight_decay=0.05 * decay, mask=kernels)


def fashion(train_images: int, *, noise: float = 0.0, shrink: int = 1) -> dict[str, Any]:
    """The first images of Fashion-MNIST and VALIDATION_IMAGES more, with as noisy labels."""
    images = train_images + VALIDATION_IMAGES
    return {
        "dataset": "fashion-mnist",
        "train_images": images,
        "shrink": shrink,
        "label_noise": noise,
        "validation_fraction": VALIDATION_IMAGES / images,
    }


DIGITS = {"dataset": "digits", "validation_fraction": 0.2}
MLP = functools.partial(
    Problem,
    model=models.lenet_300_100,
    descent=sgd,
    learning_rate=0.1,
    epochs=60,
    batch_size=128,
)
RESNET = functools.partial(
    Problem,
    model=models.resnet8,
    descent=sgd,
    learning_rate=0.1,
    batch_size=32,
    test_images=4_000,
    loops=False,
)
VIT = functools.partial(
    Problem,
    model=functools.partial(models.deit, dim=64, depth=3, heads=4, patch=7),
    descent=adamw,
    learning_rate=1e-3,
    batch_size=32,
    test_images=4_000,
)
PROBLEMS = {
    "mlp-clean-90": MLP(fashion(4_000), sparsity=0.9, epochs=40),
    "mlp-noise-90": MLP(fashion(4_000, noise=0.3), sparsity=0.9),
    "mlp-noise-98": MLP(fashion(1_000, noise=0.3), sparsity=0.98, epochs=100, batch_size=64),
    "resnet-clean-95": RESNET(fashion(1_000, shrink=4), sparsity=0.95, epochs=25),
    "resnet-digits-noise-0": RESNET(DIGITS | {"label_noise": 0.3}, sparsity=0.0, epochs=18),
    "vit-noise-0": VIT(fashion(750, noise=0.3, shrink=2), sparsity=0.0, epochs=50),
    "vit-clean-90": VIT(fashion(1_000, shrink=2), sparsity=0.9, epochs=30, learning_rate=3e-3),
}
