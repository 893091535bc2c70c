"""What the report says first: what was compared, and what was left out."""

import dataclasses
import datetime
from collections.abc import Iterable, Sequence
from itertools import starmap
from typing import Any, NamedTuple

import zosam_jax
from zosam_jax.report.runs import Omission
from zosam_jax.report.study import Options, Study, say
from zosam_jax.training.config import TrainConfig

_DEFAULTS = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
_DEFAULTS["base_optimizer"] = "sgd"
# Told whether or not they are the defaults.
_ALWAYS = {
    "dataset": "data set",
    "model": "model",
    "epochs": "epochs",
    "batch_size": "batch size",
    "learning_rate": "learning rate",
    "weight_decay": "weight decay",
}


class Header(NamedTuple):
    """The head of the report."""

    title: str  # its heading
    lead: str  # how much there is, and when it was gathered
    facts: Sequence[tuple[str, str]]  # what was compared: names and values
    omissions: Sequence[Omission]  # the runs that are left out


def header(study: Study, omissions: Sequence[Omission], title: str | None) -> Header:
    """Describes a study."""
    everything = [*omissions, *study.duplicates]
    settings = study.settings
    said = [(text, _joined(settings[name])) for name, text in _ALWAYS.items()]
    others = [
        say(name, *values)
        for name, values in settings.items()
        if name not in _ALWAYS and values != [_DEFAULTS[name]]
    ]
    facts = [
        *said,
        *([("other options", ", ".join(others))] if others else []),
        ("rows", "; ".join(dict.fromkeys(row.label for row in study.rows))),
        ("optimizers", "; ".join(starmap(_about, study.perturbations.items()))),
        ("gains over", study.base),
        ("seeds", _joined(study.seeds)),
    ]
    left_out = f" {len(everything)} left out." if everything else ""
    lead = (
        f"{_runs(len(study.runs))}, gathered on {datetime.date.today():%d %B %Y} by zosam_jax "
        f"{zosam_jax.__version__}.{left_out}"
    )
    return Header(title or _title(study), lead, facts, everything)


def _title(study: Study) -> str:
    """Model, data set, label noise, the sparse methods with their sparsities, and tuning."""
    settings = study.settings
    trained = f"{_joined(settings['model'])} on {_joined(settings['dataset'])}"
    noise = _percents(settings["label_noise"]).replace(", ", " or ")
    noisy = "" if noise == "0%" else f" with {noise} of the labels random"
    budgets: dict[str, set[float]] = {}
    for run in study.runs:
        method = "dense" if run.config.is_dense else run.config.sparse
        budgets.setdefault(method, set()).add(run.config.sparsity)
    told = [
        method if method == "dense" else f"{method} {_percents(sparsities)}"
        for method, sparsities in budgets.items()
    ]
    tuned = " (tuned)" if any(run.tuned for run in study.runs) else ""
    return f"{trained}{noisy}: {'; '.join(told)}{tuned}"


def _percents(fractions: Iterable[float]) -> str:
    return ", ".join(f"{100 * fraction:g}%" for fraction in sorted(fractions))


def _about(label: str, perturbation: Options) -> str:
    """An optimizer with its radius and whatever else is not the default."""
    if "radius" not in perturbation:
        return label
    told = (
        [say("rho", perturbation["rho"]), str(perturbation["radius"])]
        if perturbation["rho"]
        else []
    )
    told += [
        say(name, value)
        for name, value in perturbation.items()
        if name not in ("optimizer", "rho", "radius") and value != _DEFAULTS[name]
    ]
    told = [text for text in told if text not in label.split(", ")]
    return f"{label} ({', '.join(told)})" if told else label


def _joined(values: Sequence[Any]) -> str:
    return ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
