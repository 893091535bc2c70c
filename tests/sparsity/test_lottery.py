"""Iterative magnitude pruning: what each level starts from, and what it is asked to train."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_equal, mlp_params

from zosam_jax import sparsity

TOTAL = 10
CALLS = []


def train(params, model_state, masks, start, stop):
    """Adds one to every kept weight for every step; remembers what it was asked."""
    CALLS.append((params, model_state, masks, start, stop))
    steps = stop - start
    grown = jax.tree.map(lambda p: p + steps * jnp.sign(p), params)
    return sparsity.apply_masks(grown, masks), model_state + steps


@pytest.fixture(autouse=True)
def no_calls():
    CALLS.clear()


def levels(level=0.6, **options):
    return list(
        sparsity.lottery_ticket(train, mlp_params(), 0, level, total_steps=TOTAL, **options)
    )


def kept(masks):
    return sum(int(m.sum()) for m in jax.tree.leaves(masks))


def test_level_zero_is_the_dense_network():
    first = levels()[0]
    assert kept(first.masks) == 25
    assert_equal(first.start[0], mlp_params())
    assert first.trained[1] == TOTAL
    assert (first.index, CALLS[0][3:]) == (0, (0, TOTAL))


@pytest.mark.parametrize(("level", "rounds"), [(0.2, 1), (0.5, 4), (0.9, 11), (0.95, 14)])
def test_a_fifth_each_time_by_default(level, rounds):
    params = {"w": jax.random.normal(jax.random.key(0), (100, 100))}
    found = list(sparsity.lottery_ticket(train, params, 0, level, total_steps=TOTAL))
    assert len(found) == rounds + 1
    assert kept(found[-1].masks) == round((1 - level) * 10_000)
    densities = [kept(f.masks) / 10_000 for f in found]
    np.testing.assert_allclose(
        densities, [(1 - level) ** (i / rounds) for i in range(rounds + 1)], atol=1e-4
    )


def test_masks_are_nested_and_keep_the_largest_trained_weights():
    found = levels(levels=3)
    for before, after in itertools.pairwise(found):
        trained = before.trained[0]
        for layer in ("hidden", "out"):
            old, new = (np.asarray(f.masks[layer]["kernel"]) for f in (before, after))
            assert (new <= old).all()
        survivors, dropped = [], []
        for layer in ("hidden", "out"):
            old, new = (np.asarray(f.masks[layer]["kernel"]) for f in (before, after))
            weights = np.abs(trained[layer]["kernel"])
            survivors += weights[new].tolist()
            dropped += weights[old & ~new].tolist()
        assert min(survivors) > max(dropped)


@pytest.mark.parametrize("rewind_to", [0, 3])
def test_weights_are_rewound_with_schedule_and_statistics(rewind_to):
    found = levels(levels=2, rewind_to=rewind_to)
    early = jax.tree.map(lambda p: p + rewind_to * jnp.sign(p), mlp_params())
    for level in found[1:]:
        assert_equal(level.start[0], sparsity.apply_masks(early, level.masks))
        assert level.start[1] == rewind_to
        assert level.trained[1] == TOTAL
    assert {call[3:] for call in CALLS[-2:]} == {(rewind_to, TOTAL)}


def test_learning_rate_rewinding_keeps_the_trained_weights():
    found = levels(levels=2, rewind_to=3, retrain="rewind learning rate")
    for before, level in itertools.pairwise(found):
        assert_equal(level.start[0], sparsity.apply_masks(before.trained[0], level.masks))
        assert level.start[1] == before.trained[1]
    assert [call[3:] for call in CALLS] == [(0, TOTAL), (3, TOTAL), (3, TOTAL)]


def test_fine_tuning_goes_on_past_the_end():
    found = levels(levels=2, rewind_to=3, retrain="fine-tune")
    assert_equal(found[1].start[0], sparsity.apply_masks(found[0].trained[0], found[1].masks))
    assert [call[3:] for call in CALLS] == [(0, TOTAL)] + [(TOTAL, 2 * TOTAL - 3)] * 2


def test_pruned_weights_do_not_come_back():
    """However large the trained ones that remain are, a zero is not kept over them."""
    found = levels(levels=4)
    assert [kept(level.masks) for level in found][-1] == 10
    for level in found:
        weights = level.trained[0]["hidden"]["kernel"]
        assert not np.asarray(weights)[~np.asarray(level.masks["hidden"]["kernel"])].any()


def test_nothing_is_trained_before_it_is_asked_for():
    iterator = sparsity.lottery_ticket(train, mlp_params(), 0, 0.6, total_steps=TOTAL)
    assert not CALLS
    next(iterator)
    assert len(CALLS) == 1


def test_sparsity_zero_is_one_dense_run():
    assert len(levels(0.0)) == 1
    assert len(levels(0.0, levels=3)) == 1


def test_n_of_m_patterns_are_reached_in_one_round():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8))}
    found = list(
        sparsity.lottery_ticket(
            train, params, 0, 0.5, total_steps=TOTAL, pattern=sparsity.patterns.n_m(2, 4)
        )
    )
    assert [kept(level.masks) for level in found] == [64, 32]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 1.0}, "sparsity=1.0 must be below 1"),
        ({"levels": 0}, "levels=0"),
        ({"rewind_to": -1}, "rewind_to=-1"),
        ({"rewind_to": TOTAL}, "rewind_to=10 must be below total_steps=10"),
        ({"retrain": "again"}, "retrain='again' is not known"),
        ({"level": 0.95, "distribution": "uniform"}, "leaves no weight in"),
        ({"where": "conv"}, "finds no parameter"),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_trained(options, message):
    level = options.pop("level", 0.6)
    with pytest.raises(ValueError, match=message):
        sparsity.lottery_ticket(train, mlp_params(), 0, level, total_steps=TOTAL, **options)
    assert not CALLS
