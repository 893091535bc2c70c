"""Checks that finish the reader's thought: the argument, its value, and what would be right."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

T = TypeVar("T")

# What options, files and data cause, and ends in a sentence; anything else is a fault of ours.
REFUSALS = (ValueError, OSError, ModuleNotFoundError)


def is_traced(value: Any) -> bool:
    """Whether `value` is known only when the compiled program runs."""
    return isinstance(value, jax.core.Tracer)


def choose(argument: str, value: Any, choices: Mapping[str, T]) -> T:
    """Looks a name up; anything callable is taken as the caller's own."""
    if isinstance(value, str) and value in choices:
        return choices[value]
    if callable(value):
        own: T = value
        return own
    raise ValueError(
        f"{argument}={value!r} is not known; choose one of {', '.join(map(repr, choices))}"
        " or pass a function."
    )


def check_one_of(argument: str, value: str, choices: tuple[str, ...]) -> None:
    """Raises unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(
            f"{argument}={value!r} is not known; choose one of {', '.join(map(repr, choices))}."
        )


def is_number(value: Any) -> bool:
    """Whether `value` is one real number, traced or not; a bool is none."""
    if isinstance(value, bool | np.bool_):
        return False
    if isinstance(value, int | float):
        return True
    scalar = isinstance(value, np.generic | np.ndarray | jax.Array) and value.ndim == 0
    return scalar and (
        jnp.issubdtype(value.dtype, jnp.integer) or jnp.issubdtype(value.dtype, jnp.floating)
    )


def check_number(argument: str, value: Any, *, above: float, inclusive: bool) -> None:
    """Raises unless `value` is a finite number above a bound; traced values are let through."""
    bound = f"{'at least' if inclusive else 'greater than'} {above:g}"
    if not is_number(value):
        raise TypeError(f"{argument}={value!r} must be a number {bound}.")
    if is_traced(value):
        return
    number = float(value)
    if not math.isfinite(number) or number < above or (number == above and not inclusive):
        raise ValueError(f"{argument}={value!r} must be a finite number {bound}.")


def check_delta(argument: str, value: Any) -> None:
    """Raises unless `value` is a step of finite differences that some dtype can take."""
    check_number(argument, value, above=0.0, inclusive=False)
    if not is_traced(value) and not 1e-12 <= value <= 1e6:
        raise ValueError(
            f"{argument}={value!r} must lie between 1e-12 and 1e6, 1e-3 for float32: with a "
            "smaller one θ±δu is rounded to θ, with a larger one the losses are not finite."
        )


def check_decay(decay: Any) -> None:
    """Raises unless `decay` is a number in [0, 1)."""
    check_number("decay", decay, above=0.0, inclusive=True)
    if not is_traced(decay) and decay >= 1:
        raise ValueError(f"decay={decay!r} must be below 1: at 1 nothing new is remembered.")


def check_count(argument: str, value: Any) -> None:
    """Raises unless `value` is an integer of at least 1; traced integers are let through."""
    if not is_number(value) or not jnp.issubdtype(jnp.result_type(value), jnp.integer):
        raise TypeError(f"{argument}={value!r} must be an integer of at least 1.")
    if not is_traced(value) and value < 1:
        raise ValueError(f"{argument}={value!r} must be at least 1.")


def check_positive_fraction(argument: str, value: Any) -> None:
    """Raises unless `value` is a number in (0, 1]."""
    check_number(argument, value, above=0.0, inclusive=False)
    if not is_traced(value) and value > 1:
        raise ValueError(f"{argument}={value!r} must be at most 1.")


def check_static(argument: str, value: Any) -> None:
    """Raises unless `value` is known while tracing."""
    if is_traced(value):
        raise TypeError(
            f"{argument} is traced (optax.inject_hyperparams makes every number a traced array), "
            f"but the program's shapes depend on it; pass static_args=({argument!r},) to "
            "inject_hyperparams."
        )


def check_part(argument: str, value: Any) -> None:
    """Raises unless `value` is a number in (0, 1] to cut a batch by."""
    check_static(argument, value)
    check_positive_fraction(argument, value)
