"""What a recipe is, and the cells that the tables of the sparse training papers share."""

import itertools
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, cast, get_args

from zosam_jax.training.applicable import has_rho
from zosam_jax.training.config import OptimizerName, SparseName, TrainConfig

Method = Literal["lth", "snip", "grasp", "synflow", "set", "dsr", "rigl", "mest-em", "mest-ems"]
METHODS: tuple[Method, ...] = get_args(Method)
SPARSITIES = (0.9, 0.95, 0.98)

# The paper's two columns, what it compares them with, the control, and SAM on a part of the batch.
OPTIMIZERS: tuple[OptimizerName, ...] = (
    "sgd",
    "sam",
    "esam",
    "look_sam",
    "gsam",
    "random_weight_perturbation",
    "zo_sam",
    "subbatch_sam",
)

# Accuracies in percent by method, for the three sparsities.
Table = dict[Method, tuple[float, float, float]]


class Recipe(NamedTuple):
    """One cell of a table.

    Attributes:
      name: as --recipe takes it.
      config: what it stands for.
      expected: test accuracy in percent that was published for it; None if none is known.
      source: where that comes from.
      run_on: what this recipe was run on.
    """

    name: str
    config: TrainConfig
    expected: float | None = None
    source: str = ""
    run_on: str = "not run"


def cells() -> Iterator[tuple[Method, float, OptimizerName]]:
    """All cells of a table."""
    return itertools.product(METHODS, SPARSITIES, OPTIMIZERS)


def cell(
    prefix: str, sparse: Method, sparsity: float, optimizer: OptimizerName, **options: Any
) -> Recipe:
    """The recipe of a cell; `prefix` is data set and model, as the name begins."""
    name = f"{prefix}-{sparse}-{round(100 * sparsity)}-{optimizer}"
    method: SparseName = "mest" if sparse.startswith("mest") else cast(SparseName, sparse)
    if has_rho(optimizer):
        options = {"rho_warmup": 0.0} | options  # as published, if not told otherwise
    config = TrainConfig(
        recipe=name,
        sparse=method,
        mest_soft_bound=sparse == "mest-ems",
        sparsity=sparsity,
        optimizer=optimizer,
        **options,
    )
    return Recipe(name, config)
