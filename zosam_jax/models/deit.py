"""DeiT: vision transformers small enough to be trained on ImageNet alone."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from zosam_jax.models.layers import (
    NORMAL_INIT,
    UNIFORM_FAN_IN,
    Attention,
    check_rate,
    check_sizes,
    dropout_layer,
    layer_dtype,
    layer_norm,
    linear,
    uniform_bias,
)


class Block(nnx.Module):
    """y = x + drop(attention(ln(x))), then y + drop(mlp(ln(y))), where mlp widens by 4 with GELU.

    drop leaves a branch out of an example with probability p, and else divides it by 1 − p.
    """

    def __init__(
        self, dim: int, heads: int, drop_rate: float, dtype: DTypeLike | None, rngs: nnx.Rngs
    ) -> None:
        """`drop_rate` is p."""
        self.norm1 = layer_norm(dim, dtype, rngs)
        self.attention = Attention(dim, heads, dtype, rngs)
        self.norm2 = layer_norm(dim, dtype, rngs)
        self.fc1 = linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.fc2 = linear(4 * dim, dim, dtype=dtype, rngs=rngs)
        self.drop_path = dropout_layer(drop_rate, rngs, broadcast_dims=(1, 2))

    def __call__(self, x: jax.Array) -> jax.Array:
        """Tokens (N, tokens, dim) → the same shape."""
        x = x + self.drop_path(self.attention(self.norm1(x)))
        hidden = nnx.gelu(self.fc1(self.norm2(x)), approximate=False)
        return x + self.drop_path(self.fc2(hidden))


class DeiT(nnx.Module):
    """Patches and a class token, position embeddings, blocks, LayerNorm, head on the class token.

    The weight matrices are the arrays named "kernel"; the embeddings of token and positions have
    other names, so that where="kernel" leaves them dense.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        dim: int,
        depth: int,
        heads: int,
        image_shape: tuple[int, int, int],
        patch: int,
        drop_path_rate: float,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
    ) -> None:
        """See `deit`."""
        height, width, channels = self.image_shape = tuple(image_shape)
        tokens = 1 + (height // patch) * (width // patch)
        self.patches = nnx.Conv(
            channels,
            dim,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=UNIFORM_FAN_IN,
            bias_init=uniform_bias(patch * patch * channels),
            dtype=dtype,
            rngs=rngs,
        )
        self.class_token = nnx.Param(NORMAL_INIT(rngs.params(), (dim,)))
        self.positions = nnx.Param(NORMAL_INIT(rngs.params(), (tokens, dim)))
        rates = np.linspace(0, drop_path_rate, depth)
        self.blocks = nnx.List([Block(dim, heads, float(p), dtype, rngs) for p in rates])
        self.norm = layer_norm(dim, None, rngs)
        self.head = linear(dim, num_classes, rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images (N, height, width, channels) → logits (N, num_classes) in float32.

        Raises:
          ValueError: for images of another shape than the model was made for.
        """
        if images.shape[1:] != self.image_shape:
            raise ValueError(
                f"images of shape {images.shape} do not fit: this model was made with "
                f"image_shape={self.image_shape}, and has position embeddings for no other."
            )
        x = self.patches(images).reshape(images.shape[0], -1, self.class_token.shape[-1])
        token = jnp.broadcast_to(
            self.class_token[...].astype(x.dtype), (x.shape[0], 1, x.shape[-1])
        )
        x = jnp.concatenate([token, x], axis=1) + self.positions[...].astype(x.dtype)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, 0]))


def deit(
    num_classes: int,
    *,
    rngs: nnx.Rngs,
    dim: int,
    depth: int,
    heads: int,
    image_shape: tuple[int, int, int] = (224, 224, 3),
    patch: int = 16,
    drop_path_rate: float = 0.0,
    dtype: DTypeLike = jnp.float32,
) -> DeiT:
    """A vision transformer as DeiT has it, without distillation.

    Kernels and embeddings start N(0, 0.02²), biases at zero, the patches' convolution uniform in
    ±1/√(fan in); LayerNorm has ε = 1e-6.

    Args:
      rngs: for the initial weights, and for drop-path if there is any.
      dim: the features of a token.
      depth: the number of blocks.
      heads: of attention; a divisor of dim.
      patch: the height and width of a patch in pixels, which divides those of the image.
      drop_path_rate: the probability, for each example, of leaving out a branch of the last block;
        it rises linearly from 0 in the first (stochastic depth). model.eval() leaves none out.

    Reference: Touvron et al., Training data-efficient image transformers,
    https://arxiv.org/abs/2012.12877
    """
    check_sizes(dim=dim, depth=depth, heads=heads, patch=patch)
    _check_patches(image_shape, patch)
    check_rate("drop_path_rate", drop_path_rate)
    return DeiT(
        num_classes,
        dim=dim,
        depth=depth,
        heads=heads,
        image_shape=image_shape,
        patch=patch,
        drop_path_rate=drop_path_rate,
        dtype=layer_dtype(dtype),
        rngs=rngs,
    )


deit_tiny = functools.partial(deit, dim=192, depth=12, heads=3)
deit_tiny.__doc__ = """`deit` with 12 blocks of 192 features and 3 heads.

5,717,416 parameters for 224×224 coloured images and 1,000 classes, 5,647,872 in kernels.
"""

deit_small = functools.partial(deit, dim=384, depth=12, heads=6)
deit_small.__doc__ = """`deit` with 12 blocks of 384 features and 6 heads.

22,050,664 parameters for 224×224 coloured images and 1,000 classes, 21,912,576 in kernels.
"""


def _check_patches(image_shape: tuple[int, int, int], patch: int) -> None:
    height, width, _ = image_shape
    common = math.gcd(height, width)
    if common % patch:
        fitting = ", ".join(str(p) for p in range(1, common + 1) if common % p == 0)
        raise ValueError(
            f"patch={patch} must divide the height and width of image_shape={image_shape}; "
            f"choose one of {fitting}."
        )
