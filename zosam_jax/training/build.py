"""From a run's options to its optimizer, the sharpness-aware part of it, its masks and its cost."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zosam_jax import masks as mask_trees
from zosam_jax import phases, sparsity, transform
from zosam_jax.data import dataset as datasets
from zosam_jax.integrations import plain
from zosam_jax.objective import part_of
from zosam_jax.optimizers import RECORDS, SUBBATCH, Passes
from zosam_jax.sparsity import METHODS, DropAndGrowState, SparseState, macs
from zosam_jax.sparsity.dependencies import KINDS
from zosam_jax.sparsity.layers import is_weight
from zosam_jax.sparsity.lottery import default_levels
from zosam_jax.training.applicable import (
    OF_UNITS,
    OWN_OPTIMIZER,
    PLAIN,
    SEARCHED,
    base_optimizer,
    check_applicable,
    has_radius,
    has_rho,
)
from zosam_jax.training.config import (
    ALL,
    MILESTONES,
    MOMENTUM,
    RHO_COOLDOWN,
    RHO_WARMUP,
    ProblemConfig,
    TrainConfig,
    maskable,
)
from zosam_jax.training.feed import Described, Resident
from zosam_jax.training.losses import CROSS_ENTROPY
from zosam_jax.training.passes import count, marked_outputs
from zosam_jax.training.problem import Network, Problem
from zosam_jax.training.progress import EpochRecord
from zosam_jax.training.tasks import STREAMED_SIZE
from zosam_jax.trees import Array, PyTree

# By which SNIP and Taylor's scores, these in so many batches, judge weights.
_SCORED_IMAGES = 128
_TAYLOR_BATCHES = 4
_GRASP_IMAGES_PER_CLASS = 10
_GRASP_TEMPERATURE = 200.0

# Examples in a batch whose passes are counted: what parts of a batch divide.
_COUNTED = 2520

# Methods whose mask updates need the gradient of pruned weights.
_GROWN_BY_GRADIENT = ("rigl", "svite", "s2vite")

# After which part of a run the masks of units stand, that change while it trains.
_UNITS_STAND = {"gmp": 0.75, "s2vite": 0.8}

# Pixels a side of a patch.
DEIT_PATCH = 16

# Half of a bfloat16's digits: what the differences of the losses can be told from rounding with.
_DELTAS = {"float32": 1e-3, "bfloat16": 1e-2}


class RunOptimizer(NamedTuple):
    """What trains one network.

    Attributes:
      tx: the whole optimizer; late in the run, if it has a late phase.
      sam_tx: the sharpness-aware transformation in it; None for plain optimizers.
      cost: the MACs of passes under masks.
      at: number of a step, counted from 0 → the optimizer that takes it.
    """

    tx: optax.GradientTransformationExtraArgs
    sam_tx: optax.GradientTransformationExtraArgs | None
    cost: "Cost"
    at: Callable[[int], optax.GradientTransformation]


def build(
    problem: Problem, network: Network, optimizer: str, rho: float, seed: int
) -> RunOptimizer:
    """The optimizer of a run, from its initial network."""
    config, steps = problem.config, problem.steps
    masks, own = masks_before_training(problem, network, seed), problem.parts.tx

    def whole(sam_tx: optax.GradientTransformation | None) -> Any:
        chain = transformation(config, optimizer, sam_tx, steps) if own is None else own
        return under_masks(problem, optax.with_extra_args_support(chain), masks, seed=seed)

    sam_tx = sharpness_aware_part(config, optimizer, rho, seed, steps)
    tx, start = whole(sam_tx), late_start(config, optimizer, steps)
    at = (
        phases.late_phase(
            whole(sharpness_aware_part(config, optimizer, 0.0, seed, steps)), tx, start
        )
        if start
        else lambda step: tx
    )
    first = steps if has_rho(optimizer) and not rho else start
    return RunOptimizer(tx, sam_tx, Cost(problem, optimizer, network, first), at)


def late_start(config: ProblemConfig, optimizer: str, steps: int) -> int:
    """The step at which the late phase begins; 0 where there is none."""
    if config.late_phase is None or not has_rho(optimizer):
        return 0
    return steps - round(config.late_phase * steps)


def resolved(config: TrainConfig) -> TrainConfig:
    """The options as they take effect: where None stands for a value that depends on others, that.

    `batching` may stay "auto", which the library settles for each loss.
    """
    missing: dict[str, Any] = {
        name: value for name, value in _defaults(config).items() if getattr(config, name) is None
    }
    return dataclasses.replace(config, **missing)


def canonical(config: TrainConfig) -> TrainConfig:
    """The inverse of `resolved`: None where an option has the value that it would have by itself.

    Runs of different optimizers then differ in what they were told alone.
    """
    same: dict[str, Any] = {
        name: None for name, value in _defaults(config).items() if getattr(config, name) == value
    }
    return dataclasses.replace(config, **same)


def _defaults(config: TrainConfig) -> dict[str, Any]:
    """What None stands for in the options that have an effect."""
    found: dict[str, Any] = _defaults_of_optimizer(config)
    if config.optimizer != OWN_OPTIMIZER:
        found["base_optimizer"] = config.optimizer if config.optimizer in PLAIN else "sgd"
    if base_optimizer(vars(config), config.optimizer) == "sgd":
        found["momentum"] = MOMENTUM
    if config.schedule == "step":
        found["milestones"] = MILESTONES
    if not config.is_dense:
        found["sparse_layers"] = maskable(config.model)
        found["sparsity_distribution"] = default_distribution(config)
    if config.kinds and config.sparse in OF_UNITS:
        found["structure"] = ",".join(KINDS)
    if config.searches:
        found["search_epochs"] = search_epochs(config)
    if config.is_lottery:
        found["lottery_levels"] = default_levels(config.sparsity)
    if config.model.startswith("deit"):
        found["patch"] = DEIT_PATCH
    if config.stream:
        found["image_size"] = STREAMED_SIZE
    return found


def _defaults_of_optimizer(config: TrainConfig) -> dict[str, Any]:
    name = config.optimizer
    if is_plain(name):
        return {}
    record = RECORDS[name]
    found = {option: record.defaults[option] for option in record.options}
    if "delta" in found:
        found["delta"] = _DELTAS[config.precision]
    found["batch_fraction"] = 1.0
    if "fraction" in found:
        found["fraction"] = SUBBATCH if name == "subbatch_sam" else 1.0
    if has_rho(name):
        found |= {"rho": default_rho(name, config.radius), "rho_warmup": default_rho_warmup(config)}
        found["rho_cooldown"] = RHO_COOLDOWN.get(name, 0.0)
    if has_radius(name):
        found["radius"] = record.radius
    return found


def is_plain(optimizer: str) -> bool:
    """Whether it takes the gradient where it is, or is a transformation that was given whole."""
    return optimizer in (*PLAIN, OWN_OPTIMIZER)


def check(config: ProblemConfig, names: Collection[str]) -> None:
    """Raises for options that do not go with any of these optimizers, or not with one of them."""
    records = {name: RECORDS[name] for name in names if name in RECORDS}
    check_applicable(config, names)
    for name, record in records.items():
        parts = (record.defaults | options_of(config, name)).get("microbatches", 1)
        if step_examples(config) % parts:
            raise ValueError(
                f"microbatches={parts} must divide batch_size={config.batch_size}"
                + (
                    f" times batch_fraction={config.batch_fraction}."
                    if config.batch_fraction
                    else "."
                )
            )
    if "forward_gradient" in names and config.accumulate > 1:
        raise ValueError(
            f"accumulate={config.accumulate} does not go with forward_gradient, which keeps no "
            "activations that it could spare."
        )
    if "bisam" in names and config.loss != CROSS_ENTROPY:
        raise ValueError(
            f"loss={config.loss!r} does not go with bisam, whose ascent takes outputs for logits."
        )
    estimators = [name for name, record in records.items() if not record.has_rho]
    if estimators and config.sparse in _GROWN_BY_GRADIENT and not config.is_dense:
        raise ValueError(
            f"sparse={config.sparse!r} grows masks by the gradient of pruned weights, which "
            f"{', '.join(estimators)} does not estimate; take set, dsr or mest."
        )


def step_examples(config: ProblemConfig) -> int:
    """How many of a batch's examples the passes of its step see."""
    fraction = config.batch_fraction
    return part_of(config.batch_size, 1.0 if fraction is None else fraction)


