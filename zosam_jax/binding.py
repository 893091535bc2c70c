"""Closing a loss over its own arguments, taken by name from an update's extra arguments."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax

from zosam_jax.errors import is_traced

# Names that belong to optax or to this library, not to a loss that takes **kwargs.
_RESERVED = frozenset(
    {
        "value",
        "grad",
        "value_fn",
        "grad_fn",
        "probe_fn",
        "losses_fn",
        "mask",
        "has_aux",
        "emit",
        "keep_gradient",
    }
)


class Call(NamedTuple):
    """A function of the parameters with its further arguments.

    Attributes:
      function: (θ, *args, **kwargs) → anything.
      args, kwargs: the further arguments. Where only a part of the batch is evaluated, the first
        array among them tells its size, and all arrays with as long a first axis are the batch;
        others (weights of classes, random keys) are passed whole.
    """

    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = MappingProxyType({})


class _Rest(NamedTuple):
    """What a function returns beside arrays, which stand in its list of leaves as None."""

    structure: Any
    leaves: list[Any]


jax.tree_util.register_static(_Rest)


def traced_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, traced once for all calls of one step whose traced arguments have equal shapes.

    What it does is written into the program of each call as if it had been traced there. All calls
    have arguments of one structure; the values that are not traced are the caller's own objects,
    which the function may branch on.
    """
    programs: dict[tuple[int | None, ...], Callable[..., Any]] = {}

    def call(*args: Any, **kwargs: Any) -> Any:
        leaves, structure = jax.tree.flatten((args, kwargs))
        key = tuple(None if is_traced(x) else id(x) for x in leaves)

        def program(inputs: list[Any]) -> tuple[list[Any], _Rest]:
            given = iter(inputs)
            args, kwargs = jax.tree.unflatten(
                structure, [next(given) if is_traced(x) else x for x in leaves]
            )
            found, outer = jax.tree.flatten(function(*args, **kwargs))
            arrays = [x for x in found if isinstance(x, jax.Array)]
            return arrays, _Rest(outer, [None if isinstance(x, jax.Array) else x for x in found])

        if key not in programs:
            programs[key] = jax.jit(program, inline=True)
        arrays, rest = programs[key]([x for x in leaves if is_traced(x)])
        remaining = iter(arrays)
        return jax.tree.unflatten(
            rest.structure, [next(remaining) if x is None else x for x in rest.leaves]
        )

    return call


def bind(
    extra_args: dict[str, Any], **functions: Callable[..., Any] | None
) -> dict[str, Call | None]:
    """Finds the arguments of some functions of the parameters among an update's extra arguments.

    Their arguments after the first are looked up by name; one with **kwargs gets every extra
    argument that is not reserved. Those that no function takes are left alone, and None stays None.

    Raises:
      TypeError: if one is not a function, or one of its required arguments was not given.
    """
    return {
        name: None
        if function is None
        else Call(function, kwargs=own_arguments(function, name, extra_args))
        for name, function in functions.items()
    }


def own_arguments(
    function: Callable[..., Any], name: str, extra_args: dict[str, Any]
) -> dict[str, Any]:
    """The arguments of one function among an update's extra arguments; see `bind`."""
    if not callable(function):
        raise TypeError(f"{name}={function!r} must be a function (params, **kwargs) → scalar.")
    parameters = _parameters(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        own = {k: v for k, v in extra_args.items() if k not in _RESERVED}
    else:
        own = {p.name: extra_args[p.name] for p in parameters if p.name in extra_args}
    missing = [p.name for p in parameters if _is_required(p) and p.name not in own]
    if missing:
        raise TypeError(
            f"{name} requires {', '.join(map(repr, missing))}, which the update was not given: "
            f"pass {', '.join(f'{m}=...' for m in missing)} along with {name}."
        )
    return own


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())[1:]


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not variadic
