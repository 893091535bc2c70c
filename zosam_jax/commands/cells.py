"""The runs that a sweep consists of, from the tables of its TOML file."""

import contextlib
import dataclasses
import functools
import itertools
import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from zosam_jax import recipes
from zosam_jax.errors import check_count, check_positive_fraction
from zosam_jax.training import build
from zosam_jax.training.applicable import has_rho
from zosam_jax.training.config import TrainConfig, applicable, check_model, replacing, start_of
from zosam_jax.training.saved_run import typed

Options: TypeAlias = Mapping[str, Any]

_TABLES = ("train", "grid", "tune", "case")
_LONGEST_NAME = 240  # of a folder, with room for endings of files
_TUNED = "tuned"


class Cell(NamedTuple):
    """One run of a sweep."""

    own: Options  # those of its options that not all runs share; they name its folder
    options: Options  # of `zosam train`, as the file has them
    config: TrainConfig  # what they come to
    # option → the values that tuning chooses from, rising, or any name → tables of options that go
    # together; empty if nothing is tuned
    grid: Mapping[str, Sequence[Any]] = {}

    def command(self, output: Path) -> list[str]:
        """The arguments of `zosam` that make this run."""
        words = itertools.chain.from_iterable(itertools.starmap(_words, self.options.items()))
        return ["train", *words, "--output", str(output / self.name)]

    @property
    def name(self) -> str:
        """The name of its folder; the seed comes last."""
        return _name(self.own)

    @property
    def method(self) -> str:
        """Its name without the seed."""
        return _name({option: value for option, value in self.own.items() if option != "seed"})


class Tuning(NamedTuple):
    """How options are tuned."""

    # option → its candidates, or any name → tables of options that go together, for all runs; empty
    # for the grid of each optimizer's ρ
    grid: Mapping[str, Sequence[Any]] = {}
    candidates: int | None = None  # how many of the combinations are tried; None for all
    seeds: int = 2  # how many seeds each candidate is trained from
    fraction: float = 0.2  # of the training images that are held out, where the runs hold none out


def together(values: Options) -> dict[str, Any]:
    """Option → value, where a name may have a table of options for its value."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= value if isinstance(value, dict) else {name: value}
    return flat


def first_of(grid: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Each name with the first of its values."""
    return {name: values[0] for name, values in grid.items()}


def _name(own: Options) -> str:
    ordered = sorted(own.items(), key=lambda item: item[0] == "seed")
    # Data sets may have a slash in their name, and lists brackets.
    words = [f"{option}={'+'.join(map(str, _listed(value)))}" for option, value in ordered]
    return ",".join(words).replace("/", "-") or "run"


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def make_cell(own: Options, options: Options, grid: Mapping[str, Sequence[Any]] = {}) -> Cell:
    """A run with these options (see `Cell`)."""
    name = _name(own)
    if len(name.encode()) > _LONGEST_NAME:
        raise ValueError(f"{name} is too long for a folder: put what all runs share in [train].")
    with _about(name):
        _check_options(options)
        config = replacing(_start(options), typed(options))
    return Cell(own, options, config, grid)


def _start(options: Options) -> TrainConfig:
    if "recipe" in options:
        return _recipe(options["recipe"])
    return start_of(options.get("task", "image"))


@functools.cache
def _recipe(name: str) -> TrainConfig:
    return recipes.get(name).config


def _words(name: str, value: Any) -> list[str]:
    option = name.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{option}" if value else f"--no-{option}"]
    return [f"--{option}", *map(str, _listed(value))]


class Tables(NamedTuple):
    """What a sweep's file says."""

    train: Options  # options of all runs, where they have an effect
    grid: Mapping[str, Sequence[Any]]  # option → values of which all combinations are run
    cases: Sequence[Options]  # sets of options that go together
    tuning: Tuning | None  # None to tune nothing

    def cells(self) -> list[Cell]:
        """All runs, in order; seeds vary slowest, so that a part of it is balanced too.

        An option of `train` or `grid` is left out of a run where it would do nothing; runs that
        are the same without it are one.
        """
        found: dict[str, Cell] = {}
        taken: set[str] = set()
        for values, case in itertools.product(self._combinations(), self.cases):
            cell = self._cell(values, case)
            shortened = len(cell.options) < len({**self.train, **values, **case}.keys() - {"tune"})
            if cell.name in found and not shortened:
                raise ValueError(f"the sweep has {cell.name} twice: cases must differ.")
            found.setdefault(cell.name, cell)
            taken |= cell.options.keys()
        for option in (*self.train, *self.grid):
            if option not in taken:
                raise ValueError(
                    f"{option} would do nothing in any run of the sweep: leave it out."
                )
        if self.tuning is not None:
            _check_same_numbers(found.values(), self.tuning.candidates)
        return list(found.values())

    def _combinations(self) -> Iterator[dict[str, Any]]:
        ordered = sorted(self.grid, key=lambda option: option != "seed")
        for values in itertools.product(*(self.grid[option] for option in ordered)):
            yield dict(zip(ordered, values, strict=True))

    def _cell(self, values: Options, case: Options) -> Cell:
        case = dict(case)
        wanted = case.pop("tune", None) or None  # as an empty [tune]: the optimizer's own grid
        options = {**self.train, **values, **case}
        takes = applicable(options, _start(options))
        # What a case says itself is refused, not left out, if it would do nothing.
        options = {o: v for o, v in options.items() if o in takes or o in case}
        own = {o: v for o, v in {**values, **case}.items() if o in options}
        grid: Mapping[str, Sequence[Any]] = {}
        if self.tuning is not None:
            config = make_cell(own, options).config
            grid = _grid(config, self.tuning.grid if wanted is None else wanted, own)
            if wanted is not None and grid.keys() != wanted.keys():
                idle = next(iter(wanted.keys() - grid.keys()))
                raise ValueError(
                    f"{_name(own)}: {idle} of its tune would do nothing, since the case sets it "
                    "or its optimizer does not take it: leave it out."
                )
        elif wanted is not None:
            raise ValueError(f"{_name(own)}: tune={wanted!r} needs --tune or a table [tune].")
        return make_cell({**own, **dict.fromkeys(grid, _TUNED)}, options, grid)


