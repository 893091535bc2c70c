"""`zosam bench`: what each optimizer's step costs, and the quality of its perturbation."""

import contextlib
import dataclasses
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich import box
from rich.console import Console
from rich.table import Table

from zosam_jax import trees
from zosam_jax.analysis.estimator import PerturbationQuality, perturbation_quality
from zosam_jax.commands.bench.entries import BenchProblem, Entry, parts, run_of
from zosam_jax.commands.refusal import refusing
from zosam_jax.commands.steps import Steps
from zosam_jax.errors import check_count, check_number
from zosam_jax.training import build, devices, run_folder, step
from zosam_jax.training.applicable import has_rho
from zosam_jax.training.config import (
    AscentConfig,
    ModelConfig,
    OptimizerName,
    ProblemConfig,
    SparseConfig,
    options_of_problem,
)
from zosam_jax.training.feed import Batch
from zosam_jax.training.run_folder import RunFolder
from zosam_jax.training.step import RunState
from zosam_jax.training.trainer import Run
from zosam_jax.trees import PyTree

# The ascents are measured a little away from the initial weights, whose gradients are unlike any
# later ones, and by optimizers that have seen a few steps, since some have a state.
_STEPS_OF_SGD = 16
_STEPS_BEFORE = 2
_MEASURED_STEPS = 4

# A turn is one step; more where steps are too short for the clock (in seconds), or where they are
# not alike, since some optimizers make passes at every fifth or tenth step only.
_SHORTEST_TURN = 0.01
_CYCLE = 10

_TABLE_WIDTH = 140


if TYPE_CHECKING:
    BenchName: TypeAlias = str
else:
    BenchName = Literal[OptimizerName, "forward_pass", "gradient", "optax.contrib.sam"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchConfig(ModelConfig, SparseConfig, AscentConfig):
    """Time several optimizers' steps side by side on random images; nothing is trained."""

    optimizers: tuple[BenchName, ...] = (
        *("sgd", "sam", "subbatch_sam", "random_weight_perturbation", "zo_sam"),
    )
    """What to time; sgd is always among them, since the others are relative to it. forward_pass
    and gradient are parts of a step, optax.contrib.sam is another library's SAM."""

    batch_size: int = 32
    """Images a step, on one device."""

    image_shape: tuple[int, int, int] = (32, 32, 3)
    """Height, width and channels of the images."""

    num_classes: int = 10
    """Classes of the labels."""

    sparsity: float = 0.0
    """As for train, but the network is dense unless this says otherwise."""

    rho: float = 0.05
    """Length to which every perturbation is scaled before its ascent gain is measured."""

    rounds: int = 9
    """How often the optimizers take turns, each for one step, after a round to warm up."""

    output: Path | None = None
    """JSON file for the rows, replaced if it exists. Default: none, the table is all."""

    def __post_init__(self) -> None:
        """As for the parts."""
        for part in BenchConfig.__bases__:
            part.__post_init__(self)  # type: ignore[attr-defined]
        for name in ("batch_size", "num_classes", "rounds"):
            check_count(name, getattr(self, name))
        if min(self.image_shape) < 1:
            raise ValueError(f"image_shape={self.image_shape!r} must be three integers above 0.")
        check_number("rho", self.rho, above=0.0, inclusive=False)
        for name in ("rho_warmup", "rho_cooldown", "late_phase"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} is for train: bench measures constant radii."
                )
        if self.sparse not in ("none", "random") and self.is_dense:
            raise ValueError(f"sparse={self.sparse!r} needs a sparsity above 0.")
        if self.searches:
            raise ValueError(
                f"sparse={self.sparse!r} is for train: bench measures steps, not a search and what "
                "follows it; take random or s2vite."
            )
        others = [o for o in dict.fromkeys(self.optimizers) if o != "sgd"]
        object.__setattr__(self, "optimizers", ("sgd", *others))

    @property
    def problem(self) -> ProblemConfig:
        """The same as `train` would have it, in a long run whose rates and radii stay constant."""
        constant: dict[str, Any] = {
            "epochs": 10_000,
            "learning_rate": 0.01,
            "schedule": "step",
            "milestones": (),
            "warmup": 0.0,
            "mesh": "data=1",
        }
        if any(map(has_rho, self.optimizers)):
            constant |= {"rho_warmup": 0.0, "rho_cooldown": 0.0}
        return ProblemConfig(**{**options_of_problem(self), **constant})


