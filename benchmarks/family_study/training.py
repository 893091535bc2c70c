"""Runs: one compiled program for each problem and method, whatever the radius, seed and length."""

import functools
import statistics
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from benchmarks.family_study.methods import Method
from benchmarks.family_study.problems import Problem
from zosam_jax import keys, sparsity, transform
from zosam_jax.data.dataset import Dataset, Split
from zosam_jax.integrations import nnx as nnx_integration
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.training.config import ProblemConfig
from zosam_jax.training.problem import load_dataset
from zosam_jax.trees import Array, PyTree

LOOKS = 4
EVALUATION_BATCH = 1000
WARMUP = 0.05
NUM_CLASSES = 10
TIMED_STEPS, TIMED_ROUNDS = 30, 9


class Images(NamedTuple):
    """Normalised images (N, height, width, channels) and their labels (N,), on the device."""

    pixels: Array
    labels: Array


class Data(NamedTuple):
    """The three splits; runs are judged by the second while tuning, by the third in the end."""

    train: Images
    validation: Images
    test: Images


class Training(NamedTuple):
    """What a step turns into its successor."""

    params: PyTree
    model_state: PyTree
    opt_state: PyTree


class Setting(NamedTuple):
    """What may differ between two runs of one compiled program: ρ, and the steps of the run."""

    rho: Array
    steps: Array


