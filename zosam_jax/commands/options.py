"""From the words of a command line to a command's options; those of a training in groups."""

import dataclasses
import inspect
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import docstring_parser
import tyro

from zosam_jax.commands.refusal import RefusedError
from zosam_jax.training.config import TrainConfig, replacing

T = TypeVar("T")

# The options of a training as its help shows them, most used first. Those of a command that are in
# no group stand before them.
GROUPS: Mapping[str, tuple[str, ...]] = {
    "data": (
        *("task", "dataset", "data_dir", "train_images", "validation_fraction", "context"),
        *("tokenizer", "crop_and_flip"),
        *("label_noise", "shrink", "image_size", "label_column", "mixup", "cutmix"),
        *("label_smoothing", "random_erasing", "stream", "workers", "randaugment"),
        "repeated_augmentation",
    ),
    "model": ("model", "loss", "init", "precision", "patch", "drop_path", "dropout", "remat"),
    "optimizer": (
        *("optimizer", "rho", "radius", "rho_warmup", "rho_cooldown", "perturb", "late_phase"),
        *("base_optimizer", "momentum", "nesterov"),
        *("weight_decay", "clip_norm", "ema_decay", "batch_fraction", "fraction"),
        *("num_directions", "delta", "distribution", "difference", "batching", "interval"),
        *("microbatches", "beta", "gamma", "extrapolation", "reach", "theta", "rho_max"),
    ),
    "sparsity": (
        *("sparse", "sparsity", "structure", "sparse_layers", "sparsity_distribution"),
        *("sparsity_budget", "mest_soft_bound", "lottery_levels", "rewind_epochs", "search_epochs"),
    ),
    "schedule": (
        *("epochs", "batch_size", "learning_rate", "schedule", "warmup", "milestones"),
        *(
            "final_learning_rate",
            "initial_learning_rate",
            "accumulate",
            "evaluate_every",
            "cooldown",
        ),
    ),
    "run": (
        *("output", "seed", "resume", "checkpoint_minutes", "keep_checkpoints", "keep_every"),
        *("tensorboard", "on_non_finite", "mesh", "compilation_cache", "coordinator"),
        *("num_processes", "process_id"),
    ),
}

# Commands with options of fewer groups show them in one list.
_FEWEST_GROUPS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpeningConfig:
    """The options of all commands that open runs."""

    data_dir: Path | None = None
    """Folder of the data set's files. Default: where the run found them."""

    model: str | None = None
    """Of a run whose network is code, PACKAGE.MODULE:FACTORY, repeated: nothing is executed only
    because a run names it."""

    dataset: str | None = None
    """Likewise PACKAGE.MODULE:FUNCTION, for the data set."""

    loss: str | None = None
    """Likewise, for the loss."""

    @property
    def code(self) -> dict[str, str | None]:
        """What is repeated; see `zosam_jax.training.saved_run.opener`."""
        return {name: getattr(self, name) for name in ("model", "dataset", "loss")}


def parse(options: type[T], words: Sequence[str], *, prog: str, default: T | None = None) -> T:
    """A command's options: of a dataclass whose fields have texts under them, from words.

    `prog` is what the help calls the command; `default` is what the words change, the type's own
    defaults without.

    Raises:
      RefusedError: for options that the type refuses.
      SystemExit: after --help, and for words that are no options; tyro says which.
    """
    shared: dict[str, Any] = {"prog": prog, "args": list(words)}
    shared["description"] = inspect.getdoc(options)
    groups = _groups(options)
    if len(groups) < _FEWEST_GROUPS:
        if default is not None:
            shared["default"] = default
        parsed: T = tyro.cli(options, **shared)
        return parsed
    nested = tyro.cli(
        _nested(options, groups, default), config=(tyro.conf.OmitArgPrefixes,), **shared
    )
    values = {name: value for name, value in vars(nested).items() if name not in groups}
    for title in groups:
        values |= vars(getattr(nested, title))
    try:
        if not isinstance(default, TrainConfig):
            return options(**values)
        given = {name: v for name, v in values.items() if v != getattr(default, name)}
        return typing.cast(T, replacing(default, given))
    except (TypeError, ValueError) as error:
        raise RefusedError(str(error)) from error


def _groups(options: Any) -> dict[str, list[str]]:
    """Group → the options of this type in it; without empty ones."""
    names = {field.name for field in dataclasses.fields(options)}
    groups = {title: [n for n in group if n in names] for title, group in GROUPS.items()}
    # An option outside the groups may have a group's name: zosam export RUN.
    others = names.difference(*GROUPS.values())
    return {title: group for title, group in groups.items() if group and title not in others}


def _nested(options: Any, groups: Mapping[str, Sequence[str]], default: Any) -> Any:
    """A dataclass with another one for each group, which tyro shows under a heading of its own."""
    fields = _described(options, default)
    grouped = {name for group in groups.values() for name in group}
    parts: list[Any] = [field for name, field in fields.items() if name not in grouped]
    for title, group in groups.items():
        part = _dataclass(title, [fields[name] for name in group])
        parts.append((title, part, dataclasses.field(default_factory=part)))
    return _dataclass(options.__name__, parts)


def _dataclass(name: str, fields: Sequence[Any]) -> Any:
    made = dataclasses.make_dataclass(name, fields, kw_only=True, frozen=True)
    made.__doc__ = ""  # in the place of a signature, which tyro would print
    return made


def _described(options: Any, default: Any) -> dict[str, tuple[str, Any, Any]]:
    """Option → what dataclasses.make_dataclass takes for it, its text included."""
    texts = _texts(options)
    kinds = typing.get_type_hints(options, include_extras=True)
    described = {}
    annotated: Any = Annotated  # of a type that is known at run time only
    for field in dataclasses.fields(options):
        value = field.default if default is None else getattr(default, field.name)
        # The text says what None stands for.
        hint: dict[str, Any] = {"help_behavior_hint": ""} if value is None else {}
        about = tyro.conf.arg(help=texts.get(field.name), **hint)
        kind = annotated[kinds[field.name], about]
        described[field.name] = (field.name, kind, dataclasses.field(default=value))
    return described


def _texts(options: Any) -> dict[str, str]:
    """Option → the text under it in its class, base classes first."""
    kinds: Sequence[Any] = [k for k in reversed(options.__mro__) if dataclasses.is_dataclass(k)]
    described = [p for kind in kinds for p in docstring_parser.parse_from_object(kind).params]
    return {p.arg_name: " ".join(p.description.split()) for p in described if p.description}