class StepCost(NamedTuple):
    """One line of the table; None where there is nothing to tell."""

    optimizer: str  # its name
    # the time of a step relative to SGD's, the median over rounds of the ratio within each round
    time_ratio: float
    # temporary memory of the compiled step, as XLA accounts for it, relative to SGD's; parameters
    # and optimizer states are not in it
    memory_ratio: float
    compile_ratio: float  # time to trace and compile the step, from nothing, relative to SGD's
    # XLA's count of a step's floating-point operations relative to SGD's; it counts the body of a
    # loop once
    flops_ratio: float | None
    # forward_passes, backward_passes: of one step, in batches (`training.passes.count`)
    forward_passes: float
    backward_passes: float
    cosine: float | None  # mean cos(ε, ∇L(θ)) on the kept weights
    # the mean of L(θ+ε) − L(θ), with every ε scaled to the same global norm, relative to SAM's on
    # the same batches at the same weights
    ascent_gain_ratio: float | None
    # that gain for each unit of time beyond SGD's step, relative to SAM's; None without SAM, or
    # where a quarter of the rounds show no such time
    ascent_gain_per_cost_ratio: float | None
    time_ratio_quartiles: tuple[float, float]  # the lower and the upper one, over rounds
    milliseconds: float  # the median time of a step
    # temp_bytes, compile_seconds, flops: what the ratios are made of
    temp_bytes: int
    compile_seconds: float
    flops: float | None
    # model, batch_size, device: what was timed, and where
    model: str
    batch_size: int
    device: str


class _Untimed:
    """SAM where it is not timed: its ascents are measured for the others to be relative to."""

    def __init__(self, run: Run) -> None:
        self.state, self.sam_tx = run.state, run.sam_tx

    def advance(self) -> None:
        """Does nothing: SAM has no state."""


def run(config: BenchConfig, console: Console) -> None:
    """Builds the problem, and closes it when its steps are timed."""
    with refusing():
        if config.output is not None and config.output.is_dir():
            raise ValueError(f"output={str(config.output)!r} is a folder: name a file.")
        if config.output is not None:
            run_folder.check_writable(config.output.parent)
        devices.keep_compiled(None)
        devices.compute_exactly(config.precision)
        problem = BenchProblem(config)
        build.check(problem.config, config.optimizers)
        build.check_budget(problem)
    with contextlib.closing(problem.feed):
        bench(config, problem, console)


def bench(config: BenchConfig, problem: BenchProblem, console: Console) -> list[StepCost]:
    """Compiles, measures and times every optimizer's step; prints the table, writes the rows.

    Steps are the trainer's own, SGD with momentum and weight decay, BatchNorm statistics and all.
    All are compiled before any is timed, and then take turns, so that a busy machine slows them
    alike.
    """
    with Steps(console) as steps:
        entries = _compile(config, problem, steps)
        ascents = _measure_ascents(config, problem, entries, console, steps)
        take_turns(entries, config.rounds, steps)
    rows = step_costs(config, entries, ascents)
    console.width = max(console.width, _TABLE_WIDTH)  # a wrapped line is better than cut numbers
    console.print(_table(rows, config))
    if config.output is not None:
        folder = RunFolder(config.output.parent, "bench", may_hold_results=True)
        folder.write_json(config.output.name, [row._asdict() for row in rows])
        console.print(f"rows in {config.output}")
    return rows


