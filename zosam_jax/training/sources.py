"""Where the parts of a run come from that are no names of ours: arrays, batches, code."""

import functools
import hashlib
import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zosam_jax.data import Dataset
from zosam_jax.data.dataset import as_split, from_arrays
from zosam_jax.data.files import one_line
from zosam_jax.training import build
from zosam_jax.training.config import ProblemConfig, is_own
from zosam_jax.training.feed import Batches
from zosam_jax.training.problem import Parts, Problem, changed

# What the names of data begin with that were given in Python.
ARRAYS, BATCHES = IN_PYTHON = "arrays:", "batches:"


class Data(NamedTuple):
    """What to train on that is no name of ours.

    Attributes:
      name: that stands for it in config.json.
      source: a Dataset, or mesh → feed.
      batch_size: that it comes in; None where the options say.
    """

    name: str
    source: Any
    batch_size: int | None = None


def as_data(
    train: Any,
    test: Any,
    validation: Any = None,
    num_classes: int | None = None,
    class_names: Sequence[str] | None = None,
) -> Data | None:
    """What `fit` takes as data; None for a name.

    Raises:
      ValueError: for anything else.
    """
    if isinstance(train, str | Path | Dataset):
        if test is not None or validation is not None:
            raise ValueError(
                "test= and validation= go with arrays and batches: a data set has its own."
            )
        return _of_dataset(train) if isinstance(train, Dataset) else None
    if test is None:
        raise ValueError("test=None: pass held-out examples, as (inputs, targets) or in batches.")
    if _are_arrays(train):
        return _of_dataset(
            from_arrays(train, test, validation, num_classes=num_classes, class_names=class_names)
        )
    is_sized = hasattr(train, "__len__") and hasattr(train, "__iter__") and len(train)
    if not is_sized or isinstance(train, Mapping):
        raise ValueError(
            f"data={one_line(train):.80} is neither (inputs, targets), nor a Dataset, nor an "
            "iterable of batches that has a length."
        )
    size = len(as_split("a batch", next(iter(train))))
    held_out = [_in_batches(split, size) for split in (test, validation)]
    feed = functools.partial(
        Batches, train, *held_out, num_classes=num_classes or 0, class_names=class_names
    )
    return Data(f"{BATCHES}{origin(train)}", feed, size)


def _are_arrays(data: Any) -> bool:
    """Whether it is (inputs, targets), not a sequence of batches."""
    pair = isinstance(data, tuple | list) and len(data) == 2
    return pair and not any(isinstance(part, tuple | list) and len(part) == 2 for part in data)


def _in_batches(split: Any, size: int) -> Any:
    """Batches as they are; arrays cut into some."""
    if not _are_arrays(split):
        return split
    arrays = as_split("test", split)
    every = range(0, len(arrays), size)
    return [(arrays.images[i : i + size], arrays.labels[i : i + size]) for i in every]


def _of_dataset(dataset: Dataset) -> Data:
    digest = hashlib.sha256()
    for split in (dataset.train, dataset.test, dataset.validation):
        for array in () if split is None else (split.images, split.labels):
            digest.update(f"{array.dtype}{array.shape}".encode())
            digest.update(np.ascontiguousarray(array).data)
    return Data(f"{ARRAYS}{digest.hexdigest()[:16]}", dataset)


def origin(value: Any) -> str:
    """Where code comes from, as in package.module:name."""
    value = value[0] if isinstance(value, tuple) and value else value
    while isinstance(value, functools.partial):
        value = value.func
    kind = value if hasattr(value, "__qualname__") else type(value)
    return f"{kind.__module__}:{kind.__qualname__}"


def imported(option: str, name: str) -> Any:
    """What an import path, package.module:name, stands for; also below the working directory.

    Raises:
      ValueError: if it cannot be imported, saying why.
    """
    module, _, attributes = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
    except Exception as error:  # whatever the module raises
        raise ValueError(
            f"{option}={name!r} cannot be imported: {type(error).__name__}: {error}"
        ) from error


def named_parts(
    config: ProblemConfig, parts: Parts | None = None, data: Data | None = None
) -> tuple[Parts, Data | None]:
    """The parts of a run that are given, and those that its user's options name by import paths."""
    parts = parts or Parts()
    if parts.model is None and is_own(config.model):
        parts = parts._replace(model=imported("model", config.model))
    if parts.loss is None and is_own(config.loss):
        parts = parts._replace(loss=imported("loss", config.loss))
    if data is None and is_own(config.dataset):
        data = data_named(config.dataset)
    return parts, data


def repeated_parts(
    config: ProblemConfig, repeated: Mapping[str, str | None]
) -> tuple[Parts, Data | None]:
    """Those parts of a run whose import paths its user has repeated, which are imported.

    Args:
      config: the options of a run that is opened, which alone make nothing be imported.
      repeated: of model, loss and dataset what the user has typed; another path than the run's
        where that was given in Python and cannot be typed: arrays, batches, code of a script.

    Raises:
      ValueError: for a path that is not the run's.
    """
    for option, name in repeated.items():
        own = getattr(config, option)
        given_in_python = own.startswith((*IN_PYTHON, "__main__:")) or "<" in own
        if name is not None and name != own and not given_in_python:
            raise ValueError(f"{option}={name!r} is not that of the run, which has {own!r}.")
    model, loss = repeated.get("model"), repeated.get("loss")
    data = repeated.get("dataset")
    return Parts(
        imported("model", model) if model and is_own(model) else None,
        imported("loss", loss) if loss and is_own(loss) else None,
    ), data_named(data) if data and is_own(data) else None


def problem(config: ProblemConfig, parts: Parts, data: Data | None) -> Problem:
    """What is trained, or was; raises ValueError for options that it cannot meet."""
    source = None if data is None else data.source
    if isinstance(source, Dataset):
        source = changed(source, config)
    made = Problem(config, source, parts)
    build.check_budget(made)
    return made


def data_named(name: str) -> Data:
    """What the function of an import path returns: a Dataset, or (train, test) or with validation.

    Raises:
      ValueError: if it cannot be imported, fails or returns anything else.
    """
    function = imported("dataset", name)
    try:
        made = function()
    except Exception as error:  # whatever it raises
        raise ValueError(f"dataset={name!r} failed: {type(error).__name__}: {error}") from error
    try:
        found = as_data(made, None) if isinstance(made, Dataset) else as_data(*made)
    except TypeError as error:
        raise ValueError(
            f"dataset={name!r} returned {type(made).__name__}: a Dataset, (train, test) or (train, "
            "test, validation) are expected."
        ) from error
    if found is None:
        raise ValueError(f"dataset={name!r} returned a name, where data are expected.")
    return found
