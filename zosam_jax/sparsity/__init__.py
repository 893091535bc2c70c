"""Sparse training: which weights exist, who decides it, and keeping the others at zero."""

from zosam_jax.masks import apply_masks, get_masks, sparsity_of
from zosam_jax.sparsity import budgets, distributions, patterns, schedules, scores, slimming
from zosam_jax.sparsity.admm import admm_penalty
from zosam_jax.sparsity.block_sparse import (
    BlockLayout,
    BlockSparse,
    block_layout,
    block_sparse,
    block_sparse_matmul,
    fastest,
    worth_it,
)
from zosam_jax.sparsity.compaction import (
    compact,
    compact_masks,
    compact_state,
    kept_units,
)
from zosam_jax.sparsity.dependencies import units
from zosam_jax.sparsity.drop_and_grow import drop_and_grow
from zosam_jax.sparsity.early_bird import EarlyBird, EarlyBirdState, early_bird
from zosam_jax.sparsity.engine import DropAndGrowState
from zosam_jax.sparsity.groups import Group, Member, Units
from zosam_jax.sparsity.layers import is_scale, is_weight
from zosam_jax.sparsity.lottery import lottery_ticket
from zosam_jax.sparsity.methods import (
    METHODS,
    UNIT_METHODS,
    dsr,
    gradual,
    mest,
    rigl,
    s2vite,
    set_,
    svite,
)
from zosam_jax.sparsity.pruning import (
    from_scores,
    from_unit_scores,
    grasp,
    magnitude,
    random,
    snip,
    synflow,
    taylor,
)
from zosam_jax.sparsity.removal import check_units, cut, cut_state
from zosam_jax.sparsity.slimming import early_bert
from zosam_jax.sparsity.straight_through import (
    StraightThroughState,
    forward_params,
    straight_through,
)
from zosam_jax.sparsity.summary import summary
from zosam_jax.sparsity.wrapper import SparseState, fixed

__all__ = [
    "METHODS",
    "UNIT_METHODS",
    "BlockLayout",
    "BlockSparse",
    "DropAndGrowState",
    "EarlyBird",
    "EarlyBirdState",
    "Group",
    "Member",
    "SparseState",
    "StraightThroughState",
    "Units",
    "admm_penalty",
    "apply_masks",
    "block_layout",
    "block_sparse",
    "block_sparse_matmul",
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
    "early_bert",
    "early_bird",
    "fastest",
    "fixed",
    "forward_params",
    "from_scores",
    "from_unit_scores",
    "get_masks",
    "gradual",
    "grasp",
    "is_scale",
    "is_weight",
    "kept_units",
    "lottery_ticket",
    "magnitude",
    "mest",
    "patterns",
    "random",
    "rigl",
    "s2vite",
    "schedules",
    "scores",
    "set_",
    "slimming",
    "snip",
    "sparsity_of",
    "straight_through",
    "summary",
    "svite",
    "synflow",
    "taylor",
    "units",
    "worth_it",
]
