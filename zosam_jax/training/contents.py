"""What each file of a run folder holds, and how that is checked on reading."""

import json
import math
import types
import typing
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

from zosam_jax.analysis.variance import GradientVariance
from zosam_jax.training.applicable import OWN_OPTIMIZER
from zosam_jax.training.config import OptimizerName, TrainConfig

# Numbers are finite in these files: `float` stands for a number, or null where it is none.
Numbers: typing.TypeAlias = list[float]


if typing.TYPE_CHECKING:
    Config: typing.TypeAlias = dict[str, Any]
    OPTIONS: dict[str, Any]
else:
    # Option → its type; an optimizer that was given whole has no name that could be typed.
    OPTIONS = typing.get_type_hints(TrainConfig)
    OPTIONS["optimizer"] = typing.Literal[*typing.get_args(OptimizerName), OWN_OPTIMIZER]
    # config.json: the options of `zosam train`, and the versions of libraries. One that is missing
    # has come since the run began, and had the effect of its default.
    _LATER = {name: NotRequired[kind] for name, kind in OPTIONS.items() if name != "optimizer"}
    Config = TypedDict(
        "Config", {"optimizer": OPTIONS["optimizer"], **_LATER, "versions": dict[str, str]}
    )


class Summary(TypedDict):
    """summary.json; see `zosam_jax.training.fitting.train`."""

    test_accuracy: float
    best_test_accuracy: float
    chosen_test_accuracy: float
    validation_accuracy: float
    test_loss: float
    ema_test_accuracy: float
    train_loss: float
    sparse: str
    sparsity: float
    training_cost: float
    inference_cost: float
    bad_steps: int
    steps: int
    seconds: float
    images_per_second: float
    data_wait: float
    optimizer: str
    rho: float
    seed: int
    devices: int
    ema_validation_accuracy: NotRequired[float]
    step_examples: NotRequired[int]
    examples: NotRequired[int]
    parameters: NotRequired[int]
    dense_parameters: NotRequired[int]
    measures: NotRequired[dict[str, float]]
    validation_loss: NotRequired[float]


class QualityOverBatches(TypedDict):
    """Cosine to the gradient and ascent gain of ε: means and standard deviations over batches."""

    cosine: float
    cosine_sd: float
    ascent_gain: float
    ascent_gain_sd: float


class AnalysedCheckpoint(TypedDict):
    """A checkpoint that was analysed: the step after which it was saved, and what was found."""

    step: int
    round: int
    epoch: int
    gradient_variance: GradientVariance
    perturbed_gradient_variance: NotRequired[GradientVariance]
    estimator: NotRequired[QualityOverBatches]


class Curvature(TypedDict):
    """The Hessian's largest eigenvalues with their residuals, and its trace."""

    eigenvalues: Numbers
    residuals: Numbers
    trace: float
    trace_error: float


class Plane(TypedDict):
    """The loss on a plane: a row of `losses` for each of `ys`."""

    xs: Numbers
    ys: Numbers
    losses: list[Numbers]
    directions: str


class Surface(TypedDict):
    """The loss at distances along two lines, and on a plane."""

    distances: Numbers
    random: Numbers
    hessian: Numbers
    plane: Plane | None


class Analysis(TypedDict):
    """analysis.json: how it was made, and the parts that were asked for."""

    checkpoint: int
    images: int
    batch_size: int
    split: str
    statistics: str
    train_accuracy: float
    checkpoints: NotRequired[list[AnalysedCheckpoint]]
    hessian: NotRequired[Curvature]
    sharpness: NotRequired[dict[str, float]]
    surface: NotRequired[Surface]


class Robustness(NamedTuple):
    """A network's accuracies on clean and corrupted images, as fractions; robustness.json.

    Attributes:
      source: where the corrupted images come from: CIFAR-10-C, or the library that made them.
      images: how many test images were corrupted.
      checkpoint: the step after which the network was saved.
      clean_accuracy: on these images as they are.
      mean_accuracy: over all corruptions and severities.
      delta: Δ = clean_accuracy − mean_accuracy.
      severities: those measured, in order.
      corruptions: for each corruption, the accuracy at each of these severities.
    """

    source: str
    images: int
    checkpoint: int
    clean_accuracy: float
    mean_accuracy: float
    delta: float
    severities: tuple[int, ...]
    corruptions: dict[str, Numbers]