def radius_rule(optimizer: str, radius: str | None) -> str:
    """The rule of a radius: the one given, or what suits the optimizer; or that it has its own."""
    if has_rho(optimizer) and not has_radius(optimizer):
        return "own radius"
    record = RECORDS.get(optimizer)
    return radius or (record and record.radius) or "layerwise"


def default_rho(optimizer: str, radius: str | None) -> float:
    """The radius to use when none is given; 0 for optimizers without one."""
    return 0.0 if is_plain(optimizer) else RECORDS[optimizer].default_rho(radius)


def rho_grid(optimizer: str, radius: str | None) -> tuple[float, ...]:
    """The radii that tuning tries; (0,) for optimizers without one."""
    return (0.0,) if is_plain(optimizer) else RECORDS[optimizer].rho_grid(radius)


def rho_of(config: TrainConfig) -> float:
    """The radius of a run: the one given, or the default; 0 for optimizers without one."""
    return default_rho(config.optimizer, config.radius) if config.rho is None else config.rho


def options_of(config: ProblemConfig, optimizer: str) -> dict[str, Any]:
    """The optimizer's own options, where the configuration has them."""
    given = {name: getattr(config, name, None) for name in RECORDS[optimizer].options}
    if "delta" in given and given["delta"] is None:
        given["delta"] = _DELTAS[config.precision]
    return {name: value for name, value in given.items() if value is not None}


