"""Follows the traced program of a network, equation by equation.

Each array in it has axes (zosam_jax.sparsity.dependencies.axes), which the equations find to be the
same, and a note of what stands where a unit has been removed: 0 at first, in the outputs of a
kernel whose weights are gone, and a number that is computed for what is made of it. A unit is
removable only where all that reads it reads 0.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from zosam_jax.sparsity.dependencies.axes import Axis, concatenated, product, unify
from zosam_jax.sparsity.dependencies.elementwise import ELEMENTWISE_FUNCTIONS, evaluate
from zosam_jax.sparsity.groups import (
    CHANNELS,
    ELEMENTWISE,
    HEADS,
    INPUT,
    NEURONS,
    OUTPUT,
    Group,
    Member,
    Units,
)
from zosam_jax.trees import PyTree

# Why an axis is left whole; of rows, columns and tokens nobody expects anything else.
_OF_SPACE = ""
_OF_CONSTANT = "it meets an array that is not among the parameters"
_OF_HEAD = "it holds the features of a head of attention"
_OF_FACTOR = "it lies inside or across other units"
_INSIDE_GROUPS = "it lies inside the groups of a grouped convolution"
_CONTRACTED = "two activations are multiplied and summed along it"
_RESIDUAL = "it is a residual stream, which residual=True makes one group"
_UNREAD = "no layer reads it"
_TWICE = "it is more than one axis of an activation"

# Programs that are called once; loops and branches are not followed.
_CALLS = {
    *("jit", "pjit", "closed_call", "core_call", "core_closed_call", "remat", "remat2"),
    *("checkpoint", "custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"),
}
# One or more arrays, each handed on as it is.
_PASSED_ON = {"optimization_barrier"}


class _Removed(NamedTuple):
    """What stands where a unit is removed: a number, None if unknown, and what made it so."""

    number: float | None
    made_by: str = ""


class _Value(NamedTuple):
    """An array of the program.

    `removed` says what stands in it where a unit along an axis is removed. `constant` is the number
    that it holds everywhere, if it does. `origins` are the parameters of which it is made, None for
    an activation, which depends on the example.
    """

    axes: tuple[Axis, ...]
    removed: tuple[tuple[Axis, _Removed], ...] = ()
    constant: float | None = None
    origins: frozenset[int] | None = None

    def at(self, atom: Axis) -> _Removed:
        """What stands in it where a unit along this axis is removed."""
        for axis, found in self.removed:
            if axis.root is atom or (axis.has_parts and atom in axis.atoms()):
                return found
        return _Removed(self.constant)


class _Use(NamedTuple):
    """What a product, or any other equation, makes of an axis of parameters."""

    origins: frozenset[int]
    axis: Axis
    role: str
    scales: bool = False
    is_convolution: bool = False


At: TypeAlias = Callable[[Axis], _Removed]


def keep_whole(axes: Sequence[Axis], reason: str) -> None:
    """Notes why units along these axes cannot be removed."""
    for axis in axes:
        axis.keep_whole(reason)


def made_anew(shape: Sequence[int], whole: str | None, origins: frozenset[int] | None) -> _Value:
    """An array with axes of its own, which stay whole for the given reason, if any."""
    return _Value(tuple(Axis(size, whole=whole) for size in shape), origins=origins)


def _made(axes: Sequence[Axis], at: At, values: Sequence[_Value]) -> _Value:
    """An array that is made of others, with what stands in it where units are removed."""
    origins = _together(values)
    atoms = [atom for axis in axes for atom in axis.atoms() if atom.whole is None]
    if origins is None:
        keep_whole([atom for atom, count in Counter(atoms).items() if count > 1], _TWICE)
    removed = tuple((atom, at(atom)) for atom in dict.fromkeys(atoms))
    return _Value(tuple(axes), removed, origins=origins)


def _together(values: Sequence[_Value]) -> frozenset[int] | None:
    found: frozenset[int] = frozenset()
    for value in values:
        if value.origins is None:
            return None
        found |= value.origins
    return found


def _zero_if(is_zero: bool, name: str) -> _Removed:
    return _Removed(0.0) if is_zero else _Removed(None, name)


class Trace:
    """Follows a program; collects what its equations make of the axes of the parameters."""

    def __init__(self, params: PyTree) -> None:
        leaves = jax.tree.leaves_with_path(params)
        self.paths = [jax.tree_util.keystr(path) for path, _ in leaves]
        # The names of the layers that have them.
        self.layers = [jax.tree_util.keystr(path[:-1] or path) for path, _ in leaves]
        self.params = []
        self.uses: list[_Use] = []
        self.numbers: set[float] = set()
        for i, (_, leaf) in enumerate(leaves):
            axes = tuple(Axis(size, varies=True) for size in np.shape(leaf))
            removed = tuple((axis, _Removed(0.0)) for axis in axes)
            self.params.append(_Value(axes, removed, origins=frozenset({i})))

    def run(self, jaxpr: Any, inputs: Sequence[_Value], consts: Sequence[Any]) -> list[_Value]:
        """The outputs of a program, from its inputs."""
        known: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
        known.update(zip(jaxpr.constvars, map(self.number, consts), strict=True))

        def value(variable: Any) -> _Value:
            is_literal = isinstance(variable, core.Literal)
            return self.number(variable.val) if is_literal else known[variable]

        for equation in jaxpr.eqns:
            results = self.follow(equation, [value(v) for v in equation.invars])
            known.update(zip(equation.outvars, results, strict=True))
        return [value(v) for v in jaxpr.outvars]

    def follow(self, equation: Any, values: list[_Value]) -> list[_Value]:
        """The outputs of one equation."""
        name = equation.primitive.name
        inner = _called(equation)
        if inner is not None:
            return self.run(inner.jaxpr, values, inner.consts)
        if name in ELEMENTWISE_FUNCTIONS:
            return [self.elementwise(equation, values)]
        if name in _PASSED_ON:
            return values
        rule = getattr(self, f"_{name}", None)
        if rule is None and name.startswith("reduce_window_"):
            rule = self._windows
        elif rule is None and name.startswith(("reduce_", "arg")) and "axes" in equation.params:
            rule = self._reduction
        elif rule is None and name.startswith("cum"):
            rule = self._cumulative
        if rule is None:
            return self._not_followed(equation, values)
        found = rule(equation, *values)
        return found if isinstance(found, list) else [found]

    def number(self, array: Any) -> _Value:
        """What the program holds; numbers with which it computes are noted."""
        value = _constant(array)
        if value.constant is not None and np.ndim(array) == 0 and _is_float(array):
            self.numbers.add(value.constant)
        return value

    def use(self, value: _Value, axes: Sequence[Axis], role: str, **how: bool) -> None:
        """Notes what is made of axes of parameters."""
        if value.origins:
            self.uses.extend(_Use(value.origins, a, role, **how) for a in axes if a.size != 1)

    def _not_followed(self, equation: Any, values: list[_Value]) -> list[_Value]:
        reason = f"it is not followed through {equation.primitive.name}"
        for value in values:
            keep_whole(value.axes, reason)
        origins = _together(values)
        return [made_anew(getattr(v.aval, "shape", ()), reason, origins) for v in equation.outvars]

    # Elementwise functions

    def elementwise(self, equation: Any, values: list[_Value]) -> _Value:
        """The output of a function of one element of each operand."""
        name = equation.primitive.name
        shape = equation.outvars[0].aval.shape
        is_sum = name in ("add", "sub") and all(v.origins is None for v in values)
        axes = []
        for i, size in enumerate(shape):
            same = [v.axes[i] for v in values if v.axes and v.axes[i].size == size]
            atoms = [axis.atoms() for axis in same]
            vary = all(atom.varies for of_axis in atoms for atom in of_axis)
            meet = vary and len(set(map(frozenset, atoms))) > 1
            for other in same[1:]:
                unify(same[0], other)
            if is_sum and meet:
                for atom in same[0].atoms():
                    atom.is_residual = True
            axes.append(same[0] if size != 1 else Axis(1))
        if _together(values) is None:
            for value in values:
                self.use(value, value.axes, ELEMENTWISE, scales=name in ("mul", "div"))

        def result(found: Sequence[_Removed]) -> _Removed:
            number = evaluate(equation, [x.number for x in found])
            known = next((x.made_by for x in found if x.made_by), name)
            return _Removed(number, "" if number == 0 else known)

        made = _made(axes, lambda atom: result([v.at(atom) for v in values]), values)
        constant = result([_Removed(v.constant) for v in values]).number
        return made._replace(constant=constant)

    # Products

    def read(self, value: _Value, axis: Axis) -> None:
        """A kernel sums over an axis of an activation: what is removed must be 0 there."""
        for atom in axis.atoms():
            number, made_by = value.at(atom)
            if atom.whole is None and number != 0:
                atom.keep_whole(f"what is made of it by {made_by} is not 0 where it is 0")

    def contract(self, lhs: _Value, a: Axis, rhs: _Value, b: Axis) -> None:
        """Two arrays are multiplied and summed along an axis."""
        unify(a, b)
        if lhs.origins is None and rhs.origins is None:
            a.keep_whole(_CONTRACTED)
        elif any(v.origins == frozenset() and v.constant != 0 for v in (lhs, rhs)):
            a.keep_whole(_OF_CONSTANT)
        self.read(lhs, a)
        self.read(rhs, b)
        self.use(lhs, [a], INPUT if rhs.origins is None else OUTPUT)
        self.use(rhs, [b], INPUT)

    def _dot_general(self, equation: Any, lhs: _Value, rhs: _Value) -> _Value:
        (left, right), (left_batch, right_batch) = equation.params["dimension_numbers"]
        for i, j in zip(left_batch, right_batch, strict=True):
            unify(lhs.axes[i], rhs.axes[j])
        for i, j in zip(left, right, strict=True):
            self.contract(lhs, lhs.axes[i], rhs, rhs.axes[j])
        batch = [lhs.axes[i] for i in left_batch]
        if lhs.origins is None and rhs.origins is None:
            for atom in (atom for axis in batch for atom in axis.atoms()):
                atom.is_heads = True
        free = {}
        for key, value, taken in (
            ("lhs", lhs, {*left, *left_batch}),
            ("rhs", rhs, {*right, *right_batch}),
        ):
            free[key] = [axis for i, axis in enumerate(value.axes) if i not in taken]
        if _together([lhs, rhs]) is None:
            self.use(lhs, free["lhs"], OUTPUT)
            self.use(rhs, free["rhs"], OUTPUT)
            self.use(lhs, batch, ELEMENTWISE, scales=True)
            self.use(rhs, [rhs.axes[j] for j in right_batch], ELEMENTWISE, scales=True)
        return _made(
            [*batch, *free["lhs"], *free["rhs"]],
            lambda atom: _zero_if(0 in (lhs.at(atom).number, rhs.at(atom).number), "dot_general"),
            [lhs, rhs],
        )

    def _conv_general_dilated(
        self, equation: Any, lhs: _Value, rhs: _Value
    ) -> _Value | list[_Value]:
        numbers = equation.params["dimension_numbers"]
        groups = equation.params["feature_group_count"]
        if equation.params["batch_group_count"] != 1:
            return self._not_followed(equation, [lhs, rhs])
        batch, features, *space = (lhs.axes[i] for i in numbers.lhs_spec)
        made, read, *window = (rhs.axes[i] for i in numbers.rhs_spec)
        keep_whole([*space, *window], _OF_SPACE)
        if groups == 1:
            self.contract(lhs, features, rhs, read)
            self.use(rhs, [made], OUTPUT, is_convolution=True)
        else:
            group, inside = Axis(groups), Axis(made.size // groups)
            unify(features, product([group, read]))
            unify(made, product([group, inside]))
            keep_whole([read, inside], _INSIDE_GROUPS)
            self.use(rhs, [group], ELEMENTWISE, scales=True)
        shape = equation.outvars[0].aval.shape
        axes = [Axis(size, whole=_OF_SPACE) for size in shape]
        axes[numbers.out_spec[0]], axes[numbers.out_spec[1]] = batch, made
        return _made(
            axes,
            lambda atom: _zero_if(0 in (lhs.at(atom).number, rhs.at(atom).number), "convolution"),
            [lhs, rhs],
        )

    def _gather(self, equation: Any, table: _Value, indices: _Value) -> _Value | list[_Value]:
        numbers = equation.params["dimension_numbers"]
        sizes = equation.params["slice_sizes"]
        if numbers.operand_batching_dims:
            return self._not_followed(equation, [table, indices])
        kept = [i for i in range(len(sizes)) if i not in numbers.collapsed_slice_dims]
        axes, rows = [], list(indices.axes[:-1])
        for i, size in enumerate(equation.outvars[0].aval.shape):
            if i not in numbers.offset_dims:
                axes.append(rows.pop(0))
                continue
            axis = table.axes[kept[numbers.offset_dims.index(i)]]
            axes.append(axis if axis.size == size else Axis(size, whole=_OF_SPACE))
        for axis, size in zip(table.axes, sizes, strict=True):
            if axis.size != size:
                axis.keep_whole("it is indexed")
        if indices.origins is None:
            self.use(table, [a for a in table.axes if a in axes], OUTPUT)
        return _made(
            axes, lambda atom: _zero_if(table.at(atom).number == 0, "gather"), [table, indices]
        )

    # Changes of shape

    def _broadcast_in_dim(self, equation: Any, value: _Value, *_: _Value) -> _Value:
        shape = equation.outvars[0].aval.shape
        axes = [Axis(size) for size in shape]
        for axis, i in zip(value.axes, equation.params["broadcast_dimensions"], strict=True):
            if axis.size == shape[i]:
                axes[i] = axis
        return value._replace(axes=tuple(axes))

    def _reshape(self, equation: Any, value: _Value, *_: _Value) -> _Value:
        shape = equation.outvars[0].aval.shape
        before = [axis for axis in value.axes if axis.size != 1][::-1]
        after: list[Axis] = []
        sizes = [size for size in shape if size != 1][::-1]
        while before and sizes:
            taken, made = [before.pop()], [sizes.pop()]
            while (given := math.prod(a.size for a in taken)) != math.prod(made):
                if given < math.prod(made):
                    taken.append(before.pop())
                else:
                    made.append(sizes.pop())
            if len(taken) == len(made) == 1:
                after += taken
                continue
            axes = [Axis(size) for size in made]
            unify(product(taken), product(axes))
            after += axes
        rest = iter(after)
        return value._replace(axes=tuple(Axis(1) if size == 1 else next(rest) for size in shape))

    def _transpose(self, equation: Any, value: _Value) -> _Value:
        return value._replace(axes=tuple(value.axes[i] for i in equation.params["permutation"]))

    def _squeeze(self, equation: Any, value: _Value) -> _Value:
        gone = equation.params["dimensions"]
        return value._replace(axes=tuple(a for i, a in enumerate(value.axes) if i not in gone))

    def _concatenate(self, equation: Any, *values: _Value) -> _Value:
        along = equation.params["dimension"]
        axes = list(values[0].axes)
        for value in values[1:]:
            for i, axis in enumerate(value.axes):
                if i != along:
                    unify(axes[i], axis)
        axes[along] = concatenated(value.axes[along] for value in values)
        if _together(values) is None:
            for value in values:
                self.use(value, value.axes, ELEMENTWISE)

        def at(atom: Axis) -> _Removed:
            having = [v for v in values if atom in v.axes[along].atoms()] or values
            found = {value.at(atom) for value in having}
            return found.pop() if len(found) == 1 else _Removed(None, "concatenate")

        return _made(axes, at, values)

    def _split(self, equation: Any, value: _Value) -> list[_Value]:
        along = equation.params["axis"]
        pieces = _cut(value.axes[along], equation.params["sizes"])
        return [
            value._replace(axes=(*value.axes[:along], piece, *value.axes[along + 1 :]))
            for piece in pieces
        ]

    def _slice(self, equation: Any, value: _Value) -> _Value:
        start, limit = equation.params["start_indices"], equation.params["limit_indices"]
        strides = equation.params["strides"] or [1] * len(start)
        axes = []
        for axis, i, j, stride, size in zip(
            value.axes, start, limit, strides, equation.outvars[0].aval.shape, strict=True
        ):
            if size == axis.size:
                axes.append(axis)
            elif stride == 1:
                axes.append(_cut(axis, [i, j - i, axis.size - j])[1])
            else:
                axis.keep_whole("a part of it is taken in steps")
                axes.append(Axis(size, whole=_OF_SPACE))
        return value._replace(axes=tuple(axes))

    def _dynamic_slice(self, equation: Any, value: _Value, *indices: _Value) -> _Value:
        axes = []
        for axis, size in zip(value.axes, equation.params["slice_sizes"], strict=True):
            if size != axis.size:
                axis.keep_whole("it is indexed")
            axes.append(axis if size == axis.size else Axis(size, whole=_OF_SPACE))
        return value._replace(axes=tuple(axes), origins=_together([value, *indices]))

    def _pad(self, equation: Any, value: _Value, fill: _Value) -> _Value | list[_Value]:
        config = equation.params["padding_config"]
        if any(low < 0 or high < 0 or inside for low, high, inside in config):
            return self._not_followed(equation, [value, fill])
        axes = [
            concatenated([_padding(low), axis, _padding(high)])
            for axis, (low, high, _) in zip(value.axes, config, strict=True)
        ]
        number = fill.constant

        def at(atom: Axis) -> _Removed:
            found = value.at(atom)
            return found if found.number == number else _Removed(None, "pad")

        return _made(axes, at, [value, fill])

    def _rev(self, equation: Any, value: _Value) -> _Value:
        keep_whole([value.axes[i] for i in equation.params["dimensions"]], "it is reversed")
        return value

    def _iota(self, equation: Any, *_: _Value) -> _Value:
        along = equation.params["dimension"]
        shape = equation.outvars[0].aval.shape
        axes = [Axis(n, whole=_OF_CONSTANT if i == along else None) for i, n in enumerate(shape)]
        return _Value(tuple(axes), origins=frozenset())

    def _random_bits(self, equation: Any, *_: _Value) -> _Value:
        shape = equation.outvars[0].aval.shape
        return _Value(tuple(Axis(size) for size in shape), origins=frozenset())

    # Reductions

    def _reduction(self, equation: Any, value: _Value, *_: _Value) -> _Value:
        name, along = equation.primitive.name, equation.params["axes"]
        gone = [value.axes[i] for i in along]
        keep_whole(gone, f"{name} goes over it, as means, normalisations and softmax do")
        count = math.prod(axis.size for axis in gone)

        def at(atom: Axis) -> _Removed:
            number, made_by = value.at(atom)
            if name in ("reduce_max", "reduce_min") or number == 0:
                return _Removed(number if not name.startswith("arg") else None, made_by or name)
            is_sum = name == "reduce_sum" and number is not None
            return _Removed(number * count if is_sum else None, made_by or name)

        return _made([a for i, a in enumerate(value.axes) if i not in along], at, [value])

    def _windows(self, equation: Any, value: _Value, *_: _Value) -> _Value:
        name = equation.primitive.name
        shape = equation.outvars[0].aval.shape
        axes = list(value.axes)
        for i, window in enumerate(equation.params["window_dimensions"]):
            if window != 1 or shape[i] != axes[i].size:
                axes[i].keep_whole("windows go over it")
                axes[i] = Axis(shape[i], whole=_OF_SPACE)

        def at(atom: Axis) -> _Removed:
            found = value.at(atom)
            is_kept = found.number == 0 or name in ("reduce_window_max", "reduce_window_min")
            return found if is_kept else _Removed(None, found.made_by or name)

        return _made(axes, at, [value])

    def _cumulative(self, equation: Any, value: _Value) -> _Value:
        name = equation.primitive.name
        value.axes[equation.params["axis"]].keep_whole(f"{name} goes along it")
        return _made(value.axes, lambda atom: _zero_if(value.at(atom).number == 0, name), [value])

    # What has been found

    def units(self, residual: bool) -> Units:
        """The groups, and a sentence for each axis of a parameter that is left whole."""
        members = self._members()
        self._keep_other_factors_whole(members)
        groups: list[Group] = []
        whole: list[str] = []
        for atom, found in members.items():
            roles = {use.role for uses in found.values() for use in uses}
            reason = atom.whole
            if atom.is_residual and not residual:
                reason = _RESIDUAL
            elif reason is None and roles < {OUTPUT, INPUT}:
                reason = _UNREAD
            if reason is None and OUTPUT in roles and atom.size > 1:
                groups.append(self._group(atom, found, [group.name for group in groups]))
            elif reason and atom.size > 1:
                (leaf, axis), *others = found
                as_others = f", as is one of {self.paths[others[0][0]]}" if others else ""
                as_others += f" and of {len(others) - 1} more" if len(others) > 1 else ""
                is_part = any(a.whole is None for a in self.params[leaf].axes[axis].atoms())
                part = "A part of a" if is_part and atom.whole is not None else "A"
                whole.append(
                    f"{part}xis {axis} of {self.paths[leaf]} is left whole{as_others}: {reason}."
                )
        return Units(tuple(groups), tuple(dict.fromkeys(whole)))

    def _members(self) -> dict[Axis, dict[tuple[int, int], list[_Use]]]:
        """For each atom the (parameter, axis) pairs that have it, with what is made of them."""
        having: dict[Axis, dict[tuple[int, int], list[_Use]]] = {}
        for use in self.uses:
            for atom in use.axis.atoms():
                for leaf in sorted(use.origins):
                    axes = self.params[leaf].axes
                    fitting = [i for i, axis in enumerate(axes) if atom in axis.atoms()]
                    exact = [i for i in fitting if axes[i] is use.axis]
                    for i in exact or fitting:
                        having.setdefault(atom, {}).setdefault((leaf, i), []).append(use)
        for leaf, value in enumerate(self.params):
            for i, axis in enumerate(value.axes):
                for atom in axis.atoms():
                    having.setdefault(atom, {}).setdefault((leaf, i), [])
        return having

    def _keep_other_factors_whole(
        self, members: dict[Axis, dict[tuple[int, int], list[_Use]]]
    ) -> None:
        """Where units would cross each other, heads are chosen, else the most numerous."""

        def unsettled(leaf: int) -> list[tuple[int, Axis]]:
            axes = enumerate(self.params[leaf].axes)
            return [(i, atom) for i, axis in axes for atom in axis.atoms() if atom.whole is None]

        for leaf in range(len(self.params)):
            made = [
                atom
                for i, atom in unsettled(leaf)
                if any(use.role == OUTPUT for use in members[atom][leaf, i])
            ]
            if any(atom.is_heads for atom in made):
                keep_whole([atom for atom in made if not atom.is_heads], _OF_HEAD)
        for leaf, value in enumerate(self.params):
            taken = [np.zeros(axis.size, bool) for axis in value.axes]
            for i, atom in sorted(unsettled(leaf), key=lambda x: (not x[1].is_heads, -x[1].size)):
                positions = value.axes[i].positions(atom) >= 0
                if np.any(taken[i] & positions):
                    atom.keep_whole(_OF_FACTOR)
                else:
                    taken[i] |= positions

    def _group(
        self, atom: Axis, found: dict[tuple[int, int], list[_Use]], taken: Sequence[str]
    ) -> Group:
        members = []
        for (leaf, axis), uses in found.items():
            roles = [use.role for use in uses]
            role = next((r for r in (OUTPUT, INPUT) if r in roles), ELEMENTWISE)
            members.append(
                Member(
                    self.paths[leaf],
                    axis,
                    self.params[leaf].axes[axis].positions(atom),
                    role,
                    scales=role == ELEMENTWISE and bool(uses) and all(use.scales for use in uses),
                )
            )
        members.sort(key=lambda member: member.role != OUTPUT)
        is_convolution = any(use.is_convolution for uses in found.values() for use in uses)
        kind = HEADS if atom.is_heads else CHANNELS if is_convolution else NEURONS
        name = self.layers[self.paths.index(members[0].path)]
        if name in taken:
            name = next(
                f"{name} ({i})" for i in range(2, len(taken) + 3) if f"{name} ({i})" not in taken
            )
        return Group(name, kind, atom.size, tuple(members))


def _padding(size: int) -> Axis:
    return Axis(size, whole=_OF_SPACE, varies=True)


def _cut(axis: Axis, sizes: Sequence[int]) -> list[Axis]:
    """The pieces of an axis, one after the other."""
    pieces = [Axis(size) for size in sizes]
    unify(axis, concatenated(pieces))
    return pieces


def _constant(array: Any) -> _Value:
    """An array that the program holds, or its shape; numbers of no axes fit everywhere."""
    shape = np.shape(array)
    constant = None
    is_known = not isinstance(array, jax.ShapeDtypeStruct)  # counters of dropout may be unknown
    if is_known and not jnp.issubdtype(getattr(array, "dtype", float), jax.dtypes.extended):
        numbers = np.asarray(array)
        if numbers.size and numbers.dtype.kind != "c" and np.all(numbers == numbers.flat[0]):
            constant = float(numbers.flat[0])
    return made_anew(shape, _OF_CONSTANT, frozenset())._replace(constant=constant)


def _is_float(array: Any) -> bool:
    return bool(jnp.issubdtype(jnp.result_type(array), jnp.floating))


def _called(equation: Any) -> core.ClosedJaxpr | None:
    """The program that an equation calls once, with its own arguments."""
    if equation.primitive.name not in _CALLS:
        return None
    inside = next(
        equation.params[k] for k in ("jaxpr", "call_jaxpr", "fun_jaxpr") if k in equation.params
    )
    return inside if isinstance(inside, core.ClosedJaxpr) else core.ClosedJaxpr(inside, ())
