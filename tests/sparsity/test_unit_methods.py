"""Gradual pruning and S²ViTE, update by update, against NumPy."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small_units
from flax import nnx
from problems import assert_close, assert_equal
from small_units import batch, kept, logits, loss, params, units

import zosam_jax
from zosam_jax import sparsity
from zosam_jax.integrations.nnx import Optimizer
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.sparsity import macs, schedules, structured

STEPS = 40


def momentum():
    return optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.05, momentum=0.9))


def trail(tx, steps=STEPS, start=None):
    """[(masks, params, state)] before the first step and after each."""
    current = params() if start is None else start
    state = tx.init(current)
    if isinstance(state, sparsity.DropAndGrowState):
        current = sparsity.apply_masks(current, state.masks)
    step = jax.jit(lambda p, s, b: apply_loss(tx, loss, p, s, **b)[2:])
    found = [(sparsity.get_masks(state), current, state)]
    for i in range(steps):
        current, state = step(current, state, batch(i))
        found.append((sparsity.get_masks(state), current, state))
    return found


def count(mask):
    return int(np.sum(np.asarray(mask)))


# Gradual pruning.


def cubic(step, initial, final, begin, end):
    left = 1 - np.clip((step - begin) / (end - begin), 0, 1)
    return final + (initial - final) * left**3


def test_the_cubic_schedule():
    schedule = schedules.cubic(0.2, 0.9, begin=3, end=24, every=5)
    assert [t for t in range(40) if schedule.is_due(jnp.int32(t))] == [3, 8, 13, 18, 23, 24]
    found = [float(schedule.fraction(jnp.int32(t))) for t in range(40)]
    np.testing.assert_allclose(found, [cubic(t, 0.2, 0.9, 3, 24) for t in range(40)], rtol=1e-6)
    assert found[30] == np.float32(0.9)


GRADUAL = functools.partial(sparsity.gradual, total_steps=STEPS, every=4, start=0.1)


@functools.cache
def gradual_trail(**options):
    return trail(GRADUAL(momentum(), 0.75, **options))


def test_weights_go_along_the_cubic_and_never_come_back():
    """Each layer to the density that the distribution gives it."""
    found = gradual_trail(distribution="erk")
    kernels = [(layer, "kernel") for layer in ("fc1", "fc2", "proj", "qkv")]
    sizes = [params()[a][b].size for a, b in kernels]
    last = sparsity.distributions.get("erk")([params()[a][b].shape for a, b in kernels], 0.75)
    for step, (masks, current, _) in enumerate(found[1:]):
        due = step - step % 4 if 4 <= step < 30 else (0 if step < 4 else 30)
        left = (cubic(due, 0, 0.75, 4, 30) - 0.75) / (0 - 0.75)
        expected = [z + round((n - z) * left) for n, z in zip(sizes, last, strict=True)]
        assert [count(masks[a][b]) for a, b in kernels] == expected, step
        for (a, b), before in zip(kernels, [found[step][0]] * 4, strict=True):
            assert not np.any(np.asarray(masks[a][b]) & ~np.asarray(before[a][b]))
            assert not np.asarray(current[a][b])[~np.asarray(masks[a][b])].any()
    assert sum(count(found[-1][0][a][b]) for a, b in kernels) == round(0.25 * sum(sizes))


def test_it_is_the_smallest_that_go_after_the_step():
    found = gradual_trail(distribution="erk")
    for step in (8, 30):
        (before, current, state), (after, _, _) = found[step], found[step + 1]
        gradient = jax.grad(loss)(current, **batch(step))
        updates, _ = momentum().update(gradient, state.inner_state, current)
        moved = np.abs(optax.apply_updates(current, updates)["fc2"]["kernel"])
        scores = np.where(np.asarray(before["fc2"]["kernel"]), moved, -1.0).ravel()
        order = np.argsort(-scores, kind="stable")[: count(after["fc2"]["kernel"])]
        assert set(np.flatnonzero(np.ravel(after["fc2"]["kernel"]))) == set(order)


def test_it_may_begin_with_zeros():
    tx = GRADUAL(momentum(), 0.75, initial=0.5, distribution="uniform")
    counts = [count(tx.init(params()).masks[layer]["kernel"]) for layer in ("fc1", "fc2")]
    assert counts == [12, 24]
    found = trail(tx, steps=31)
    assert [count(m["fc2"]["kernel"]) for m, _, _ in (found[4], found[31])] == [24, 12]


@pytest.mark.parametrize("score", ["magnitude", "taylor"])
@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_units_go_gradually(score, distribution):
    options = {"score": score, "distribution": distribution}
    tx = GRADUAL(momentum(), 0.5, units=units(), **options)
    counts = [[sum(k) for k in kept(masks)] for masks, _, _ in trail(tx)[::4]]
    assert counts[0] == [6, 8, 2]
    assert all(min(c) >= 1 for c in counts)
    assert all(
        a >= b for one, two in itertools.pairwise(counts) for a, b in zip(one, two, strict=True)
    )
    assert sum(counts[-1]) == 8
    if distribution == "uniform":
        assert counts[-1] == [3, 4, 1]
        left = (cubic(12, 0, 0.5, 4, 30) - 0.5) / -0.5
        assert counts[4] == [3 + round(3 * left), 4 + round(4 * left), 1 + round(left)]


@pytest.mark.parametrize("distribution", ["uniform", "global"])
def test_units_go_gradually_within_a_budget_of_macs(distribution):
    costs = macs.macs(logits, params(), jnp.ones((1, 4)))
    options = {"units": units(), "budget": "macs", "costs": costs, "distribution": distribution}
    found = trail(GRADUAL(momentum(), 0.6, **options))
    total = sum(jax.tree.leaves(costs))
    shares = []
    for masks, _, _ in found[::5]:
        kept(masks)
        shares.append(macs.kept_macs(costs, masks, params()) / total)
    assert shares[0] == 1
    assert shares[-1] <= 0.4
    assert shares == sorted(shares, reverse=True)


def test_gradual_sparsity_zero_is_the_base_optimizer():
    found = trail(GRADUAL(momentum(), 0.0), steps=3)
    assert found[-1][0] is None
    base = params()
    state = momentum().init(base)
    for i in range(3):
        updates, state = momentum().update(jax.grad(loss)(base, **batch(i)), state, base)
        base = optax.apply_updates(base, updates)
    assert_close(found[-1][1], base)


# Straight-through masks.


def test_pruned_weights_train_on_by_the_gradient_of_the_sparse_network():
    tx = GRADUAL(optax.sgd(0.8), 0.5, straight_through=True, distribution="uniform")
    found = trail(tx, steps=32)
    for step, (masks, current, _) in enumerate(found[:-1]):
        gradient = jax.grad(loss)(sparsity.apply_masks(current, masks), **batch(step))
        expected = jax.tree.map(lambda p, g: p - 0.8 * g, current, gradient)
        after, moved, _ = found[step + 1]
        assert_close(moved, expected, atol=1e-5)
        if step in (8, 30):
            weights = np.abs(np.asarray(moved["qkv"]["kernel"])).ravel()
            mask = np.ravel(after["qkv"]["kernel"])
            assert weights[mask].min() >= weights[~mask].max()
    assert count(found[-1][0]["qkv"]["kernel"]) == 72
    assert (np.asarray(found[-1][1]["qkv"]["kernel"]) != 0).all()
    came_back = [
        np.any(np.asarray(b[layer]["kernel"]) & ~np.asarray(a[layer]["kernel"]))
        for (a, _, _), (b, _, _) in itertools.pairwise(found)
        for layer in ("fc1", "fc2", "qkv", "proj")
    ]
    assert any(came_back)


def test_a_sharpness_aware_row_inside_perturbs_what_is_kept():
    """At ρ = 0 it takes the steps of the base optimizer; ε is zero where masks are."""
    plain = trail(GRADUAL(optax.sgd(0.2), 0.5, straight_through=True, units=units()), steps=12)
    sam = functools.partial(GRADUAL, sparsity=0.5, straight_through=True, units=units())
    inside = trail(sam(optax.chain(zosam_jax.sam(0.0), optax.sgd(0.2))), steps=12)
    assert_close(inside[-1][1], plain[-1][1])
    assert_equal(inside[-1][0], plain[-1][0])
    kept(inside[-1][0])
    seen = []

    def spy(direction, params, rho, mask=None):
        seen.append(zosam_jax.radius.global_(direction, params, rho, mask))
        return seen[-1]

    up = zosam_jax.sharpness_aware(zosam_jax.ascent.backprop(), 0.1, radius=spy)
    tx = sam(optax.chain(up, optax.sgd(0.2)))
    masks = inside[-1][0]
    state = tx.init(params())
    state = state._replace(sparse=state.sparse._replace(masks=masks))
    tx.update(None, state, params(), value_fn=loss, **batch())
    gone = ~np.asarray(masks["fc2"]["kernel"])
    assert not np.asarray(seen[0]["fc2"]["kernel"])[gone].any()
    assert np.asarray(seen[0]["fc2"]["kernel"])[~gone].all()


# S²ViTE.


S2VITE = functools.partial(sparsity.s2vite, sparsity=0.5, units=units(), total_steps=STEPS, every=4)


@functools.cache
def exchanges():
    return trail(S2VITE(momentum(), fraction=0.5))


def test_units_are_exchanged_in_exact_numbers_on_schedule():
    found = exchanges()
    layouts = [kept(masks) for masks, _, _ in found]
    assert all([sum(k) for k in layout] == [3, 4, 1] for layout in layouts)
    changed = [i for i in range(STEPS) if layouts[i] != layouts[i + 1]]
    assert changed
    assert all(i % 4 == 0 and 0 < i < 32 for i in changed)
    assert int(found[-1][2].updates) == 7
    for masks, current, _ in found:
        for layer in ("fc1", "fc2", "qkv"):
            for part, mask in masks[layer].items():
                assert not np.asarray(current[layer][part])[~np.asarray(mask)].any()


def per_unit(tree, group, roles=("output", "input")):
    total = np.zeros(group.size)
    for member in group.members:
        array = small_units.leaf(tree, member)
        if array is not None and array.ndim > 1 and member.role in roles:
            for unit in range(group.size):
                total[unit] += small_units.along(array, member.axis, member.unit_of, unit).sum()
    return total


def awake(current, layout):
    """The weights with the initial ones of units that are gone, unless they read a unit so."""
    found = jax.tree.map(np.array, current)
    for group, of_group in zip(units().groups, layout, strict=True):
        for m in group.members:
            array = small_units.leaf(found, m)
            if array is not None and m.role != "input":
                gone = [not of_group[u] for u in m.unit_of]
                index = (slice(None),) * m.axis + (gone,)
                array[index] = np.asarray(small_units.leaf(params(), m))[index]
    for group, of_group in zip(units().groups, layout, strict=True):
        for m in group.members:
            if m.role == "input":
                gone = [not of_group[u] for u in m.unit_of]
                small_units.leaf(found, m)[(slice(None),) * m.axis + (gone,)] = 0
    return jax.tree.map(jnp.asarray, found)


def test_the_weakest_by_taylor_go_and_those_of_the_largest_gradient_come():
    found = exchanges()
    for step, alpha in ((4, 0.4877), (16, 0.3277)):
        (masks, current, state), (after, moved, _) = found[step], found[step + 1]
        layout, new = kept(masks), kept(after)
        there = awake(current, layout)
        assert_close(loss(there, **batch(step)), loss(current, **batch(step)))
        gradient = jax.grad(loss)(there, **batch(step))
        updates, _ = momentum().update(
            sparsity.apply_masks(gradient, masks), state.inner_state, current
        )
        stepped = sparsity.apply_masks(optax.apply_updates(current, updates), masks)
        taylor = jax.tree.map(lambda w, g: np.abs(np.asarray(w * g)), stepped, gradient)
        size = jax.tree.map(lambda g: np.abs(np.asarray(g)), gradient)
        for group, before, now in zip(units().groups, layout, new, strict=True):
            active = sum(before)
            dropped = int(np.ceil(alpha * active))
            drop = np.where(before, per_unit(taylor, group), -np.inf)
            stay = set(np.argsort(-drop, kind="stable")[: active - dropped])
            rest = per_unit(size, group, roles=("input",))
            assert (rest[~np.array(before)] > 0).all()
            others = [u for u in np.argsort(-rest, kind="stable") if u not in stay]
            assert {u for u, k in enumerate(now) if k} == stay | set(others[:dropped]), group.name
        expected = awake(
            sparsity.apply_masks(stepped, after),
            [
                [a and b for a, b in zip(*pair, strict=True)]
                for pair in zip(layout, new, strict=True)
            ],
        )
        assert_close(moved, sparsity.apply_masks(expected, after), atol=1e-5)


def test_growing_alone_does_not_change_the_output_and_what_grew_learns():
    tx = S2VITE(optax.sgd(0.0), moments="keep")
    found = trail(tx, steps=6)
    assert kept(found[4][0]) != kept(found[5][0])
    both = structured.both(found[4][0], found[5][0])
    x = batch()["x"]
    np.testing.assert_allclose(
        logits(sparsity.apply_masks(found[4][1], both), x), logits(found[5][1], x), atol=1e-6
    )
    masks, old = np.asarray(exchanges()[5][0]["fc2"]["kernel"]), exchanges()[4][0]["fc2"]["kernel"]
    grown = masks.any(axis=1) & ~np.asarray(old).any(axis=1)
    assert grown.any()
    assert np.abs(np.asarray(exchanges()[7][1]["fc2"]["kernel"])[grown]).sum() > 0


def test_the_gradient_inside_grows_like_the_one_outside():
    inside = trail(S2VITE(optax.chain(zosam_jax.sam(0.0), momentum()), fraction=0.5), steps=20)
    assert_equal(inside[-1][0], exchanges()[20][0])
    assert_close(inside[-1][1], exchanges()[20][1])


def test_where_gradients_are_taken_elsewhere_nothing_is_exchanged():
    """The control of the tests above."""
    tx = S2VITE(optax.sgd(0.1))
    state = first = tx.init(params())
    current = sparsity.apply_masks(params(), state.masks)
    step = jax.jit(lambda p, s, b: tx.update(jax.grad(loss)(p, **b), s, p))
    for i in range(9):
        updates, state = step(current, state, batch(i))
        current = optax.apply_updates(current, updates)
        assert_equal(sparsity.apply_masks(current, state.masks), current)
    assert int(state.updates) == 2
    assert kept(state.masks)[1:] == kept(first.masks)[1:]  # the others may be dead, by ReLU


def test_units_of_a_flax_model():
    """Its parameters stand in variables when the optimizer begins, and bare in its steps."""

    class Net(nnx.Module):
        def __init__(self):
            rngs = nnx.Rngs(0)
            self.fc1, self.fc2 = nnx.Linear(4, 6, rngs=rngs), nnx.Linear(6, 4, rngs=rngs)

        def __call__(self, x):
            return self.fc2(jax.nn.relu(self.fc1(x)))

    def of_model(model, x, y):
        return optax.losses.softmax_cross_entropy_with_integer_labels(model(x), y).mean()

    group = units().groups[0]
    members = [m for m in group.members if "norm" not in m.path]
    neurons = units()._replace(groups=(group._replace(members=tuple(members)),))
    model = Net()
    optimizer = Optimizer(model, S2VITE(optax.sgd(0.1), units=neurons), wrt=nnx.Param)
    optimizer.apply_masks(model)
    step = nnx.jit(lambda m, o, x, y: o.apply_loss(m, of_model, x, y))
    first = np.asarray(optimizer.masks["fc1"]["bias"])
    for i in range(8):
        step(model, optimizer, *batch(i).values())
    masks = optimizer.masks
    assert int(masks["fc1"]["bias"].sum()) == 3
    assert (np.asarray(masks["fc1"]["bias"]) != first).any()
    assert not np.asarray(model.fc2.kernel[...])[~np.asarray(masks["fc1"]["bias"])].any()


def test_parameters_are_themselves_for_other_wrappers():
    tx = sparsity.rigl(optax.sgd(0.1), 0.5, total_steps=10)
    assert sparsity.forward_params(params(), tx.init(params())) is not None
    assert_equal(sparsity.forward_params(params(), tx.init(params())), params())


UNITS = {"units": units()}
WRONG = [
    (lambda: GRADUAL(momentum(), 0.5, score="sum"), ValueError, "score='sum' is not known"),
    (
        lambda: GRADUAL(momentum(), 0.5, score="taylor", straight_through=True),
        ValueError,
        "score='taylor' does not go with straight_through",
    ),
    (
        lambda: sparsity.gradual(momentum(), 0.5, total_steps=10, start=0.8),
        ValueError,
        "start=0.8 must be below stop=0.75",
    ),
    (lambda: GRADUAL(momentum(), 0.5, initial=0.6), ValueError, "initial=0.6 must lie between 0"),
    (lambda: GRADUAL(momentum(), 1.0), ValueError, "sparsity=1.0 must be below 1"),
    (
        lambda: GRADUAL(momentum(), 0.5, pattern=sparsity.patterns.n_m()),
        ValueError,
        "pattern=2:4 does not go with this method",
    ),
    (
        lambda: GRADUAL(momentum(), 0.9, **UNITS).init(params()),
        ValueError,
        "sparsity=0.9 would leave nothing of a group of 2 units",
    ),
    (
        lambda: S2VITE(momentum(), masks=lambda p: sparsity.random(p, 0.5)).init(params()),
        ValueError,
        "the masks cover .* make them with units= too",
    ),
    (
        lambda: S2VITE(momentum(), masks=half_a_unit).init(params()),
        ValueError,
        "the initial mask of .* has not whole units",
    ),
    (
        lambda: S2VITE(momentum(), units=unread()).init(params()),
        ValueError,
        r"nothing among the parameters reads the group \['fc1'\]: leave it out",
    ),
    (
        lambda: S2VITE(momentum(), units=None),
        TypeError,
        r"units is NoneType; it must be what sparsity\.units returns",
    ),
    (
        lambda: sparsity.s2vite(momentum(), 0.5, units=units()),
        ValueError,
        "total_steps is missing",
    ),
]


def unread():
    first = units().groups[0]
    return units()._replace(groups=(first._replace(members=first.members[:4]),))


def half_a_unit(params):
    masks = sparsity.magnitude(params, 0.5, units=units())
    masks["fc1"]["bias"] = ~masks["fc1"]["bias"]
    return masks


@pytest.mark.parametrize(("make", "error", "message"), WRONG)
def test_what_cannot_be_right_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
