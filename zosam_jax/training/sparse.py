"""From the command line's options to masks, to the wrapper that keeps them, and what they save."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from zosam_jax import sparsity
from zosam_jax.data import dataset as datasets
from zosam_jax.sparsity import METHODS, DropAndGrowState, SparseState, flops
from zosam_jax.training import optimizers
from zosam_jax.training.config import ProblemConfig
from zosam_jax.training.feed import Resident
from zosam_jax.training.problem import Network, Problem
from zosam_jax.trees import PyTree

# The models' kernels; not DeiT's position embedding and class token.
KERNELS = "kernel"

_SNIP_IMAGES = 128
_GRASP_IMAGES_PER_CLASS = 10
_GRASP_TEMPERATURE = 200.0


def check(problem: Problem) -> None:
    """Raises ValueError for a budget that the model or the data cannot meet; computes nothing."""
    config = problem.config
    if config.is_dense:
        return
    params = jax.eval_shape(lambda: problem.init(seed=0)).params
    default = "uniform" if config.sparse in ("dsr", "mest") else "erk"
    if config.sparse in ("snip", "grasp", "synflow", "lth"):
        default = "global"
    choice = {"distribution": default, **options(config)}
    jax.eval_shape(lambda p: sparsity.random(p, config.sparsity, **choice), params)
    if config.sparse == "grasp":
        _grasp_sample(problem, seed=0)


def masks_before_training(problem: Problem, network: Network, seed: int) -> PyTree:
    """The masks of a method that chooses them before training; None for the others."""
    config = problem.config
    if config.is_dense or config.sparse in METHODS:
        return None
    params, level, choice = network.params, config.sparsity, options(config)
    if config.sparse == "random":
        return sparsity.random(params, level, key=seed, **choice)
    if config.sparse in ("magnitude", "lth"):
        # A lottery ticket begins with all weights. Untrained ones are not ranked across layers:
        # their scale says more about the initialiser than about the layer.
        level = 0.0 if config.sparse == "lth" else level
        return sparsity.magnitude(params, level, **{"distribution": "erk", **choice})
    if config.sparse == "synflow":
        rest = jax.tree.map(_linear, network.rest)
        return sparsity.synflow(
            lambda p, images: problem.apply(p, rest, images),
            params,
            level,
            problem.feed.image_shape,
            **choice,
        )
    if config.sparse == "snip":
        sample = problem.feed.raw(seed, _SNIP_IMAGES)
        loss = problem.score_loss(network.rest, training=False)
        return sparsity.snip(loss, params, level, [sample], **choice)
    loss = problem.score_loss(network.rest, training=True, temperature=_GRASP_TEMPERATURE)
    return sparsity.grasp(loss, params, level, [_grasp_sample(problem, seed)], **choice)


def _linear(statistic: Any) -> Any:
    """A statistic as SynFlow's linear network has it: not negative. Random keys stay."""
    return jnp.abs(statistic) if jnp.issubdtype(statistic.dtype, jnp.floating) else statistic


def under_masks(
    config: ProblemConfig,
    inner: optax.GradientTransformationExtraArgs,
    masks: PyTree,
    *,
    steps: int,
    seed: int,
) -> optax.GradientTransformationExtraArgs:
    """The optimizer under masks, fixed ones or those of a method that changes them."""
    if config.is_dense:
        return inner
    if config.sparse not in METHODS:
        return sparsity.fixed(inner, masks)
    choice = options(config)
    if config.sparse == "mest":
        choice["soft_bound"] = config.mest_soft_bound
    return METHODS[config.sparse](inner, config.sparsity, total_steps=steps, key=seed, **choice)


def masks_of(opt_state: PyTree) -> PyTree:
    """The masks in an optimizer state; None for a dense network."""
    held = isinstance(opt_state, SparseState | DropAndGrowState)
    return sparsity.get_masks(opt_state) if held else None


def dense_gradients(config: ProblemConfig, opt_state: PyTree) -> int:
    """How many mask updates so far needed the gradient of pruned weights."""
    if config.sparse not in ("rigl", "svite") or not isinstance(opt_state, DropAndGrowState):
        return 0
    return int(opt_state.updates)


class Cost:
    """Multiply-adds of training and inference, relative to the dense network with SGD.

    A forward pass costs Σ_l density_l·f_l, f_l the dense layer's multiply-adds, a backward pass
    twice that; a mask update that needs the whole gradient costs the dense layers' weight
    gradients once more. This is what kernels that skip zeros would do; XLA's do not skip them.
    """

    def __init__(self, problem: Problem, optimizer: str, network: Network) -> None:
        """Traces the network's forward pass on one image."""
        image = jnp.zeros((1, *problem.feed.image_shape))
        self._params = network.params
        self._costs = flops.multiply_adds(
            lambda p, x: problem.apply(p, network.rest, x), network.params, image
        )
        self._dense = float(sum(jax.tree.leaves(self._costs)))
        forward, backward = optimizers.passes(problem.config, optimizer)
        self._passes = forward + 2 * backward

    def inference(self, masks: PyTree) -> float:
        """One forward pass under the masks, as a fraction of the dense one."""
        return flops.kept_multiply_adds(self._costs, masks, self._params) / self._dense

    def training(self, masks: PyTree, steps: int, dense_gradients: int = 0) -> float:
        """Some steps under the masks, in steps of the dense network with SGD."""
        inference = self.inference(masks)
        return (self._passes * inference * steps + (1.0 - inference) * dense_gradients) / 3.0


def _grasp_sample(problem: Problem, seed: int) -> Any:
    """As many images of each class, and their labels."""
    feed = problem.feed
    if not isinstance(feed, Resident):
        raise ValueError("sparse='grasp' does not go with stream: it picks images by class.")
    chosen = datasets.balanced_sample(
        feed.dataset.train, _GRASP_IMAGES_PER_CLASS, feed.num_classes, seed
    )
    sample = feed.dataset.train.take(chosen)
    return sample.images, sample.labels


def options(config: ProblemConfig) -> dict[str, Any]:
    """What every method takes: which layers and, where it was chosen, the distribution."""
    choice: dict[str, Any] = {"where": config.sparse_layers or KERNELS}
    # SynFlow has no other distribution than its own.
    if config.sparsity_distribution != "auto" and config.sparse != "synflow":
        choice["distribution"] = config.sparsity_distribution
    return choice
