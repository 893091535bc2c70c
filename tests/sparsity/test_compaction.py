"""Compacted networks compute what masked ones do, and their training goes on where it stood."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from problems import slow_but
from structured import RandomNetwork, random_choice, unit_masks

import zosam_jax
from zosam_jax import models, sparsity
from zosam_jax.integrations import plain
from zosam_jax.integrations.nnx import split
from zosam_jax.sparsity import Group, Member, Units
from zosam_jax.sparsity.removal import leaves_by_path


def close(a, b):
    """Within 1e-5 of the largest output."""
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * (1 + float(jnp.abs(b).max())))


def size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("seed", slow_but(range(5), range(60)))
def test_random_networks(seed, residual):
    """Any units of any groups: they go from all their arrays, and nothing else changes."""
    network, rng = RandomNetwork(seed), np.random.default_rng(seed)
    x = jnp.asarray(rng.normal(size=(2, 6, 6, 3)), jnp.float32)
    units = sparsity.units(network, network.params, x, residual=residual)
    one = units.groups[rng.integers(len(units.groups))]
    for groups in (units.groups, [one]):
        removed = random_choice(groups, rng)
        masks = unit_masks(network.params, units, removed)
        kept = sparsity.kept_units(network.params, masks, units)
        for group in units.groups:
            expected = ~removed.get(group.name, np.zeros(group.size, bool))
            np.testing.assert_array_equal(kept[group.name], expected)
        small = sparsity.compact(network.params, masks, units)
        by_path = leaves_by_path(small)
        for group in groups:
            for member in group.members:
                gone = np.append(removed[group.name], False)[member.unit_of]
                assert by_path[member.path].shape[member.axis] <= len(gone) - gone.sum()
        assert sparsity.compact_masks(network.params, masks, units) == dict.fromkeys(small)
        masked = sparsity.apply_masks(network.params, masks)
        close(jax.jit(network)(small, x), jax.jit(network)(masked, x))


def moved(model, seed=0):
    """The model with biases, scales and statistics that are not what they were at first."""
    rng = np.random.default_rng(seed)
    graphdef, params, state = split(model)

    def noisy(leaf, scale):
        return jnp.asarray(leaf + scale * rng.normal(size=leaf.shape), leaf.dtype)

    state = jax.tree.map(
        lambda x: noisy(x, 0.1) ** 2 if x.dtype == jnp.float32 else x, nnx.as_pure(state)
    )
    return nnx.merge(graphdef, jax.tree.map(lambda x: noisy(x, 0.02), params), state)


def compared(model, x, modes=("eval", "train"), **options):
    """The compacted model, after its outputs were compared, at half of the units of each group."""
    units = sparsity.units(model, x, **options)
    graphdef, params, state = split(model)
    masks = unit_masks(params, units, random_choice(units.groups, np.random.default_rng(3)))
    masked = nnx.merge(graphdef, sparsity.apply_masks(params, masks), state, copy=True)
    small = sparsity.compact(model, masks, units)
    apply = nnx.jit(lambda model, x: model(x))
    for mode in modes:
        for network in (masked, small):
            getattr(network, mode)()
        close(apply(small, x), apply(masked, x))
    small_state, expected = (split(network)[2] for network in (small, masked))
    remaining = sparsity.kept_units(model, masks, units)
    jax.tree.map(close, small_state, sparsity.cut(expected, units, remaining))  # after training
    assert size(split(small)[1]) < size(params)
    return small


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("lenet-300-100", {}),
        ("resnet8", {}),
        pytest.param("resnet8", {"residual": True}, marks=pytest.mark.slow),
        pytest.param("resnet32", {}, marks=pytest.mark.slow),
        # In training 53 layers amplify how batch statistics are rounded; see below.
        pytest.param("resnet50-cifar", {"modes": ["eval"]}, marks=pytest.mark.slow),
        pytest.param("wrn-28-10", {}, marks=pytest.mark.slow),
        pytest.param("deit-micro", {}, marks=pytest.mark.slow),
        pytest.param("deit-tiny", {}, marks=pytest.mark.slow),
    ],
)
def test_models(name, options):
    image_shape = (8, 8, 3)
    patch = {"patch": 4} if name.startswith("deit") else {}
    model = models.create(name, 10, rngs=nnx.Rngs(0), image_shape=image_shape, **patch)
    x = jax.random.normal(jax.random.key(1), (4, *image_shape))
    small = compared(moved(model), x, **options)
    dense = [module for _, module in nnx.iter_modules(small) if isinstance(module, nnx.Linear)]
    assert all((m.in_features, m.out_features) == m.kernel.shape for m in dense)


@pytest.mark.slow
def test_training_of_a_deep_network_in_float64():
    with jax.enable_x64(True):
        model = models.create("resnet50-cifar", 10, rngs=nnx.Rngs(0), image_shape=(8, 8, 3))
        graphdef, params, state = split(moved(model))
        wide = [jax.tree.map(lambda x: x.astype(jnp.float64), tree) for tree in (params, state)]
        x = jax.random.normal(jax.random.key(1), (4, 8, 8, 3), jnp.float64)
        compared(nnx.merge(graphdef, *wide), x, ["train"])


def test_heads_differ_from_block_to_block():
    model = models.deit(
        5, dim=16, depth=2, heads=4, patch=4, image_shape=(8, 8, 3), rngs=nnx.Rngs(0)
    )
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 3))
    units = sparsity.units(model, x)
    graphdef, params, state = split(model)
    removed = {
        "['blocks'][0]['attention']['qkv']": np.array([True, False, True, True]),
        "['blocks'][1]['attention']['qkv']": np.array([False, False, True, False]),
    }
    masks = unit_masks(params, units, removed)
    small = sparsity.compact(model, masks, units)
    assert small.blocks[0].attention.qkv.kernel.shape == (16, 3 * 4)
    assert small.blocks[1].attention.qkv.kernel.shape == (16, 3 * 12)
    assert small.blocks[0].attention.proj.in_features == 4
    masked = nnx.merge(graphdef, sparsity.apply_masks(params, masks), state)
    close(small(x), masked(x))


class FlaxLayers(nnx.Module):
    def __init__(self, rngs):
        self.conv = nnx.Conv(3, 8, (3, 3), rngs=rngs)
        self.depthwise = nnx.Conv(8, 16, (3, 3), feature_group_count=8, rngs=rngs)
        self.bn = nnx.BatchNorm(16, rngs=rngs)
        self.grouped = nnx.Conv(16, 12, (1, 1), feature_group_count=4, rngs=rngs)
        self.gn = nnx.GroupNorm(12, 4, rngs=rngs)
        self.up = nnx.ConvTranspose(12, 6, (2, 2), strides=2, transpose_kernel=True, rngs=rngs)
        self.linear = nnx.Linear(6, 10, rngs=rngs)
        self.ln = nnx.LayerNorm(10, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, 10, 12, decode=False, rngs=rngs)
        self.general = nnx.LinearGeneral(10, (2, 4), rngs=rngs)
        self.out = nnx.LinearGeneral((2, 4), 5, axis=(-2, -1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.conv(x))
        x = nnx.relu(self.bn(self.depthwise(x)))
        x = nnx.relu(self.gn(self.grouped(x)))
        x = nnx.tanh(self.up(x)).reshape(x.shape[0], -1, self.up.out_features)
        x = self.attention(self.ln(self.linear(x))).mean(1)
        return self.out(nnx.silu(self.general(x)))


def test_flaxs_layers_know_their_new_widths():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    small = compared(moved(FlaxLayers(nnx.Rngs(0))), x)
    groups = small.grouped.feature_group_count
    assert 0 < groups < 4
    assert small.grouped.kernel.shape == small.grouped.kernel_shape == (1, 1, 4, 3 * groups)
    assert small.gn.num_groups == groups
    assert small.bn.num_features == small.grouped.in_features == 4 * groups
    assert small.depthwise.feature_group_count == small.conv.out_features == 2 * groups
    assert small.up.in_features == 3 * groups
    assert small.linear.in_features == small.up.out_features < 6
    attention = small.attention
    assert attention.num_heads == attention.num_kv_heads < 4
    assert attention.qkv_features == 3 * attention.num_heads
    assert attention.query.out_features == attention.out.in_features == (attention.num_heads, 3)
    assert attention.out_features == small.general.in_features[0] < 10
    assert small.out.in_features == small.general.out_features < (2, 4)


def test_an_embedding():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(7, 6, rngs=rngs)
            self.head = nnx.Linear(6, 2, rngs=rngs)

        def __call__(self, tokens):
            return self.head(self.embed(tokens))

    small = compared(Model(nnx.Rngs(0)), jnp.arange(6).reshape(2, 3))
    assert small.embed.features == small.head.in_features < small.embed.num_embeddings == 7


class LinenNetwork(linen.Module):
    """Widths from outside: a Linen module holds them itself."""

    hidden: int = 6
    channels: int = 4

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(self.channels, (3, 3))(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True)(x)).reshape(len(x), -1)
        return linen.Dense(2, name="head")(jnp.tanh(linen.Dense(self.hidden)(x)))


def test_linen():
    x = jax.random.normal(jax.random.key(1), (2, 4, 4, 3))
    model = LinenNetwork()
    variables = model.init(jax.random.key(0), x)
    units = sparsity.units(model.apply, variables, x)
    masks = unit_masks(variables, units, random_choice(units.groups, np.random.default_rng(0)))
    small = sparsity.compact(variables, masks, units)
    kept = sparsity.kept_units(variables, masks, units)
    widths = (kept[f"['params']['{layer}_0']"].sum() for layer in ("Dense", "Conv"))
    smaller = LinenNetwork(*map(int, widths))
    close(smaller.apply(small, x), model.apply(sparsity.apply_masks(variables, masks), x))


def test_equinox():
    model = equinox.nn.MLP(3, 2, 6, 2, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_array)
    x = jax.random.normal(jax.random.key(1), (5, 3))

    def apply(params, x):
        return jax.vmap(equinox.combine(params, static))(x)

    units = sparsity.units(apply, params, x)
    masks = unit_masks(params, units, random_choice(units.groups, np.random.default_rng(0)))
    small = sparsity.compact(params, masks, units)
    assert size(small) < size(params)
    close(apply(small, x), apply(sparsity.apply_masks(params, masks), x))


def mlp():
    """3 → 4 → 5 → 2, and its units; biases are 0 but for one in each hidden layer."""
    rng = np.random.default_rng(0)
    params = {
        "a": jnp.asarray(rng.normal(size=(3, 4)), jnp.float32),
        "a_bias": jnp.array([0.0, 0.0, 0.0, 0.7]),
        "b": jnp.asarray(rng.normal(size=(4, 5)), jnp.float32),
        "b_bias": jnp.array([0.0, 0.0, 0.0, 0.0, 0.3]),
        "c": jnp.asarray(rng.normal(size=(5, 2)), jnp.float32),
    }

    def apply(p, x):
        hidden = jax.nn.relu(x @ p["a"] + p["a_bias"])
        return jax.nn.relu(hidden @ p["b"] + p["b_bias"]) @ p["c"]

    return apply, params, sparsity.units(apply, params, jnp.ones((2, 3)))


def masks_of(params, **zeros):
    """All ones but at these indices of these arrays."""
    masks = dict.fromkeys(params)
    for name, index in zeros.items():
        masks[name] = np.ones(params[name].shape, bool)
        masks[name][index] = False
    return masks


def test_units_that_single_weights_leave_without_use():
    """No way in, or none out; what only these read or feed goes with them."""
    apply, params, units = mlp()
    masks = masks_of(
        params,
        a=(slice(None), [0, 3]),  # nothing makes units 0 and 3; unit 3 is a constant, and stays
        b=([1, 1, 1, 1, 0, 2, 3], [0, 1, 2, 3, 4, 1, 0]),  # unit 1 feeds unit 4 alone
        c=([4, 4, 0], [0, 1, 1]),  # nothing reads unit 4
    )
    kept = sparsity.kept_units(params, masks, units)
    np.testing.assert_array_equal(kept["['a']"], [False, False, True, True])
    np.testing.assert_array_equal(kept["['b']"], [True, True, True, True, False])
    small = sparsity.compact(params, masks, units)
    assert {name: leaf.shape for name, leaf in small.items()} == {
        "a": (3, 2),
        "a_bias": (2,),
        "b": (2, 4),
        "b_bias": (4,),
        "c": (4, 2),
    }
    x = jax.random.normal(jax.random.key(0), (5, 3))
    close(apply(small, x), apply(sparsity.apply_masks(params, masks), x))
    left = sparsity.compact_masks(params, masks, units)
    np.testing.assert_array_equal(left["a"], [[True, False]] * 3)
    np.testing.assert_array_equal(left["b"], [[True, False, True, True], [False, True, True, True]])
    np.testing.assert_array_equal(left["c"], [[True, False], *[[True, True]] * 3])
    assert left["a_bias"] is left["b_bias"] is None
    jax.tree.map(np.testing.assert_array_equal, small, sparsity.apply_masks(small, left))


def test_a_channel_without_weights_goes_if_its_running_mean_is_zero():
    model = models.resnet8(10, rngs=nnx.Rngs(0), image_shape=(8, 8, 1))
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 1))
    units = sparsity.units(model, x)
    params = split(model)[1]
    masks = jax.tree.map(lambda p: np.ones(p.shape, bool), params)
    masks["blocks"][0]["conv1"]["kernel"][..., 2:5] = False
    model.blocks[0].norm1.mean[...] = model.blocks[0].norm1.mean[...].at[3].set(0.5)
    kept = sparsity.kept_units(model, masks, units)["['blocks'][0]['conv1']"]
    np.testing.assert_array_equal(np.flatnonzero(~kept), [2, 4])
    small = sparsity.compact(model, masks, units)
    graphdef, params, state = split(model)
    masked = nnx.merge(graphdef, sparsity.apply_masks(params, masks), state)
    for network in (small, masked):
        network.eval()
    close(small(x), masked(x))
    with pytest.raises(ValueError, match="masks empty no unit"):
        sparsity.compact(params, masks, units)  # without statistics nobody knows


@pytest.mark.parametrize(
    "inner",
    [
        lambda: optax.chain(zosam_jax.sam(0.05), optax.sgd(0.1, momentum=0.9)),
        lambda: optax.adamw(1e-2, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
    ],
    ids=["sam and momentum", "masked adamw"],
)
def test_training_goes_on_where_it_stood(inner):
    """Two steps, compacted, two more: the masked run's, in the kept units."""
    model = models.deit(
        5, dim=8, depth=1, heads=2, patch=4, image_shape=(8, 8, 1), rngs=nnx.Rngs(0)
    )
    graphdef, params, _ = split(model)
    x = jax.random.normal(jax.random.key(1), (4, 8, 8, 1))
    units = sparsity.units(model, x)
    removed = random_choice(units.groups, np.random.default_rng(0))
    masks = unit_masks(params, units, removed)
    masks["blocks"][0]["norm1"]["scale"] = masks["blocks"][0]["norm1"]["scale"].at[1].set(False)
    tx = sparsity.fixed(inner(), masks)

    def trained(graphdef, params, state):
        def loss(params, x):
            return jnp.square(nnx.merge(graphdef, params)(x) - 1).mean()

        @jax.jit
        def step(params, state):
            return plain.apply_loss(tx, loss, params, state, x=x)[2:]

        for _ in range(2):
            params, state = step(params, state)
        return params, state

    state = tx.init(params)
    params, state = trained(graphdef, sparsity.apply_masks(params, masks), state)
    small = sparsity.compact(nnx.merge(graphdef, params), masks, units)
    small_graphdef, small_params, _ = split(small)
    small_state = sparsity.compact_state(state, params, masks, units)
    assert size(small_state) < size(state)
    assert jax.tree.map(jnp.shape, sparsity.get_masks(small_state)) == jax.tree.map(
        jnp.shape, small_params
    )
    small_params, small_state = trained(small_graphdef, small_params, small_state)
    params, state = trained(graphdef, params, state)
    jax.tree.map(close, small_params, sparsity.compact(params, masks, units))
    jax.tree.map(close, small_state, sparsity.compact_state(state, params, masks, units))


