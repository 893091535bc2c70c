"""Closing a loss over its own arguments, taken by name from an update's extra arguments."""

import inspect
from collections.abc import Callable
from typing import Any

from zosam_jax.trees import PyTree

# Names that belong to optax or to this library, not to a loss that takes **kwargs.
_RESERVED = frozenset(
    {"value", "grad", "value_fn", "grad_fn", "probe_fn", "mask", "has_aux", "emit", "keep_gradient"}
)


def bind(
    function: Callable[..., Any], name: str, extra_args: dict[str, Any]
) -> Callable[[PyTree], Any]:
    """Makes a function (params, **kwargs) one of params alone.

    Args:
      function: its arguments after the first are looked up by name; with **kwargs it gets every
        extra argument that is not reserved.
      name: what the caller calls the function, for error messages.
      extra_args: the update's extra arguments; those that are not the function's are left alone.

    Raises:
      TypeError: if it is no function, or one of its required arguments was not given.
    """
    if not callable(function):
        raise TypeError(f"{name}={function!r} must be a function (params, **kwargs) → scalar.")
    own = _own_arguments(function, extra_args)
    missing = [p.name for p in _parameters(function) if _is_required(p) and p.name not in own]
    if missing:
        raise TypeError(
            f"{name} requires {', '.join(map(repr, missing))}, which the update was not given: "
            f"pass {', '.join(f'{m}=...' for m in missing)} along with {name}."
        )
    return lambda params: function(params, **own)


def unbound(function: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    """The extra arguments that `bind` leaves to others."""
    own = _own_arguments(function, extra_args)
    return {k: v for k, v in extra_args.items() if k not in own}


def _own_arguments(function: Callable[..., Any], extra_args: dict[str, Any]) -> dict[str, Any]:
    parameters = _parameters(function)
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return {k: v for k, v in extra_args.items() if k not in _RESERVED}
    return {p.name: extra_args[p.name] for p in parameters if p.name in extra_args}


def _parameters(function: Callable[..., Any]) -> list[inspect.Parameter]:
    return list(inspect.signature(function).parameters.values())[1:]


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    return parameter.default is parameter.empty and not variadic
