"""What is pruned, layer by layer, with every parameter accounted for by name."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from zosam_jax import masks as mask_trees
from zosam_jax.trees import PyTree


class ParameterSummary(NamedTuple):
    """One parameter."""

    name: str  # its path in the tree
    shape: tuple[int, ...]  # its shape
    kept: int  # weights that are not pruned
    masked: bool  # False for a dense parameter, which no mask covers

    @property
    def size(self) -> int:
        """The number of its weights."""
        return math.prod(self.shape)


class Summary(NamedTuple):
    """The rows of all parameters; printed, a table."""

    rows: tuple[ParameterSummary, ...]

    @property
    def sparsity(self) -> float:
        """The fraction of zeros among the maskable weights."""
        return _sparsity([row for row in self.rows if row.masked])

    @property
    def total_sparsity(self) -> float:
        """The fraction of zeros among all parameters."""
        return _sparsity(self.rows)

    def __str__(self) -> str:
        """A table with a line for each parameter and two for the sums."""
        masked = [row for row in self.rows if row.masked]
        lines = [("parameter", "shape", "weights", "kept", "sparsity")]
        for row in self.rows:
            shape = "×".join(map(str, row.shape)) or "scalar"
            share = f"{_sparsity([row]):.2%}" if row.masked else "dense"
            lines.append((row.name, shape, f"{row.size:,}", f"{row.kept:,}", share))
        for name, rows in (("masked", masked), ("all", self.rows)):
            size, kept = sum(r.size for r in rows), sum(r.kept for r in rows)
            lines.append((name, "", f"{size:,}", f"{kept:,}", f"{_sparsity(rows):.2%}"))
        widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
        rule = "  ".join("-" * width for width in widths)
        shown = [
            "  ".join(
                cell.ljust(width) if i < 2 else cell.rjust(width)
                for i, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([shown[0], rule, *shown[1:-2], rule, *shown[-2:]])


def summary(params: PyTree, masks: PyTree) -> Summary:
    """Counts what masks keep.

        print(sparsity.summary(params, sparsity.get_masks(opt_state)))

    Args:
      params: the parameters; of a Flax NNX model nnx.as_pure(nnx.state(model, nnx.Param)).
      masks: a pytree like `params` with 1/0 or bool leaves, None for dense parameters.

    Returns:
      A row for each parameter; printed, a table.

    Raises:
      TypeError: for parameters that are no pytree of arrays, a Flax Linen module for example.
      ValueError: for masks that do not fit the parameters.
    """
    for leaf in jax.tree.leaves(params):
        if not hasattr(leaf, "shape"):
            raise TypeError(
                f"params holds a {type(leaf).__name__}; it must be a pytree of arrays: "
                "variables['params'] for Flax Linen, nnx.as_pure(nnx.state(model, nnx.Param)) for "
                "Flax NNX."
            )
    leaves = mask_trees.leaves(mask_trees.resolve(masks, params), params)
    return Summary(
        tuple(
            ParameterSummary(
                name=jax.tree_util.keystr(path, simple=True, separator="/"),
                shape=np.shape(param),
                kept=math.prod(np.shape(param)) if mask is None else int(np.sum(np.asarray(mask))),
                masked=mask is not None,
            )
            for (path, param), mask in zip(jax.tree.leaves_with_path(params), leaves, strict=True)
        )
    )


def _sparsity(rows: Sequence[ParameterSummary]) -> float:
    size = sum(row.size for row in rows)
    return 1.0 - sum(row.kept for row in rows) / size if size else 0.0
