"""Masks chosen before training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from problems import assert_equal, mlp_batch, mlp_loss, mlp_params

from zosam_jax import models, sparsity
from zosam_jax.integrations.nnx import split
from zosam_jax.sparsity import distributions

SPARSITY = 0.6


def conv_params():
    return {
        "conv": {"kernel": jnp.ones((3, 3, 4, 8)), "bias": jnp.ones(8)},
        "norm": {"scale": jnp.ones(8)},
        "dense": {"kernel": jnp.ones((16, 10))},
        "steps": jnp.zeros((2, 2), jnp.int32),
    }


def counts(masks):
    return [int(m.sum()) for m in jax.tree.leaves(masks)]


def test_weights_of_two_dimensions_or_more_are_masked():
    masks = sparsity.random(conv_params(), SPARSITY)
    assert masks["conv"]["bias"] is masks["norm"]["scale"] is masks["steps"] is None
    assert masks["conv"]["kernel"].shape == (3, 3, 4, 8)
    assert masks["conv"]["kernel"].dtype == masks["dense"]["kernel"].dtype == bool


@pytest.mark.parametrize("name", distributions.DISTRIBUTIONS)
@pytest.mark.parametrize("level", [0.0, 0.3, 0.9])
def test_arrays_keep_what_the_distribution_says(name, level):
    masks = sparsity.random(conv_params(), level, distribution=name)
    expected = distributions.get(name)([(3, 3, 4, 8), (16, 10)], level)
    assert counts(masks) == expected
    total = 3 * 3 * 4 * 8 + 160
    assert sum(counts(masks)) == round((1 - level) * total)
    assert sparsity.sparsity_of(masks, conv_params()) == pytest.approx(level, abs=1 / total)


def test_sparsity_zero_masks_nothing():
    masks = sparsity.random(conv_params(), 0.0)
    assert_equal(sparsity.apply_masks(conv_params(), masks), conv_params())


def test_where_sees_path_and_leaf():
    seen = {}

    def kernels_of_dense(path, leaf):
        seen[path] = leaf.shape
        return "dense" in path

    masks = sparsity.random(conv_params(), SPARSITY, where=kernels_of_dense)
    assert masks["conv"]["kernel"] is None
    assert counts(masks) == [64]
    assert seen["['conv']['kernel']"] == (3, 3, 4, 8)


def test_the_key_decides_which_weights_stay():
    one, same, other = (sparsity.random(mlp_params(), SPARSITY, key=key) for key in (1, 1, 2))
    assert_equal(one, same)
    assert counts(one) == counts(other)
    assert not jnp.array_equal(one["hidden"]["kernel"], other["hidden"]["kernel"])


@pytest.mark.parametrize(
    "key",
    [np.int32(1), jnp.asarray(1), jax.random.key(1), jax.random.PRNGKey(1)],
    ids=["numpy", "jax", "key", "raw key"],
)
def test_every_kind_of_key_is_a_seed(key):
    assert_equal(
        sparsity.random(mlp_params(), 0.5, key=key), sparsity.random(mlp_params(), 0.5, key=1)
    )


def test_arrays_of_the_same_shape_get_different_masks():
    params = {"a": jnp.ones((8, 8)), "b": jnp.ones((8, 8))}
    masks = sparsity.random(params, 0.5)
    assert not jnp.array_equal(masks["a"], masks["b"])


def test_every_weight_is_as_likely_to_stay():
    stays = [sparsity.random({"w": jnp.ones((4, 5))}, 0.75, key=key)["w"] for key in range(400)]
    np.testing.assert_allclose(np.mean(stays, axis=0), 0.25, atol=5 * np.sqrt(0.1875 / 400))


# Scores.


def kernel(tree, layer="hidden"):
    return np.asarray(tree[layer]["kernel"])


def global_choice(scores, count):
    """The masks of the `count` largest scores of both kernels, by sorting."""
    flat = np.concatenate([kernel(scores).ravel(), kernel(scores, "out").ravel()])
    kept = np.zeros(flat.size, bool)
    kept[np.argsort(-flat, kind="stable")[:count]] = True
    return kept[:15].reshape(3, 5), kept[15:].reshape(5, 2)


def assert_keeps_largest(masks, scores, count):
    for layer, expected in zip(("hidden", "out"), global_choice(scores, count), strict=True):
        np.testing.assert_array_equal(kernel(masks, layer), expected)
    assert masks["hidden"]["bias"] is None


BATCHES = [tuple(mlp_batch(seed=s).values()) for s in (1, 2)]


def test_magnitude_keeps_the_largest_of_all_layers_together():
    masks = sparsity.magnitude(mlp_params(), SPARSITY)
    assert_keeps_largest(masks, jax.tree.map(np.abs, mlp_params()), 10)


@pytest.mark.parametrize("distribution", ["uniform", "erk"])
def test_magnitude_keeps_the_largest_of_each_layer(distribution):
    masks = sparsity.magnitude(mlp_params(), SPARSITY, distribution=distribution)
    kept = distributions.get(distribution)([(3, 5), (5, 2)], SPARSITY)
    for layer, count in zip(("hidden", "out"), kept, strict=True):
        weights, mask = np.abs(kernel(mlp_params(), layer)), kernel(masks, layer)
        assert mask.sum() == count
        assert weights[mask].min() > weights[~mask].max()


def test_a_score_of_ones_own():
    scores = jax.tree.map(lambda p: jnp.arange(p.size).reshape(p.shape), mlp_params())
    masks = sparsity.from_scores(mlp_params(), scores, SPARSITY)
    assert_keeps_largest(masks, scores, 10)


def test_snip_scores_what_removing_a_weight_would_change():
    """|θ ∂L/∂θ| is the derivative along a gate c at 1: here by central differences in float64."""
    masks = sparsity.snip(mlp_loss, mlp_params(), SPARSITY, BATCHES)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), mlp_params())

        def total(gates):
            gated = jax.tree.map(jnp.multiply, params, gates)
            return float(sum(mlp_loss(gated, *batch) for batch in BATCHES))

        def sensitivity(layer, index):
            ones = jax.tree.map(lambda p: np.ones(p.shape), params)
            values = []
            for gate in (1 + 1e-4, 1 - 1e-4):
                ones[layer]["kernel"][index] = gate
                values.append(total(ones))
            return abs(values[0] - values[1]) / 2e-4

        scores = {
            layer: {
                "kernel": np.vectorize(lambda *i, layer=layer: sensitivity(layer, i))(
                    *np.indices(params[layer]["kernel"].shape)
                )
            }
            for layer in ("hidden", "out")
        }
    assert_keeps_largest(masks, scores, 10)


@pytest.mark.parametrize("scale", [1e-3, 250.0])
def test_snip_does_not_depend_on_the_scale_of_the_loss(scale):
    def scaled(params, x, y):
        return scale * mlp_loss(params, x, y)

    assert_equal(
        sparsity.snip(scaled, mlp_params(), SPARSITY, BATCHES),
        sparsity.snip(mlp_loss, mlp_params(), SPARSITY, BATCHES),
    )


def test_grasp_scores_by_the_hessian_times_the_gradient():
    """θ ⊙ H g, with H g by central differences of gradients in float64."""
    masks = sparsity.grasp(mlp_loss, mlp_params(), SPARSITY, BATCHES)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda p: p.astype(jnp.float64), mlp_params())
        gradient = jax.grad(lambda p: sum(mlp_loss(p, *batch) for batch in BATCHES))
        g = jax.tree.map(lambda g: g if g.ndim >= 2 else jnp.zeros_like(g), gradient(params))
        step = 1e-5
        ahead, behind = (
            gradient(jax.tree.map(lambda p, d, sign=sign: p + sign * step * d, params, g))
            for sign in (1, -1)
        )
        scores = jax.tree.map(
            lambda p, a, b: np.asarray(p * (a - b) / (2 * step)), params, ahead, behind
        )
    assert_keeps_largest(masks, scores, 10)
    wrong_way = sparsity.from_scores(
        mlp_params(), jax.tree.map(lambda s: -jnp.asarray(s, jnp.float32), scores), SPARSITY
    )
    assert not np.array_equal(kernel(masks), kernel(wrong_way))


def test_grasp_takes_biases_for_constants():
    """Of L = ½ zᵀAz with z the weights and biases together; H and g in NumPy."""
    generator = np.random.default_rng(3)
    root, z = generator.normal(size=(9, 9)), generator.normal(size=9)
    hessian, weights = root @ root.T, np.arange(9) < 6
    scores, with_biases = (
        (z * (hessian @ (hessian @ z * part)))[:6].reshape(2, 3) for part in (weights, 1.0)
    )

    def loss(params):
        z = jnp.concatenate([params["kernel"].ravel(), params["bias"]])
        return 0.5 * z @ jnp.asarray(hessian, z.dtype) @ z

    params = {"kernel": jnp.asarray(z[:6].reshape(2, 3)), "bias": jnp.asarray(z[6:])}
    found = np.asarray(sparsity.grasp(loss, params, 0.5, [()])["kernel"])
    np.testing.assert_array_equal(found, scores >= np.sort(scores.ravel())[3])
    assert (found != (with_biases >= np.sort(with_biases.ravel())[3])).any()


@pytest.mark.parametrize("method", [sparsity.snip, sparsity.grasp])
def test_auxiliary_outputs_are_ignored(method):
    def with_aux(params, x, y):
        return mlp_loss(params, x, y), {"rows": x.shape[0]}

    assert_equal(
        method(with_aux, mlp_params(), SPARSITY, BATCHES, has_aux=True),
        method(mlp_loss, mlp_params(), SPARSITY, BATCHES),
    )


# SynFlow.


def linear_chain(widths, seed=0):
    keys = jax.random.split(jax.random.key(seed), len(widths) - 1)
    return [
        {"kernel": jax.random.normal(k, (a, b)) / np.sqrt(a)}
        for k, a, b in zip(keys, widths, widths[1:], strict=False)
    ]


def relu_chain(params, x):
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"])
    return x @ params[-1]["kernel"]


@pytest.mark.parametrize("level", [0.5, 0.9, 0.98])
def test_synflow_never_empties_a_layer_of_a_plain_network(level):
    params = linear_chain((30, 60, 50, 40, 10))
    masks = sparsity.synflow(relu_chain, params, level, (30,))
    total = sum(m.size for m in jax.tree.leaves(masks))
    assert sum(counts(masks)) == round((1 - level) * total)
    assert min(counts(masks)) >= 1
    # There still is a path from input to output: the flow is not cut.
    kept = sparsity.apply_masks(jax.tree.map(jnp.abs, params), masks)
    assert relu_chain(kept, jnp.ones((1, 30))).sum() > 0


def test_one_round_of_synflow_all_but_empties_what_a_hundred_do_not():
    params = linear_chain((30, 60, 50, 40, 10))
    once, slowly = (
        sparsity.synflow(relu_chain, params, 0.98, (30,), rounds=rounds) for rounds in (1, 100)
    )
    assert min(counts(once)) == 1 < min(counts(slowly))
    assert sum(counts(once)) == sum(counts(slowly))


def test_synflow_in_one_round_keeps_the_strongest_paths():
    """|θ| ⊙ ∂R/∂|θ|, R = 1ᵀ|W₂||W₁|1, by hand."""
    params = linear_chain((4, 5, 3))
    one, two = (np.abs(np.asarray(p["kernel"], np.float64)) for p in params)
    scores = [
        {"kernel": one * two.sum(1)[None, :]},
        {"kernel": two * one.sum(0)[:, None]},
    ]
    np.testing.assert_allclose(scores[0]["kernel"].sum(), scores[1]["kernel"].sum())
    masks = sparsity.synflow(relu_chain, params, 0.5, (4,), rounds=1)
    expected = sparsity.from_scores(
        params, jax.tree.map(lambda s: jnp.asarray(s, jnp.float32), scores), 0.5
    )
    assert_equal(masks, expected)


def test_synflow_masks_are_nested():
    params = linear_chain((10, 20, 5))
    wide, narrow = (sparsity.synflow(relu_chain, params, s, (10,), rounds=4) for s in (0.5, 0.75))
    half = sparsity.synflow(relu_chain, params, 0.75, (10,), rounds=2)
    assert all(
        (np.asarray(n) <= np.asarray(w)).all()
        for n, w in zip(jax.tree.leaves(half), jax.tree.leaves(wide), strict=True)
    )
    assert sum(counts(narrow)) == sum(counts(half))


def test_synflow_survives_depths_that_overflow_float32():
    params = jax.tree.map(lambda w: 1e3 * w, linear_chain([40] * 20))
    masks = sparsity.synflow(relu_chain, params, 0.9, (40,), rounds=3)
    assert min(counts(masks)) >= 1
    assert masks[0]["kernel"].dtype == bool
    assert jnp.ones(1).dtype == jnp.float32  # the wider precision does not leak out


# Networks with BatchNorm.


class Normalized(nnx.Module):
    """A convolution under BatchNorm, and a head."""

    def __init__(self, *, rngs):
        self.stem = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.stem_norm = nnx.BatchNorm(16, rngs=rngs)
        self.head = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.stem_norm(self.stem(x))).mean((1, 2)))


def resnet8(rngs):
    return models.cifar_resnet(10, depth=8, width=8, image_shape=(8, 8, 1), rngs=rngs)


@pytest.mark.filterwarnings("ignore:no weight is left")  # GraSP may empty the head
@pytest.mark.parametrize(
    ("make", "level"),
    [
        pytest.param(lambda rngs: Normalized(rngs=rngs), 0.9, id="small"),
        *(pytest.param(resnet8, s, id=f"{s}", marks=pytest.mark.slow) for s in (0.9, 0.95, 0.98)),
    ],
)
def test_every_method_prunes_a_network_with_batch_norm(make, level):
    model = make(nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (20, 8, 8, 1))
    y = jnp.arange(20) % 10

    def graph(training):
        model.train() if training else model.eval()
        return split(model)

    def loss(training, temperature=1.0):
        graphdef, _, model_state = graph(training)

        def cross_entropy(params, x, y):
            logits = nnx.merge(graphdef, params, model_state, copy=True)(x) / temperature
            return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

        return cross_entropy

    graphdef, params, model_state = graph(False)
    before = jax.tree.map(jnp.copy, (params, model_state))
    halves = [(x[:10], y[:10]), (x[10:], y[10:])]
    all_masks = {
        "snip": sparsity.snip(loss(False), params, level, [(x, y)]),
        "grasp": sparsity.grasp(loss(True, 200.0), params, level, halves),
        "synflow": sparsity.synflow(
            lambda p, images: nnx.merge(graphdef, p, model_state, copy=True)(images),
            params,
            level,
            (8, 8, 1),
        ),
    }
    total = sum(p.size for p in jax.tree.leaves(params) if p.ndim > 1)
    for masks in all_masks.values():
        assert sum(counts(masks)) == round((1 - level) * total)
        assert masks["stem_norm"]["scale"] is None
    assert min(counts(all_masks["synflow"])) >= 1
    assert_equal((params, model_state), before)


# Wrong arguments.


def exploding(params, x, y):
    return mlp_loss(params, x, y) / 0.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda p: sparsity.magnitude(p, 1.0), ValueError, "sparsity=1.0 must be below 1"),
        (lambda p: sparsity.magnitude(p, -0.5), ValueError, "sparsity=-0.5"),
        (lambda p: sparsity.magnitude(p, "most"), TypeError, "sparsity='most'"),
        (lambda p: sparsity.magnitude(p, 0.5, distribution="even"), ValueError, "'even'"),
        (lambda p: sparsity.magnitude(p, 0.5, where="conv"), ValueError, "by 'conv'; there are"),
        (lambda p: sparsity.snip(mlp_loss, p, 0.5, []), ValueError, "batches is empty"),
        (
            lambda p: sparsity.snip(mlp_loss, p, 0.5, mlp_batch()),
            TypeError,
            "batches must be a list of tuples",
        ),
        (
            lambda p: sparsity.snip(exploding, p, 0.5, BATCHES),
            ValueError,
            "snip's scores are not all finite",
        ),
        (
            lambda p: sparsity.grasp(exploding, p, 0.5, BATCHES),
            ValueError,
            "grasp's scores are not all finite",
        ),
        (
            lambda p: sparsity.synflow(relu_chain, p, 0.5, (4,), rounds=0),
            ValueError,
            "rounds=0",
        ),
        (
            lambda p: sparsity.random(p, 0.95, distribution="uniform"),
            ValueError,
            "leaves no weight in",
        ),
    ],
)
def test_what_cannot_be_is_said(make, error, message):
    with pytest.raises(error, match=message):
        make(mlp_params())


@pytest.mark.parametrize("method", [sparsity.snip, sparsity.grasp])
def test_counters_among_the_parameters_are_left_alone(method):
    params = {**mlp_params(), "steps": jnp.int32(3)}

    def loss(params, x, y):
        return mlp_loss({k: params[k] for k in ("hidden", "out")}, x, y)

    masks = method(loss, params, SPARSITY, BATCHES)
    assert masks.pop("steps") is None
    assert_equal(masks, method(mlp_loss, mlp_params(), SPARSITY, BATCHES))


def test_scores_of_halves_do_not_vanish():
    weights = jnp.concatenate([jnp.full(8, 1e-4), jnp.full(8, 1e-3)]).astype(jnp.float16)
    masks = sparsity.snip(
        lambda p: jnp.sum(p["w"].astype(jnp.float32)) * 1e-5, {"w": weights[None]}, 0.5, [()]
    )
    assert masks["w"][0].tolist() == [False] * 8 + [True] * 8


def test_a_global_random_budget_leaves_the_layers_shares_to_chance():
    shares = {
        tuple(counts(sparsity.random(conv_params(), 0.5, distribution="global", key=key)))
        for key in range(3)
    }
    assert len(shares) == 3
    assert {sum(share) for share in shares} == {224}


@pytest.mark.parametrize("returned", [[10], [10, 200], [-1, 10]])
def test_a_distribution_that_cannot_be_met_is_refused(returned):
    with pytest.raises(ValueError, match="distribution returned"):
        sparsity.random(conv_params(), 0.5, distribution=lambda shapes, sparsity: returned)


def test_a_pattern_of_the_path_chooses_what_to_mask():
    masks = sparsity.random(conv_params(), 0.5, where=r"dense.*kernel")
    assert masks["conv"]["kernel"] is None
    assert counts(masks) == [80]


GLOBAL = {
    "magnitude": sparsity.magnitude,
    "random": lambda params, s: sparsity.random(params, s, distribution="global"),
    "snip": lambda params, s: sparsity.snip(_chain_loss, params, s, _CHAIN_BATCHES),
    "grasp": lambda params, s: sparsity.grasp(_chain_loss, params, s, _CHAIN_BATCHES),
}
_CHAIN_BATCHES = [(jnp.linspace(-1, 1, 4 * 100).reshape(4, 100),)]


def _chain_loss(params, x):
    return jnp.mean((jnp.tanh(x @ params["a"]) @ params["b"]) ** 2)


def uneven_chain():
    """The second layer's weights and scores are far below the first one's."""
    a, b = jax.random.normal(jax.random.key(0), (2, 100, 200))
    return {"a": a, "b": 1e-4 * b[:20].T}


@pytest.mark.parametrize("method", GLOBAL)
def test_a_global_budget_leaves_a_weight_in_each_layer(method):
    masks = GLOBAL[method](uneven_chain(), 0.9999)
    assert counts(masks) == [1, 1]


@pytest.mark.parametrize("method", GLOBAL)
def test_a_global_budget_of_less_than_a_weight_for_each_layer_is_refused(method):
    with pytest.raises(
        ValueError, match=r"sparsity=0\.99999 leaves 0 of 24000 weights to 2 arrays"
    ):
        GLOBAL[method](uneven_chain(), 0.99999)


def test_float8_weights_and_random_keys_beside_them_are_pruned():
    params = {"w": jnp.arange(16.0).reshape(4, 4).astype(jnp.float8_e4m3fn)}
    masks = sparsity.magnitude(params | {"key": jax.random.key(0)}, 0.5)
    assert masks["key"] is None
    assert int(masks["w"].sum()) == 8
    scored = sparsity.snip(lambda p: jnp.sum(p["w"].astype(jnp.float32)), params, 0.5, [()])
    assert_equal(scored["w"], masks["w"])
