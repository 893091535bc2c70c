"""The typed options of the command line; tyro turns each field and its text into an option."""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from zosam_jax.errors import (
    check_count,
    check_delta,
    check_number,
    check_one_of,
    check_positive_fraction,
)
from zosam_jax.optimizers import RECORDS
from zosam_jax.radius import RULES
from zosam_jax.sparsity import METHODS
from zosam_jax.sparsity.dependencies import KINDS
from zosam_jax.training.applicable import (
    OF_UNITS,
    SEARCHED,
    check_applicable,
    is_dense,
    without_effect,
)

# Defaults of options that are None, to tell whether they were given.
MILESTONES = (0.5, 0.75)
MOMENTUM = 0.9
RHO_WARMUP = 0.2
RHO_COOLDOWN = {"le_sam": 0.2}  # 0 for the others

# Literal types for the command line, from the lists that the library has.
if TYPE_CHECKING:
    OptimizerName: TypeAlias = str
    RadiusName: TypeAlias = str
    SparseName: TypeAlias = str
else:
    OptimizerName = Literal["sgd", "adamw", *RECORDS]
    RadiusName = Literal[*RULES, "calibrated"]
    SparseName = Literal[
        *("none", "random", "magnitude", "snip", "taylor", "grasp", "synflow", "lth"),
        *METHODS,
        *("gmp", "s2vite", "slimming", "early-bird"),
    ]
BaseOptimizerName = Literal["sgd", "adamw"]
ModelName = Literal[
    "lenet-300-100",
    "resnet8",
    "resnet32",
    "resnet50",
    "resnet50-cifar",
    "wrn-28-10",
    "deit-micro",
    "deit-tiny",
    "deit-small",
    "gpt2",
    "gpt2-micro",
    "bert-base",
    "bert-micro",
]
Task = Literal["image", "lm", "mlm", "classify"]

# What a task's options are, if not told otherwise, where that is not what images have.
_OF_TEXTS: dict[str, Any] = {
    "sparse": "none",
    "base_optimizer": "adamw",
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "clip_norm": 1.0,
    "warmup": 0.1,
    "batch_size": 16,
}
_STARTS: dict[str, dict[str, Any]] = {
    "image": {},
    "lm": {**_OF_TEXTS, "dataset": "python-topics", "model": "gpt2-micro", "epochs": 5},
    "mlm": {**_OF_TEXTS, "dataset": "python-topics", "model": "bert-micro", "epochs": 10},
    # BERT's normalization after each sum learns nothing from random weights at higher rates.
    "classify": {
        **_OF_TEXTS,
        **{"dataset": "python-docstrings", "model": "bert-micro", "epochs": 10},
        "learning_rate": 2e-4,
    },
}
# How the names begin of models that a task has, if it is one of texts.
_DECODERS, _ENCODERS = ("gpt2",), ("bert",)
_MODELS_OF = {"lm": _DECODERS, "mlm": _ENCODERS, "classify": (*_ENCODERS, *_DECODERS)}
_TEXT_MODELS = (*_ENCODERS, *_DECODERS)


_SHORTEST = 8  # row of text that makes sense

# The models' kernels; not DeiT's position embedding and class token.
KERNELS = "kernel"
ALL = "."


def maskable(model: str) -> str:
    """Which parameters are masked: kernels; of a network of one's own all of two axes or more."""
    return ALL if is_own(model) else KERNELS


def is_own(name: str) -> bool:
    """Whether a model, data set or loss is no name of ours but an import path, MODULE:NAME."""
    return ":" in name and not name.startswith("hub:")


def _named(beginnings: tuple[str, ...]) -> str:
    """The names of ours that begin so."""
    *names, last = [name for name in get_args(ModelName) if name.startswith(beginnings)]
    return f"{', '.join(names)} and {last}"


