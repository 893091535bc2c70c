"""Shapes and types in the annotations of zosam_jax, checked as its functions run in the tests."""

import collections.abc
import inspect
import typing

import beartype
from jaxtyping import AbstractArray, PyTree, install_import_hook

CHECKED = (
    *("trees", "keys", "masks", "objective", "directions", "probes", "radius", "gradient"),
    *("ascent", "descent", "sparsity", "analysis", "data"),
)


def install():
    """Checks the functions of the packages above, which must not have been imported yet."""
    install_import_hook([f"zosam_jax.{name}" for name in CHECKED], "typechecking.checked")


def checked(function):
    """The function, checked: its return value of arrays, and those of its arguments that are arrays.

    What a function takes besides arrays (numbers, names, functions) it checks itself, with a
    sentence that the tests expect; so it does with arrays that could be one of these.
    """
    hints = {
        name: hint
        for name, hint in function.__annotations__.items()
        if hint not in (typing.Any, inspect.Parameter.empty)
        and not _has(hint, _is_protocol)
        and _has(hint, _is_shape)
        and (name == "return" or not _has(hint, _is_checked_by_itself))
    }
    if not hints:
        return function
    function.__annotations__ = hints
    return beartype.beartype(function)


def _has(hint, condition):
    return condition(hint) or (
        typing.get_origin(hint) is not collections.abc.Callable
        and any(_has(part, condition) for part in typing.get_args(hint))
    )


def _is_shape(hint):
    return (
        hint is not PyTree and isinstance(hint, type) and issubclass(hint, AbstractArray | PyTree)
    )


def _is_protocol(hint):
    return getattr(hint, "_is_protocol", False)


def _is_checked_by_itself(hint):
    is_function = typing.get_origin(hint) is collections.abc.Callable
    return is_function or hint in (bool, int, float, str, complex)
