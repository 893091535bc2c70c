"""What the models' layers share: the dtype they compute in, initial weights and construction."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from flax.typing import Initializer
from jax.typing import DTypeLike

from zosam_jax.trees import Array, wide_dtype

# N(0, 2/n), n the outputs that an input feeds: kernel height · kernel width · features.
KAIMING_FAN_OUT = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")
# U(−1/√n, 1/√n), n the inputs of an output: PyTorch's default for kernels.
UNIFORM_FAN_IN = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_bias(fan_in: int) -> Initializer:
    """U(−1/√n, 1/√n), n the inputs of an output: PyTorch's default for biases."""
    bound = fan_in**-0.5

    def init(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        del out_sharding
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def layer_dtype(dtype: DTypeLike) -> DTypeLike | None:
    """The dtype argument of a layer.

    None for float32: the layer then computes in its parameters' dtype, which is float32, or
    float64 where the parameters were made so (SynFlow's scores).

    Raises:
      ValueError: if dtype is not a floating-point type.
    """
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


def layer_norm(features: int, dtype: DTypeLike | None, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """LayerNorm over the last axis, in float32 or wider; dtype is that of its outputs. ε = 1e-6."""
    return nnx.LayerNorm(features, epsilon=1e-6, dtype=dtype, promote_dtype=_widen, rngs=rngs)


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
