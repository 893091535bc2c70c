"""Closing a loss over its own arguments, taken by name from an update's extra arguments."""

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

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
