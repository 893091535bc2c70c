"""Part 2: images a second of each optimizer's step, and where ZO-SAM's time goes.

The steps are those of `zosam bench`, on random images: all of a network are compiled first and then
take turns in one process. What a row says is the median over rounds of the ratio to SGD's step in
the same round, with quartiles.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from cells import Cell, Work
from rich.console import Console

from zosam_jax import directions, keys, trees
from zosam_jax.commands.bench import BenchConfig
from zosam_jax.commands.bench.command import step_costs, take_turns
from zosam_jax.commands.bench.entries import BenchProblem, Entry, parts
from zosam_jax.commands.steps import Steps
from zosam_jax.training import devices
from zosam_jax.training.feed import Batch
from zosam_jax.training.step import RunState
from zosam_jax.trees import PyTree

PRECISIONS = ("bfloat16", "float32")
_ROUNDS = 15
_TRACED_STEPS = 3

# Of SGD's images a second, with ResNet-32 and MEST at 90%.
PAPER = {"zo_sam": 0.767, "sam": 0.477}


class Network(NamedTuple):
    """What is timed, and a guess at the minutes that it takes to compile and time."""

    model: str
    batch_size: int
    pixels: int
    num_classes: int
    minutes: float
    options: dict[str, Any] = {}  # noqa: RUF012 (nobody changes it)

    def config(self, precision: str, **more: Any) -> BenchConfig:
        return BenchConfig(
            model=self.model,
            batch_size=self.batch_size,
            image_shape=(self.pixels, self.pixels, 3),
            num_classes=self.num_classes,
            precision=precision,
            **self.options,
            **more,
        )


NETWORKS = (
    Network("resnet32", 64, 32, 10, 5.0),
    Network("resnet32", 512, 32, 10, 5.0),
    Network("deit-small", 128, 224, 1000, 5.0),
    Network("resnet50", 128, 224, 1000, 8.0),
    Network("wrn-28-10", 128, 32, 10, 8.0),
)
_TINY = (Network("lenet-300-100", 16, 8, 10, 1.0),)

# How ZO-SAM draws its direction, and how it makes its two passes.
_ZO_SAM = tuple(
    (distribution, batching)
    for distribution in ("normal", "rademacher")
    for batching in ("unroll", "vmap", "map")
)
# Parts of ZO-SAM's step, by themselves; u is drawn, and θ + δu is made from it.
PARTS = ("forward_pass", "gradient", "draw normal", "draw rademacher", "draw and perturb normal")
# What the second and third word of a row stand for.
_OPTIONS: dict[str, dict[str, Any]] = {
    "half": {"batch_fraction": 0.5},
    **{name: {"distribution": name} for name in ("normal", "rademacher")},
    **{name: {"batching": name} for name in ("unroll", "vmap", "map")},
}
ROWS = (
    *("sgd", "sam", "optax.contrib.sam", "subbatch_sam", "sam half"),
    *("random_weight_perturbation normal", "random_weight_perturbation rademacher"),
    *(f"zo_sam {distribution} {batching}" for distribution, batching in _ZO_SAM),
    *PARTS,
)
_TINY_ROWS = ("sgd", "sam", "zo_sam rademacher unroll", "draw normal", "draw and perturb normal")


def cells(tiny: bool) -> list[Cell]:
    networks, rows = (_TINY, _TINY_ROWS) if tiny else (NETWORKS, ROWS)
    precisions = PRECISIONS[:1] if tiny else PRECISIONS
    return [
        Cell(
            2,
            f"step of {network.model}, batch {network.batch_size}, {precision}",
            rows,
            network.minutes,
            lambda work, network=network, precision=precision: _run(work, network, precision),
        )
        for network in networks
        for precision in precisions
    ]


def _run(work: Work, network: Network, precision: str) -> None:
    devices.compute_exactly(precision)
    entries: dict[str, Entry] = {}
    # SGD's figures are needed for all ratios.
    for row in dict.fromkeys(("sgd", *work.missing)):
        with work.attempting(row, precision=precision):
            entry = _entry(network, precision, row)
            entry.advance()  # what does not fit in memory fails here
            entries[row] = entry
    console = Console(quiet=True)
    with Steps(console) as steps:
        take_turns(entries, 2 if work.tiny else _ROUNDS, steps)
    at_most = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    config = network.config(precision)
    missing = work.missing
    for cost in step_costs(config, entries, {}):
        if cost.optimizer in missing:
            found = figures(cost._asdict(), entries[cost.optimizer], network.batch_size)
            found["peak_bytes_of_process"] = at_most
            work.add(cost.optimizer, precision=precision, **found)
    if traced := next((name for name in entries if name.startswith("zo_sam")), None):
        # For TensorBoard or Perfetto.
        with jax.profiler.trace(str(work.output / "traces" / work.cell.name.replace(" ", "_"))):
            entries[traced].advance(_TRACED_STEPS)


def options_of(row: str) -> dict[str, Any]:
    """Those of `zosam bench` that a row stands for."""
    name, *how = row.split()
    found = {option: value for word in how for option, value in _OPTIONS[word].items()}
    return {"optimizers": () if name in PARTS else (name,), **found}


def _of_paper(row: str) -> float | None:
    name, *how = row.split()
    return None if "half" in how else PAPER.get(name)


def _entry(network: Network, precision: str, row: str) -> Entry:
    name, *how = row.split()
    if name == "draw":
        problem = BenchProblem(network.config(precision))
        return Entry(problem, _drawing(problem, how[-1], perturbs="perturb" in how))
    problem = BenchProblem(network.config(precision, **options_of(row)))
    return Entry(problem, parts(problem, name))


def _drawing(problem: BenchProblem, distribution: str, *, perturbs: bool) -> Any:
    """A direction u, or θ + δu, kept in the place of SGD's momentum, so that it is made."""
    _, state, _ = parts(problem, "sgd")
    draw = directions.get(distribution)

    def step(state: RunState, batch: Batch, arrays: PyTree) -> RunState:
        del batch, arrays
        key = jax.random.fold_in(keys.from_data(state.key), state.step)
        made = draw(key, state.params)
        if perturbs:
            made = trees.displace(state.params, made, jnp.asarray(1e-3))
        return state._replace(opt_state=made, step=state.step + 1)

    return step, state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.params)), None


def figures(cost: dict[str, Any], entry: Entry, batch_size: int) -> dict[str, Any]:
    """What a row says of a `StepCost`."""
    low, high = cost["time_ratio_quartiles"]
    memory = entry.memory
    names = ("time_ratio", "time_ratio_quartiles", "milliseconds", "flops", "compile_seconds")
    names += ("compile_ratio", "forward_passes", "backward_passes", "temp_bytes", "memory_ratio")
    of_a_step = {
        "images_per_second": 1e3 * batch_size / cost["milliseconds"],
        "share_of_sgd": 1 / cost["time_ratio"],
        "share_of_sgd_quartiles": [1 / high, 1 / low],
        "share_in_the_paper": _of_paper(cost["optimizer"]),
    }
    return {
        **({} if cost["optimizer"] in PARTS else of_a_step),
        **{name: cost[name] for name in names},
        "argument_bytes": int(memory.argument_size_in_bytes),
        "output_bytes": int(memory.output_size_in_bytes - memory.alias_size_in_bytes),
    }
