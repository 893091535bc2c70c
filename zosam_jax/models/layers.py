"""What the models' layers share: the dtype they compute in, initial weights and construction."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Initializer
from jax.typing import DTypeLike

from zosam_jax.errors import check_count, check_number
from zosam_jax.trees import Array, Bool, Float, wide_dtype

# N(0, 2/n), n the outputs that an input feeds: kernel height · kernel width · features.
KAIMING_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(−1/√n, 1/√n), n the inputs of an output: PyTorch's default for kernels.
UNIFORM_FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# The transformers' own; some cut it at ±2, that is, at a hundred standard deviations.
NORMAL_INIT = nnx.initializers.normal(0.02)

linear = functools.partial(nnx.Linear, kernel_init=NORMAL_INIT)


def uniform_bias(fan_in: int) -> Initializer:
    """U(−1/√n, 1/√n), n the inputs of an output: PyTorch's default for biases."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_dtype(dtype: DTypeLike | None) -> DTypeLike | None:
    """The dtype argument of a layer.

    None for float32 and None: the layer then computes in its parameters' dtype, which is float32,
    or float64 where the parameters were made so (SynFlow's scores).

    Raises:
      ValueError: if dtype is not a floating-point type.
    """
    if dtype is None:
        return None
    if not jnp.issubdtype(dtype, jnp.floating):
        raise ValueError(
            f"dtype={dtype!r} must be a floating-point type, such as jnp.float32 or jnp.bfloat16."
        )
    return None if jnp.dtype(dtype) == jnp.float32 else dtype


def batch_norm(features: int, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """BatchNorm over all but the last axis, in float32 or wider; dtype is that of its outputs.

    Running statistics move a tenth of the way to the batch's at each pass; ε = 1e-5.
    """
    return nnx.BatchNorm(
        features, momentum=0.9, epsilon=1e-5, dtype=dtype, promote_dtype=_widen, rngs=rngs
    )


def layer_norm(
    features: int, dtype: DTypeLike | None, rngs: nnx.Rngs, epsilon: float = 1e-6
) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in float32 or wider; dtype is that of its outputs."""
    return nnx.LayerNorm(features, epsilon=epsilon, dtype=dtype, promote_dtype=_widen, rngs=rngs)


def dropout_layer(rate: float, rngs: nnx.Rngs, **options: Any) -> nnx.Dropout:
    """Dropout, without random state where nothing is random."""
    return nnx.Dropout(rate, rngs=rngs if rate > 0 else None, **options)


def check_rate(name: str, rate: float) -> None:
    """Raises unless `rate` is a number in [0, 1)."""
    check_number(name, rate, above=0.0, inclusive=True)
    if rate >= 1:
        raise ValueError(f"{name}={rate!r} must be below 1.")


def check_sizes(**sizes: int) -> None:
    """Raises unless sizes of a transformer, `dim` and `heads` among them, are counts that fit."""
    for name, value in sizes.items():
        check_count(name, value)
    if sizes["dim"] % sizes["heads"]:
        raise ValueError(f"heads={sizes['heads']} must divide dim={sizes['dim']}.")


class Attention(nnx.Module):
    """softmax(q·kᵀ/√(dim/heads))·v in each head, and a linear layer over the heads together."""

    def __init__(
        self,
        dim: int,
        heads: int,
        dtype: DTypeLike | None,
        rngs: nnx.Rngs,
        proj_init: Initializer = NORMAL_INIT,
    ) -> None:
        """Queries, keys and values come from one kernel, (dim, 3·dim), as SViTE masks it."""
        self.head_dim = dim // heads
        self.qkv = linear(dim, 3 * dim, dtype=dtype, rngs=rngs)
        self.proj = linear(dim, dim, kernel_init=proj_init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "n t d"],
        mask: Bool[Array, "#n 1 #t t"] | None = None,
        *,
        is_causal: bool = False,
    ) -> Float[Array, "n t d"]:
        """Each token looks at those of its row that the mask has, or at all; if causal, to itself.

        Args:
          x: the tokens.
          mask: for each token (axis 2) which tokens (axis 3) it looks at.
          is_causal: whether it looks at none after itself.
        """
        n, tokens, _ = x.shape
        # As many heads as there are, which need not be the same in every block.
        qkv = self.qkv(x).reshape(n, tokens, 3, -1, self.head_dim)
        y = jax.nn.dot_product_attention(
            qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2], mask=mask, is_causal=is_causal
        )
        return self.proj(y.reshape(n, tokens, -1))


@jax.custom_jvp
def stored(x: Array) -> Array:
    """x, for whose users it is computed once and kept in memory.

    XLA computes elementwise operations anew for each user: of the sums along residual blocks, all
    of them back to the stem for the kernel gradients of each block, a third of a step on a CPU
    that is compiled with `zosam_jax.compiler_options()`; without those it ignores the hint there.
    """
    kept: Array = jax.lax.optimization_barrier(x)
    return kept


@stored.defjvp
def _stored_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    return stored(*primals), *tangents


def global_average(x: Array) -> Array:
    """(N, height, width, features) → (N, features), in float32 or wider."""
    return jnp.mean(x, axis=(1, 2), dtype=wide_dtype(x))


class ConvLayers(NamedTuple):
    """Makes the layers of one convolutional network."""

    kernel_init: Initializer  # the initial weights of its convolutions
    dtype: DTypeLike | None  # as `layer_dtype` returns it
    rngs: nnx.Rngs  # for the initial weights

    def conv(self, features_in: int, features: int, kernel: int, stride: int = 1) -> nnx.Conv:
        """A convolution of kernel × kernel pixels without bias, padded by kernel // 2."""
        return nnx.Conv(
            features_in,
            features,
            (kernel, kernel),
            strides=stride,
            padding=kernel // 2,
            use_bias=False,
            kernel_init=self.kernel_init,
            dtype=self.dtype,
            rngs=self.rngs,
        )

    def norm(self, features: int) -> nnx.BatchNorm:
        """See `batch_norm`."""
        return batch_norm(features, self.dtype, self.rngs)


def _widen(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """Promotes to the widest dtype among the arrays, whatever the layer's: statistics are exact."""
    del dtype
    return promote_dtype(arrays, inexact=inexact)
