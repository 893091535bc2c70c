"""Part 3: ResNet-32 with RigL at the paper's length, an epoch a compiled program.

Fashion-MNIST's images, padded to 32×32, lie on the device; so do crops, flips and mask updates: an
epoch is one `lax.scan` of the trainer's own step over the order of its images. Several seeds can go
through it side by side under vmap, where a measurement at the beginning says that this is quicker.
Every optimizer has the radius that the library gives it by default: none is tuned.
"""

import functools
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from cells import Cell, CutOffError, Work

from zosam_jax.compiling import compiler_options
from zosam_jax.data import Dataset, Split, load
from zosam_jax.training import build, devices, problem, step
from zosam_jax.training.config import ProblemConfig, applicable
from zosam_jax.training.feed import Batch
from zosam_jax.training.problem import Network, Problem
from zosam_jax.training.step import RunState
from zosam_jax.training.trainer import Run
from zosam_jax.trees import PyTree

PRECISION = "bfloat16"
SEEDS = (0, 1, 2)
OPTIMIZERS = ("sgd", "zo_sam", "random_weight_perturbation", "sam", "subbatch_sam")
# Most telling first: where the paper gains most at a sparsity that still trains well.
PROBLEMS = ((0.0, 0.95), (0.2, 0.95), (0.0, 0.9), (0.0, 0.98), (0.2, 0.9), (0.2, 0.98))
SIDE_BY_SIDE = "seeds side by side"
_MEASURED = ("sgd", "zo_sam")
_ROUNDS = 5
_SHORT_EPOCH = 64  # steps, of the measurement
_EPOCH_SECONDS = 2.0  # of SGD, one seed; a guess
_PASSES = {"sgd": 1.0, "zo_sam": 1.4, "random_weight_perturbation": 1.1, "sam": 2.0}

# Equal in all seeds at all times: with one value for all, masks are updated under a condition, and
# not at every step.
_COMMON = ("count", "step", "updates")

Epoch = Callable[[RunState, Batch, PyTree], RunState]


def cells(tiny: bool) -> list[Cell]:
    seeds = [f"seed {seed}" for seed in (SEEDS[:2] if tiny else SEEDS)]
    found = [Cell(3, SIDE_BY_SIDE, _MEASURED[-1:] if tiny else _MEASURED, 5.0, _measure)]
    for noise, sparsity in PROBLEMS[:1] if tiny else PROBLEMS:
        for optimizer in OPTIMIZERS[1:2] if tiny else OPTIMIZERS:
            name = f"RigL {sparsity:.0%}, {noise:.0%} noisy labels, {optimizer}"
            minutes = len(SEEDS) * 160 * _EPOCH_SECONDS * _PASSES.get(optimizer, 1.2) / 60
            run = functools.partial(_train, optimizer=optimizer, noise=noise, sparsity=sparsity)
            found.append(Cell(3, name, seeds, math.ceil(minutes), run, goes_on=True))
    return found


def config_of(work: Work, optimizer: str, noise: float, sparsity: float) -> ProblemConfig:
    """The options of `zosam train`: those of the recipe fashion_mnist-resnet32-rigl."""
    options: dict[str, Any] = {
        "dataset": "fashion-mnist",
        "data_dir": work.data_dir,
        "model": "resnet32",
        "precision": PRECISION,
        "sparse": "rigl",
        "sparsity": sparsity,
        "label_noise": noise,
        "crop_and_flip": True,
        "epochs": 160,
        "batch_size": 128,
        "learning_rate": 0.1,
        "schedule": "step",
        "warmup": 0.0,
        "weight_decay": 1e-4,
        "mesh": "data=1",
    }
    if work.tiny:
        options |= {"model": "lenet-300-100", "epochs": 2, "batch_size": 32, "train_images": 96}
    given = applicable(options | {"optimizer": optimizer})
    del given["optimizer"]
    return ProblemConfig(**given)


def problem_of(work: Work, config: ProblemConfig) -> Problem:
    devices.compute_exactly(config.precision)
    devices.keep_compiled(None)
    dataset = problem.changed(padded(load("fashion-mnist", work.data_dir)), config)
    if work.tiny:
        dataset = dataset._replace(test=dataset.test.take(np.arange(100)))
    return Problem(config, dataset)


def padded(dataset: Dataset, side: int = 32) -> Dataset:
    """The images in the middle of a black square; the mean and deviation of pixels as they were."""

    def split(images: Split) -> Split:
        _, height, width, _ = images.images.shape
        up, left = (side - height) // 2, (side - width) // 2
        around = ((0, 0), (up, side - height - up), (left, side - width - left), (0, 0))
        return Split(np.pad(images.images, around), images.labels)

    return dataset._replace(train=split(dataset.train), test=split(dataset.test))