def sharpness_aware_part(
    config: ProblemConfig, optimizer: str, rho: float, seed: int, steps: int
) -> optax.GradientTransformationExtraArgs | None:
    """The sharpness-aware transformation, first in the chain; None for plain optimizers."""
    if is_plain(optimizer):
        return None
    record, options = RECORDS[optimizer], options_of(config, optimizer)
    if "key" in record.defaults:
        options["key"] = seed
    if not record.has_rho:
        return record.make(**options)
    if optimizer == "momentum_sam" and config.momentum is not None:
        options["decay"] = config.momentum
    if record.radius is not None:  # ASAM's is its own
        options["radius"] = radius_rule(optimizer, config.radius)
    tx = record.make(_rho_over_time(config, optimizer, rho, steps), **options)
    if optimizer == "bisam":
        tx = _climbing_the_bound(tx)
    return tx if config.perturb == "all" else transform.perturbing(tx, mask_trees.normalization)


def _climbing_the_bound(
    tx: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """A transformation whose `probe_fn` is the extra argument `bound_fn`, for others nothing."""

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, *, bound_fn: Any, **extra_args: Any
    ) -> tuple[PyTree, PyTree]:
        updates, state = tx.update(updates, state, params, probe_fn=bound_fn, **extra_args)
        return updates, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _rho_over_time(
    config: ProblemConfig, optimizer: str, rho: float, steps: int
) -> float | optax.Schedule:
    """ρ rises linearly, stays, and falls along a cosine; a number where it does neither."""
    warmup, cooldown = config.rho_warmup, config.rho_cooldown
    start = late_start(config, optimizer, steps)
    rising = round((default_rho_warmup(config) if warmup is None else warmup) * steps)
    falling = round((RHO_COOLDOWN.get(optimizer, 0.0) if cooldown is None else cooldown) * steps)
    falling = min(falling, max(0, steps - start - rising))
    # A radius that is zero for good costs nothing, which no schedule could say.
    if not rho or not (rising or falling):
        return rho
    rise = optax.linear_schedule(0.0, rho, rising) if rising else optax.constant_schedule(rho)
    fall = optax.cosine_decay_schedule(rho, falling) if falling else optax.constant_schedule(rho)
    after = optax.join_schedules([rise, fall], [steps - start - falling])
    return (lambda count: after(count - start)) if start else after


def default_rho_warmup(config: ProblemConfig) -> float:
    """The fraction of the steps in which ρ rises: of a late phase none, networks being settled."""
    return RHO_WARMUP if config.late_phase is None else 0.0


def transformation(
    config: ProblemConfig,
    optimizer: str,
    sam_tx: optax.GradientTransformation | None,
    steps: int,
) -> optax.GradientTransformationExtraArgs:
    """Perturbation, clipping, then SGD with momentum and L2 penalty, or AdamW."""
    links = [] if sam_tx is None else [sam_tx]
    if config.clip_norm is not None:
        links.append(optax.clip_by_global_norm(config.clip_norm))
    rate = schedule(config, steps)
    if base_optimizer(vars(config), optimizer) == "adamw":
        links.append(optax.adamw(rate, weight_decay=config.weight_decay, mask=_decayed(config)))
    else:
        links.append(optax.add_decayed_weights(config.weight_decay))
        momentum = MOMENTUM if config.momentum is None else config.momentum
        links.append(optax.sgd(rate, momentum=momentum, nesterov=config.nesterov))
    return optax.chain(*links)