def check_model(name: str) -> None:
    """Raises ValueError unless a model is a name of ours or an import path."""
    if not is_own(name):
        check_one_of("model", name, get_args(ModelName))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on."""

    task: Task = "image"
    """What is learned: to classify images; from texts to predict the next token (lm) or masked
    ones (mlm), or to classify texts. Its options have defaults of their own, which
    `zosam train --task lm --help` shows."""

    dataset: str = "digits"
    """Data set: digits (comes with scikit-learn), fashion-mnist, cifar10, cifar100, imagenet,
    hub:OWNER/NAME (any image classification set on the Hugging Face hub), folder (parquet files,
    or train/CLASS/*.jpg and val/CLASS/*.jpg, in --data-dir), FILE.npz (x_train, y_train, x_test,
    y_test), or PACKAGE.MODULE:FUNCTION, which returns one. Texts: python-topics and
    python-docstrings (come with Python), FILE.txt, FILE.jsonl, folder, glue:TASK or
    hub:OWNER/NAME."""

    data_dir: Path | None = None
    """Folder of the data set's files. Default: download from the hub, where it has the set."""

    label_column: str | None = None
    """Column of the labels, where a hub: or folder set has several."""

    context: int = 128
    """Texts: tokens in a row. Text to be predicted is packed into rows of so many, text to be
    classified is cut to it."""

    tokenizer: Path | None = None
    """Texts: a tokenizer.json file, such as those beside models on the Hugging Face hub. Default:
    each byte is a token."""

    stream: bool = False
    """Read images from the disk as they are needed, instead of keeping all on the device."""

    image_size: int | None = None
    """Resize and crop images to so many pixels a side. Default: as they are; 224 for --stream."""

    workers: int = 0
    """Processes that decode streamed images; 0 decodes in threads."""

    train_images: int | None = None
    """Use only the first so many training images. Default: all."""

    validation_fraction: float = 0.0
    """Fraction of the training images held out; the best epoch is then chosen on them."""

    shrink: int = 1
    """Average square blocks of so many pixels a side into one."""

    label_noise: float = 0.0
    """Fraction of the training labels replaced at random (the test labels stay clean)."""

    crop_and_flip: bool = False
    """Augment images by random crops of the zero-padded image (4 pixels) and horizontal flips."""

    randaugment: bool = False
    """--stream: RandAugment, two operations of magnitude 9."""

    repeated_augmentation: int = 1
    """--stream: how often an image stands in a batch, augmented anew each time."""

    random_erasing: float = 0.0
    """Probability that a rectangle of an image is replaced by noise."""

    mixup: float = 0.0
    """Mixup's α; 0 is off."""

    cutmix: float = 0.0
    """CutMix's α; 0 is off. With mixup, each batch has one of the two, at even odds."""

    label_smoothing: float = 0.0
    """Share of each target that is spread over all classes."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say, before anything is loaded or compiled."""
        for name in ("shrink", "repeated_augmentation"):
            check_count(name, getattr(self, name))
        for name in ("workers", "mixup", "cutmix"):
            check_number(name, getattr(self, name), above=0.0, inclusive=True)
        for name in ("random_erasing", "label_smoothing", "label_noise", "validation_fraction"):
            check_fraction(name, getattr(self, name))
        if self.image_size is not None:
            check_count("image_size", self.image_size)
        if self.context < _SHORTEST:
            raise ValueError(f"context={self.context!r} must be at least {_SHORTEST} tokens.")
        self._check_placement()

    def _check_placement(self) -> None:
        if self.stream:
            for name in ("crop_and_flip", "label_noise", "train_images", "validation_fraction"):
                if getattr(self, name):
                    raise ValueError(f"{name}={getattr(self, name)!r} does not go with stream.")
            if self.shrink > 1:
                raise ValueError(f"shrink={self.shrink} does not go with stream: pass image_size.")
            return
        if self.randaugment or self.repeated_augmentation > 1:
            name = "randaugment" if self.randaugment else "repeated_augmentation"
            raise ValueError(f"{name}={getattr(self, name)!r} needs stream.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    model: str = "resnet8"
    """Network: lenet-300-100, resnet8, resnet32, resnet50, resnet50-cifar, wrn-28-10, deit-micro,
    deit-tiny, deit-small; of texts gpt2, gpt2-micro, bert-base, bert-micro; or
    PACKAGE.MODULE:FACTORY, which makes one of Flax or Equinox."""

    loss: str = "cross_entropy"
    """What is minimised: cross_entropy, squared_error, or PACKAGE.MODULE:FUNCTION, which returns
    each example's loss from the outputs and the targets."""

    init: Path | None = None
    """Start from these weights: a run folder, or pretrained ones in a safetensors file, with the
    names of timm, transformers or our own. A head of another size starts anew."""

    patch: int | None = None
    """deit: pixels a side of a patch. Default: 16."""

    drop_path: float = 0.0
    """deit: probability that the last block is skipped for an image; earlier blocks less."""

    dropout: float = 0.0
    """gpt2, bert: rate of dropout in the blocks and before them."""

    remat: bool = False
    """gpt2, bert: compute what happens in a block once more for its gradient, in less memory."""

    precision: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in; parameters, losses and statistics stay float32."""

    def __post_init__(self) -> None:
        """As for the data."""
        check_model(self.model)
        if self.patch is not None:
            check_count("patch", self.patch)
        check_fraction("drop_path", self.drop_path)
        check_fraction("dropout", self.dropout)
        of_deit, of_texts = ("deit",), _TEXT_MODELS
        takes = {"patch": of_deit, "drop_path": of_deit, "dropout": of_texts, "remat": of_texts}
        for name, models in takes.items():
            if getattr(self, name) and not self.model.startswith(models):
                raise ValueError(
                    f"{name}={getattr(self, name)!r} goes with {_named(models)}, not with "
                    f"model={self.model!r}."
                )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SparseConfig:
    """Which weights are zero."""

    sparse: SparseName = "random"
    """Which weights are zero: chosen before training (random to synflow), by training, pruning and
    rewinding (lth), or while training (set to gmp, which prunes gradually), on each method's
    published schedule laid out over the run; s2vite, slimming and early-bird remove units; none
    trains the dense network."""

    sparsity: float = 0.9
    """Fraction of the masked kernels' weights that is zero, or of the units that go; 0 trains the
    dense network."""

    structure: str | None = None
    """Remove whole units, those of channels, heads and neurons that are listed here with commas:
    arrays become smaller as soon as it is known which units stay. Default: single weights become
    zero; s2vite, slimming and early-bird remove all that can be removed."""

    sparse_layers: str | None = None
    """Regular expression, found in the names of the kernels to mask (masks.txt lists them).
    Default: all kernels."""

    sparsity_distribution: Literal["erk", "uniform", "global"] | None = None
    """How the kept weights, or units, are shared among layers: erk is Erdős–Rényi-kernel, global
    ranks those of all layers together. Default: the method's own."""

    sparsity_budget: Literal["units", "weights", "macs"] = "units"
    """What --sparsity is a fraction of where units go before training or gradually: the units, or
    the weights or multiply-adds of the layers that they are part of."""

    mest_soft_bound: bool = False
    """mest: start with more weights than the budget (EM&S instead of EM)."""

    lottery_levels: int | None = None
    """lth: rounds of pruning. Default: as many as pruning a fifth each time would take."""

    rewind_epochs: int = 0
    """lth: the epoch to whose weights each round returns."""

    search_epochs: int | None = None
    """slimming, early-bird: epochs of search, in which units have coefficients under an L1 penalty;
    early-bird stops searching when the units to keep hardly change any more, and begins anew with
    them. Default: half of --epochs for slimming, a tenth for early-bird."""

    def __post_init__(self) -> None:
        """As for the data."""
        check_fraction("sparsity", self.sparsity)
        if self.sparse == "synflow" and self.sparsity_distribution not in (None, "global"):
            raise ValueError(
                f"sparsity_distribution={self.sparsity_distribution!r} does not go with synflow, "
                "whose budget is global."
            )
        if self.sparse == "s2vite" and self.sparsity_distribution not in (None, "uniform"):
            raise ValueError(
                f"sparsity_distribution={self.sparsity_distribution!r} does not go with s2vite, "
                "which keeps the same part of every layer's units."
            )
        for name in ("lottery_levels", "search_epochs"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name))
        for kind in self.kinds:
            check_one_of("structure", kind, KINDS)
        if self.kinds and self.sparsity_distribution == "erk":
            raise ValueError(
                "sparsity_distribution='erk' is for single weights: units go uniform or global."
            )
        try:
            re.compile(self.sparse_layers or "")
        except re.error as error:
            raise ValueError(
                f"sparse_layers={self.sparse_layers!r} is not a regular expression: {error}."
            ) from error

    @property
    def is_dense(self) -> bool:
        """Whether nothing is pruned."""
        return is_dense({"sparse": self.sparse, "sparsity": self.sparsity})

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of units that are removed whole; none where single weights become zero."""
        if self.is_dense:
            return ()
        if self.structure is None:
            return KINDS if self.sparse in OF_UNITS else ()
        return tuple(self.structure.split(","))

    @property
    def searches(self) -> bool:
        """Whether units have coefficients at first, by which some are then kept."""
        return self.sparse in SEARCHED and not self.is_dense

    @property
    def is_lottery(self) -> bool:
        """Whether it trains, prunes and rewinds in rounds."""
        return self.sparse == "lth" and not self.is_dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizationConfig:
    """How the weights move; everything but the perturbation."""

    epochs: int = 20
    """Passes over the training images."""

    evaluate_every: int = 1
    """Epochs between evaluations on the test split; there is always one after the last epoch."""

    batch_size: int = 64
    """Images a step, over all devices; an incomplete last batch is left out."""

    accumulate: int = 1
    """Parts of a batch that pass through the network one after another, in less memory."""

    base_optimizer: BaseOptimizerName | None = None
    """What follows the perturbation. Default: sgd."""

    learning_rate: float = 0.1
    """Peak learning rate, reached after the warmup."""

    schedule: Literal["cosine", "step"] = "cosine"
    """How the learning rate falls: along a cosine to --final-learning-rate, or to a tenth at each
    of --milestones."""

    milestones: tuple[float, ...] | None = None
    """step: where the learning rate drops, as fractions of the run. Default: 0.5 0.75."""

    final_learning_rate: float = 0.0
    """cosine: where it ends."""

    cooldown: float | None = None
    """cosine: fraction of the steps, the last ones, in which the learning rate falls; before them
    it stays at its peak. Default: all after the warmup."""

    warmup: float = 0.05
    """Fraction of the steps in which the learning rate rises linearly."""

    initial_learning_rate: float = 0.0
    """Where the warmup begins."""

    momentum: float | None = None
    """SGD's momentum. Default: 0.9."""

    nesterov: bool = False
    """SGD: Nesterov's momentum."""

    weight_decay: float = 5e-4
    """SGD: L2 penalty on all parameters, added to the gradient before the momentum. AdamW:
    decoupled, on kernels only."""

    clip_norm: float | None = None
    """Largest global norm of a gradient; longer ones are scaled down to it. Default: no limit."""

    ema_decay: float | None = None
    """Keep a moving average of the weights with this decay, and evaluate it too; tuning goes by its
    accuracy then. With 0 it is the weights themselves. Default: none."""

    def __post_init__(self) -> None:
        """As for the data."""
        for name in ("epochs", "evaluate_every", "batch_size", "accumulate"):
            check_count(name, getattr(self, name))
        check_number("learning_rate", self.learning_rate, above=0.0, inclusive=False)
        for name in ("weight_decay", "initial_learning_rate", "final_learning_rate"):
            check_number(name, getattr(self, name), above=0.0, inclusive=True)
        for name in ("momentum", "warmup", "ema_decay", "cooldown"):
            if getattr(self, name) is not None:
                check_fraction(name, getattr(self, name))
        if self.warmup + (self.cooldown or 0.0) > 1:
            raise ValueError(
                f"cooldown={self.cooldown!r} and warmup={self.warmup!r} must not exceed 1 together."
            )
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, above=0.0, inclusive=False)
        if self.schedule == "step":
            self._check_milestones()
        if self.final_learning_rate > self.learning_rate:
            raise ValueError(
                f"final_learning_rate={self.final_learning_rate!r} must be at most "
                f"learning_rate={self.learning_rate!r}."
            )
        if self.batch_size % self.accumulate:
            raise ValueError(
                f"accumulate={self.accumulate} must divide batch_size={self.batch_size}."
            )

    def _check_milestones(self) -> None:
        milestones = MILESTONES if self.milestones is None else self.milestones
        if list(milestones) != sorted(set(milestones)) or not all(0 < m < 1 for m in milestones):
            raise ValueError(
                f"milestones={milestones!r} must rise and lie between 0 and 1: they are fractions "
                "of the run."
            )
        if any(m <= self.warmup for m in milestones):
            raise ValueError(f"milestones={milestones!r} must come after warmup={self.warmup!r}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AscentConfig:
    """How the point is found at which the gradient is taken; None is the optimizer's default."""

    radius: RadiusName | None = None
    """What rho measures: the whole perturbation (global), each array's relative to its norm
    (layerwise; adaptive_layerwise moves its large weights most), each filter's (filterwise; with
    calibrated rho adapts itself), or the relative change of all weights (adaptive). Default:
    layerwise, for subbatch_sam adaptive_layerwise; asam has its own."""

    late_phase: float | None = None
    """Fraction of the steps, the last ones, in which the weights are perturbed; those before take
    the plain gradient, at SGD's price. Default: all."""

    rho_warmup: float | None = None
    """Fraction of the steps in which rho rises linearly from 0; many networks diverge without.
    Default: 0.2, with --late-phase 0."""

    rho_cooldown: float | None = None
    """Fraction of the steps, the last ones, in which rho falls to 0 along a cosine. Default: 0,
    0.2 for le_sam."""

    perturb: Literal["all", "normalization"] = "all"
    """Which weights are perturbed: all, or the scales and shifts of normalization layers alone
    (SAM-ON), which wants a larger rho."""

    batch_fraction: float | None = None
    """Part of each batch that its step sees, in all of its passes, drawn at random; epochs and
    schedules go by whole batches. At 0.5 SAM costs what SGD costs. Default: all."""

    fraction: float | None = None
    """Part of the step's images that the ascent sees. Default: an eighth for subbatch_sam, else
    all."""

    num_directions: int | None = None
    """Random directions a step (m); 2m extra forward passes. Default: 1."""

    delta: float | None = None
    """Step of the central differences, per weight. Default: 1e-3, in bfloat16 1e-2."""

    distribution: Literal["normal", "rademacher", "sphere"] | None = None
    """How random directions are drawn. Default: normal."""

    difference: Literal["central", "forward"] | None = None
    """Differences from both sides of the weights, or from one: m + 1 passes. Default: central."""

    batching: Literal["auto", "unroll", "vmap", "map"] | None = None
    """How the forward passes of several directions are run. Default: auto."""

    interval: int | None = None
    """look_sam: steps from one second gradient to the next; xsam: steps from one measurement of α
    to the next. Default: 5, 100 for xsam."""

    extrapolation: float | None = None
    """sam, subbatch_sam: how far to go along the arc from the perturbation to the gradient, 1.2 for
    a fifth beyond it. Default: the gradient itself."""

    reach: float | None = None
    """xsam: where α is measured, in lengths of the perturbation. Default: 2."""

    microbatches: int | None = None
    """msam: parts of the batch, each with a perturbation of its own. Default: 2."""

    theta: float | None = None
    """vasso: share of the step's own gradient in the average that it perturbs along. Default:
    0.9."""

    rho_max: float | None = None
    """le_sam: longest perturbation; rho is the rise of the loss that it aims at. Default: 0.3."""

    beta: float | None = None
    """esam: fraction of the arrays that a step perturbs. Default: 0.5."""

    gamma: float | None = None
    """esam: fraction of the batch that the gradient at the perturbed point sees. Default: 0.5."""

    def __post_init__(self) -> None:
        """As for the data."""
        checks: dict[str, Callable[[str, Any], None]] = {
            **dict.fromkeys(("num_directions", "interval", "microbatches"), check_count),
            **dict.fromkeys(
                ("beta", "gamma", "fraction", "batch_fraction", "theta"), check_positive_fraction
            ),
            "delta": check_delta,
            "extrapolation": functools.partial(check_number, above=0.0, inclusive=True),
            "rho_max": functools.partial(check_number, above=0.0, inclusive=False),
            "reach": functools.partial(check_number, above=0.0, inclusive=False),
            "late_phase": check_positive_fraction,
            "rho_warmup": check_fraction,
            "rho_cooldown": check_fraction,
        }
        for name, check in checks.items():
            if getattr(self, name) is not None:
                check(name, getattr(self, name))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemConfig(DataConfig, ModelConfig, SparseConfig, OptimizationConfig, AscentConfig):
    """What is trained, on what, and how; everything but the optimizer, its radius and the seed."""

    mesh: str | None = None
    """Devices to share each batch among, as data=N. Default: all there are, or the most that
    divide the batch."""

    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or a weight is not finite: stop, or leave the step out and count it
    (schedules then end as many steps later)."""

    compilation_cache: Path | None = None
    """Folder for compiled programs, which later runs start from. Default: ~/.cache/zosam_jax, or
    what JAX_COMPILATION_CACHE_DIR says."""

    def __post_init__(self) -> None:
        """As for the parts."""
        for part in ProblemConfig.__bases__:
            part.__post_init__(self)  # type: ignore[attr-defined]
        self._check_task()
        check_applicable(self)
        if not 0 <= self.rewind_epochs < self.epochs:
            raise ValueError(
                f"rewind_epochs={self.rewind_epochs} must be at least 0 and below "
                f"epochs={self.epochs}."
            )
        if self.search_epochs is not None and self.search_epochs > self.epochs:
            raise ValueError(
                f"search_epochs={self.search_epochs} must be at most epochs={self.epochs}."
            )

    def _check_task(self) -> None:
        of_task = _MODELS_OF.get(self.task)
        fits = self.model.startswith(of_task or _TEXT_MODELS) == (of_task is not None)
        if not is_own(self.model) and not fits:
            names = _named(of_task) if of_task else "the networks of images"
            raise ValueError(
                f"model={self.model!r} does not go with task={self.task!r}: choose one of {names}."
            )
        if self.task != "image" and self.sparse in ("synflow", "grasp") and not self.is_dense:
            reason = "puts ones in the place of pixels, and tokens are none"
            if self.sparse == "grasp":
                reason = "scores weights by images of each class"
            raise ValueError(
                f"sparse={self.sparse!r} does not go with task={self.task!r}: it {reason}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ProblemConfig):
    """Train one sparse network and leave a run folder; the same command again resumes it."""

    recipe: str | None = None
    """Begin from a recipe (`zosam recipes` lists them); options given beside it replace its own."""

    optimizer: OptimizerName = "zo_sam"
    """What finds the point at which the gradient is taken; sgd and adamw take it where they are."""

    rho: float | None = None
    """Radius of the perturbation. Default: a value that suits the optimizer and --radius."""

    seed: int = 0
    """Seed of the initial weights, the masks, the data order and the directions."""

    output: Path | None = None
    """Run folder, created or resumed. Default: runs/train-DATE-TIME."""

    resume: bool = True
    """Go on from the newest checkpoint of the run folder, if it has one."""

    checkpoint_minutes: float = 5.0
    """Longest time between checkpoints; the best epoch, the last one and an interruption always
    leave one."""

    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep, beside the best."""

    keep_every: int | None = None
    """Keep the checkpoint of every so many epochs too, so that `zosam analyze` can measure them
    too. Default: none of them."""

    tensorboard: bool = False
    """Write TensorBoard events to the run folder too."""

    coordinator: str | None = None
    """Several processes: HOST:PORT of process 0; auto finds it out on a cluster that JAX knows."""

    num_processes: int | None = None
    """Several processes: how many."""

    process_id: int | None = None
    """Several processes: which one this is, from 0."""

    def __post_init__(self) -> None:
        """As for the problem."""
        super().__post_init__()
        check_applicable(self, (self.optimizer,))
        if self.rho is not None:
            check_number("rho", self.rho, above=0.0, inclusive=True)
        check_number("seed", self.seed, above=0.0, inclusive=True)
        check_number("checkpoint_minutes", self.checkpoint_minutes, above=0.0, inclusive=True)
        check_count("keep_checkpoints", self.keep_checkpoints)
        if self.keep_every is not None:
            check_count("keep_every", self.keep_every)
        if self.coordinator is not None and self.output is None:
            raise ValueError("output=None: several processes need the same --output.")

    @property
    def problem(self) -> ProblemConfig:
        """The options without the optimizer, its radius, the seed and the circumstances."""
        return ProblemConfig(**options_of_problem(self))


# Options that say where a run takes place and what is kept of it, not what it computes: a resumed
# run may have others.
CIRCUMSTANCES = (
    "recipe",
    "data_dir",
    "workers",
    "mesh",
    "on_non_finite",
    "compilation_cache",
    "output",
    "resume",
    "checkpoint_minutes",
    "keep_checkpoints",
    "keep_every",
    "tensorboard",
    "coordinator",
    "num_processes",
    "process_id",
)


def start_of(task: str) -> TrainConfig:
    """The options of a task where none are given.

    Raises:
      ValueError: for an unknown one.
    """
    check_one_of("task", task, tuple(_STARTS))
    return TrainConfig(**{"task": task, **_STARTS[task]})


def applicable(options: Mapping[str, Any], start: TrainConfig | None = None) -> dict[str, Any]:
    """The options without those that would do nothing beside the others.

    For a file that gives common options to several optimizers, some of which cannot use them.

    Args:
      options: of `zosam train`, by name.
      start: what they replace options of, such as a recipe's configuration; None for the defaults.
    """
    start = start or TrainConfig()
    values = {field.name: getattr(start, field.name) for field in dataclasses.fields(start)}
    values |= options
    idle = without_effect(values, (values["optimizer"],))
    return {name: value for name, value in options.items() if name not in idle}


def replacing(start: TrainConfig, given: Mapping[str, Any]) -> TrainConfig:
    """A configuration with some options replaced, and those of it that then do nothing left out.

    Args:
      start: such as a recipe's.
      given: the options to replace.

    Raises:
      ValueError: for a given option that does nothing or cannot be right.
    """
    fields = dataclasses.fields(start)
    values = {field.name: getattr(start, field.name) for field in fields} | dict(given)
    idle = without_effect(values, (values["optimizer"],))
    dropped = {f.name: f.default for f in fields if f.name in idle and f.name not in given}
    return dataclasses.replace(start, **{**dropped, **given})


def options_of_problem(config: Any) -> dict[str, Any]:
    """What a configuration has of a problem's options."""
    names = [field.name for field in dataclasses.fields(ProblemConfig)]
    return {name: getattr(config, name) for name in names if hasattr(config, name)}


def check_fraction(name: str, value: Any) -> None:
    """Raises unless 0 ≤ value < 1."""
    check_number(name, value, above=0.0, inclusive=True)
    if value >= 1:
        raise ValueError(f"{name}={value!r} must be below 1.")
