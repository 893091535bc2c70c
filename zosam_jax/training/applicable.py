"""Which options have an effect beside which others; one that would have none is refused by name."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

from zosam_jax.optimizers import RECORDS

Values: TypeAlias = Mapping[str, Any]

PLAIN = ("sgd", "adamw")
# What stands for an optimizer that was given whole, as a transformation of optax.
OWN_OPTIMIZER = "optax"
# Sparse methods that remove whole units, always or where they are asked to.
SEARCHED = ("slimming", "early-bird")  # after a search for them
OF_UNITS = ("s2vite", *SEARCHED)
WITH_BUDGETS = ("random", "magnitude", "snip", "taylor", "grasp", "gmp")  # if units are asked for
WITH_UNITS = (*WITH_BUDGETS, *OF_UNITS)


class Requirement(NamedTuple):
    """When some options have an effect.

    Attributes:
      options: their names.
      goes_with: what they belong to, in words.
      instead: (all options, optimizer) → what there is instead, in words; None where they have an
        effect. The optimizer is None where none has been chosen.
    """

    options: tuple[str, ...]
    goes_with: str
    instead: Callable[[Values, str | None], str | None]


def has_rho(optimizer: str) -> bool:
    """Whether it perturbs the weights, by a radius ρ."""
    return optimizer in RECORDS and RECORDS[optimizer].has_rho


def has_radius(optimizer: str) -> bool:
    """Whether what ρ measures can be chosen: not for ASAM, whose radius is its own."""
    return has_rho(optimizer) and RECORDS[optimizer].radius is not None


def base_optimizer(values: Values, optimizer: str | None) -> str:
    """What turns the gradient into a step: a plain optimizer itself, or what follows the others."""
    if optimizer in (*PLAIN, OWN_OPTIMIZER):
        return str(optimizer)
    return values.get("base_optimizer") or "sgd"


def is_dense(values: Values) -> bool:
    """Whether no weight is pruned."""
    return bool(values["sparse"] == "none" or values["sparsity"] == 0)


def _unless(holds: Callable[[str], bool]) -> Callable[[Values, str | None], str | None]:
    """Of an option that an optimizer takes or not."""
    return lambda values, optimizer: None if optimizer is None or holds(optimizer) else optimizer


def _needs(option: str, value: str) -> Callable[[Values, str | None], str | None]:
    """Of an option that goes with one value of another one."""

    def instead(values: Values, optimizer: str | None) -> str | None:
        del optimizer
        found = values.get(option, value)
        return None if found == value else f"{option}={found!r}"

    return instead


def _needs_sgd(values: Values, optimizer: str | None) -> str | None:
    base = base_optimizer(values, optimizer)
    return None if base == "sgd" else base


def _needs_another_optimizer(values: Values, optimizer: str | None) -> str | None:
    if optimizer not in PLAIN or values["base_optimizer"] in (None, optimizer):
        return None
    return f"optimizer={optimizer!r}"


def _needs_masks(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    return "a dense network" if is_dense(values) else None


def _needs_method(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    return "sparse='none'" if values["sparse"] == "none" and values["sparsity"] else None


def _needs_units(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    if is_dense(values):
        return "a dense network"
    return None if values["sparse"] in WITH_UNITS else f"sparse={values['sparse']!r}"


def _needs_units_asked_for(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    if is_dense(values):
        return "a dense network"
    if values["sparse"] not in WITH_BUDGETS:
        return f"sparse={values['sparse']!r}"
    return "single weights" if values["structure"] is None else None


def _needs_search(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    return None if values["sparse"] in SEARCHED else f"sparse={values['sparse']!r}"


def _needs_texts(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    return "task='image'" if values.get("task", "lm") == "image" else None


def _needs_labels(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    task = values.get("task", "image")
    return None if task in ("image", "classify") else f"task={task!r}"


def _needs_warmup(values: Values, optimizer: str | None) -> str | None:
    del optimizer
    return None if values.get("warmup", 1.0) else "warmup=0"


def _own_options() -> Iterator[Requirement]:
    """Of the options that some of the ready-made optimizers take."""
    offered = dict.fromkeys(option for record in RECORDS.values() for option in record.options)
    for option in offered:
        able = [name for name, record in RECORDS.items() if option in record.options]
        names = (
            "optimizers other than sgd and adamw" if len(able) == len(RECORDS) else ", ".join(able)
        )
        yield Requirement((option,), names, _unless(able.__contains__))


RULES = (
    *_own_options(),
    Requirement(
        ("rho", "rho_warmup", "rho_cooldown", "perturb", "late_phase"),
        "optimizers that perturb the weights",
        _unless(has_rho),
    ),
    Requirement(("radius",), "optimizers whose radius can be chosen", _unless(has_radius)),
    Requirement(("momentum", "nesterov"), "sgd", _needs_sgd),
    Requirement(
        ("base_optimizer",), "optimizers other than sgd and adamw", _needs_another_optimizer
    ),
    Requirement(
        ("final_learning_rate", "cooldown"), "schedule='cosine'", _needs("schedule", "cosine")
    ),
    Requirement(("milestones",), "schedule='step'", _needs("schedule", "step")),
    Requirement(("initial_learning_rate",), "a warmup", _needs_warmup),
    Requirement(
        (
            *("learning_rate", "schedule", "final_learning_rate", "initial_learning_rate"),
            *("cooldown", "warmup", "weight_decay", "clip_norm", "milestones", "base_optimizer"),
        ),
        "optimizers by name",
        _unless(lambda optimizer: optimizer != OWN_OPTIMIZER),
    ),
    Requirement(
        (
            *("image_size", "stream", "workers", "shrink", "crop_and_flip", "randaugment"),
            *("repeated_augmentation", "random_erasing", "mixup", "cutmix", "label_smoothing"),
            "loss",
        ),
        "task='image'",
        _needs("task", "image"),
    ),
    Requirement(("context", "tokenizer"), "tasks of texts", _needs_texts),
    Requirement(("label_noise", "label_column"), "labels", _needs_labels),
    Requirement(("mest_soft_bound",), "sparse='mest'", _needs("sparse", "mest")),
    Requirement(("lottery_levels", "rewind_epochs"), "sparse='lth'", _needs("sparse", "lth")),
    Requirement(("sparse_layers", "sparsity_distribution"), "a sparse network", _needs_masks),
    Requirement(("search_epochs",), f"sparse={' or '.join(SEARCHED)}", _needs_search),
    Requirement(
        ("sparsity_budget",),
        f"structure and sparse={', '.join(WITH_BUDGETS)}",
        _needs_units_asked_for,
    ),
    Requirement(("structure",), f"sparse={', '.join(WITH_UNITS)}", _needs_units),
    Requirement(("sparsity",), "a sparse method", _needs_method),
)


def without_effect(values: Values, optimizers: Collection[str] = ()) -> dict[str, str]:
    """The options that would do nothing, by name, and why.

    Args:
      values: all options.
      optimizers: that they are for. An option is in order if any of them takes it; without one,
        options of optimizers are.

    Returns:
      option → "goes with …, not with …".
    """
    found: dict[str, str] = {}
    for rule in RULES:
        instead = [rule.instead(values, optimizer) for optimizer in optimizers or (None,)]
        if None not in instead:
            words = ", ".join(dict.fromkeys(word for word in instead if word is not None))
            found |= dict.fromkeys(rule.options, f"goes with {rule.goes_with}, not with {words}")
    return found


def check_applicable(config: Any, optimizers: Collection[str] = ()) -> None:
    """Raises ValueError for an option that was given, not left at its default, and does nothing.

    Args:
      config: a dataclass of options.
      optimizers: as in `without_effect`.
    """
    fields = {field.name: field for field in dataclasses.fields(config)}
    values = {name: getattr(config, name) for name in fields}
    for name, reason in without_effect(values, optimizers).items():
        if name in fields and values[name] != fields[name].default:
            raise ValueError(f"{name}={values[name]!r} {reason}: leave it out.")
