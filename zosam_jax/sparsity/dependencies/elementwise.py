"""Functions of one element of each operand, evaluated where units are removed."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

# Primitive → its function; None where it is not evaluated.
ELEMENTWISE_FUNCTIONS: dict[str, Callable[..., Any] | None] = {
    "abs": abs,
    "acos": math.acos,
    "acosh": math.acosh,
    "add": lambda x, y: x + y,
    "and": None,
    "asin": math.asin,
    "asinh": math.asinh,
    "atan": math.atan,
    "atan2": math.atan2,
    "atanh": math.atanh,
    "bitcast_convert_type": None,
    "cbrt": np.cbrt,
    "ceil": math.ceil,
    "clamp": lambda low, x, high: min(max(x, low), high),
    "convert_element_type": lambda x: x,
    "copy": lambda x: x,
    "copy_p": lambda x: x,
    "cos": math.cos,
    "cosh": math.cosh,
    "digamma": None,
    "div": lambda x, y: x / y,
    "eq": lambda x, y: x == y,
    "erf": math.erf,
    "erf_inv": lambda x: 0.0 if x == 0 else math.nan,
    "erfc": math.erfc,
    "exp": math.exp,
    "exp2": lambda x: 2.0**x,
    "expm1": math.expm1,
    "floor": math.floor,
    "ge": lambda x, y: x >= y,
    "gt": lambda x, y: x > y,
    "integer_pow": lambda x, y: x**y,
    "is_finite": math.isfinite,
    "le": lambda x, y: x <= y,
    "lgamma": math.lgamma,
    "log": math.log,
    "log1p": math.log1p,
    "logistic": lambda x: 1 / (1 + math.exp(-x)),
    "lt": lambda x, y: x < y,
    "max": max,
    "min": min,
    "mul": lambda x, y: x * y,
    "name": lambda x: x,
    "ne": lambda x, y: x != y,
    "neg": lambda x: -x,
    "nextafter": None,
    "not": None,
    "or": None,
    "pow": lambda x, y: x**y,
    "reduce_precision": lambda x: x,
    "rem": math.fmod,
    "round": round,
    "rsqrt": lambda x: x**-0.5,
    "select_n": None,
    "sharding_constraint": lambda x: x,
    "shift_left": None,
    "shift_right_arithmetic": None,
    "shift_right_logical": None,
    "sign": np.sign,
    "sin": math.sin,
    "sinh": math.sinh,
    "sqrt": math.sqrt,
    "square": lambda x: x * x,
    "stop_gradient": lambda x: x,
    "sub": lambda x, y: x - y,
    "tan": math.tan,
    "tanh": math.tanh,
    "xor": None,
}


def evaluate(equation: Any, numbers: list[float | None]) -> float | None:
    """An elementwise function of numbers, some of them unknown; NaN where it is undefined, as 0/0.

    NaN stays NaN, even times 0.
    """
    name = equation.primitive.name
    function = ELEMENTWISE_FUNCTIONS[name]
    if name == "select_n":
        return _selected(*numbers)
    if any(number is not None and math.isnan(number) for number in numbers):
        return math.nan
    if (name == "mul" and 0 in numbers) or (name == "div" and numbers[0] == 0 != numbers[1]):
        return 0.0
    if function is None or None in numbers:
        return None
    if name == "integer_pow":
        numbers = [*numbers, equation.params["y"]]
    try:
        with np.errstate(all="ignore"):
            number = float(function(*numbers))
    except (ValueError, ZeroDivisionError):
        number = math.nan
    except OverflowError:
        number = math.inf
    return None if math.isinf(number) else number


def _selected(which: float | None, *cases: float | None) -> float | None:
    if which is not None and not math.isnan(which):
        return cases[int(which)]
    return cases[0] if len(set(cases)) == 1 else None