def _grid(
    config: TrainConfig, wanted: Mapping[str, Sequence[Any]], own: Options
) -> Mapping[str, Sequence[Any]]:
    """What there is to tune: what takes effect, and is not among the run's own options."""
    if config.stream:
        raise ValueError("stream=True does not go with tuning: no images are held out of a stream.")
    if not wanted and has_rho(config.optimizer):
        wanted = {"rho": build.rho_grid(config.optimizer, config.radius)}
    takes = applicable(together(first_of(wanted)), config).keys() - own.keys()
    return {
        name: values if isinstance(values[0], dict) else sorted(values)
        for name, values in wanted.items()
        if together({name: values[0]}).keys() <= takes
    }


def _check_same_numbers(cells: Iterable[Cell], limit: int | None) -> None:
    """Raises unless all that are tuned are so on as many candidates, at most so many."""
    numbers = {c.method: math.prod(map(len, c.grid.values())) for c in cells if c.grid}
    numbers = {method: min(number, limit or number) for method, number in numbers.items()}
    if len(set(numbers.values())) > 1:
        least, most = min(numbers, key=numbers.__getitem__), max(numbers, key=numbers.__getitem__)
        raise ValueError(
            f"tune: {least} has {numbers[least]} candidates and {most} {numbers[most]}: give all "
            "the same number."
        )


def read_tables(file: Path) -> Tables:
    """The tables of a file."""
    tables = _toml(file)
    for name, table in tables.items():
        rows = table if name == "case" and isinstance(table, list) and table else [table]
        if name not in _TABLES or not all(isinstance(row, dict) for row in rows):
            raise ValueError(f"{file}: {name} must be one of [train], [grid], [tune] and [[case]].")
    cases = tables.get("case", [{}])
    tune = dict(tables.get("tune", {}))
    names = ("seeds", "fraction", "candidates")
    numbers = {name: tune.pop(name) for name in names if name in tune}
    tuning = Tuning(tune, **numbers)
    with _about(f"{file}: [tune]"):
        check_count("seeds", tuning.seeds)
        if tuning.candidates is not None:
            check_count("candidates", tuning.candidates)
        check_positive_fraction("fraction", tuning.fraction)
    with _about(f"{file}: [train]"):
        _check_options(tables.get("train", {}))
    for case in cases:
        with _about(f"{file}: [[case]]"):
            _check_options({name: value for name, value in case.items() if name != "tune"})
    tuned = [("[tune]", tune), *(("tune", case["tune"]) for case in cases if "tune" in case)]
    for place, lists in (("[grid]", tables.get("grid", {})), *tuned):
        _check_lists(f"{file}: ", place, lists)
        for name, value in ((name, value) for name, values in lists.items() for value in values):
            with _about(f"{file}: {place}"):
                _check_options({name: value} if place == "[grid]" else together({name: value}))
    for place, lists in tuned:
        with _about(f"{file}: {place}"):
            _check_together(lists)
    return Tables(
        tables.get("train", {}), tables.get("grid", {}), cases, tuning if "tune" in tables else None
    )


def _toml(file: Path) -> dict[str, Any]:
    if file.exists() and not file.is_file():
        raise ValueError(f"file={str(file)!r} is no file.")
    try:
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise ValueError(f"file={str(file)!r} cannot be read: {error}.") from error
    except RecursionError:
        raise ValueError(f"{file} is no TOML for a sweep: it is nested too deeply.") from None
    except ValueError as error:  # of the encoding, or of TOML
        raise ValueError(f"{file} is no TOML: {error}.") from error


@contextlib.contextmanager
def _about(place: str) -> Iterator[None]:
    """Says where in a file an error is."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise ValueError(f"{place}: {error}") from error


def _check_options(options: Options) -> None:
    """Raises ValueError for what is no option of a sweep's runs, or of another type."""
    known = {field.name for field in dataclasses.fields(TrainConfig)} - {"output", "resume"}
    for option in options:
        if option not in known:
            raise ValueError(f"{option} is no option of a sweep's runs.")
    typed(options)
    check_model(options.get("model", TrainConfig.model))


def _check_together(lists: Mapping[str, Sequence[Any]]) -> None:
    """Raises unless all values of a name set the same options, and no two names the same."""
    for name, values in lists.items():
        options = [sorted(together({name: value})) for value in values]
        if any(found != options[0] for found in options):
            raise ValueError(f"{name}: all of its tables must set the same options.")
    every = [option for name in lists for option in together({name: lists[name][0]})]
    for option in every:
        if every.count(option) > 1:
            raise ValueError(f"{option} stands there twice.")


def _check_lists(prefix: str, place: str, lists: Any) -> None:
    if not isinstance(lists, dict):
        raise ValueError(f"{prefix}{place}={lists!r} must be a table of lists.")
    for name, values in lists.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{prefix}{name}={values!r} in {place} must be a list of values.")
