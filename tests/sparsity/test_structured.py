"""Whole channels, heads and neurons as what masks keep: scores, budgets, and sentences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_units
from jax.sharding import NamedSharding, PartitionSpec
from problems import assert_equal
from small_units import batch, kept, logits, loss, params, units

from zosam_jax import sparsity
from zosam_jax.sparsity import Group, Member, Units, macs, structured

SIZES = [6, 8, 2]


def unit_scores(of_leaf, kernels_only=True):
    """Σ over the members, in NumPy; of_leaf: name of a leaf's tree → array."""
    found = []
    for group in units().groups:
        scores = np.zeros(group.size)
        for member in group.members:
            array = small_units.leaf(of_leaf, member)
            if array is not None and (array.ndim > 1 or not kernels_only):
                for unit in range(group.size):
                    scores[unit] += np.sum(
                        small_units.along(array, member.axis, member.unit_of, unit),
                        dtype=np.float64,
                    )
        found.append(scores)
    return found


def largest(scores, counts):
    return [
        [bool(u in np.argsort(-s, kind="stable")[:n]) for u in range(len(s))]
        for s, n in zip(scores, counts, strict=True)
    ]


def absolute(tree):
    return jax.tree.map(jnp.abs, tree)


def test_the_score_of_a_unit_is_the_sum_over_its_kernels():
    masks = sparsity.magnitude(params(), 0.5, distribution="uniform", units=units())
    assert kept(masks) == largest(unit_scores(absolute(params())), [3, 4, 1])


def test_where_chooses_what_counts():
    """Network slimming: the scales alone."""
    neurons = units()._replace(groups=units().groups[:1])
    masks = sparsity.magnitude(params(), 0.5, units=neurons, where=sparsity.is_scale)
    scale = np.abs(np.asarray(params()["norm"]["scale"]))
    expected = largest([scale], [3])[0]
    assert np.asarray(masks["norm"]["scale"]).tolist() == expected
    assert np.asarray(masks["fc2"]["kernel"]).all(axis=1).tolist() == expected


def test_global_budgets_compare_groups_and_keep_one_of_each():
    scores = [jnp.arange(9.0, 3.0, -1), jnp.arange(8.0), jnp.array([-1.0, -2.0])]
    masks = sparsity.from_unit_scores(params(), scores, 0.5, units=units())
    # Eight of sixteen: the one head of -1 comes first, then 9, 8, 7, 7, 6, 6, 5 (the earlier).
    assert [sum(k) for k in kept(masks)] == [5, 2, 1]
    assert kept(masks)[0] == [True] * 5 + [False]
    assert kept(masks)[2] == [True, False]


def test_ties_go_to_the_lowest_index():
    ones = jax.tree.map(jnp.ones_like, params())
    masks = sparsity.magnitude(ones, 0.5, distribution="uniform", units=units())
    assert kept(masks) == [[True] * 3 + [False] * 3, [True] * 4 + [False] * 4, [True, False]]


@pytest.mark.parametrize("distribution", ["uniform", "erk", "global"])
@pytest.mark.parametrize("level", [0.0, 0.25, 0.5])
def test_random_units_in_exact_numbers(distribution, level):
    choose = functools.partial(
        sparsity.random, params(), level, distribution=distribution, units=units()
    )
    counts = [sum(k) for k in kept(choose(key=1))]
    assert sum(counts) == round((1 - level) * 16)
    if distribution != "global":
        assert counts[:2] == [round((1 - level) * n + 0.01) for n in SIZES[:2]]
    if level == 0.5:
        assert kept(choose(key=1)) != kept(choose(key=2))