def schedule(config: ProblemConfig, steps: int) -> optax.Schedule:
    """The learning rate at each step: a linear warmup, then the cosine or the steps.

    Both fall as if they had begun at step 0 of what is left after the warmup (cosine) or of the
    whole run (steps).
    """
    warmup = round(config.warmup * steps)
    peak, end = config.learning_rate, config.final_learning_rate
    if config.schedule == "cosine":
        falling = optax.cosine_decay_schedule(peak, max(1, steps - warmup), alpha=end / peak)
        if config.cooldown is not None:
            length = max(1, round(config.cooldown * steps))
            falling = optax.cosine_decay_schedule(peak, length, alpha=end / peak)
            staying = optax.constant_schedule(peak)
            falling = optax.join_schedules([staying, falling], [max(0, steps - length - warmup)])
    else:
        drops: dict[int, float] = {}
        milestones = MILESTONES if config.milestones is None else config.milestones
        for milestone in milestones:  # two may fall on one step of a short run
            at = max(1, round(milestone * steps) - warmup)
            drops[at] = 0.1 * drops.get(at, 1.0)
        falling = optax.piecewise_constant_schedule(peak, drops)
    if not warmup:
        return falling
    rising = optax.linear_schedule(config.initial_learning_rate, peak, warmup)
    return optax.join_schedules([rising, falling], [warmup])


def passes(config: ProblemConfig, optimizer: str) -> Passes:
    """The forward and backward passes of a perturbed step, in batches, averaged over steps."""
    if is_plain(optimizer):
        return Passes(1, 1)
    options, examples = options_of(config, optimizer), step_examples(config)
    options["batch_fraction"] = examples / config.batch_size
    if "fraction" in RECORDS[optimizer].options:  # whole examples, one at least
        fraction = options.get("fraction", SUBBATCH if optimizer == "subbatch_sam" else 1.0)
        options["fraction"] = part_of(examples, fraction) / examples
    # Training losses have auxiliary output, the new statistics of BatchNorm.
    return RECORDS[optimizer].count_passes(has_aux=True, **options)


def passes_of(tx: optax.GradientTransformation, params: PyTree) -> Passes:
    """Those of a transformation that was given whole, of its dearest step, counted in its program.

    Nothing is computed; in the network's place stands a function that costs nothing to trace.
    """
    extended, examples = optax.with_extra_args_support(tx), jnp.ones(_COUNTED)

    def losses(params: PyTree, examples: Array) -> Array:
        return marked_outputs(examples * optax.tree.norm(params))

    def step(params: PyTree) -> PyTree:
        return plain.apply_loss(
            extended,
            lambda params, examples: losses(params, examples).mean(),
            params,
            extended.init(params),
            losses_fn=losses,
            examples=examples,
        )

    return count(jax.make_jaxpr(step)(params), _COUNTED)


def _decayed(config: ProblemConfig) -> Callable[[PyTree], PyTree]:
    """params → True where AdamW decays: at kernels, not at biases, norms and embeddings.

    Of a network of one's own, at all parameters of two axes or more.
    """
    name = maskable(config.model)

    def chosen(path: Any, leaf: Any) -> bool:
        return is_weight("", leaf) and (name == ALL or path[-1].key == name)

    return lambda params: jax.tree_util.tree_map_with_path(chosen, params)


def check_budget(problem: Problem) -> None:
    """Raises ValueError for a budget that the model or the data cannot meet, for weights to perturb
    that the model does not have, or for a late phase without a step; computes nothing.
    """
    config = problem.config
    if config.late_phase is not None and not round(config.late_phase * problem.steps):
        raise ValueError(
            f"late_phase={config.late_phase} is not one of this run's {problem.steps} steps: "
            f"make it at least {1 / problem.steps:.2g}."
        )
    params = jax.eval_shape(lambda: problem.init(seed=0)).params
    if config.perturb == "normalization":
        mask_trees.normalization(params)
    if config.is_dense:
        return
    choice = {"distribution": default_distribution(config), **mask_options(problem)}
    jax.eval_shape(lambda p: sparsity.random(p, config.sparsity, **choice), params)
    if config.sparse == "grasp":
        _grasp_sample(problem, seed=0)


