"""A random part of the parameter arrays is perturbed: ESAM's ascent."""

import jax
import jax.numpy as jnp

from zosam_jax.ascent.base import Ascent, AscentResult
from zosam_jax.errors import check_positive_fraction
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, Key, PyTree

# Folded into the step's key, so that the choice is independent of what the ascent draws.
_CHOICE = 0x5A4D


def stochastic_weight_perturbation(ascent: Ascent, keep: float) -> Ascent:
    """The ascent's direction on parameter arrays kept with probability β each, zero elsewhere.

    The draw is one for each array, a kernel or a bias, and new in every step. Where it keeps none
    there is no perturbation. The passes are the ascent's: which arrays are kept is known only as
    the compiled program runs, so that no pass can be spared the others.

    Args:
      ascent: how to find the direction.
      keep: β in (0, 1].

    Raises:
      ValueError, TypeError: at construction, for β out of range.

    Reference: Du et al., Efficient Sharpness-aware Minimization (its stochastic weight
      perturbation), https://arxiv.org/abs/2110.03141
    """
    check_positive_fraction("keep", keep)

    def direction(
        objective: Objective, params: PyTree, state: PyTree, *, key: Key[Array, ""], mask: Resolved
    ) -> AscentResult:
        found = ascent.direction(objective, params, state, key=key, mask=mask)
        leaves, structure = jax.tree.flatten(found.direction)
        kept = jax.random.bernoulli(jax.random.fold_in(key, _CHOICE), keep, (len(leaves),))
        chosen = [jnp.where(k, g, jnp.zeros_like(g)) for k, g in zip(kept, leaves, strict=True)]
        return found._replace(direction=jax.tree.unflatten(structure, chosen), slope=None)

    return ascent._replace(direction=direction)
