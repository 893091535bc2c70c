"""JaxPruner's SET, RigL and saliency pruning beside ours, on the same scores and shapes.

JaxPruner (Lee et al., https://arxiv.org/abs/2304.14082) does not run on today's JAX. Its rules are
derived anew here, in NumPy and its float32, from reading google-research/jaxpruner at f133ee5.
The masks are the same wherever the counts are; the tests say where they are not, and why.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from zosam_jax import sparsity
from zosam_jax.sparsity import patterns, schedules
from zosam_jax.sparsity.selection import largest

ONE = np.float32(1.0)


def top_k(scores, level):
    """Keeps max(1, round(N·(1 − s))) of the largest scores, ties to the lowest index."""
    scores = np.asarray(scores, np.float32)
    count = max(1, int(np.round(np.float32(scores.size) * (ONE - np.float32(level)))))
    mask = np.zeros(scores.size, bool)
    mask[np.argsort(-scores.ravel(), kind="stable")[:count]] = True
    return mask.reshape(scores.shape)


def exchange(mask, drop, grow, fraction):
    """Keeps a density d·(1 − α) by drop score, then fills up to d by grow score."""
    density = np.float32(mask.sum()) / np.float32(mask.size)
    between = ONE - density * (ONE - np.float32(fraction))
    kept = top_k(np.where(mask, drop, drop.min() - np.float32(1e-5)), between)
    return top_k(np.where(kept, grow.max() + np.float32(1e-5), grow), ONE - density)


def problem(seed, shape=(20, 30), level=0.8):
    rng = np.random.default_rng(seed)
    weights, gradient = (rng.normal(size=shape).astype(np.float32) for _ in range(2))
    mask = np.asarray(sparsity.random({"w": jnp.asarray(weights)}, level, key=seed)["w"])
    return weights * mask, gradient, mask


def ours(weights, gradient, mask, fraction):
    """One update of RigL's exchange at a learning rate of zero."""
    tx = sparsity.drop_and_grow(
        optax.sgd(0.0),
        {"w": jnp.asarray(mask)},
        drop=sparsity.scores.magnitude,
        grow=sparsity.scores.gradient_magnitude,
        schedule=schedules.periodic(1, fraction),
    )
    params = {"w": jnp.asarray(weights)}
    _, state = tx.update({"w": jnp.asarray(gradient)}, tx.init(params), params)
    return np.asarray(state.masks["w"])


@pytest.mark.parametrize("level", [0.5, 0.9, 0.98])
@pytest.mark.parametrize("kind", ["normal", "ties"])
def test_saliency_pruning_gives_the_same_masks(kind, level):
    weights, gradient, _ = problem(0)
    saliency = np.abs(weights * gradient) if kind == "normal" else np.round(np.abs(gradient))
    masks = sparsity.from_scores(
        {"w": jnp.asarray(weights)}, {"w": jnp.asarray(saliency)}, level, distribution="uniform"
    )
    np.testing.assert_array_equal(masks["w"], top_k(saliency, level))


def test_snip_with_a_budget_for_each_layer_is_its_saliency_pruning():
    weights, gradient, _ = problem(1)
    masks = sparsity.snip(
        lambda p: jnp.sum(p["w"] * gradient),
        {"w": jnp.asarray(weights)},
        0.9,
        [()],
        distribution="uniform",
    )
    np.testing.assert_array_equal(masks["w"], top_k(np.abs(weights * gradient), 0.9))


@pytest.mark.parametrize("fraction", [0.1, 0.25, 0.3, 0.5])
@pytest.mark.parametrize("seed", range(3))
def test_rigl_and_set_give_the_same_masks_where_the_counts_are_whole(seed, fraction):
    """120 weights: 12, 30, 36 and 60 are exchanged. SET differs from RigL in the scores alone."""
    weights, gradient, mask = problem(seed)
    assert mask.sum() == 120
    expected = exchange(mask, np.abs(weights), np.abs(gradient), fraction)
    np.testing.assert_array_equal(ours(weights, gradient, mask, fraction), expected)


def test_a_fractional_count_is_rounded_there_and_rounded_down_here():
    """As RigL's own code does: of 120 weights, 0.17 are 20.4 and 0.18 are 21.6."""
    weights, gradient, mask = problem(0)
    down = exchange(mask, np.abs(weights), np.abs(gradient), 0.17)
    np.testing.assert_array_equal(ours(weights, gradient, mask, 0.17), down)
    up = exchange(mask, np.abs(weights), np.abs(gradient), 0.18)
    here = ours(weights, gradient, mask, 0.18)
    assert (here != up).any()
    np.testing.assert_array_equal(here, exchange(mask, np.abs(weights), np.abs(gradient), 21 / 120))


def test_large_gradients_displace_kept_weights_there():
    """Its kept weights get the largest grow score plus 1e-5, which float32 swallows beyond 128."""
    weights, gradient, mask = problem(0)
    gradient = np.full_like(gradient, 1e4)
    expected = exchange(mask, np.abs(weights), gradient, 0.3)
    here = ours(weights, gradient, mask, 0.3)
    top = np.abs(weights) > np.sort(np.abs(weights[mask]))[36]
    assert (here & top).sum() == top.sum()
    assert (expected & top).sum() < top.sum()


def test_counts_of_large_layers_drift_there():
    """It computes them as round(N·(1 − (1 − n/N))) in float32, which has 24 bits."""
    size = np.float32(30_000_000)
    counts = np.arange(3_000_000, 3_000_400)
    there = np.round(size * (ONE - (ONE - counts.astype(np.float32) / size)))
    assert (there != counts).any()
    assert np.abs(there - counts).max() <= 2
    (mask,) = jax.jit(largest)([jnp.zeros(1000)], 101)
    assert int(mask.sum()) == 101


def test_ties_in_n_of_m_groups_go_to_the_last_there_and_to_the_first_here():
    masks = sparsity.magnitude({"w": jnp.ones((4, 1))}, 0.5, pattern=patterns.n_m(2, 4))
    assert masks["w"][:, 0].tolist() == [True, True, False, False]
    ranks_there = np.argsort(np.argsort(np.ones(4), kind="stable"), kind="stable")
    assert (ranks_there >= 2).tolist() == [False, False, True, True]