def default_distribution(config: ProblemConfig) -> str:
    """How a sparse method shares the kept weights or units among layers, if not told otherwise."""
    sparse = config.sparse
    if config.kinds:
        return "global" if sparse in SEARCHED else "uniform"
    if sparse in ("snip", "taylor", "grasp", "synflow", "lth"):
        return "global"
    return "uniform" if sparse in ("dsr", "mest") else "erk"


def masks_before_training(problem: Problem, network: Network, seed: int) -> PyTree:
    """The masks of a method that chooses them before training; None for the others."""
    config = problem.config
    if config.is_dense or config.sparse in (*METHODS, *_UNITS_STAND, *SEARCHED):
        return None
    params, level, choice = network.params, config.sparsity, mask_options(problem)
    # Without the data any masks will do: a checkpoint has the run's own.
    if config.sparse == "random" or isinstance(problem.feed, Described):
        return sparsity.random(params, level, key=seed, **choice)
    if config.sparse in ("magnitude", "lth"):
        # A lottery ticket begins with all weights. Untrained ones are not ranked across layers:
        # their scale says more about the initialiser than about the layer.
        level = 0.0 if config.sparse == "lth" else level
        return sparsity.magnitude(params, level, **choice)
    if config.sparse == "synflow":
        model_state = jax.tree.map(_linear, network.model_state)
        return sparsity.synflow(
            lambda p, images: problem.apply(p, model_state, images),
            params,
            level,
            problem.feed.info.image_shape,
            **choice,
        )
    return _masks_by_gradient(problem, network, seed)


def _masks_by_gradient(problem: Problem, network: Network, seed: int) -> PyTree:
    """Those of a method that scores weights by gradients of the loss on some of the images."""
    config = problem.config
    params, level, choice = network.params, config.sparsity, mask_options(problem)
    if config.sparse == "grasp":
        loss = problem.score_loss(
            network.model_state, training=True, temperature=_GRASP_TEMPERATURE
        )
        return sparsity.grasp(loss, params, level, [_grasp_sample(problem, seed)], **choice)
    loss = problem.score_loss(network.model_state, training=False)
    sample = problem.feed.raw(seed, _SCORED_IMAGES)
    if config.sparse == "snip":
        return sparsity.snip(loss, params, level, [sample], **choice)
    parts = [np.array_split(np.asarray(array), _TAYLOR_BATCHES) for array in sample]
    return sparsity.taylor(loss, params, level, list(zip(*parts, strict=True)), **choice)


def _linear(statistic: Any) -> Any:
    """A statistic as SynFlow's linear network has it: not negative. Random keys stay."""
    return jnp.abs(statistic) if jnp.issubdtype(statistic.dtype, jnp.floating) else statistic


def under_masks(
    problem: Problem, inner: optax.GradientTransformationExtraArgs, masks: PyTree, *, seed: int
) -> optax.GradientTransformationExtraArgs:
    """The optimizer under masks, fixed ones or those of a method that changes them."""
    config = problem.config
    if config.is_dense:
        return inner
    choice = {"total_steps": problem.steps, **mask_options(problem)}
    if config.sparse in _UNITS_STAND:
        choice["stop"] = _last_update(problem) / problem.steps
    if config.sparse == "gmp":
        return sparsity.gradual(inner, config.sparsity, **choice)
    if config.sparse == "s2vite":
        del choice["distribution"]  # the same part of every group
        return sparsity.s2vite(inner, config.sparsity, key=seed, **choice)
    if config.sparse not in METHODS:
        return sparsity.fixed(inner, masks)
    if config.sparse == "mest":
        choice["soft_bound"] = config.mest_soft_bound
    return METHODS[config.sparse](inner, config.sparsity, key=seed, **choice)