def _compile(config: BenchConfig, problem: BenchProblem, steps: Steps) -> dict[str, Entry]:
    names = config.optimizers
    found = {name: parts(problem, name) for name in steps.each("initializing", names)}
    return {name: Entry(problem, found[name]) for name in steps.each("compiling", names)}


def _measure_ascents(
    config: BenchConfig,
    problem: BenchProblem,
    entries: dict[str, Entry],
    console: Console,
    steps: Steps,
) -> dict[str, list[PerturbationQuality]]:
    """Measures every ε at the same weights on the same batches, those of one path of SGD.

    The entries take these steps too, so that their states are filled. Those whose ε is always
    zero, since they descend along an estimate at θ, are left out.
    """
    perturbers: dict[str, Entry | _Untimed] = {**entries}
    perturbers.setdefault("sam", _Untimed(run_of(problem, "sam")))
    perturbations = _perturbations(problem, perturbers, console)
    ascents: dict[str, list[PerturbationQuality]] = {name: [] for name in perturbations}
    base, batch, arrays = entries["sgd"], problem.batch, problem.feed.arrays
    measure = _measure(problem, config.rho)
    for _ in range(_STEPS_OF_SGD):
        base.advance()
    for number in steps.each("perturbing at step", range(_STEPS_BEFORE + _MEASURED_STEPS)):
        for name, perturbation in perturbations.items():
            perturber = perturbers[name]
            perturber.state = state = _moved(perturber.state, base.state)
            if number >= _STEPS_BEFORE:
                ascents[name].append(measure(state, perturbation(state, batch, arrays)))
            perturber.advance()
        base.advance()
    return {name: found for name, found in ascents.items() if any(a.norm for a in found)}


_Perturbation: TypeAlias = Callable[[RunState, Batch, PyTree], PyTree]


def _perturbations(
    problem: BenchProblem, perturbers: Mapping[str, Entry | _Untimed], console: Console
) -> dict[str, _Perturbation]:
    """Of those that perturb; the others' steps are timed all the same."""
    found: dict[str, _Perturbation] = {}
    for name, perturber in perturbers.items():
        try:
            if perturber.sam_tx is not None:
                found[name] = _perturbation(problem, perturber.sam_tx, perturber.state)
        except ValueError as error:
            console.print(f"{name} has no perturbation to measure: {error}", markup=False)
    return found


def _perturbation(
    problem: BenchProblem, sam_tx: optax.GradientTransformationExtraArgs, state: RunState
) -> _Perturbation:
    """The ε that the next step would take.

    Raises:
      ValueError: from the optimizer, if it has none.
    """

    @jax.jit
    def perturbation(state: RunState, batch: Batch, arrays: PyTree) -> PyTree:
        examples = problem.examples_of(state, batch, arrays)
        return step.perturbation(problem, sam_tx, state, examples)

    jax.eval_shape(perturbation, state, problem.batch, problem.feed.arrays)
    return perturbation


def _measure(
    problem: BenchProblem, rho: float
) -> Callable[[RunState, PyTree], PerturbationQuality]:
    """(state, ε) → the quality of ρ ε/‖ε‖."""
    batch, arrays = problem.batch, problem.feed.arrays

    @jax.jit
    def measure(
        state: RunState, epsilon: PyTree, batch: Batch, arrays: PyTree
    ) -> PerturbationQuality:
        examples = problem.examples_of(state, batch, arrays)
        loss = step.value_fn(problem, state)
        scaled = trees.scale(epsilon, trees.ratio(jnp.asarray(rho), trees.norm(epsilon)))
        return perturbation_quality(lambda p: loss(p, examples), state.params, scaled)

    return lambda state, epsilon: jax.device_get(measure(state, epsilon, batch, arrays))


def _moved(state: RunState, to: RunState) -> RunState:
    """A state at another's weights, statistics and step; copies, since a step donates its own."""
    fields = ("params", "model_state", "step")
    return state._replace(**{name: jax.tree.map(jnp.copy, getattr(to, name)) for name in fields})


