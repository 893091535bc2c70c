"""Sparse training: which weights exist, who decides it, and keeping the others at zero."""

from zosam_jax.masks import apply_masks, get_masks, sparsity_of
from zosam_jax.sparsity import budgets, distributions, patterns, schedules, scores
from zosam_jax.sparsity.compaction import (
    compact,
    compact_masks,
    compact_state,
    cut,
    cut_state,
    kept_units,
)
from zosam_jax.sparsity.dependencies import check_units, units
from zosam_jax.sparsity.drop_and_grow import DropAndGrowState, drop_and_grow
from zosam_jax.sparsity.groups import Group, Member, Units
from zosam_jax.sparsity.layers import is_weight
from zosam_jax.sparsity.lottery import lottery_ticket
from zosam_jax.sparsity.methods import METHODS, dsr, mest, rigl, set_, svite
from zosam_jax.sparsity.pruning import from_scores, grasp, magnitude, random, snip, synflow
from zosam_jax.sparsity.summary import summary
from zosam_jax.sparsity.wrapper import SparseState, fixed

__all__ = [
    "METHODS",
    "DropAndGrowState",
    "Group",
    "Member",
    "SparseState",
    "Units",
    "apply_masks",
    "budgets",
    "check_units",
    "compact",
    "compact_masks",
    "compact_state",
    "cut",
    "cut_state",
    "distributions",
    "drop_and_grow",
    "dsr",
    "fixed",
    "from_scores",
    "get_masks",
    "grasp",
    "is_weight",
    "kept_units",
    "lottery_ticket",
    "magnitude",
    "mest",
    "patterns",
    "random",
    "rigl",
    "schedules",
    "scores",
    "set_",
    "snip",
    "sparsity_of",
    "summary",
    "svite",
    "synflow",
    "units",
]
