"""N:M and block masks: their shape holds at the start and through every update."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import zosam_jax
from zosam_jax import sparsity
from zosam_jax.sparsity import patterns, schedules


def params(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "conv": {"kernel": jax.random.normal(keys[0], (3, 3, 8, 6))},
        "dense": {"kernel": jax.random.normal(keys[1], (16, 12)), "bias": jnp.ones(12)},
    }


def loss(params, target):
    """A quadratic whose gradient differs at every weight."""
    return sum(
        jnp.sum((p - target * jnp.cos(jnp.arange(p.size).reshape(p.shape))) ** 2)
        for p in jax.tree.leaves(params)
    )


def groups(mask, axis, m):
    """Kept weights in each group of m along an axis."""
    last = np.moveaxis(np.asarray(mask), axis, -1)
    return last.reshape(*last.shape[:-1], -1, m).sum(-1)


def blocks(mask, rows, columns):
    *outer, a, b = mask.shape
    tiles = np.asarray(mask).reshape(*outer, a // rows, rows, b // columns, columns)
    return tiles.sum((-3, -1))


@pytest.mark.parametrize("axis", [-2, -1])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 2), (1, 4)])
def test_n_of_every_m_stay(n, m, axis):
    tree = {"a": jax.random.normal(jax.random.key(0), (3, 8, 16))}
    masks = sparsity.magnitude(tree, 1 - n / m, pattern=patterns.n_m(n, m, axis=axis))
    assert (groups(masks["a"], axis, m) == n).all()
    # The largest of each group, by hand.
    last = np.moveaxis(np.abs(np.asarray(tree["a"])), axis, -1).reshape(-1, m)
    kept = np.moveaxis(np.asarray(masks["a"]), axis, -1).reshape(-1, m)
    assert (np.where(kept, last, np.inf).min(-1) >= np.where(kept, 0, last).max(-1)).all()


@pytest.mark.parametrize("distribution", ["global", "uniform", "erk"])
def test_blocks_live_and_die_together(distribution):
    masks = sparsity.magnitude(
        params(), 0.5, pattern=patterns.block(4, 2), distribution=distribution
    )
    counts = np.concatenate([blocks(m, 4, 2).ravel() for m in jax.tree.leaves(masks)])
    assert set(counts) == {0, 8}
    assert (counts == 8).sum() == round(0.5 * counts.size)


def test_the_block_with_the_largest_sum_stays():
    weights = jnp.array([[1.0, 1.0, 3.0, 0.0], [1.0, 1.0, 0.0, 0.0]])
    masks = sparsity.magnitude({"w": weights}, 0.5, pattern=patterns.block(2, 2))
    assert masks["w"].tolist() == [[True, True, False, False]] * 2


@pytest.mark.parametrize(
    ("sparsity_asked", "in_each"), [(0.5, 2), (0.6, 2), (0.7, 1), (0.95, 1), (0.0, 4)]
)
def test_every_column_of_blocks_keeps_as_many(sparsity_asked, in_each):
    """The nearest number, at least one: those with the largest sums, ties to the first."""
    weights = jax.random.normal(jax.random.key(0), (16, 12))
    pattern = patterns.block(4, 2, per_column=True)
    masks = sparsity.magnitude({"w": weights}, sparsity_asked, pattern=pattern)
    kept = blocks(masks["w"], 4, 2)
    assert ((kept == 8).sum(0) == in_each).all()
    sums = np.abs(np.asarray(weights)).reshape(4, 4, 6, 2).sum((1, 3))
    order = np.argsort(-sums, axis=0, kind="stable")[:in_each]
    np.testing.assert_array_equal(np.sort(order, 0), np.sort(np.argsort(-kept, 0)[:in_each], 0))


MAKERS = {
    "set": lambda tx, **o: sparsity.set_(tx, 0.5, total_steps=20, every=2, **o),
    "rigl": lambda tx, **o: sparsity.rigl(tx, 0.5, total_steps=20, every=2, **o),
    "svite": lambda tx, **o: sparsity.svite(tx, 0.5, total_steps=20, every=2, **o),
}


@pytest.mark.parametrize("method", MAKERS)
@pytest.mark.parametrize(
    "pattern",
    [patterns.n_m(2, 4), patterns.block(4, 2), patterns.block(4, 2, per_column=True)],
    ids=lambda p: p.name,
)
@pytest.mark.parametrize("first", [None, zosam_jax.zo_sam(0.1)], ids=["sgd", "zo_sam"])
def test_training_keeps_the_pattern(method, pattern, first):
    links = [optax.sgd(0.05, momentum=0.9)] if first is None else [first, optax.sgd(0.05)]
    tx = MAKERS[method](optax.chain(*links), pattern=pattern)
    state = tx.init(params())
    start = sparsity.get_masks(state)
    current = sparsity.apply_masks(params(), start)

    @jax.jit
    def step(current, state):
        grads = jax.grad(loss)(current, 2.0) if first is None else None
        updates, state = tx.update(grads, state, current, value_fn=loss, target=2.0)
        return optax.apply_updates(current, updates), state

    for _ in range(8):
        current, state = step(current, state)
        masks = sparsity.get_masks(state)
        for mask, before in zip(jax.tree.leaves(masks), jax.tree.leaves(start), strict=True):
            assert mask.sum() == before.sum()
            if pattern.per_column:
                in_columns = (blocks(mask, 4, 2) > 0).sum(-2)
                assert (in_columns == (blocks(before, 4, 2) > 0).sum(-2)).all()
                assert len(set(in_columns.ravel())) == 1
            if pattern.density is None:
                assert set(blocks(mask, 4, 2).ravel()) == {0, 8}
            else:
                assert (groups(mask, -2, 4) == 2).all()
        for mask, p in zip(
            jax.tree.leaves(masks),
            [current["conv"]["kernel"], current["dense"]["kernel"]],
            strict=True,
        ):
            assert not np.asarray(p)[~np.asarray(mask)].any()
    assert not all(
        jnp.array_equal(a, b)
        for a, b in zip(jax.tree.leaves(masks), jax.tree.leaves(start), strict=True)
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: patterns.n_m(5, 4), "n=5 must be at most m=4"),
        (lambda: patterns.n_m(0, 4), "n=0"),
        (lambda: patterns.block(0, 4), "rows=0"),
        (
            lambda: sparsity.random({"w": jnp.ones((6, 8))}, 0.5, pattern=patterns.n_m(2, 4)),
            r"multiple of 4 along axis -2, but \['w'\] has the shape \(6, 8\)",
        ),
        (
            lambda: sparsity.random({"w": jnp.ones((6, 8))}, 0.5, pattern=patterns.block(4, 4)),
            "multiples of both",
        ),
        (
            lambda: sparsity.random({"w": jnp.ones((8, 8))}, 0.9, pattern=patterns.n_m(2, 4)),
            "sparsity=0.9 does not go with the pattern 2:4, whose sparsity is 0.5",
        ),
        (
            lambda: sparsity.mest(optax.sgd(0.1), 0.5, total_steps=10, pattern=patterns.n_m(2, 4)),
            "whose density is fixed",
        ),
        (
            lambda: sparsity.dsr(optax.sgd(0.1), 0.5, total_steps=10, pattern=patterns.n_m(2, 4)),
            "do not trade",
        ),
        (
            lambda: sparsity.dsr(
                optax.sgd(0.1), 0.5, total_steps=10, pattern=patterns.block(4, 2, per_column=True)
            ),
            "as many in each column does not go with this method",
        ),
        (
            lambda: sparsity.drop_and_grow(
                optax.sgd(0.1),
                lambda p: sparsity.random(p, 0.5),
                drop=jnp.abs,
                grow=sparsity.scores.uniform_random,
                schedule=schedules.periodic(2, 0.3),
            ),
            "drop takes 'x', which is not known",
        ),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_initial_masks_without_the_pattern_are_refused():
    masks = {"w": jnp.arange(64).reshape(8, 8) < 32}
    tx = sparsity.rigl(optax.sgd(0.1), 0.5, total_steps=10, masks=masks, pattern=patterns.n_m(2, 4))
    with pytest.raises(ValueError, match="2:4 pattern"):
        tx.init({"w": jnp.ones((8, 8))})
