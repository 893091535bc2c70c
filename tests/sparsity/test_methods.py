"""The rules of SET, RigL, DSR, MEST and SViTE, one update at a time, against NumPy."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_equal, flatten, mlp_batch, mlp_loss, mlp_params

import zosam_jax
from zosam_jax import sparsity
from zosam_jax.sparsity import budgets

STEPS = 60


def params(seed=0):
    """Two kernels of 240 and 96 weights and a bias; no two weights alike."""
    keys = jax.random.split(jax.random.key(seed), 2)
    return {
        "one": {"kernel": jax.random.normal(keys[0], (20, 12)), "bias": jnp.ones(12)},
        "two": {"kernel": jax.random.normal(keys[1], (12, 8))},
    }


def gradient(seed):
    return params(seed + 100)


def momentum_and_decay(rate=0.1):
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(rate, momentum=0.9))


def run(tx, steps=STEPS, start=None, gradients=gradient):
    """[(masks, params, state)] before the first step and after every step."""
    state = tx.init(params() if start is None else start)
    current = sparsity.apply_masks(params() if start is None else start, sparsity.get_masks(state))
    step = jax.jit(tx.update)
    trail = [(sparsity.get_masks(state), current, state)]
    for i in range(steps):
        updates, state = step(gradients(i), state, current)
        current = optax.apply_updates(current, updates)
        trail.append((sparsity.get_masks(state), current, state))
    return trail


def kernels(tree):
    return [np.asarray(tree["one"]["kernel"]), np.asarray(tree["two"]["kernel"])]


def counts(masks):
    return [int(mask.sum()) for mask in kernels(masks)]


def changes(trail):
    """The steps (from 0) after which the masks were other than before."""
    return [
        i
        for i, (before, after) in enumerate(itertools.pairwise(trail))
        if any((a != b).any() for a, b in zip(kernels(before[0]), kernels(after[0]), strict=True))
    ]


METHODS = {
    "set": functools.partial(sparsity.set_, every=5),
    "rigl": functools.partial(sparsity.rigl, every=5, replaces_step=True),
    "dsr": functools.partial(sparsity.dsr, every=(5, 5, 5, 5), threshold=0.1),
    "mest": functools.partial(sparsity.mest, every=5),
    "svite": functools.partial(sparsity.svite, every=5),
}
STOPS = {"set": 45, "rigl": 45, "dsr": 57, "mest": 45, "svite": 48}


@functools.cache
def trail(method, level=0.8):
    return run(METHODS[method](momentum_and_decay(), level, total_steps=STEPS))


def test_every_method_is_tested():
    assert METHODS.keys() == sparsity.METHODS.keys()


@pytest.mark.parametrize("method", METHODS)
def test_the_number_of_weights_is_exact_after_every_step(method):
    expected = counts(trail(method)[0][0])
    assert sum(expected) == round(0.2 * 336)
    for masks, _, _ in trail(method):
        if method == "dsr":
            assert sum(counts(masks)) == sum(expected)
            assert min(counts(masks)) >= 1
        else:
            assert counts(masks) == expected


@pytest.mark.parametrize("method", METHODS)
def test_pruned_weights_are_exactly_zero_whatever_momentum_and_decay_do(method):
    for masks, current, _ in trail(method):
        for mask, weights in zip(kernels(masks), kernels(current), strict=True):
            assert not weights[~mask].any()


@pytest.mark.parametrize("method", METHODS)
def test_masks_change_on_schedule_and_not_after_it(method):
    changed = changes(trail(method))
    first = 5 if method in ("dsr", "svite") else 0
    assert changed[0] == first
    assert all(step % 5 == 0 and step < STOPS[method] for step in changed)
    assert len(changed) >= 7
    assert trail(method)[-1][2].updates >= len(changed)


@pytest.mark.parametrize("method", METHODS)
def test_new_weights_start_at_zero(method):
    """And end the step of the update there, so that growing does not change the function."""
    for (before, _, _), (after, current, _) in zip(trail(method), trail(method)[1:], strict=False):
        for old, new, weights in zip(
            kernels(before), kernels(after), kernels(current), strict=True
        ):
            assert not weights[new & ~old].any()


@pytest.mark.parametrize("method", METHODS)
def test_dense_parameters_are_trained_as_ever(method):
    dense = run(momentum_and_decay_dense(), steps=4)[-1][1]["one"]["bias"]
    if method == "rigl":
        tx = METHODS[method](momentum_and_decay(), 0.8, total_steps=STEPS, replaces_step=False)
        sparse = run(tx, steps=4)[-1][1]["one"]["bias"]
    else:
        sparse = trail(method)[4][1]["one"]["bias"]
    np.testing.assert_allclose(sparse, dense, rtol=1e-6)


def momentum_and_decay_dense():
    return sparsity.fixed(momentum_and_decay(), None)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("first", [None, zosam_jax.zo_sam(0.1)], ids=["sgd", "zo_sam"])
def test_sparsity_zero_is_the_base_optimizer_bit_for_bit(method, first):
    inner = momentum_and_decay() if first is None else optax.chain(first, momentum_and_decay())

    def trained(tx):
        current, state = mlp_params(), tx.init(mlp_params())

        @jax.jit
        def step(current, state):
            grads = jax.grad(mlp_loss)(current, **mlp_batch()) if first is None else None
            updates, state = tx.update(grads, state, current, value_fn=mlp_loss, **mlp_batch())
            return optax.apply_updates(current, updates), state

        for _ in range(3):
            current, state = step(current, state)
        return current, state

    current, state = trained(METHODS[method](inner, 0.0, total_steps=STEPS))
    assert_equal((current, state.inner_state), trained(optax.with_extra_args_support(inner)))


# The exchange itself.


def smallest(scores, candidates, count):
    """The indices of the `count` smallest scores among candidates."""
    flat = np.where(candidates, scores, np.inf).ravel()
    return set(np.argsort(flat, kind="stable")[:count].tolist())


def indices(mask):
    return set(np.flatnonzero(mask).tolist())


@pytest.mark.parametrize(
    ("method", "step", "fraction", "rounding", "replaced"),
    [
        ("rigl", 0, 0.3, math.floor, True),
        ("rigl", 15, 0.15 * (1 + math.cos(math.pi * 15 / 45)), math.floor, True),
        (
            "svite",
            20,
            0.005 + 0.495 / 2 * (1 + math.cos(math.pi * 20 / STEPS)),
            math.ceil,
            False,
        ),
    ],
)
def test_the_weakest_go_and_the_steepest_come(method, step, fraction, rounding, replaced):
    before, weights, _ = trail(method)[step]
    after, stepped, _ = trail(method)[step + 1]
    for old, new, w, s, g in zip(
        kernels(before),
        kernels(after),
        kernels(weights),
        kernels(stepped),
        kernels(gradient(step)),
        strict=True,
    ):
        count = rounding(np.float32(fraction) * old.sum())
        if replaced:
            dropped = smallest(np.abs(w), old, count)
            np.testing.assert_array_equal(s[old & new], w[old & new])
        else:  # dropped weights cannot be read off after the step: their rank among those that stay
            assert np.sort(np.abs(s[old & new]))[0] > 0
            dropped = indices(old) - indices(old & new)
        kept = np.isin(np.arange(old.size), sorted(indices(old) - dropped)).reshape(old.shape)
        if replaced:
            grown = smallest(-np.abs(g), ~kept, count)
            assert indices(new) == indices(kept) | grown
        else:
            grown = indices(new) - indices(old)
            losers = np.abs(g)[~new & ~old].max()
            assert np.abs(g).ravel()[sorted(grown)].min() >= losers
            assert len(grown) <= count


def test_set_drops_the_smallest_and_grows_elsewhere():
    """The step comes first: at a learning rate of zero it does not move the weights."""
    tx = sparsity.set_(optax.sgd(0.0), 0.8, total_steps=STEPS, every=5, fraction=0.3)
    (before, weights, _), (after, _, _) = run(tx, steps=1)
    for old, new, w in zip(kernels(before), kernels(after), kernels(weights), strict=True):
        count = math.floor(np.float32(0.3) * old.sum())
        dropped = smallest(np.abs(w), old, count)
        assert indices(old) - indices(new) <= dropped
        assert len(indices(new) - (indices(old) - dropped)) == count


def test_set_grows_anywhere_alike():
    tx = sparsity.set_(optax.sgd(0.0), 0.8, total_steps=STEPS, fraction=1.0)
    update, state = jax.jit(tx.update), tx.init(params())
    chosen = np.zeros(240)
    for key in range(40):
        drawn = state._replace(key=jax.random.key_data(jax.random.key(key)))
        _, after = update(gradient(0), drawn, params())
        chosen += kernels(sparsity.get_masks(after))[0].ravel()
    share = chosen / 40
    expected = kernels(sparsity.get_masks(state))[0].mean()
    assert share.mean() == pytest.approx(expected)
    assert share.std() == pytest.approx(np.sqrt(expected * (1 - expected) / 40), rel=0.25)


def test_the_original_annealing_of_set():
    tx = sparsity.set_(optax.sgd(0.0), 0.8, total_steps=STEPS, every=40, anneal=True)
    trail = run(tx, steps=42)
    turned = [
        sum(int((a & ~b).sum()) for a, b in zip(kernels(x[0]), kernels(y[0]), strict=True))
        for x, y in ((trail[0], trail[1]), (trail[40], trail[41]))
    ]
    assert turned[0] > 4 * turned[1]


# What the optimizer remembers.


def momentum(state):
    return kernels(optax.tree.get(state, "trace"))


@pytest.mark.parametrize("moments", ["reset", "keep"])
def test_moments_of_new_weights(moments):
    tx = sparsity.svite(momentum_and_decay(), 0.5, total_steps=STEPS, every=5, moments=moments)
    path = run(tx, steps=21)
    for (before, _, old_state), (after, _, state) in itertools.pairwise(path):
        del old_state
        for old, new, trace in zip(kernels(before), kernels(after), momentum(state), strict=True):
            if moments == "reset":
                assert not trace[new & ~old].any()
            assert trace[new & old].all()
    if moments == "keep":  # a weight dropped at one update and grown at a later one
        seen = [
            momentum(after[2])[0][kernels(after[0])[0] & ~kernels(before[0])[0]]
            for before, after in itertools.pairwise(path)
        ]
        assert any(trace.any() for trace in seen)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda tx: tx,
        lambda tx: optax.masked(tx, lambda p: jax.tree.map(lambda x: x.ndim > 1, p)),
        lambda tx: optax.partition(
            {"kernel": tx, "bias": optax.sgd(0.1)},
            lambda p: jax.tree.map_with_path(lambda path, _: path[-1].key, p),
        ),
        lambda tx: optax.MultiSteps(tx, 1).gradient_transformation(),
    ],
    ids=["plain", "masked", "partition", "MultiSteps"],
)
def test_moments_are_found_in_any_nesting(wrap):
    tx = sparsity.svite(wrap(optax.adam(0.1)), 0.5, total_steps=STEPS, every=5)
    path = run(tx, steps=6)
    new = kernels(path[-1][0])[0] & ~kernels(path[-2][0])[0]
    assert new.any()
    leaves = [x for x in jax.tree.leaves(path[-1][2].inner_state) if jnp.shape(x) == (20, 12)]
    assert len(leaves) >= 2
    assert all(not np.asarray(leaf)[new].any() for leaf in leaves)


@pytest.mark.parametrize(
    ("every", "option", "replaced"), [(5, None, False), (5, True, True), (100, None, True)]
)
def test_an_update_of_rigl_takes_the_place_of_the_step(every, option, replaced):
    """As published, unless the period is shorter than the published one."""
    tx = sparsity.rigl(
        momentum_and_decay(), 0.8, total_steps=1000, every=every, replaces_step=option
    )
    (_, before, _), (_, after, state) = run(tx, steps=1)
    assert state.updates == 1
    stood_still = bool((before["one"]["bias"] == after["one"]["bias"]).all())
    assert stood_still == replaced


def test_nothing_moves_in_the_place_of_a_step():
    path = trail("rigl")
    before, after = path[5], path[6]
    stays = [a & b for a, b in zip(kernels(before[0]), kernels(after[0]), strict=True)]
    for x, y in (
        (kernels(before[1]), kernels(after[1])),
        (momentum(before[2]), momentum(after[2])),
    ):
        for a, b, stay in zip(x, y, stays, strict=True):
            np.testing.assert_array_equal(a[stay], b[stay])
    np.testing.assert_array_equal(before[1]["one"]["bias"], after[1]["one"]["bias"])
    assert after[2].count == 6
    assert after[2].updates == 2


# DSR.


def test_the_threshold_of_dsr_follows_the_number_of_dropped_weights():
    path = run(METHODS["dsr"](momentum_and_decay(), 0.8, total_steps=STEPS))
    aim, moves = 0.1 * sum(counts(path[0][0])), set()
    for i in range(STEPS):
        old, new = path[i][2].budget.threshold, path[i + 1][2].budget.threshold
        if i == 0 or i % 5 or i >= STOPS["dsr"]:
            assert new == old
            continue
        # What the step led to is known where the weight stayed; all others were below.
        survivors = sum(
            int((np.abs(w[m & b]) >= old).sum())
            for m, b, w in zip(
                kernels(path[i][0]), kernels(path[i + 1][0]), kernels(path[i + 1][1]), strict=True
            )
        )
        dropped = sum(counts(path[i][0])) - survivors
        expected = old / 2 if dropped > 1.1 * aim else old * 2 if dropped < 0.9 * aim else old
        assert new == expected
        moves.add(float(new / old))
    assert {0.5, 2.0} <= moves


def test_dsr_moves_weights_to_where_most_survive():
    big = {"a": jnp.full((10, 10), 1.0), "b": jnp.full((10, 10), 1e-6)}
    tx = sparsity.dsr(optax.sgd(0.0), 0.8, total_steps=20, every=(1,) * 4, threshold=1e-3)
    state = tx.init(big)
    current = sparsity.apply_masks(big, sparsity.get_masks(state))
    zeros = jax.tree.map(jnp.zeros_like, big)
    for _ in range(2):  # step 0 is not due
        updates, state = tx.update(zeros, state, current)
        current = optax.apply_updates(current, updates)
    masks = sparsity.get_masks(state)
    # b keeps one weight; the 19 lost are shared 20 : 1.
    assert (int(masks["a"].sum()), int(masks["b"].sum())) == (38, 2)


@pytest.mark.parametrize("seed", range(8))
def test_shares_add_up_within_everyones_room(seed):
    rng = np.random.default_rng(seed)
    weights, room = rng.integers(0, 50, 7), rng.integers(0, 60, 7)
    total = int(rng.integers(0, room.sum() + 1))
    given = np.asarray(
        jax.jit(budgets.share)(jnp.int32(total), jnp.asarray(weights), jnp.asarray(room))
    )
    assert given.sum() == total
    assert (given <= room).all()
    assert (given >= 0).all()


def test_shares_are_proportional_where_there_is_room():
    given = budgets.share(jnp.int32(10), jnp.array([5, 3, 2, 0]), jnp.array([99] * 4))
    assert given.tolist() == [5, 3, 2, 0]
    given = budgets.share(jnp.int32(7), jnp.array([5, 3, 2]), jnp.array([99] * 3))
    assert given.tolist() == [4, 2, 1]  # of 3.5, 2.1, 1.4
    given = budgets.share(jnp.int32(10), jnp.array([8, 1, 1]), jnp.array([2, 99, 99]))
    assert given.tolist() == [2, 4, 4]


# MEST.


def layer_counts(level, step, **options):
    """Weights that one layer of 36,864 keeps after each update, in steps of one epoch of 160."""
    tree = {"w": jax.random.normal(jax.random.key(0), (3, 3, 64, 64))}
    tx = sparsity.mest(optax.sgd(0.0), level, total_steps=160, **options)
    state = tx.init(tree)._replace(count=jnp.int32(step))
    current = sparsity.apply_masks(tree, sparsity.get_masks(state))
    _, state = tx.update(jax.tree.map(jnp.zeros_like, tree), state, current)
    return int(sparsity.get_masks(state)["w"].sum())


@pytest.mark.parametrize(
    ("level", "step", "soft", "expected"),
    [
        (0.9, 0, False, 3686),
        (0.9, 95, False, 3686),
        (0.9, 0, True, 5529),
        (0.9, 95, True, 4608),
        (0.9, 120, True, 3686),
        (0.95, 0, True, 3686),
        (0.98, 0, True, 2580),
        (0.9, 3, True, 3686),  # not due
    ],
)
def test_the_published_densities_of_mest(level, step, soft, expected):
    assert layer_counts(level, step, soft_bound=soft) == expected


def test_mest_scales_layers_that_do_not_start_at_the_budget():
    """A layer with a quarter of its weights shrinks and grows by the factors of the others."""
    tree = {"a": jnp.ones((40, 50)), "b": jnp.ones((40, 50))}
    sizes = {"a": 500, "b": 300}
    masks = {k: jnp.arange(2000).reshape(40, 50) < n for k, n in sizes.items()}
    tx = sparsity.mest(optax.sgd(0.0), 0.8, total_steps=32, masks=masks, soft_bound=True)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, tree), tx.init(tree), tree)
    assert {k: int(m.sum()) for k, m in state.masks.items()} == {"a": 750, "b": 450}


@pytest.mark.parametrize("size", [100, 1000, 10_000])
def test_decimal_fractions_are_meant_as_written(size):
    """1 − 0.9 is less than 0.1 in binary."""
    tree = {"w": jnp.ones((size // 10, 10))}
    tx = sparsity.mest(optax.sgd(0.0), 0.95, total_steps=160, soft_bound=True)
    _, state = tx.update(jax.tree.map(jnp.zeros_like, tree), tx.init(tree), tree)
    assert int(state.masks["w"].sum()) == size // 10


@pytest.mark.parametrize("rounding", [jnp.floor, jnp.ceil])
def test_whole_counts_stay_whole(rounding):
    """0.3 · 100 is 30.000001 in float32."""
    budget = budgets.constant(rounding)
    for percent in (1, 7, 13, 30, 70):
        for active in (100, 900, 54_300):
            layout = budgets.Layout([], jnp.int32([active]), 0, jnp.float32(percent / 100))
            kept = int(budget.decide((), layout).kept[0])
            assert active - kept == percent * active // 100


def test_mest_prunes_below_the_budget_before_it_grows():
    """Of 3686 weights 2950 stay, those of the largest magnitude: the rest is new."""
    tree = {"w": jax.random.normal(jax.random.key(0), (3, 3, 64, 64))}
    tx = sparsity.mest(optax.sgd(0.0), 0.9, total_steps=160)
    state = tx.init(tree)
    current = sparsity.apply_masks(tree, sparsity.get_masks(state))
    updates, state = tx.update(jax.tree.map(jnp.zeros_like, tree), state, current)
    after = optax.apply_updates(current, updates)["w"]
    assert int((after != 0).sum()) == 2950
    assert jnp.sort(jnp.abs(after[after != 0]))[0] >= jnp.sort(jnp.abs(tree["w"].ravel()))[-2951]


def test_growing_alone_does_not_change_the_function():
    tx = sparsity.mest(optax.sgd(0.0), 0.6, total_steps=32, soft_bound=True)
    state = tx.init(mlp_params())
    current = sparsity.apply_masks(mlp_params(), sparsity.get_masks(state))
    updates, after = tx.update(jax.grad(mlp_loss)(current, **mlp_batch()), state, current)
    assert flatten(sparsity.get_masks(after)).sum() > flatten(sparsity.get_masks(state)).sum()
    assert_equal(optax.apply_updates(current, updates), current)


def test_mest_can_weigh_the_gradient_too():
    tree = {"w": jnp.array([[1.0, 2.0, 3.0, 4.0]])}
    tx = sparsity.mest(
        optax.sgd(0.0),
        0.5,
        total_steps=32,
        gradient_weight=10.0,
        lower=(0.75,) * 3,
        upper=(0.75,) * 3,
        masks={"w": jnp.array([[True, False, False, True]])},
    )
    gradient = {"w": jnp.array([[1.0, 0.0, 0.0, 0.0]])}
    _, state = tx.update(gradient, tx.init(tree), sparsity.apply_masks(tree, {"w": tree["w"] != 2}))
    assert sparsity.get_masks(state)["w"].tolist() == [[True, False, False, False]]


# Wrong arguments.


@pytest.mark.parametrize("method", sparsity.METHODS)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "total_steps is missing"),
        ({"total_steps": 0}, "total_steps=0"),
        ({"total_steps": 10, "sparsity": 1.0}, "sparsity=1.0 must be below 1"),
        ({"total_steps": 10, "sparsity": -0.1}, "sparsity=-0.1"),
        ({"total_steps": 10, "moments": "forget"}, "moments='forget'"),
        ({"total_steps": 10, "every": 0}, "every=0"),
    ],
)
def test_wrong_arguments_are_named(method, options, message):
    options = {"sparsity": 0.5, **options}
    if method == "dsr" and "every" in options:
        options["every"] = (0, 1, 2, 3)
    with pytest.raises(ValueError, match=message):
        sparsity.METHODS[method](optax.sgd(0.1), **options)


@pytest.mark.parametrize("method", ["set", "rigl", "dsr", "svite"])
def test_a_stop_outside_the_run_is_named(method):
    with pytest.raises(ValueError, match=r"stop=1.5 must be at most 1"):
        sparsity.METHODS[method](optax.sgd(0.1), 0.5, total_steps=10, stop=1.5)


def test_unknown_options_are_refused():
    with pytest.raises(TypeError, match="momentum"):
        sparsity.rigl(optax.sgd(0.1), 0.5, total_steps=10, momentum="reset")


@pytest.mark.parametrize("method", ["rigl", "svite"])
def test_growing_by_gradient_needs_one(method):
    tx = sparsity.METHODS[method](optax.sgd(0.1), 0.5, total_steps=10)
    with pytest.raises(ValueError, match="no sharpness-aware transformation is inside"):
        tx.update(None, tx.init(mlp_params()), mlp_params(), value_fn=mlp_loss)


def test_masks_of_another_model_are_refused():
    tx = sparsity.rigl(optax.sgd(0.1), 0.5, total_steps=10, masks={"w": jnp.ones((2, 2))})
    with pytest.raises(ValueError, match="mask"):
        tx.init(mlp_params())


def test_a_layer_too_small_for_its_budget_is_refused():
    tx = sparsity.set_(optax.sgd(0.1), 0.9, total_steps=10, distribution="uniform")
    with pytest.raises(ValueError, match="leaves no weight in 1 of 2 arrays, one of 4 weights"):
        tx.init({"a": jnp.ones((30, 30)), "b": jnp.ones((2, 2))})