def test_taylor_sums_products_of_each_batch():
    batches = [batch(1), batch(2)]
    pairs = [(b["x"], b["y"]) for b in batches]
    gradients = [jax.grad(loss)(params(), **b) for b in batches]
    products = jax.tree.map(
        lambda w, *g: sum(np.abs(np.asarray(w) * np.asarray(one)) for one in g),
        params(),
        *gradients,
    )
    masks = sparsity.taylor(loss, params(), 0.5, pairs, units=units(), distribution="uniform")
    assert kept(masks) == largest(unit_scores(products), [3, 4, 1])
    single = sparsity.taylor(loss, params(), 0.5, pairs, where="fc2")["fc2"]["kernel"]
    order = np.argsort(-products["fc2"]["kernel"].ravel(), kind="stable")
    assert set(np.flatnonzero(np.ravel(single))) == set(order[:24])


def test_other_scores_take_units_too():
    pairs = [(batch()["x"], batch()["y"])]
    for method in (sparsity.snip, sparsity.grasp):
        kept(method(loss, params(), 0.5, pairs, units=units(), distribution="uniform"))


def remaining(found, costs):
    """The costs left, by counting."""
    total = 0.0
    for (path, _), cost in zip(
        jax.tree.leaves_with_path(params()), jax.tree.leaves(costs), strict=True
    ):
        density = 1.0
        for group, of_group in zip(units().groups, found, strict=True):
            for m in group.members:
                if m.path == jax.tree_util.keystr(path):
                    density *= np.mean([of_group[u] for u in m.unit_of])
        total += cost * density
    return total


def order_of_removal(scores, evenly):
    """Units from the first to go to the last; the best of each group are not among them."""
    ranked = []
    for g, s in enumerate(scores):
        order = np.argsort(-s, kind="stable")
        for rank, unit in enumerate(order):
            if rank:
                key = (rank + 0.5) / len(s) if evenly else -s[unit]
                ranked.append((key, g, unit))
    return [(g, u) for _, g, u in sorted(ranked, reverse=True)]


@pytest.mark.parametrize("distribution", ["uniform", "global"])
@pytest.mark.parametrize("budget", ["weights", "macs"])
@pytest.mark.parametrize("level", [0.0, 0.3, 0.6])
def test_budgets_of_weights_and_macs(distribution, budget, level):
    costs, options = jax.tree.map(jnp.size, params()), {}
    if budget == "macs":
        costs = macs.macs(logits, params(), jnp.ones((1, 4)))
        options = {"costs": costs}
    costs["proj"]["bias"] = 0  # carries no unit
    masks = sparsity.magnitude(
        params(), level, units=units(), distribution=distribution, budget=budget, **options
    )
    expected = [[True] * n for n in SIZES]
    total = remaining(expected, costs)
    scores = unit_scores(absolute(params()))
    for g, u in order_of_removal(scores, evenly=distribution == "uniform"):
        if remaining(expected, costs) <= (1 - level) * total + 1e-6 * total:
            break
        expected[g][u] = False
    assert kept(masks) == expected


def test_an_axis_that_reads_a_concatenation_belongs_to_two_groups():
    def member(path, axis, unit_of, role):
        return Member(path, axis, np.array(unit_of), role)

    two = Units(
        tuple(
            Group(
                f"['{name}']",
                "neurons",
                2,
                (
                    member(f"['{name}']", 1, [0, 1], "output"),
                    member("['reads']", 0, unit_of, "input"),
                ),
            )
            for name, unit_of in [("a", [0, 1, -1, -1, -1]), ("b", [-1, -1, 0, 1, -1])]
        )
    )
    arrays = {"a": jnp.array([[1.0, 2.0]]), "b": jnp.array([[4.0, 3.0]]), "reads": jnp.ones((5, 1))}
    masks = sparsity.magnitude(arrays, 0.5, distribution="uniform", units=two)
    assert masks["reads"][:, 0].tolist() == [False, True, True, False, True]
    assert masks["a"].tolist() == [[False, True]]
    assert masks["b"].tolist() == [[True, False]]
    cut = sparsity.magnitude(arrays, 0.3, units=two, budget="weights")
    assert [int(m.sum()) for m in jax.tree.leaves(cut)] == [1, 1, 3]  # one of each, not 6 of 9


