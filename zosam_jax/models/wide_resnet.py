"""Wide residual networks: few layers, many features, normalised and activated before they add."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from zosam_jax.errors import check_count
from zosam_jax.models.layers import (
    KAIMING_FAN_OUT,
    UNIFORM_FAN_IN,
    ConvLayers,
    global_average,
    layer_dtype,
    stored,
)

_STEM_FEATURES = 16


class PreActivationBlock(nnx.Module):
    """x' + conv(relu(bn(conv(a)))), a = relu(bn(x)), both convolutions 3×3.

    x' = x where its features are kept, else a 1×1 convolution of a, the activated input.
    """

    def __init__(self, layers: ConvLayers, features_in: int, features: int, stride: int) -> None:
        """`stride` is that of the first convolution and of the projection."""
        self.norm1 = layers.norm(features_in)
        self.conv1 = layers.conv(features_in, features, 3, stride)
        self.norm2 = layers.norm(features)
        self.conv2 = layers.conv(features, features, 3)
        self.projects = stride != 1 or features_in != features
        if self.projects:
            self.projection = layers.conv(features_in, features, 1, stride)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, height, width, features_in) → (N, height/stride, width/stride, features)."""
        activated = nnx.relu(self.norm1(x))
        y = nnx.relu(self.norm2(self.conv1(activated)))
        shortcut = self.projection(activated) if self.projects else x
        return stored(shortcut + self.conv2(y))


class WideResNet(nnx.Module):
    """3×3 stem, three stages of blocks, BatchNorm, ReLU, global average pooling, linear head."""

    def __init__(
        self, num_classes: int, layers: ConvLayers, *, blocks: int, widen: int, channels: int
    ) -> None:
        """See `wide_resnet`; `blocks` is the number in each stage."""
        self.stem = layers.conv(channels, _STEM_FEATURES, 3)
        stages, features_in = [], _STEM_FEATURES
        for stage in range(3):
            features = _STEM_FEATURES * widen * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(PreActivationBlock(layers, features_in, features, stride))
                features_in = features
        self.blocks = nnx.List(stages)
        self.norm = layers.norm(features_in)
        self.head = nnx.Linear(
            features_in, num_classes, kernel_init=UNIFORM_FAN_IN, rngs=layers.rngs
        )

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, height, width, channels) → logits (N, num_classes) in float32."""
        x = self.stem(images)
        for block in self.blocks:
            x = block(x)
        return self.head(global_average(nnx.relu(self.norm(x))))


def wide_resnet(
    num_classes: int,
    *,
    rngs: nnx.Rngs,
    depth: int,
    widen: int,
    image_shape: tuple[int, int, int] = (32, 32, 3),
    dtype: DTypeLike = jnp.float32,
) -> WideResNet:
    """A WRN-d-k: 6n + 4 layers, widths 16k, 32k, 64k, no dropout.

    Convolutions have no bias and start Kaiming-normal (fan out), the head uniform in ±1/√(fan in)
    with biases of zero.

    Args:
      depth: d = 6n + 4: 10, 16, 22, 28, …
      widen: k.

    Reference: Zagoruyko & Komodakis, Wide Residual Networks, https://arxiv.org/abs/1605.07146
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"depth={depth!r} must be 6n + 4: 10, 16, 22, 28, …")
    check_count("widen", widen)
    return WideResNet(
        num_classes,
        ConvLayers(KAIMING_FAN_OUT, layer_dtype(dtype), rngs),
        blocks=(depth - 4) // 6,
        widen=widen,
        channels=image_shape[-1],
    )


wide_resnet_28_10 = functools.partial(wide_resnet, depth=28, widen=10)
wide_resnet_28_10.__doc__ = """`wide_resnet` with 28 layers and widths 160, 320, 640.

36,479,194 parameters for coloured images and 10 classes, 36,536,884 for 100.
"""
