"""And how down from there? One file for each way of coming down from the perturbed point."""

from zosam_jax.descent.at_perturbed import at_perturbed
from zosam_jax.descent.base import Descent, Landing, perturbed

__all__ = ["Descent", "Landing", "at_perturbed", "perturbed"]