def test_sizes_differ_from_unit_to_unit():
    """A head of three positions and one of one."""
    group = Group("a", "heads", 2, (Member("['a']", 0, np.array([0, 1, 0, 0]), "output"),))
    masks = sparsity.from_unit_scores(
        {"a": jnp.ones((4, 2))}, [jnp.array([1.0, 2.0])], 0.5, units=Units((group,))
    )
    assert masks["a"].all(axis=1).tolist() == [False, True, False, False]


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
def test_arrays_in_pieces_give_the_same_masks():
    expected = sparsity.magnitude(params(), 0.5, units=units())
    mesh = jax.make_mesh((4,), ("data",))
    split = jax.tree.map(
        lambda p: jax.device_put(
            p, NamedSharding(mesh, PartitionSpec("data" if p.shape[0] % 4 == 0 else None))
        ),
        params(),
    )
    with jax.set_mesh(mesh):
        found = jax.jit(lambda p: sparsity.magnitude(p, 0.5, units=units()))(split)
    assert_equal(jax.device_get(found), jax.device_get(expected))


def test_kinds_are_picked():
    assert [g.name for g in structured.of_kind(units(), "heads").groups] == ["['qkv']"]
    with pytest.raises(ValueError, match="units has no channels; it has heads, neurons"):
        structured.of_kind(units(), "channels")


def of(group):
    return Units((units().groups[0]._replace(**group),))


def prune(level=0.5, of_units=units, **options):
    return lambda: sparsity.magnitude(params(), level, units=of_units(), **options)


COSTS = {"a": 1}
WRONG = [
    (prune(0.9, distribution="uniform"), "sparsity=0.9 would leave nothing of a group of 2 units"),
    (prune(0.9), "sparsity=0.9 leaves 2 of 16 units to 3 groups, of which each keeps one"),
    (prune(0.95, budget="weights"), "sparsity=0.95 cannot be reached: with one unit in each"),
    (prune(budget="flops"), "budget='flops' is not known"),
    (prune(budget="macs"), "budget='macs' needs costs=macs.macs"),
    (prune(costs=COSTS), "no other budget takes them; budget='units'"),
    (
        prune(budget="weights", distribution=lambda shapes, s: [1, 1, 1]),
        "does not go with a budget of weights or MACs",
    ),
    (prune(distribution=lambda shapes, s: [1, 1, 9]), "distribution returned"),
    (prune(pattern=sparsity.patterns.n_m()), "pattern=2:4 does not go with units"),
    (
        lambda: sparsity.random(params(), 0.5, units=units(), pattern=sparsity.patterns.n_m()),
        "pattern=2:4 does not go with units",
    ),
    (prune(distribution="even"), "distribution='even' is not known"),
    (prune(where="fc2"), r"where= chooses no array of the group \['qkv'\]"),
    (prune(of_units=lambda: Units((), ("conv is read by a loop.",))), "conv is read by a loop"),
    (prune(of_units=lambda: of({"size": 3})), r"\['fc1'\]\" has 3 units, .* there are 0 … 5"),
    (
        prune(of_units=lambda: of({"members": (Member("['x']", 0, np.arange(6), "output"),)})),
        r"\['fc1'\]\" lies in \['x'\], and params holds",
    ),
    (
        lambda: sparsity.from_unit_scores(params(), [jnp.ones(6)], 0.5, units=units()),
        r"scores has the shapes \[\(6,\)\] for groups of \[6, 8, 2\]",
    ),
    (
        lambda: sparsity.magnitude(params(), 0.5, budget="weights"),
        "go with units=, which is missing",
    ),
]


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_what_cannot_be_right_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_units_are_units():
    with pytest.raises(TypeError, match=r"units is dict; it must be what sparsity\.units returns"):
        sparsity.magnitude(params(), 0.5, units={})
    with pytest.raises(TypeError, match="units is list"):
        sparsity.random(params(), 0.5, units=[])