def stacked(prob: Problem, states: Sequence[RunState]) -> RunState:
    """The states of several seeds in one, all but `_COMMON` along a new first axis."""

    def leaves(path: Any, first: Any, *others: Any) -> Any:
        return first if _is_common(path) else jnp.stack([first, *others])

    if len(states) == 1:
        return states[0]
    together: RunState = jax.tree_util.tree_map_with_path(leaves, *states)
    placed: RunState = devices.replicate(together, prob.mesh)
    return placed


def unstacked(state: RunState, number: int, count: int) -> RunState:
    """The state of one of `count` seeds."""
    if count == 1:
        return state
    own: RunState = jax.tree_util.tree_map_with_path(
        lambda path, x: x if _is_common(path) else x[number], state
    )
    return own


def _is_common(path: tuple[Any, ...]) -> bool:
    return getattr(path[-1], "name", None) in _COMMON


def epoch_program(run: Run, count: int, steps: int) -> Epoch:
    """(state, order of the images, the feed's arrays) → the state `steps` steps later, of seeds.

    All seeds are trained by the first one's optimizer, whose seed counts at the beginning alone.
    """

    def epoch(state: RunState, batch: Batch, arrays: PyTree) -> RunState:
        def one(state: RunState, _: None) -> tuple[RunState, None]:
            return step.train_step(run.problem, run.tx, state, batch, arrays), None

        return jax.lax.scan(one, state, length=steps)[0]

    if count > 1:
        axes = jax.tree_util.tree_map_with_path(
            lambda path, _: None if _is_common(path) else 0, run.state
        )
        epoch = jax.vmap(epoch, in_axes=(axes, 0, None), out_axes=axes)
    # Where the state goes in as it came out it is compiled once.
    everywhere = devices.replicated(run.problem.mesh)
    return jax.jit(
        epoch, donate_argnums=0, out_shardings=everywhere, compiler_options=compiler_options()
    )


def order_of(prob: Problem, seeds: Sequence[int], epoch: int) -> Batch:
    orders = [next(prob.feed.epoch(seed, epoch)) for seed in seeds]
    return orders[0] if len(orders) == 1 else devices.replicate(jnp.stack(orders), prob.mesh)


def _measure(work: Work) -> None:
    """Whether all seeds at once take less time than one after another."""
    for optimizer in work.missing:
        with work.attempting(optimizer, precision=PRECISION):
            prob = problem_of(work, config_of(work, optimizer, 0.0, 0.95))
            length = min(_SHORT_EPOCH, prob.steps_per_epoch)
            seconds: dict[int, list[float]] = {}
            programs = {}
            for count in (1, len(SEEDS)):
                runs = [run_of(prob, optimizer, seed) for seed in SEEDS[:count]]
                state = stacked(prob, [run.state for run in runs])
                programs[count] = [epoch_program(runs[0], count, length), state]
                seconds[count] = []
            for number in range((1 if work.tiny else _ROUNDS) + 1):  # round 0 compiles
                for count, program in programs.items():
                    order = jax.block_until_ready(order_of(prob, SEEDS[:count], number))
                    started = time.perf_counter()
                    program[1] = program[0](program[1], order, prob.feed.arrays)
                    jax.block_until_ready(program[1])
                    if number:
                        seconds[count].append(time.perf_counter() - started)
            one, several = (statistics.median(found) for found in seconds.values())
            work.add(
                optimizer,
                precision=PRECISION,
                seeds=len(SEEDS),
                steps=length,
                seconds_of_one=one,
                seconds_side_by_side=several,
                ratio=several / (len(SEEDS) * one),
            )


def _are_side_by_side(work: Work, optimizer: str) -> bool:
    """By the measurement of the optimizer that is most like this one."""
    like = "sgd" if optimizer == "sgd" else "zo_sam"
    ratios = [row.get("ratio", 2.0) for row in work.rows.of(SIDE_BY_SIDE) if row["row"] == like]
    return bool(ratios) and ratios[-1] < 1


def _train(work: Work, *, optimizer: str, noise: float, sparsity: float) -> None:
    prob = problem_of(work, config_of(work, optimizer, noise, sparsity))
    seeds = [int(row.split()[-1]) for row in work.missing]
    groups = [seeds] if _are_side_by_side(work, optimizer) else [[seed] for seed in seeds]
    count = len(groups[0])
    program = epoch_program(run_of(prob, optimizer, seeds[0]), count, prob.steps_per_epoch)
    for group in groups:
        _train_group(work, program, [run_of(prob, optimizer, seed) for seed in group])


