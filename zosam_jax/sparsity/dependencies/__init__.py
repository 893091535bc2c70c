"""Units of structured pruning, found in the traced program of any function.

`find` has `units`; `trace` follows the program, with `axes` and `elementwise` functions.
"""

from zosam_jax.sparsity.dependencies.find import KINDS, units

__all__ = ["KINDS", "units"]
