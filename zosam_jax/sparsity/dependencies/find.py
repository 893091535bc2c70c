"""Which axes of which arrays stand or fall together: the units of a network, from its program."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from zosam_jax.errors import check_one_of
from zosam_jax.sparsity import modules
from zosam_jax.sparsity.dependencies.trace import Trace, keep_whole, made_anew
from zosam_jax.sparsity.groups import CHANNELS, HEADS, NEURONS, Group, Units
from zosam_jax.sparsity.removal import cut
from zosam_jax.trees import PyTree

KINDS = (CHANNELS, NEURONS, HEADS)

_OF_EXAMPLE = "it is an axis of the example"
_OF_OUTPUT = "it is an axis of the function's output"
_FROM_ELSEWHERE = (
    "the function has their number, {}, from elsewhere than the shapes of its parameters"
)


def units(function: Any, *args: Any, kinds: Sequence[str] = KINDS, residual: bool = False) -> Units:
    """Finds the units of a network: what can be removed whole, and from which arrays.

        units = sparsity.units(function, params, example)
        units = sparsity.units(model, example)  # of a Flax NNX module

    Nothing is computed; the program is traced, and once more with smaller arrays. The function
    should take widths from the shapes of its parameters: units whose number it has from elsewhere,
    and would count wrongly after compaction, are left whole. A function that refuses arrays of
    other shapes, as Flax Linen's modules do, has to be made anew with the smaller widths.

    Args:
      function: (params, *example) → outputs, or a Flax NNX module, called as model(*example) in
        inference mode. What it returns stays whole, so it should return no statistics.
      *args: the parameters, any pytree of arrays or of their shapes (jax.ShapeDtypeStruct),
        statistics of BatchNorm among them or not; then the example, an array or a tuple of
        arguments, or shapes likewise. Of an NNX module the example alone.
      kinds: which are wanted, of "channels" (a convolution makes them), "neurons" (any other layer
        does) and "heads" (of attention).
      residual: whether what is added to a residual stream can be removed with it, as one group; by
        default such streams stay whole.

    Returns:
      The groups, in the order in which the program makes them, and what was left whole.

    Raises:
      ValueError: for an unknown kind; if nothing can be removed, with the reasons.
    """
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not kinds:
        raise ValueError(
            f"kinds={kinds!r} must name one of {', '.join(map(repr, KINDS))} at least."
        )
    for kind in kinds:
        check_one_of("kinds", kind, KINDS)
    model = function
    if modules.is_nnx(model):
        function, params = modules.as_function(model)
        args = (params, *args)
    if len(args) != 2:
        raise ValueError(
            "units takes (function, params, example), or (model, example) for a Flax NNX module; "
            "an example of several arguments is a tuple."
        )
    if not callable(function):
        raise TypeError(
            f"function is {type(function).__name__}; it must be a function of (params, *example), "
            "or a Flax NNX module."
        )
    params, example = args
    example = example if isinstance(example, tuple) else (example,)

    def again(found: Units, kept: dict[str, Any]) -> _Found:
        """What is found in the network without some of these units."""
        trees = modules.arrays(model) if modules.is_nnx(model) else [params]
        shapes = jax.eval_shape(lambda trees: trees, trees)
        small = [cut(tree, found, kept) for tree in shapes]
        if modules.is_nnx(model):
            return _found(*modules.as_function(modules.of_widths(model, small)), example, residual)
        return _found(function, small[0], example, residual)

    found = _without_numbers_of_its_own(
        _found(function, params, example, residual), again, may_refuse=not modules.is_nnx(model)
    )
    groups = tuple(group for group in found.groups if group.kind in kinds)
    if not groups:
        wanted = "units" if set(kinds) == set(KINDS) else " or ".join(kinds)
        raise ValueError(
            f"function has no {wanted} that can be removed: "
            f"{' '.join(found.whole[:4]) or 'no parameter enters a product.'}"
        )
    return Units(groups, found.whole)


class _Found(NamedTuple):
    """The units of a program, and the numbers with which it computes."""

    units: Units
    numbers: set[float]


def _found(
    function: Callable[..., Any], params: PyTree, example: tuple[Any, ...], residual: bool
) -> _Found:
    trace = Trace(params)
    jaxpr = jax.make_jaxpr(function)(params, *example)
    inputs = jaxpr.jaxpr.invars[len(trace.paths) :]
    given = [made_anew(v.aval.shape, _OF_EXAMPLE, None) for v in inputs]
    for output in trace.run(jaxpr.jaxpr, [*trace.params, *given], jaxpr.consts):
        keep_whole(output.axes, _OF_OUTPUT)
    return _Found(trace.units(residual), trace.numbers)


def _without_numbers_of_its_own(
    found: _Found, again: Callable[[Units, dict[str, Any]], _Found], *, may_refuse: bool
) -> Units:
    """Leaves whole what the function counts by a number of its own, such as heads = 4.

    A function of smaller arrays must have the smaller units and compute with the same numbers,
    of which a width may be one, as in x / √width. One that refuses smaller arrays gives nobody
    wrong outputs.

    Args:
      found: what is in the program.
      again: the units, and which to keep of each group → what is in that of smaller arrays.
      may_refuse: whether units stay removable of which the function refuses fewer.
    """
    units = found.units

    def miscounted(groups: Sequence[Group]) -> dict[str, str]:
        """For each group that stays whole what the function does with its size."""

        def each() -> dict[str, str]:
            return {k: v for g in groups for k, v in miscounted([g]).items()}

        kept = {group.name: np.arange(group.size) < _fewer(group) for group in groups}
        rest = {group.name: np.ones(group.size, bool) for group in units.groups}
        try:
            smaller = again(units, {**rest, **kept})
        except Exception as error:
            if len(groups) > 1:
                return each()
            if may_refuse:
                return {}
            refusal = str(error).partition("\n")[0].replace("{", "{{").replace("}", "}}")
            return {groups[0].name: f"the module refuses fewer than {{}} ({refusal})"}
        is_same = smaller.numbers == found.numbers
        if not is_same and len(groups) > 1:
            return each()
        shrunk = [
            g._replace(size=int(kept[g.name].sum())) if g.name in kept else g for g in units.groups
        ]
        counted, expected = _sizes(smaller.units.groups), _sizes(shrunk)
        wrong = [g.name for g in groups if counted.get(_place(g), []) != expected[_place(g)]]
        if not wrong and not is_same:
            return {groups[0].name: "the function computes with their number, {}"}
        return dict.fromkeys(wrong, _FROM_ELSEWHERE)

    wrong = miscounted(units.groups) if units.groups else {}
    sentences = [
        f"The {g.kind} of {g.name} are left whole: {wrong[g.name].format(g.size)}."
        for g in units.groups
        if g.name in wrong
    ]
    groups = tuple(group for group in units.groups if group.name not in wrong)
    return Units(groups, (*sentences, *units.whole))


def _fewer(group: Group) -> int:
    """Half of the units or the like, which a reshape by their old number lets through if it can."""
    size, (first, *_) = group.size, group.members
    step = size // math.gcd(size, int(np.sum(first.unit_of == 0)))
    if step < size:
        return size // 2 // step * step
    return next((size // n for n in (2, 3) if size % n == 0 and size > n), size - 1)


def _place(group: Group) -> frozenset[tuple[str, int]]:
    return frozenset((member.path, member.axis) for member in group.members)


def _sizes(groups: Sequence[Group]) -> dict[frozenset[tuple[str, int]], list[int]]:
    """How many units each place has; a single one is not told from none."""
    sizes: dict[frozenset[tuple[str, int]], list[int]] = {}
    for group in groups:
        sizes.setdefault(_place(group), []).extend([group.size] if group.size > 1 else [])
    return {place: sorted(found) for place, found in sizes.items()}
