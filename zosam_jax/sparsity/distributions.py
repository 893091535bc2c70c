"""How a budget of weights is shared among layers, in exact integers.

A distribution is a function `(shapes, sparsity) -> kept` (`SparsityDistribution`).
"""

import math
from collections.abc import Sequence
from typing import Protocol, TypeAlias

from zosam_jax.errors import choose

Shape: TypeAlias = tuple[int, ...]

#: No shares: the largest scores of all layers together.
GLOBAL = "global"


class SparsityDistribution(Protocol):
    """A way to share a budget of weights among layers."""

    def __call__(self, shapes: Sequence[Shape], sparsity: float, /) -> list[int]:
        """Says how many weights each array keeps.

        Args:
          shapes: the maskable arrays' shapes; under a pattern of blocks those of their grids.
          sparsity: the fraction of all weights that is zero, 0 ≤ s < 1.

        Returns:
          The number to keep of each, which add up to round((1 − s)·N).

        Raises:
          ValueError: for a sparsity that would empty an array.
        """


def uniform(shapes: Sequence[Shape], sparsity: float) -> list[int]:
    """The same density 1 − s in every array."""
    sizes = [math.prod(shape) for shape in shapes]
    return _to_counts([(1.0 - sparsity) * size for size in sizes], sizes, sparsity)


def erdos_renyi_kernel(shapes: Sequence[Shape], sparsity: float) -> list[int]:
    """Density_l ∝ (Σ dims_l) / (Π dims_l), kernel dimensions included (ERK).

    Small arrays stay denser than large ones. Arrays that would need more weights than they have
    become dense, and the rest of the budget is shared among the others.

    Reference: Evci et al., Rigging the Lottery, https://arxiv.org/abs/1911.11134
    """
    sizes = [math.prod(shape) for shape in shapes]
    raw = [sum(shape) / max(math.prod(shape), 1) for shape in shapes]
    dense: set[int] = set()
    while True:
        budget = (1.0 - sparsity) * sum(sizes) - sum(sizes[i] for i in dense)
        free = [i for i in range(len(shapes)) if i not in dense]
        if not free:
            break
        epsilon = budget / sum(raw[i] * sizes[i] for i in free)
        densest = max(raw[i] for i in free)
        if epsilon * densest <= 1.0:
            break
        dense |= {i for i in free if raw[i] == densest}
    wanted = [
        float(size) if i in dense else epsilon * raw[i] * size for i, size in enumerate(sizes)
    ]
    return _to_counts(wanted, sizes, sparsity)


DISTRIBUTIONS: dict[str, SparsityDistribution] = {"uniform": uniform, "erk": erdos_renyi_kernel}


def get(distribution: str | SparsityDistribution) -> SparsityDistribution:
    """The distribution of that name; a function of your own is passed through."""
    return choose("distribution", distribution, DISTRIBUTIONS)


def check_counts(counts: Sequence[int], sizes: Sequence[int]) -> None:
    """Raises for a distribution of the caller's own that cannot be met."""
    if len(counts) != len(sizes) or any(
        not 0 <= count <= size for count, size in zip(counts, sizes, strict=True)
    ):
        raise ValueError(
            f"distribution returned {list(counts)} for arrays of {list(sizes)} weights; it must "
            "return the number to keep of each."
        )


def _to_counts(wanted: Sequence[float], sizes: Sequence[int], sparsity: float) -> list[int]:
    """Rounds to integers that add up to the budget: largest remainders first, ties by index."""
    budget = round((1.0 - sparsity) * sum(sizes))
    counts = [min(size, math.floor(w + 1e-9)) for w, size in zip(wanted, sizes, strict=True)]
    by_remainder = sorted(range(len(sizes)), key=lambda i: (counts[i] - wanted[i], i))
    while sum(counts) < budget:
        for i in by_remainder:
            if sum(counts) < budget and counts[i] < sizes[i]:
                counts[i] += 1
    empty = [i for i, count in enumerate(counts) if count == 0 and sizes[i] > 0]
    if empty:
        raise ValueError(
            f"sparsity={sparsity} leaves no weight in {len(empty)} of {len(sizes)} arrays, one of "
            f"{sizes[empty[0]]} weights among them: choose a lower sparsity, another distribution, "
            "or leave small arrays dense with where=."
        )
    return counts
