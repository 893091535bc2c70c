"""Residual networks of the CIFAR kind: a 3×3 stem and three stages of basic blocks."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx

_CONV_INIT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
_HEAD_INIT = nnx.initializers.normal(0.01)

_Norm = functools.partial(nnx.BatchNorm, momentum=0.9, epsilon=1e-5)


def _conv(features_in: int, features: int, kernel: int, stride: int, rngs: nnx.Rngs) -> nnx.Conv:
    return nnx.Conv(
        features_in,
        features,
        (kernel, kernel),
        strides=stride,
        padding=kernel // 2,
        use_bias=False,
        kernel_init=_CONV_INIT,
        rngs=rngs,
    )


class BasicBlock(nnx.Module):
    """relu(x' + bn(conv(relu(bn(conv(x)))))), x' = x, or its projection where the shape changes."""

    def __init__(self, features_in: int, features: int, stride: int, rngs: nnx.Rngs) -> None:
        """`stride` is that of the first convolution and of the projection."""
        self.conv1 = _conv(features_in, features, 3, stride, rngs)
        self.norm1 = _Norm(features, rngs=rngs)
        self.conv2 = _conv(features, features, 3, 1, rngs)
        self.norm2 = _Norm(features, rngs=rngs)
        self.projects = stride != 1 or features_in != features
        if self.projects:
            self.projection = _conv(features_in, features, 1, stride, rngs)
            self.projection_norm = _Norm(features, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """(N, height, width, features_in) → (N, height/stride, width/stride, features)."""
        y = nnx.relu(self.norm1(self.conv1(x)))
        y = self.norm2(self.conv2(y))
        shortcut = self.projection_norm(self.projection(x)) if self.projects else x
        return nnx.relu(shortcut + y)


class ResNet(nnx.Module):
    """Stem, three stages of `blocks` basic blocks, global average pooling, linear head."""

    def __init__(
        self, num_classes: int, blocks: int, width: int, channels: int, rngs: nnx.Rngs
    ) -> None:
        """See `cifar_resnet`."""
        self.stem = _conv(channels, width, 3, 1, rngs)
        self.stem_norm = _Norm(width, rngs=rngs)
        stages, features_in = [], width
        for stage in range(3):
            features = width * 2**stage
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                stages.append(BasicBlock(features_in, features, stride, rngs))
                features_in = features
        self.blocks = nnx.List(stages)
        self.head = nnx.Linear(features_in, num_classes, kernel_init=_HEAD_INIT, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, height, width, channels) → logits (N, num_classes)."""
        x = nnx.relu(self.stem_norm(self.stem(images)))
        for block in self.blocks:
            x = block(x)
        return self.head(jnp.mean(x, axis=(1, 2)))


def cifar_resnet(
    num_classes: int,
    *,
    rngs: nnx.Rngs,
    depth: int,
    width: int = 16,
    image_shape: tuple[int, int, int] = (32, 32, 3),
) -> ResNet:
    """A ResNet of the CIFAR kind with 6n + 2 layers and widths w, 2w, 4w.

    Convolutions have no bias and start Kaiming-normal (fan out), the head N(0, 0.01²); shortcuts
    are projections (1×1 convolution and BatchNorm) where the shape changes, else the identity.

    Args:
      num_classes: the number of logits.
      rngs: for the initial weights.
      depth: 6n + 2: 8, 14, 20, 32, …
      width: w, the features of the first stage.
      image_shape: (height, width, channels); any height and width will do.

    Raises:
      ValueError: if depth is not 6n + 2.

    Reference: He et al., Deep Residual Learning, https://arxiv.org/abs/1512.03385
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth={depth!r} must be 6n + 2: 8, 14, 20, 26, 32, …")
    return ResNet(num_classes, (depth - 2) // 6, width, image_shape[-1], rngs)


def resnet8(
    num_classes: int, *, rngs: nnx.Rngs, image_shape: tuple[int, int, int] = (28, 28, 1)
) -> ResNet:
    """`cifar_resnet` with 8 layers and widths 16, 32, 64, for 8×8 and 28×28 images.

    77,754 parameters for grey images and 10 classes.
    """
    return cifar_resnet(num_classes, rngs=rngs, depth=8, image_shape=image_shape)
