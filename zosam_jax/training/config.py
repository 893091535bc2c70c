"""The typed options of the command line; tyro turns each field and its text into an option."""

import dataclasses
from pathlib import Path
from typing import Literal

from zosam_jax.errors import check_count, check_number

OptimizerName = Literal["sgd", "sam", "random_weight_perturbation", "zo_sam"]
RadiusName = Literal["global", "layerwise", "adaptive"]
SparseName = Literal[
    "none",
    "random",
    "magnitude",
    "snip",
    "grasp",
    "synflow",
    "lth",
    "set",
    "dsr",
    "rigl",
    "mest",
    "svite",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProblemConfig:
    """What is trained, on what, and by which recipe; everything but the optimizer's climb."""

    dataset: Literal["digits", "fashion-mnist"] = "digits"
    """Data set. The digits come with scikit-learn; Fashion-MNIST is read from --data-dir."""

    data_dir: Path | None = None
    """Folder of the data set's files (for fashion-mnist the four IDX files, gzip or not)."""

    train_images: int | None = None
    """Use only the first so many training images. Default: all."""

    shrink: int = 1
    """Average square blocks of so many pixels a side into one."""

    label_noise: float = 0.0
    """Fraction of the training labels replaced at random (the test labels stay clean)."""

    model: Literal["lenet-300-100", "resnet8"] = "resnet8"
    """Network."""

    sparse: SparseName = "random"
    """Which weights are zero: chosen before training (random to synflow), by training, pruning and
    rewinding (lth), or while training (set to svite), on each method's published schedule laid
    out over the run; none trains the dense network."""

    sparsity: float = 0.9
    """Fraction of the kernels' weights that is zero; 0 trains the dense network."""

    sparsity_distribution: Literal["auto", "erk", "uniform", "global"] = "auto"
    """How the kept weights are shared among layers: erk is Erdős–Rényi-kernel, global ranks all
    layers' weights together. Default: the method's own."""

    mest_soft_bound: bool = False
    """mest: start with more weights than the budget (EM&S instead of EM)."""

    lottery_levels: int | None = None
    """lth: rounds of pruning. Default: as many as pruning a fifth each time would take."""

    rewind_epochs: int = 0
    """lth: the epoch to whose weights each round returns."""

    epochs: int = 20
    """Passes over the training images."""

    evaluate_every: int = 1
    """Epochs between looks at the test split; the last epoch always has one."""

    batch_size: int = 64
    """Images a step; an incomplete last batch is left out."""

    learning_rate: float = 0.1
    """Peak learning rate of SGD, reached after the warmup, then a cosine to zero."""

    warmup: float = 0.05
    """Fraction of the steps in which the learning rate rises linearly."""

    momentum: float = 0.9
    """SGD's momentum."""

    weight_decay: float = 5e-4
    """L2 penalty, added to the gradient before the momentum."""

    num_directions: int = 1
    """zo_sam: random directions a step (m); 2m extra forward passes."""

    delta: float = 1e-3
    """zo_sam: step of the central differences, per weight."""

    distribution: Literal["normal", "rademacher", "sphere"] = "normal"
    """zo_sam and random_weight_perturbation: how directions are drawn."""

    batching: Literal["auto", "unroll", "vmap", "map"] = "auto"
    """zo_sam: how the forward passes are run."""

    radius: RadiusName = "layerwise"
    """What rho measures: the whole perturbation (global), each array's relative to its norm
    (layerwise), or the relative change of the weights (adaptive)."""

    def __post_init__(self) -> None:
        """Checks what the types cannot say, before anything is loaded or compiled."""
        for name in ("epochs", "evaluate_every", "batch_size", "num_directions", "shrink"):
            check_count(name, getattr(self, name))
        for name in ("learning_rate", "delta"):
            check_number(name, getattr(self, name), above=0.0, inclusive=False)
        for name in ("momentum", "weight_decay", "sparsity", "label_noise", "warmup"):
            check_number(name, getattr(self, name), above=0.0, inclusive=True)
        for name in ("momentum", "sparsity", "warmup"):
            if getattr(self, name) >= 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be below 1.")
        if self.sparse == "synflow" and self.sparsity_distribution not in ("auto", "global"):
            raise ValueError(
                f"sparsity_distribution={self.sparsity_distribution!r} does not go with synflow, "
                "whose budget is global."
            )
        if self.lottery_levels is not None:
            check_count("lottery_levels", self.lottery_levels)
        if not 0 <= self.rewind_epochs < self.epochs:
            raise ValueError(
                f"rewind_epochs={self.rewind_epochs} must be at least 0 and below "
                f"epochs={self.epochs}."
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(ProblemConfig):
    """Train one sparse network and leave a run folder."""

    optimizer: OptimizerName = "zo_sam"
    """What finds the point at which the gradient is taken."""

    rho: float | None = None
    """Radius of the perturbation. Default: a value that suits the optimizer and --radius."""

    seed: int = 0
    """Seed of the initial weights, the masks, the data order and the directions."""

    output: Path | None = None
    """Run folder to create. Default: runs/train-DATE-TIME."""

    def __post_init__(self) -> None:
        """As for the problem."""
        super().__post_init__()
        if self.rho is not None:
            check_number("rho", self.rho, above=0.0, inclusive=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareConfig(ProblemConfig):
    """Train with several optimizers on the same masks, data order and seeds; print a table."""

    optimizers: tuple[OptimizerName, ...] = ("sgd", "sam", "random_weight_perturbation", "zo_sam")
    """Optimizers to compare; sgd is always among them, since times are relative to it."""

    seeds: int = 3
    """Number of seeds: 0, 1, …"""

    tune: bool = False
    """Choose each optimizer's rho on images held out of the training split, from a grid of the
    same size for everyone, before the comparison."""

    tune_seeds: int = 2
    """Seeds for each point of the grid."""

    validation_fraction: float = 0.2
    """Fraction of the training images held out for tuning; the comparison trains on all."""

    output: Path | None = None
    """Folder to create for compare.json. Default: runs/compare-DATE-TIME."""

    def __post_init__(self) -> None:
        """As for the problem."""
        super().__post_init__()
        for name in ("seeds", "tune_seeds"):
            check_count(name, getattr(self, name))
        if "sgd" not in self.optimizers:
            object.__setattr__(self, "optimizers", ("sgd", *self.optimizers))
