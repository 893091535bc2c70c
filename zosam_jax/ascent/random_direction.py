"""No estimate at all: the control that every zeroth-order ascent has to beat."""

from zosam_jax import directions
from zosam_jax.ascent.base import Ascent, AscentResult, stateless
from zosam_jax.masks import Resolved
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, FloatTree, Key


def random_direction(distribution: str | directions.Distribution = "normal") -> Ascent:
    """g = u, a random direction; no pass through the model.

    Args:
      distribution: "normal", "rademacher", "sphere", or a function (`zosam_jax.directions`).
    """
    draw = directions.get(distribution)

    def direction(
        objective: Objective, params: FloatTree, *, key: Key[Array, ""], mask: Resolved
    ) -> AscentResult:
        del objective
        return AscentResult(draw(key, params, mask))

    return stateless(direction)