def test_units_by_hand_and_other_kinds_of_arrays():
    """A product that nobody traced, in bfloat16 and of NumPy's arrays, with other leaves."""
    params = {
        "in": np.ones((2, 4), np.float32),
        "out": jnp.ones((8, 2), jnp.bfloat16),
        "other": jnp.ones(3),
    }
    pairs = np.array([0, 0, 1, 1])
    units = Units(
        (
            Group(
                "pairs",
                "neurons",
                2,
                (
                    Member("['in']", 1, pairs, "output"),
                    Member("['out']", 0, np.array([-1, 0, 0, 1, 1, -1, -1, -1]), "input"),
                    Member("['statistics']", 0, pairs, "elementwise"),
                ),
            ),
        )
    )
    masks = {"in": None, "other": None, "out": np.ones((8, 2), bool)}
    masks["out"][1:3] = False
    small = sparsity.compact(params, masks, units)
    assert isinstance(small["in"], np.ndarray)
    assert small["in"].shape == (2, 2)
    assert small["out"].shape == (6, 2)
    assert small["out"].dtype == jnp.bfloat16
    assert small["other"] is params["other"]
    statistics = sparsity.cut(
        {"statistics": jnp.arange(4)}, units, sparsity.kept_units(params, masks, units)
    )
    assert statistics["statistics"].tolist() == [2, 3]


def test_masks_that_do_not_fit():
    _, params, units = mlp()
    with pytest.raises(ValueError, match="masks empty no unit of any group"):
        sparsity.compact(params, masks_of(params, a=(0, 0)), units)
    with pytest.raises(ValueError, match="masks empty no unit of any group"):
        sparsity.compact(params, None, units)
    with pytest.raises(ValueError, match=r"masks empty all 5 neurons of \['b'\]"):
        sparsity.compact(params, masks_of(params, c=slice(None)), units)
    with pytest.raises(ValueError, match=r"mask\['a'\] has the shape \(4,\)"):
        sparsity.compact(params, {**dict.fromkeys(params), "a": np.ones(4)}, units)
    with pytest.raises(ValueError, match=r"kept\[\"\['a'\]\"\] must be 4 bools"):
        sparsity.cut(params, units, {})
    with pytest.raises(TypeError, match="units is tuple; it must be what"):
        sparsity.compact(params, None, units.groups)
    smaller = {**params, "b": params["b"][:, :3]}
    with pytest.raises(ValueError, match=r"has 5 positions along axis 1 of \['b'\]"):
        sparsity.compact(smaller, masks_of(smaller, a=0), units)
