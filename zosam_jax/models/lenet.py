"""LeNet-300-100: the fully connected network of many pruning papers."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zosam_jax.models.layers import layer_dtype

_KERNEL_INIT = nnx.initializers.he_normal()


class LeNet300100(nnx.Module):
    """pixels → 300 → 100 → classes, with ReLU."""

    def __init__(
        self,
        num_classes: int,
        image_shape: tuple[int, int, int],
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        """See `lenet_300_100`."""
        pixels = math.prod(image_shape)
        self.hidden1 = nnx.Linear(pixels, 300, kernel_init=_KERNEL_INIT, dtype=dtype, rngs=rngs)
        self.hidden2 = nnx.Linear(300, 100, kernel_init=_KERNEL_INIT, dtype=dtype, rngs=rngs)
        self.head = nnx.Linear(100, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, height, width, channels) → logits (N, num_classes) in float32."""
        x = images.reshape(images.shape[0], -1)
        x = nnx.relu(self.hidden1(x))
        x = nnx.relu(self.hidden2(x))
        return self.head(x)


def lenet_300_100(
    num_classes: int,
    *,
    rngs: nnx.Rngs,
    image_shape: tuple[int, int, int] = (28, 28, 1),
    dtype: DTypeLike = jnp.float32,
) -> LeNet300100:
    """LeNet-300-100, He normal at first; 266,610 parameters for 28×28 grey images and 10 classes.

    Reference: LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998
    """
    return LeNet300100(num_classes, image_shape, layer_dtype(dtype), rngs)