def take_turns(entries: Mapping[str, Entry], rounds: int, steps: Steps) -> None:
    """Times the steps of all entries, one of which is "sgd"."""
    turn = max(1, math.ceil(_SHORTEST_TURN / entries["sgd"].advance()))
    for number in steps.each("timing round", range(rounds + 1)):  # round 0 warms up
        for entry in entries.values():
            seconds = entry.advance(turn * _CYCLE if entry.varies else turn)
            if number:
                entry.seconds.append(seconds)


def step_costs(
    config: BenchConfig,
    entries: Mapping[str, Entry],
    ascents: Mapping[str, list[PerturbationQuality]],
) -> list[StepCost]:
    """What entries that have taken turns cost, a row for each."""
    base = entries["sgd"]
    quartiles = {name: _quartiles(c.seconds, base.seconds) for name, c in entries.items()}
    gains = {name: _mean(a.gain for a in found) for name, found in ascents.items()}
    # Time beyond SGD's step, where there is some to tell from noise.
    extra = {name: q[1] - 1.0 for name, q in quartiles.items() if q[0] > 1.0}

    def row(name: str, entry: Entry) -> StepCost:
        low, median, high = quartiles[name]
        gain = gains[name] / gains["sam"] if name in gains and gains["sam"] > 0 else None
        worth = None
        if gain is not None and name in extra and "sam" in extra:
            worth = gain * extra["sam"] / extra[name]
        return StepCost(
            optimizer=name,
            time_ratio=median,
            memory_ratio=entry.temp_bytes / max(base.temp_bytes, 1),
            compile_ratio=entry.compile_seconds / base.compile_seconds,
            flops_ratio=entry.flops / base.flops if entry.flops and base.flops else None,
            forward_passes=entry.passes.forward,
            backward_passes=entry.passes.backward,
            cosine=_mean(a.cosine for a in ascents[name]) if name in gains else None,
            ascent_gain_ratio=gain,
            ascent_gain_per_cost_ratio=worth,
            time_ratio_quartiles=(low, high),
            milliseconds=1e3 * statistics.median(entry.seconds),
            temp_bytes=entry.temp_bytes,
            compile_seconds=entry.compile_seconds,
            flops=entry.flops,
            model=config.model,
            batch_size=config.batch_size,
            device=jax.devices()[0].device_kind,
        )

    return [row(name, entry) for name, entry in entries.items()]


def _mean(values: Iterable[Any]) -> float:
    return statistics.fmean(map(float, values))


def _quartiles(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    low, median, high = np.quantile(np.divide(seconds, base), (0.25, 0.5, 0.75)).tolist()
    return low, median, high


def _table(rows: Sequence[StepCost], config: BenchConfig) -> Table:
    height, width, channels = config.image_shape
    network = "dense" if config.is_dense else f"{100 * config.sparsity:g}% {config.sparse}"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{config.model} ({network}), {config.batch_size} random images of "
        f"{height}×{width}×{channels}, radius {config.radius}, {config.rounds} rounds on "
        f"{rows[0].device}; relative to SGD, gains to SAM",
    )
    table.add_column("optimizer", no_wrap=True)
    for heading in (
        "time (quartiles)",
        "ms",
        "memory",
        "compile",
        "FLOPs",
        "passes\n(f + b)",
        "cosine",
        "gain at\nequal ‖ε‖",
        "gain at\nequal cost",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        low, high = row.time_ratio_quartiles
        table.add_row(
            row.optimizer,
            f"{row.time_ratio:.2f} ({low:.2f}–{high:.2f})",
            f"{row.milliseconds:.1f}",
            f"{row.memory_ratio:.2f}",
            f"{row.compile_ratio:.2f}",
            _number(row.flops_ratio, ".2f"),
            f"{row.forward_passes:g} + {row.backward_passes:g}",
            _number(row.cosine, ".3g"),
            _number(row.ascent_gain_ratio, ".3g"),
            _number(row.ascent_gain_per_cost_ratio, ".3g"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
