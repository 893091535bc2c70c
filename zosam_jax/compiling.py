"""What to tell XLA when a training step is compiled."""

from collections.abc import Mapping
from types import MappingProxyType

import jax

# On a CPU XLA drops optimization barriers before it fuses, and computes anew in each program of its
# own what they would have kept: the sums along residual blocks, and θ+ε.
_ON_CPU: Mapping[str, str] = MappingProxyType({"xla_disable_hlo_passes": "cse_barrier_expander"})


def compiler_options() -> dict[str, str]:
    """Options of jax.jit under which a step of a residual network takes less time on a CPU.

        step = jax.jit(step, compiler_options=zosam_jax.compiler_options())

    With them XLA keeps optimization barriers, such as those of this library's residual networks,
    whose steps then take three quarters of the time; results may differ in their last bits.
    `zosam train` and `zosam_jax.fit` compile with them.

    Returns:
      Options for the default backend: of a CPU that barriers are kept, else none.
    """
    return dict(_ON_CPU) if jax.default_backend() == "cpu" else {}