class TuningChoice(TypedDict):
    """What tuning chose for one method of a sweep; see `zosam_jax.commands.tuning.Choice`."""

    method: str
    candidates: list[dict[str, Any]]
    chosen: dict[str, Any]
    at_the_end: list[str]


class Failure(TypedDict):
    """Why a run of a sweep was refused, with its exit status and the options that it had."""

    status: int
    reason: str
    options: dict[str, Any]


def parse(text: str, kind: Any) -> Any:
    """JSON of a type (see `check`).

    Raises:
      ValueError: if it is no JSON, or of another type, naming the field.
    """
    try:
        value = json.loads(text, parse_constant=_refuse)
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
    except ValueError as error:
        raise ValueError(f"it is no JSON: {error}." if text.strip() else "it is empty.") from error
    check("", value, kind)
    return value


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} stands in it")


def check(place: str, value: Any, kind: Any) -> None:
    """Raises unless a value out of JSON or TOML is of a type.

    Args:
      place: where in a file it stands, as in surface.plane.xs[3]; empty for the whole.
      value: what stands there.
      kind: bool, int, float (which null passes for, as what is not finite is written), str, Any,
        a Path, which is a string there, a Literal, a union, a list, tuple or dict of such types, or
        a TypedDict or NamedTuple, which stands for an object with these fields and no others.

    Raises:
      ValueError: naming the first place that is wrong, and its value.
    """
    origin, parts = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        _check_one_of(place, value, parts)
    elif origin in (list, tuple):
        _expect(place, value, isinstance(value, list | tuple), "a list")
        for index, item in enumerate(value):
            check(f"{place}[{index}]", item, parts[0])
    elif origin is dict:
        _expect(place, value, isinstance(value, dict), "an object")
        for name, item in value.items():
            check(_below(place, name), item, parts[1])
    elif typing.is_typeddict(kind) or hasattr(kind, "_fields"):
        _check_fields(place, value, kind)
    elif kind is not Any:
        known, words = _plain_kind(value, kind)
        _expect(place, value, known, words)


def _check_one_of(place: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Of a union with null, or of types without parts."""
    if value is None and types.NoneType in kinds:
        return
    *others, last = [kind for kind in kinds if kind is not types.NoneType]
    if not any(_plain_kind(value, kind)[0] for kind in others):
        check(place, value, last)


def _check_fields(place: str, value: Any, kind: Any) -> None:
    _expect(place, value, isinstance(value, dict), "an object")
    fields = typing.get_type_hints(kind)
    for name, field in fields.items():
        if name in value:
            check(_below(place, name), value[name], field)
        elif name not in _optional(kind):
            raise ValueError(f"it lacks {_below(place, name)}.")
    for name in value:
        if name not in fields:
            raise ValueError(f"it has the unknown field {_below(place, name)}.")


def _optional(kind: Any) -> Collection[str]:
    """Fields that may be missing; of a NamedTuple those that are None or NaN by default."""
    if typing.is_typeddict(kind):
        return frozenset[str](kind.__optional_keys__)
    defaults = kind._field_defaults.items()
    return [name for name, value in defaults if value is None or value != value]  # noqa: PLR0124


def _plain_kind(value: Any, kind: Any) -> tuple[bool, str]:
    """Whether a value is of a kind without parts, and the kind in words."""
    if typing.get_origin(kind) is typing.Literal:
        choices = typing.get_args(kind)
        return value in choices, f"one of {', '.join(map(repr, choices))}"
    if kind is bool:
        return isinstance(value, bool), "true or false"
    if kind is int:
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return is_integer and abs(value) < 2**63, "an integer of 64 bits"
    if kind is float:
        return value is None or _is_finite(value), "a finite number"
    if kind is Path:
        return isinstance(value, str | Path), "a string"
    return isinstance(value, kind), {str: "a string", dict: "an object"}[kind]


def _is_finite(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _expect(place: str, value: Any, holds: bool, words: str) -> None:
    if not holds:
        shown = f"{value!r}"
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise ValueError(f"{place}={shown} must be {words}." if place else f"it must be {words}.")


def _below(place: str, name: str) -> str:
    return f"{place}.{name}" if place else str(name)
