"""Residual networks, of the CIFAR kind and of ImageNet's: blocks that end in x' + f(x) and ReLU."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zosam_jax.errors import check_one_of
from zosam_jax.models.layers import (
    KAIMING_FAN_OUT,
    UNIFORM_FAN_IN,
    ConvLayers,
    global_average,
    layer_dtype,
    stored,
    uniform_bias,
)

_IMAGENET_STEM = "imagenet"
_CIFAR_STEM = "cifar"


class _Block(nnx.Module):
    """relu(x' + f(x)), x' = x, or its projection where the shape changes."""

    expansion: int

    def _add_projection(
        self, layers: ConvLayers, features_in: int, features: int, stride: int
    ) -> None:
        self.projects = stride != 1 or features_in != features
        if self.projects:
            self.projection = layers.conv(features_in, features, 1, stride)
            self.projection_norm = layers.norm(features)

    def _shortcut(self, x: jax.Array) -> jax.Array:
        return self.projection_norm(self.projection(x)) if self.projects else x


class BasicBlock(_Block):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), both convolutions 3×3."""

    expansion = 1

    def __init__(self, layers: ConvLayers, features_in: int, features: int, stride: int) -> None:
        """`stride` is that of the first convolution and of the projection."""
        self.conv1 = layers.conv(features_in, features, 3, stride)
        self.norm1 = layers.norm(features)
        self.conv2 = layers.conv(features, features, 3)
        self.norm2 = layers.norm(features)
        self._add_projection(layers, features_in, features, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, height, width, features_in) → (N, height/stride, width/stride, features)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        return stored(nnx.relu(self._shortcut(x) + y))


class Bottleneck(_Block):
    """relu(x' + f(x)), f three convolutions, 1×1, 3×3 and 1×1, of which the last widens by 4."""

    expansion = 4

    def __init__(self, layers: ConvLayers, features_in: int, features: int, stride: int) -> None:
        """`stride` is that of the 3×3 convolution and of the projection."""
        self.conv1 = layers.conv(features_in, features, 1)
        self.norm1 = layers.norm(features)
        self.conv2 = layers.conv(features, features, 3, stride)
        self.norm2 = layers.norm(features)
        self.conv3 = layers.conv(features, 4 * features, 1)
        self.norm3 = layers.norm(4 * features)
        self._add_projection(layers, features_in, 4 * features, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, height, width, features_in) → (N, height/stride, width/stride, 4·features)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = nnx.relu(self.norm2(self.conv2(y)))
        y = self.norm3(self.conv3(y))
        return stored(nnx.relu(self._shortcut(x) + y))


class ResNet(nnx.Module):
    """Stem, stages of residual blocks, global average pooling, linear head."""

    def __init__(
        self,
        num_classes: int,
        layers: ConvLayers,
        *,
        block: type[BasicBlock] | type[Bottleneck],
        stages: Sequence[int],
        width: int,
        channels: int,
        stem: str,
        head: Callable[[int, int, nnx.Rngs], nnx.Linear],
    ) -> None:
        """See `cifar_resnet` and `resnet50`.

        Args:
          layers: makes the convolutions and normalisations.
          block: what the stages are made of.
          stages: the number of blocks in each stage; each but the first halves height and width.
          width: the features of the stem and of the first stage; they double with each stage.
          channels: those of an image.
          stem: "cifar", a 3×3 convolution; or "imagenet", 7×7 in steps of 2, then 3×3 maxima.
          head: (features, num_classes, rngs) → the linear layer.
        """
        self.pools = stem == _IMAGENET_STEM
        self.stem = (
            layers.conv(channels, width, 7, 2) if self.pools else layers.conv(channels, width, 3)
        )
        self.stem_norm = layers.norm(width)
        blocks, features_in = [], width
        for stage, length in enumerate(stages):
            features = width * 2**stage
            for index in range(length):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(layers, features_in, features, stride))
                features_in = features * block.expansion
        self.blocks = nnx.List(blocks)
        self.head = head(features_in, num_classes, layers.rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, height, width, channels) → logits (N, num_classes) in float32."""
        x = nnx.relu(self.stem_norm(self.stem(images)))
        if self.pools:
            x = nnx.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        for block in self.blocks:
            x = block(x)
        return self.head(global_average(x))


def cifar_resnet(
    num_classes: int,
    *,
    rngs: nnx.Rngs,
    depth: int,
    width: int = 16,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """A ResNet of the CIFAR kind with 6n + 2 layers and widths w, 2w, 4w.

    Convolutions have no bias and start Kaiming-normal (fan out), the head N(0, 0.01²); shortcuts
    are projections (1×1 convolution and BatchNorm) where the shape changes, else the identity.

    Args:
      depth: 6n + 2: 8, 14, 20, 32, …
      width: w, the features of the first stage.

    Reference: He et al., Deep Residual Learning, https://arxiv.org/abs/1512.03385
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth={depth!r} must be 6n + 2: 8, 14, 20, 26, 32, …")
    return ResNet(
        num_classes,
        ConvLayers(KAIMING_FAN_OUT, layer_dtype(dtype), rngs),
        block=BasicBlock,
        stages=[(depth - 2) // 6] * 3,
        width=width,
        channels=image_shape[-1],
        stem=_CIFAR_STEM,
        head=_small_head,
    )


resnet8 = functools.partial(cifar_resnet, depth=8, image_shape=(28, 28, 1))
resnet8.__doc__ = """`cifar_resnet` with 8 layers and widths 16, 32, 64.

For 8×8 and 28×28 images; 77,754 parameters for grey ones and 10 classes.
"""

resnet32 = functools.partial(cifar_resnet, depth=32, width=32)
resnet32.__doc__ = """`cifar_resnet` with 32 layers and widths 32, 64, 128.

Twice the usual: that of MEST (Yuan et al., https://arxiv.org/abs/2110.14032). 1,860,522 parameters
for coloured images and 10 classes, 1,872,132 for 100.
"""


def resnet50(
    num_classes: int,
    *,
    rngs: nnx.Rngs,
    stem: str = _IMAGENET_STEM,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    dtype: DTypeLike = jnp.float32,
) -> ResNet:
    """ResNet-50: 3, 4, 6 and 3 bottlenecks, strides in their 3×3 convolutions ("v1.5").

    Convolutions start Kaiming-normal (fan out) with the stem of ImageNet, and with that of CIFAR
    uniform in ±1/√(fan in), as the head's weights and biases in both cases.

    25,557,032 parameters with ImageNet's stem and 1,000 classes; 23,520,842 and 23,705,252 with
    CIFAR's and 10 and 100.

    Args:
      stem: "imagenet", 7×7 in steps of 2 and maxima over 3×3 in steps of 2; or "cifar", 3×3 in
        steps of 1, for small images.

    Reference: He et al., Deep Residual Learning, https://arxiv.org/abs/1512.03385
    """
    check_one_of("stem", stem, (_IMAGENET_STEM, _CIFAR_STEM))
    kernel_init = KAIMING_FAN_OUT if stem == _IMAGENET_STEM else UNIFORM_FAN_IN
    return ResNet(
        num_classes,
        ConvLayers(kernel_init, layer_dtype(dtype), rngs),
        block=Bottleneck,
        stages=(3, 4, 6, 3),
        width=64,
        channels=image_shape[-1],
        stem=stem,
        head=_uniform_head,
    )


def _small_head(features: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(features, num_classes, kernel_init=nnx.initializers.normal(0.01), rngs=rngs)


def _uniform_head(features: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        features,
        num_classes,
        kernel_init=UNIFORM_FAN_IN,
        bias_init=uniform_bias(features),
        rngs=rngs,
    )