def search_epochs(config: ProblemConfig) -> int:
    """The epochs of the search, the most there may be of an early-bird ticket's."""
    if config.search_epochs is not None:
        return config.search_epochs
    return max(1, config.epochs // (2 if config.sparse == "slimming" else 10))


def masks_stand(problem: Problem, steps: int) -> bool:
    """Whether no unit comes or goes any more, after so many steps of the run."""
    if problem.config.searches:
        return steps >= search_epochs(problem.config) * problem.steps_per_epoch
    return steps > _last_update(problem) or steps == problem.steps


def is_final(problem: Problem, record: EpochRecord) -> bool:
    """Whether a network had lost all that it is to lose when an epoch's end was evaluated."""
    config = problem.config
    if not config.searches:
        return masks_stand(problem, record.step)
    if config.sparse == "early-bird":
        return record.round > 0
    # What the search ends with is evaluated before units go.
    return record.step > search_epochs(config) * problem.steps_per_epoch


def _last_update(problem: Problem) -> int:
    """The step after which masks of units are updated last, counted from 0; −1 without updates."""
    return round(_UNITS_STAND.get(problem.config.sparse, 0.0) * problem.steps) - 1


def masks_of(opt_state: PyTree) -> PyTree:
    """The masks in an optimizer state; None for a dense network."""
    held = isinstance(opt_state, SparseState | DropAndGrowState)
    return sparsity.get_masks(opt_state) if held else None


def without_masks(opt_state: PyTree) -> PyTree:
    """The same state for a network that has no pruned weights any more."""
    nothing: dict[str, None] = {"masks": None}
    if isinstance(opt_state, DropAndGrowState):
        nothing["dormant"] = None
    return opt_state._replace(**nothing)


def dense_gradients(config: ProblemConfig, opt_state: PyTree) -> int:
    """How many mask updates so far needed the gradient of pruned weights."""
    if config.sparse not in _GROWN_BY_GRADIENT or not isinstance(opt_state, DropAndGrowState):
        return 0
    return int(opt_state.updates)


def _macs(problem: Problem, network: Network) -> PyTree:
    """The MACs of each parameter for one image."""
    return macs.macs(
        lambda p, x: problem.apply(p, network.model_state, x), network.params, problem.inputs(1)
    )


class Cost:
    """MACs of training and inference, relative to the dense network with SGD.

    A forward pass costs Σ_l density_l·f_l, f_l the dense layer's MACs, a backward pass
    twice that; a mask update that needs the dense gradient costs the dense layers' weight
    gradients once more. This is what kernels that skip zeros would do; XLA's do not skip them.
    """

    def __init__(self, problem: Problem, optimizer: str, network: Network, first: int = 0) -> None:
        """Traces a forward pass on one example; steps before `first` perturb nothing."""
        self._params = network.params
        self._costs = _macs(problem, network)
        # NaN, and so are all costs, where nothing is a product.
        self._dense = float(sum(jax.tree.leaves(self._costs))) or math.nan
        own = problem.parts.tx
        made = passes(problem.config, optimizer) if own is None else passes_of(own, network.params)
        self._perturbed, self._first = made.work, first
        self._plain = Passes(1, 1).work * step_examples(problem.config) / problem.config.batch_size

    def inference(self, masks: PyTree) -> float:
        """One forward pass under the masks, as a fraction of the dense one."""
        return macs.kept_macs(self._costs, masks, self._params) / self._dense

    def training(self, masks: PyTree, steps: range, dense_gradients: int = 0) -> float:
        """Some steps of the schedule under the masks, in steps of the dense network with SGD."""
        inference = self.inference(masks)
        plain = len(range(steps.start, min(steps.stop, self._first)))
        passes = self._plain * plain + self._perturbed * (len(steps) - plain)
        return (passes * inference + (1.0 - inference) * dense_gradients) / 3.0


def _grasp_sample(problem: Problem, seed: int) -> Any:
    """As many images of each class, and their labels."""
    feed = problem.feed
    if not isinstance(feed, Resident):
        raise ValueError("sparse='grasp' does not go with stream: it picks images by class.")
    chosen = datasets.balanced_sample(
        feed.dataset.train, _GRASP_IMAGES_PER_CLASS, problem.num_classes, seed
    )
    sample = feed.dataset.train.take(chosen)
    return sample.images, sample.labels


def mask_options(problem: Problem) -> dict[str, Any]:
    """What every method takes: which layers, the distribution and, where it goes by them, units."""
    config = problem.config
    choice: dict[str, Any] = {"where": config.sparse_layers or maskable(config.model)}
    # SynFlow has no other distribution than its own.
    if config.sparse != "synflow":
        choice["distribution"] = config.sparsity_distribution or default_distribution(config)
    if problem.units is not None:
        choice["units"] = problem.units
    if config.sparsity_budget != "units":
        choice["budget"] = config.sparsity_budget
    if config.sparsity_budget == "macs":
        choice["costs"] = _macs(problem, jax.eval_shape(lambda: problem.init(seed=0)))
    return choice