class Trainer:
    """One problem and one method, compiled once for all radii, seeds and lengths."""

    def __init__(self, problem: Problem, method: Method, data: Data) -> None:
        """Compiles nothing yet."""
        self.problem, self.method, self.data = problem, method, data
        self._make = functools.partial(
            problem.model, NUM_CLASSES, image_shape=data.train.pixels.shape[1:]
        )
        model = nnx.eval_shape(lambda: self._make(rngs=nnx.Rngs(0)))
        model.train()
        self._train_graph = nnx.graphdef(model)
        model.eval()
        self._eval_graph = nnx.graphdef(model)
        self._weights = jax.jit(
            lambda seed: nnx_integration.split(self._make(rngs=nnx.Rngs(jax.random.key(seed))))[1:]
        )
        self._one = jax.jit(self._step, donate_argnums=0)
        self._many = jax.jit(self._loop, donate_argnums=0)
        self._correct = jax.jit(self._count_correct)

    def start(self, seed: int) -> Training:
        """Initial weights, under masks if the problem has any."""
        params, model_state = self._weights(seed)
        masks = None
        if self.problem.sparsity:
            masks = sparsity.random(params, self.problem.sparsity, where="kernel", key=seed)
        opt_state = self._tx(Setting(jnp.zeros(()), jnp.ones(())), masks).init(params)
        if transform.states(opt_state):
            opt_state = optax.tree.set(opt_state, key=keys.to_data(seed))
        return Training(sparsity.apply_masks(params, masks), model_state, opt_state)

    def advance(self, state: Training, order: Array, steps: int, setting: Setting) -> Training:
        """So many steps, the i-th on the images order[i]."""
        if self.problem.loops:
            looped: Training = self._many(state, steps, order, setting, self.data.train)
            return looped
        for i in range(steps):
            state = self._one(state, i, order, setting, self.data.train)
        return state

    def run(self, rho: float, seed: int, split: str) -> dict[str, Any]:
        """Trains from a seed to the end; accuracies in percent, on this split and in training."""
        per_epoch, images = self.steps_per_epoch, getattr(self.data, split)
        steps = round(per_epoch * self.problem.epochs * self.method.length)
        setting = Setting(jnp.float32(rho), jnp.float32(steps))
        state, seconds, curve = self.start(seed), 0.0, []
        epochs = -(-steps // per_epoch)
        looks = {round(epochs * look / LOOKS) for look in range(1, LOOKS)}
        for epoch in range(epochs):
            started = time.perf_counter()
            left = min(per_epoch, steps - epoch * per_epoch)
            state = self.advance(state, self.order(seed, epoch), left, setting)
            jax.block_until_ready(state)
            seconds += time.perf_counter() - started
            if epoch + 1 in looks:
                curve.append(self.accuracy(state, images))
        return {
            "accuracy": self.accuracy(state, images),
            "train": self.accuracy(state, self.data.train),
            "curve": curve,
            "seconds": round(seconds, 3),
        }

    @property
    def steps_per_epoch(self) -> int:
        """An incomplete last batch is left out."""
        return len(self.data.train.labels) // self.problem.batch_size

    def order(self, seed: int, epoch: int) -> Array:
        """The images of each step of an epoch, (steps, batch size)."""
        order = np.random.default_rng((seed, epoch)).permutation(len(self.data.train.labels))
        shape = (self.steps_per_epoch, self.problem.batch_size)
        return jnp.asarray(order[: shape[0] * shape[1]].reshape(shape), jnp.int32)

    def accuracy(self, state: Training, images: Images) -> float:
        """Percent of the labels that the network gives."""
        correct = 0
        for start in range(0, len(images.labels), EVALUATION_BATCH):
            part = Images(*(array[start : start + EVALUATION_BATCH] for array in images))
            correct += int(self._correct(state.params, state.model_state, part))
        return round(100 * correct / len(images.labels), 3)

    def _tx(self, setting: Setting, masks: PyTree = None) -> optax.GradientTransformation:
        # On a scale from 0 to 100, so that one program serves runs of any length.
        curve = optax.warmup_cosine_decay_schedule(
            0.0, self.problem.learning_rate, warmup_steps=round(100 * WARMUP), decay_steps=100
        )
        tx = self.problem.descent(
            lambda count: curve(100 * count / setting.steps), self.method.decay(setting.rho)
        )
        first = self.method.first(setting.rho, setting.steps)
        if first is not None:
            tx = optax.chain(first, tx)
        return sparsity.fixed(tx, masks) if self.problem.sparsity else tx

    def _step(
        self, state: Training, i: Array, order: Array, setting: Setting, train: Images
    ) -> Training:
        pixels, labels = (array[order[i]] for array in train)

        def mean_loss(model: Any, pixels: Array, labels: Array) -> tuple[Array, Array]:
            losses = optax.softmax_cross_entropy_with_integer_labels(model(pixels), labels)
            return losses.mean(), losses

        of_params = nnx_integration.functional_loss(
            mean_loss, self._train_graph, state.model_state, has_aux=True
        )

        def loss(params: PyTree, pixels: Array, labels: Array) -> tuple[Array, PyTree]:
            value, (model_state, _) = of_params(params, pixels, labels)
            return value, model_state

        def losses_fn(params: PyTree, pixels: Array, labels: Array) -> Array:
            losses: Array = of_params(params, pixels, labels)[1][1]
            return losses

        _, model_state, params, opt_state = apply_loss(
            self._tx(setting),
            loss,
            state.params,
            state.opt_state,
            has_aux=True,
            losses_fn=losses_fn,
            pixels=pixels,
            labels=labels,
        )
        return Training(params, model_state, opt_state)

    def _loop(
        self, state: Training, steps: Array, order: Array, setting: Setting, train: Images
    ) -> Training:
        looped: Training = jax.lax.fori_loop(
            0, steps, lambda i, state: self._step(state, i, order, setting, train), state
        )
        return looped

    def _count_correct(self, params: PyTree, model_state: PyTree, images: Images) -> Array:
        logits = nnx.merge(self._eval_graph, params, model_state, copy=True)(images.pixels)
        return jnp.sum(jnp.argmax(logits, axis=-1) == images.labels)


def load(problem: Problem, data_dir: Path) -> Data:
    """A problem's images, on the device."""
    dataset = load_dataset(ProblemConfig(data_dir=data_dir, **problem.data))
    assert isinstance(dataset, Dataset)
    assert dataset.validation is not None
    mean, sd = (np.array(x, np.float32) for x in (dataset.pixel_mean, dataset.pixel_sd))
    test = dataset.test.take(np.arange(min(problem.test_images, len(dataset.test))))

    def on_device(split: Split) -> Images:
        pixels = (split.images.astype(np.float32) - mean) / sd
        return Images(jnp.asarray(pixels), jnp.asarray(split.labels))

    return Data(*map(on_device, (dataset.train, dataset.validation, test)))


def step_time(trainer: Trainer, reference: Trainer) -> float:
    """The median ratio of a step's time to the reference's, measured in turns."""
    order, setting = trainer.order(0, 0), Setting(jnp.float32(0.1), jnp.float32(1e6))
    steps = min(TIMED_STEPS, trainer.steps_per_epoch)
    states = {t: t.start(0) for t in (trainer, reference)}

    def seconds(t: Trainer) -> float:
        started = time.perf_counter()
        states[t] = jax.block_until_ready(t.advance(states[t], order, steps, setting))
        return time.perf_counter() - started

    ratios = [seconds(trainer) / seconds(reference) for _ in range(TIMED_ROUNDS + 1)]
    return round(statistics.median(ratios[1:]), 3)  # the first has the compilation in it
