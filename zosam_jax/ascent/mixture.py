"""Several ascents at once: their directions, each at the step's radius, added with weights."""

from typing import Any

import jax

from zosam_jax import trees
from zosam_jax.ascent.base import Ascent, Climb
from zosam_jax.errors import check_number, is_traced
from zosam_jax.objective import Objective
from zosam_jax.trees import Array, PyTree


def mixture(*parts: tuple[Ascent, float]) -> Ascent:
    """g = Σᵢ wᵢ·radius(gᵢ) for pairs (ascent i, wᵢ), with gᵢ the direction that ascent i finds.

        mixture((ascent.backprop(), 1.0), (ascent.random_direction(), 10.0))

    Each direction is first brought to this step's radius by the step's own rule, so that the
    weights compare steps of equal size; a layerwise radius mixes array by array. The radius then
    scales the sum, so only the ratio of the weights counts. A part that finds nothing, or nothing
    finite, is left out of the sum.

    Passes and buffers are those of the parts together; each part draws with a key of its own. The
    pass at θ and L(θ) are those of the first part that has them; the slope along the sum is not
    known.

    The rules that only scale arrays ("global", "layerwise") leave the direction of a single part
    as it is. "adaptive" weighs the coordinates of each part by θ², and then those of the sum.

    Args:
      *parts: pairs of an ascent and its weight wᵢ ≥ 0, at least one of them positive.

    Raises:
      ValueError, TypeError: at construction, for parts or weights that cannot be right.
    """
    _check(parts)
    ascents = [part[0] for part in parts]
    weights = [part[1] for part in parts]

    def init(params: PyTree) -> tuple[PyTree, ...]:
        return tuple(ascent.init(params) for ascent in ascents)

    def direction(
        objective: Objective, params: PyTree, state: tuple[PyTree, ...], *, key: Array, mask: PyTree
    ) -> Climb:
        climbs = [
            ascent.direction(
                objective, params, remembered, key=jax.random.fold_in(key, i), mask=mask
            )
            for i, (ascent, remembered) in enumerate(zip(ascents, state, strict=True))
        ]
        steps = [
            trees.scale(objective.perturbation(climb.direction), weight)
            for climb, weight in zip(climbs, weights, strict=True)
        ]
        return Climb(
            jax.tree.map(lambda *leaves: sum(leaves[1:], start=leaves[0]), *steps),
            clean=next((climb.clean for climb in climbs if climb.clean is not None), None),
            value=next((climb.value for climb in climbs if climb.value is not None), None),
            state=tuple(
                before if climb.state is None else climb.state
                for climb, before in zip(climbs, state, strict=True)
            ),
        )

    def observe(state: tuple[PyTree, ...], gradient: PyTree) -> tuple[PyTree, ...]:
        return tuple(
            ascent.observe(remembered, gradient)
            for ascent, remembered in zip(ascents, state, strict=True)
        )

    return Ascent(init, direction, observe)


def _check(parts: tuple[Any, ...]) -> None:
    if not parts:
        raise ValueError("parts=() must hold at least one pair (ascent, weight).")
    for i, part in enumerate(parts):
        is_pair = isinstance(part, tuple | list) and len(part) == 2
        if not is_pair or not isinstance(part[0], Ascent):
            raise TypeError(
                f"parts[{i}]={part!r} must be a pair (ascent, weight), for example "
                "(zosam_jax.ascent.random_direction(), 1.0)."
            )
        check_number(f"the weight of parts[{i}]", part[1], above=0.0, inclusive=True)
    weights = [part[1] for part in parts]
    if not any(is_traced(weight) or weight > 0 for weight in weights):
        raise ValueError(f"the weights {weights} of the parts must not all be 0.")