def run_of(prob: Problem, optimizer: str, seed: int) -> Run:
    rho = build.default_rho(optimizer, prob.config.radius)
    return Run(prob, optimizer, rho, seed)


def _train_group(work: Work, program: Epoch, runs: Sequence[Run]) -> None:
    """Trains runs side by side to the end, from where their checkpoint stands."""
    prob, seeds = runs[0].problem, [run.seed for run in runs]
    state, history = stacked(prob, [run.state for run in runs]), []
    name = f"{work.cell.name}, {' '.join(map(str, seeds))}".replace(" ", "_")
    file = work.output / "checkpoints" / f"{name}.npz"
    if file.exists():
        state, history = restored(file, state)
    for epoch in range(len(history), prob.config.epochs):
        if not work.budget.seconds:
            raise CutOffError(f"cut off after epoch {epoch} of seeds {seeds}; goes on from there")
        order = jax.block_until_ready(order_of(prob, seeds, epoch))
        started = time.perf_counter()
        state = jax.block_until_ready(program(state, order, prob.feed.arrays))
        seconds = time.perf_counter() - started
        own = [unstacked(state, number, len(seeds)) for number in range(len(seeds))]
        found = [_of_epoch(prob, one) for one in own]
        history.append({"seconds": seconds, "seeds": found})
        state = _begin_epoch(prob, state)
        saved(file, state, history)
    for number, run in enumerate(runs):
        run.state = unstacked(state, number, len(runs))
        epochs = [epoch["seeds"][number] for epoch in history]
        seconds = statistics.median(epoch["seconds"] for epoch in history)
        work.add(f"seed {run.seed}", **_figures(run, epochs, seconds, len(runs)))
    file.unlink()


def _begin_epoch(prob: Problem, state: RunState) -> RunState:
    """As `step.begin_epoch`, of one seed or several."""
    names = ("loss_sum", "correct", "seen", "diagnostics", "known", "bad_steps", "first_bad_step")
    zeros = {name: jax.tree.map(jnp.zeros_like, getattr(state, name)) for name in names}
    return state._replace(**devices.replicate(zeros, prob.mesh))


def _of_epoch(prob: Problem, state: RunState) -> dict[str, float]:
    bad, seen = int(state.bad_steps), max(int(state.seen), 1)
    found = prob.evaluate(Network(state.params, state.model_state))
    return {
        "train_loss": float(state.loss_sum) / max(prob.steps_per_epoch - bad, 1),
        "train_accuracy": int(state.correct) / seen,
        "test_accuracy": found.accuracy,
        "test_loss": found.loss,
        "bad_steps": bad,
    }


def _figures(
    run: Run, epochs: list[dict[str, Any]], seconds: float, side_by_side: int
) -> dict[str, Any]:
    """What a run came to; the seconds are the median epoch's, of all that ran side by side."""
    prob = run.problem
    images = side_by_side * prob.steps_per_epoch * prob.config.batch_size
    return {
        "precision": prob.config.precision,
        "seed": run.seed,
        "model": prob.config.model,
        "optimizer": run.optimizer,
        "rho": run.rho,
        "label_noise": prob.config.label_noise,
        "sparsity": run.sparsity,
        "epochs": len(epochs),
        "side_by_side": side_by_side,
        **{name: epochs[-1][name] for name in ("train_loss", "train_accuracy", "test_accuracy")},
        "best_test_accuracy": max(epoch["test_accuracy"] for epoch in epochs),
        "test_accuracies": [epoch["test_accuracy"] for epoch in epochs],
        "bad_steps": sum(epoch["bad_steps"] for epoch in epochs),
        "seconds_of_an_epoch": seconds,
        "images_per_second": images / seconds,
    }


def saved(file: Path, state: RunState, history: list[dict[str, Any]]) -> None:
    """Replaces the checkpoint as a whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    arrays = jax.device_get(jax.tree.leaves(step.to_saved(state)))
    named = {str(number): array for number, array in enumerate(arrays)}
    new = file.with_suffix(".new")
    with new.open("wb") as stream:
        np.savez(stream, history=np.asarray(json.dumps(history)), **named)
    os.replace(new, file)


def restored(file: Path, like: RunState) -> tuple[RunState, list[dict[str, Any]]]:
    leaves, structure = jax.tree.flatten(step.to_saved(like))
    with np.load(file, allow_pickle=False) as arrays:
        found = [jax.device_put(arrays[str(n)], leaf.sharding) for n, leaf in enumerate(leaves)]
        history: list[dict[str, Any]] = json.loads(str(arrays["history"]))
    return step.from_saved(jax.tree.unflatten(structure, found), like), history
