"""The entries of `zosam bench`: optimizers, parts of a step, and another library's SAM."""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental.compilation_cache import compilation_cache
from optax import contrib

from zosam_jax import keys
from zosam_jax.compiling import compiler_options
from zosam_jax.data import Dataset, dataset
from zosam_jax.integrations.modules import Functions
from zosam_jax.optimizers import Passes
from zosam_jax.training import build, passes, step
from zosam_jax.training.feed import Batch
from zosam_jax.training.problem import Examples, Problem
from zosam_jax.training.step import RunState
from zosam_jax.training.trainer import Run
from zosam_jax.trees import Array, PyTree

if TYPE_CHECKING:
    from zosam_jax.commands.bench.command import BenchConfig

_BATCHES = 4
_SEED = 0

Step: TypeAlias = Callable[[RunState, Batch, PyTree], RunState]

# A step, the state before it, and what perturbs in it.
Parts: TypeAlias = tuple[Step, RunState, optax.GradientTransformationExtraArgs | None]


class BenchProblem(Problem):
    """A problem of random images, whose network's passes can be counted."""

    def __init__(self, config: "BenchConfig") -> None:
        """Draws the images and puts them on the device."""
        super().__init__(config.problem, random_images(config))

    def _network(self) -> Functions:
        functions = super()._network()

        def apply(*arguments: Any) -> tuple[Array, PyTree]:
            outputs, model_state = functions.apply(*arguments)
            return passes.marked_outputs(outputs), model_state

        return functions._replace(apply=apply)

    @property
    def batch(self) -> Batch:
        """What every step gets; its number picks the images."""
        return next(self.feed.epoch(_SEED, 0))

    def examples_of(self, state: RunState, batch: Batch, arrays: PyTree) -> Examples:
        """What the next step trains on; within jit."""
        return self.examples(arrays, batch, state.step, keys.from_data(state.key))


class Entry:
    """A compiled step, the state it has reached, and what there is to know of both.

    Attributes:
      state: what the next step starts from.
      sam_tx: the sharpness-aware transformation, None without one.
      seconds: of one step, for each turn.
      compile_seconds: of tracing and compiling it, from nothing.
      passes: of the network, in one step.
      varies: whether some steps make fewer.
      memory: XLA's account of the program's memory.
      temp_bytes, flops: XLA's figures; flops is None where it has none.
    """

    def __init__(self, problem: BenchProblem, parts: Parts) -> None:
        function, self.state, self.sam_tx = parts
        self.seconds: list[float] = []
        self._batch, self._arrays = problem.batch, problem.feed.arrays
        jitted = jax.jit(function, donate_argnums=0, compiler_options=compiler_options())
        jax.clear_caches()  # what one program traces, the next would find done
        with without_compilation_cache():
            started = time.perf_counter()
            traced = jitted.trace(self.state, self._batch, self._arrays)
            self._program = traced.lower().compile()
            self.compile_seconds = time.perf_counter() - started
        outputs = problem.config.batch_size * problem.num_classes
        self.passes: Passes = passes.count(traced.jaxpr, outputs)
        self.varies = passes.count(traced.jaxpr, outputs, branch=min) != self.passes
        self.memory: Any = self._program.memory_analysis()
        self.temp_bytes = int(self.memory.temp_size_in_bytes)
        self.flops: float | None = (self._program.cost_analysis() or {}).get("flops")

    def advance(self, steps: int = 1) -> float:
        """Takes some steps; returns the seconds of one."""
        jax.block_until_ready(self.state)
        started = time.perf_counter()
        for _ in range(steps):
            self.state = self._program(self.state, self._batch, self._arrays)
        jax.block_until_ready(self.state)
        return (time.perf_counter() - started) / steps


def random_images(config: "BenchConfig") -> Dataset:
    """A few batches of noise over one random pattern for each class, so that there is a slope."""
    random = np.random.default_rng(_SEED)
    count = _BATCHES * config.batch_size
    labels = random.integers(config.num_classes, size=count).astype(np.int32)
    patterns, noise = (
        random.integers(128, size=(n, *config.image_shape), dtype=np.uint8)
        for n in (config.num_classes, count)
    )
    split = dataset.Split(patterns[labels] + noise, labels)
    return dataset.from_splits(split, split, config.num_classes)


@contextlib.contextmanager
def without_compilation_cache() -> Iterator[None]:
    """Compiles anew what the persistent cache holds; JAX asks once whether that is on, so reset."""
    before = jax.config.values["jax_enable_compilation_cache"]
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def parts(problem: BenchProblem, name: str) -> Parts:
    """What there is to compile for an optimizer, or for what else the options offer."""
    if name in _YARDSTICKS:
        return _YARDSTICKS[name](problem, run_of(problem, "sgd").state)
    run = run_of(problem, name)
    return _whole_step(problem, run.tx), run.state, run.sam_tx


def run_of(problem: BenchProblem, name: str) -> Run:
    """An optimizer at its default radius, before its first step; without units that go by then."""
    run = Run(problem, name, build.default_rho(name, problem.config.radius), _SEED)
    if problem.units is not None and build.masks_stand(problem, 0):
        run.compact()
    return run


def _whole_step(problem: BenchProblem, tx: optax.GradientTransformation) -> Step:
    return lambda state, batch, arrays: step.train_step(problem, tx, state, batch, arrays)


def _forward_pass(problem: BenchProblem, state: RunState) -> Parts:
    def forward(state: RunState, batch: Batch, arrays: PyTree) -> RunState:
        loss = problem.loss_of_examples(state.model_state)
        value, (model_state, _) = loss(state.params, problem.examples_of(state, batch, arrays))
        return state._replace(loss_sum=value, model_state=model_state, step=state.step + 1)

    return forward, state, None


def _gradient(problem: BenchProblem, state: RunState) -> Parts:
    def gradient(state: RunState, batch: Batch, arrays: PyTree) -> RunState:
        loss = problem.loss_of_examples(state.model_state)
        examples = problem.examples_of(state, batch, arrays)
        found, (model_state, _) = jax.grad(loss, has_aux=True)(state.params, examples)
        # It stays where it is seen, or XLA would leave it out.
        return state._replace(opt_state=found, model_state=model_state, step=state.step + 1)

    return gradient, state._replace(opt_state=jax.tree.map(jnp.zeros_like, state.params)), None


def _optax_sam(problem: BenchProblem, state: RunState) -> Parts:
    plain = build.transformation(problem.config, "sgd", None, problem.steps)
    rho = build.default_rho("sam", "global")
    ascent = optax.chain(contrib.normalize(), optax.sgd(rho))
    sam = contrib.sam(plain, ascent, opaque_mode=True)

    def update(
        updates: PyTree, state: PyTree, params: PyTree, *, value_fn: Any, **extra_args: Any
    ) -> Any:
        del extra_args
        return sam.update(updates, state, params, grad_fn=lambda p, _: jax.grad(value_fn)(p))

    tx = build.under_masks(
        problem,
        optax.GradientTransformationExtraArgs(sam.init, update),
        build.masks_of(state.opt_state),
        seed=_SEED,
    )
    return _whole_step(problem, tx), state._replace(opt_state=tx.init(state.params)), None


# What a step can be measured by, beside SGD: its parts, and another library's SAM.
_YARDSTICKS: dict[str, Callable[[BenchProblem, RunState], Parts]] = {
    "forward_pass": _forward_pass,
    "gradient": _gradient,
    "optax.contrib.sam": _optax_sam,
}
