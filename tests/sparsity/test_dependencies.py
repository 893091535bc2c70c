"""Units that are found: by hand for known networks, and with a reason where there are none."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from zosam_jax import models, sparsity
from zosam_jax.sparsity import Group, Member, Units


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def of_model(name, image_shape, **options):
    make = models.deit if name == "deit" else models.MODELS[name]
    model = nnx.eval_shape(lambda: make(10, rngs=nnx.Rngs(0), image_shape=image_shape, **options))
    residual = options.pop("residual", False)
    return sparsity.units(model, shape(1, *image_shape), residual=residual)


def described(units):
    """Groups as {name: (kind, size, {array: (axis, role)})}."""
    return {
        group.name: (group.kind, group.size, {m.path: (m.axis, m.role) for m in group.members})
        for group in units.groups
    }


def test_lenet():
    units = of_model("lenet-300-100", (8, 8, 1))
    assert described(units) == {
        "['hidden1']": (
            "neurons",
            300,
            {
                "['hidden1']['kernel']": (1, "output"),
                "['hidden1']['bias']": (0, "elementwise"),
                "['hidden2']['kernel']": (0, "input"),
            },
        ),
        "['hidden2']": (
            "neurons",
            100,
            {
                "['hidden2']['kernel']": (1, "output"),
                "['hidden2']['bias']": (0, "elementwise"),
                "['head']['kernel']": (0, "input"),
            },
        ),
    }
    for member in units.groups[0].members:
        np.testing.assert_array_equal(member.unit_of, np.arange(300))
    assert units.whole == (
        "Axis 0 of ['hidden1']['kernel'] is left whole: it is an axis of the example.",
        "Axis 1 of ['head']['kernel'] is left whole, as is one of ['head']['bias']: it is an axis "
        "of the function's output.",
    )


def test_resnet8():
    units = of_model("resnet8", (8, 8, 1))
    assert described(units) == {
        f"['blocks'][{i}]['conv1']": (
            "channels",
            16 * 2**i,
            {
                f"['blocks'][{i}]['conv1']['kernel']": (3, "output"),
                **{
                    f"['blocks'][{i}]['norm1']['{name}']": (0, "elementwise")
                    for name in ("scale", "bias", "mean", "var")
                },
                f"['blocks'][{i}]['conv2']['kernel']": (2, "input"),
            },
        )
        for i in range(3)
    }
    scales = {m.path for group in units.groups for m in group.members if m.scales}
    assert scales == {
        f"['blocks'][{i}]['norm1']['{name}']" for i in range(3) for name in ("scale", "var")
    }
    streams = [sentence for sentence in units.whole if "residual stream" in sentence]
    assert len(streams) == 3
    assert streams[0].startswith("Axis 3 of ['stem']['kernel']")


def test_two_blocks_of_deit():
    units = of_model("deit", (8, 8, 3), dim=24, depth=2, heads=3, patch=4)
    expected = {}
    for i in range(2):
        attention, block = f"['blocks'][{i}]['attention']", f"['blocks'][{i}]"
        expected[f"{attention}['qkv']"] = (
            "heads",
            3,
            {
                f"{attention}['qkv']['kernel']": (1, "output"),
                f"{attention}['qkv']['bias']": (0, "elementwise"),
                f"{attention}['proj']['kernel']": (0, "input"),
            },
        )
        expected[f"{block}['fc1']"] = (
            "neurons",
            96,
            {
                f"{block}['fc1']['kernel']": (1, "output"),
                f"{block}['fc1']['bias']": (0, "elementwise"),
                f"{block}['fc2']['kernel']": (0, "input"),
            },
        )
    assert described(units) == expected
    qkv, _, proj = units.groups[0].members
    one = np.repeat([0, 1, 2], 8)
    np.testing.assert_array_equal(qkv.unit_of, np.tile(one, 3))  # 3·head_dim columns for each head
    np.testing.assert_array_equal(proj.unit_of, one)
    assert any("multiplied and summed" in sentence for sentence in units.whole)


def test_a_residual_stream_as_one_group():
    model = nnx.eval_shape(lambda: models.resnet8(10, rngs=nnx.Rngs(0), image_shape=(8, 8, 1)))
    units = sparsity.units(model, shape(1, 8, 8, 1), residual=True)
    stem = units.groups[0]
    assert (stem.name, stem.kind, stem.size) == ("['stem']", "channels", 16)
    made_by = [member.path for member in stem.members if member.role == "output"]
    assert made_by == ["['stem']['kernel']", "['blocks'][0]['conv2']['kernel']"]
    read_by = {member.path for member in stem.members if member.role == "input"}
    assert read_by == {
        "['blocks'][0]['conv1']['kernel']",
        "['blocks'][1]['conv1']['kernel']",
        "['blocks'][1]['projection']['kernel']",
    }


@pytest.mark.parametrize("name", ["resnet32", "resnet50-cifar", "wrn-28-10", "deit-tiny"])
@pytest.mark.slow
def test_full_size(name):
    units = of_model(name, (32, 32, 3))
    kinds = {group.kind for group in units.groups}
    assert kinds == ({"heads", "neurons"} if name == "deit-tiny" else {"channels"})
    count = {"resnet32": 15, "resnet50-cifar": 33, "wrn-28-10": 13, "deit-tiny": 24}[name]
    assert len(units.groups) == count


def hidden(activation):
    """A network of one hidden layer, whose 6 neurons go through `activation`."""
    params = {"a": shape(3, 6), "b": shape(6), "c": shape(6, 2)}

    def function(params, x):
        return activation(x @ params["a"] + params["b"]) @ params["c"]

    return function, params, shape(5, 3)


ZERO_STAYS_ZERO = {
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "exact gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "elu": jax.nn.elu,
    "selu": jax.nn.selu,
    "leaky_relu": jax.nn.leaky_relu,
    "hard_swish": jax.nn.hard_swish,
    "hard_tanh": jax.nn.hard_tanh,
    "relu6": jax.nn.relu6,
    "mish": jax.nn.mish,
    "soft_sign": jax.nn.soft_sign,
    "expm1": lambda x: jnp.exp(x) - 1,
    "batch norm": lambda x: (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5),
    "dropout": lambda x: jnp.where(jax.random.bernoulli(jax.random.key(0), 0.5, x.shape), x, 0.0),
    "clip": lambda x: jnp.clip(x, -1, 1),
    "checkpoint": jax.checkpoint(jnp.sin),
}
NOT_ZERO = {
    "sigmoid": (jax.nn.sigmoid, "by logistic is not 0"),
    "exp": (jnp.exp, "by exp is not 0"),
    "softplus": (jax.nn.softplus, "is not 0"),
    "cos": (jnp.cos, "by cos is not 0"),
    "0/0": (lambda x: 0.0 * (x / jnp.sqrt((x * x).sum(0))), "by div is not 0"),
    "shifted": (lambda x: jax.nn.relu(x) + 1.0, "by add is not 0"),
    "softmax": (jax.nn.softmax, "reduce_max goes over it"),
    "layer norm": (lambda x: jax.nn.standardize(x, axis=-1), "reduce_sum goes over it"),
    "sum": (lambda x: x * x.sum(-1, keepdims=True), "reduce_sum goes over it"),
    "cumsum": (lambda x: jnp.cumsum(x, -1), "cumsum goes along it"),
    "sorted": (lambda x: jnp.sort(x, -1), "not followed through sort"),
    "loop": (
        lambda x: jax.lax.scan(lambda c, _: (c * 2, None), x, length=3)[0],
        "not followed through scan",
    ),
    "constant": (lambda x: x * jnp.arange(6.0), "is not among the parameters"),
    "indexed": (lambda x: x[:, jnp.array([5, 4, 3, 2, 1, 0])], "it is indexed"),
    "gram": (lambda x: x @ (x.T @ x), "more than one axis|multiplied and summed"),
    "every other": (lambda x: jnp.repeat(x[:, ::2], 2, 1), "taken in steps"),
    "reversed": (lambda x: x[:, ::-1], "it is reversed"),
}


@pytest.mark.parametrize("name", ZERO_STAYS_ZERO)
def test_functions_that_are_0_at_0(name):
    (group,) = sparsity.units(*hidden(ZERO_STAYS_ZERO[name])).groups
    assert [member.path for member in group.members] == ["['a']", "['b']", "['c']"]


@pytest.mark.parametrize("name", NOT_ZERO)
def test_nothing_is_found_where_removed_is_not_zero(name):
    activation, reason = NOT_ZERO[name]
    with pytest.raises(ValueError, match=f"no units that can be removed.*{reason}"):
        sparsity.units(*hidden(activation))


def test_a_function_of_ones_own_derivative():
    @jax.custom_vjp
    def doubled(x):
        return 2 * x

    doubled.defvjp(lambda x: (2 * x, None), lambda _, g: (2 * g,))
    assert len(sparsity.units(*hidden(doubled)).groups) == 1


def test_gates_make_units_together():
    """Of a gated layer value and gate go together, whatever the gate is where it is removed."""
    params = {"gate": shape(3, 6), "out": shape(6, 2), "value": shape(3, 6)}
    units = sparsity.units(
        lambda p, x: (x @ p["value"] * jax.nn.sigmoid(x @ p["gate"])) @ p["out"],
        params,
        shape(5, 3),
    )
    assert described(units) == {
        "['value']": (
            "neurons",
            6,
            {"['value']": (1, "output"), "['gate']": (1, "output"), "['out']": (0, "input")},
        )
    }


def test_an_axis_that_reads_a_concatenation():
    params = {"a": shape(3, 2), "b": shape(3, 4), "c": shape(6, 5)}
    units = sparsity.units(
        lambda p, x: jnp.concatenate([x @ p["a"], x @ p["b"]], -1) @ p["c"], params, shape(5, 3)
    )
    first, second = (group.members[-1] for group in units.groups)
    np.testing.assert_array_equal(first.unit_of, [0, 1, -1, -1, -1, -1])
    np.testing.assert_array_equal(second.unit_of, [-1, -1, 0, 1, 2, 3])
    assert first.path == second.path == "['c']"


def test_flattening_between_convolution_and_dense_layer():
    params = {"conv": shape(3, 3, 1, 2), "dense": shape(8, 5)}

    def function(p, x):
        y = jax.lax.conv_general_dilated(
            x, p["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return y.reshape(len(x), -1) @ p["dense"]

    (group,) = sparsity.units(function, params, shape(5, 2, 2, 1)).groups
    np.testing.assert_array_equal(group.members[1].unit_of, [0, 1] * 4)


def test_a_grouped_convolution_loses_whole_groups():
    params = {"a": shape(1, 1, 3, 6), "b": shape(3, 3, 2, 9), "c": shape(9, 5)}

    def function(p, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(x, p["a"], (1, 1), "SAME", dimension_numbers=numbers)
        x = jax.lax.conv_general_dilated(
            x, p["b"], (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=3
        )
        return x.mean((1, 2)) @ p["c"]

    units = sparsity.units(function, params, shape(5, 2, 2, 3))
    (group,) = units.groups
    assert described(units) == {
        "['a']": (
            "channels",
            3,
            {"['a']": (3, "output"), "['b']": (3, "elementwise"), "['c']": (0, "input")},
        )
    }
    assert [list(member.unit_of) for member in group.members] == [
        [0, 0, 1, 1, 2, 2],
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
        [0, 0, 0, 1, 1, 1, 2, 2, 2],
    ]
    assert any("inside the groups" in sentence for sentence in units.whole)


class LinenMLP(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.relu(linen.BatchNorm(use_running_average=True)(linen.Dense(6)(x)))
        return linen.Dense(2)(linen.SelfAttention(num_heads=3)(x[:, None])[:, 0])


def test_linen():
    model = LinenMLP()
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((5, 3)))
    units = sparsity.units(model.apply, variables, shape(5, 3))
    kinds = {group.name: (group.kind, group.size) for group in units.groups}
    attention = "['params']['SelfAttention_0']"
    assert kinds == {
        "['params']['Dense_0']": ("neurons", 6),
        f"{attention}['query']": ("heads", 3),
        f"{attention}['out']": ("neurons", 6),
    }
    statistics = [m.path for m in units.groups[0].members if "batch_stats" in m.path]
    assert statistics == [f"['batch_stats']['BatchNorm_0']['{name}']" for name in ("mean", "var")]


def test_equinox():
    model = equinox.nn.MLP(3, 2, 6, 2, key=jax.random.key(0))
    params, static = equinox.partition(model, equinox.is_array)
    units = sparsity.units(
        lambda p, x: jax.vmap(equinox.combine(p, static))(x), params, shape(5, 3)
    )
    assert [(group.name, group.size) for group in units.groups] == [
        (".layers[0]", 6),
        (".layers[1]", 6),
    ]
    assert [(m.path, m.axis, m.role) for m in units.groups[0].members] == [
        (".layers[0].weight", 0, "output"),
        (".layers[0].bias", 0, "elementwise"),
        (".layers[1].weight", 1, "input"),
    ]


class Attention(nnx.Module):
    """Heads that are one of each block's own, behind features that are looked up."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(7, 6, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(3, 6, 12, decode=False, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)

    def __call__(self, tokens):
        return self.head(self.attention(self.embed(tokens)))


def test_flaxs_attention_and_embedding():
    units = sparsity.units(Attention(nnx.Rngs(0)), shape(2, 5, dtype=jnp.int32))
    kinds = {group.name: (group.kind, group.size) for group in units.groups}
    assert kinds == {
        "['embed']": ("neurons", 6),
        "['attention']['query']": ("heads", 3),
        "['attention']['out']": ("neurons", 6),
    }
    for sentence in (
        "Axis 2 of ['attention']['value']['kernel'] is left whole, as is one of "
        "['attention']['value']['bias'] and of 1 more: it holds the features of a head of "
        "attention.",
        "Axis 0 of ['embed']['embedding'] is left whole: it is indexed.",
    ):
        assert sentence in units.whole


def attention(heads):
    """A function of a kernel (6, 3·24) that splits its columns into heads."""
    params = {"out": shape(24, 2), "qkv": shape(6, 72)}

    def function(p, x):
        split_heads = (-1, 6) if heads is None else (heads, -1)
        q, k, v = (
            y.reshape(*x.shape[:2], *split_heads) for y in jnp.split(x @ p["qkv"], 3, axis=-1)
        )
        return jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:2], -1) @ p["out"]

    return function, params, shape(2, 5, 6)


def test_a_number_of_heads_that_is_not_in_the_arrays():
    """Half of the columns would be split into four heads of half the features: other outputs."""
    assert [group.size for group in sparsity.units(*attention(None)).groups] == [4]
    with pytest.raises(ValueError, match=r"heads of \['qkv'\] are left whole: the function has"):
        sparsity.units(*attention(4))


def test_a_number_into_which_few_of_the_smaller_widths_divide():
    """Four of the six groups of three features would be six groups of two; three would not fit."""

    def function(p, x):
        groups = (x @ p["a"]).reshape(len(x), 6, -1)
        return jax.nn.standardize(groups, axis=-1).reshape(len(x), -1) @ p["b"]

    with pytest.raises(ValueError, match=r"neurons of \['a'\] are left whole: the function has"):
        sparsity.units(function, {"a": shape(3, 18), "b": shape(18, 2)}, shape(5, 3))


def test_a_width_that_is_computed_with():
    """Half of the neurons would be divided by another number."""

    def function(p, x):
        hidden = jax.nn.relu(x @ p["a"]) / jnp.sqrt(p["a"].shape[1])
        return jax.nn.relu(hidden @ p["b"]) @ p["c"]

    params = {"a": shape(3, 16), "b": shape(16, 10), "c": shape(10, 2)}
    units = sparsity.units(function, params, shape(5, 3))
    assert [group.name for group in units.groups] == ["['b']"]
    assert "The neurons of ['a'] are left whole: the function computes with their number, 16." in (
        units.whole
    )


def test_a_recurrent_network_that_starts_from_zeros():
    def function(p, x):
        state = jnp.zeros((len(x), p["again"].shape[0]))
        for t in range(x.shape[1]):
            state = jnp.tanh(x[:, t] @ p["in"] + state @ p["again"])
        return state @ p["out"]

    params = {"in": shape(3, 8), "again": shape(8, 8), "out": shape(8, 2)}
    (group,) = sparsity.units(function, params, shape(5, 4, 3), residual=True).groups
    assert {(m.path, m.axis) for m in group.members} == {
        ("['in']", 1),
        ("['again']", 0),
        ("['again']", 1),
        ("['out']", 0),
    }


class ThreeLayers(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 8, rngs=rngs)
        self.second = nnx.Linear(8, 6, rngs=rngs)
        self.head = nnx.Linear(6, 2, rngs=rngs)


def test_an_nnx_module_that_refuses_smaller_widths():
    """`compact` gives back a module that runs."""

    class Model(ThreeLayers):
        def __call__(self, x):
            hidden = nnx.relu(self.first(x)).reshape(len(x), 8)
            return self.head(nnx.relu(self.second(hidden)))

    units = sparsity.units(Model(nnx.Rngs(0)), shape(5, 3))
    assert [group.name for group in units.groups] == ["['second']"]
    assert units.whole[0].startswith(
        "The neurons of ['first'] are left whole: the module refuses fewer than 8 (cannot reshape"
    )


def test_an_nnx_module_with_a_number_of_its_own():
    class Model(ThreeLayers):
        def __call__(self, x):
            pairs = nnx.relu(self.first(x)).reshape(len(x), 4, -1)
            normalized = jax.nn.standardize(pairs, axis=-1).reshape(len(x), -1)
            return self.head(nnx.relu(self.second(normalized)))

    units = sparsity.units(Model(nnx.Rngs(0)), shape(5, 3))
    assert [group.name for group in units.groups] == ["['second']"]
    assert units.whole[0].startswith("The neurons of ['first'] are left whole: the function has")


def test_kinds():
    model = Attention(nnx.Rngs(0))
    tokens = shape(2, 5, dtype=jnp.int32)
    assert [g.kind for g in sparsity.units(model, tokens, kinds=["heads"]).groups] == ["heads"]
    with pytest.raises(ValueError, match="kinds='filters' is not known; choose one of 'channels'"):
        sparsity.units(model, tokens, kinds=["filters"])
    with pytest.raises(ValueError, match="no channels that can be removed"):
        sparsity.units(model, tokens, kinds="channels")
    with pytest.raises(ValueError, match=r"kinds=\(\) must name one of 'channels'"):
        sparsity.units(model, tokens, kinds=[])


def test_the_example_is_missing():
    with pytest.raises(ValueError, match=r"units takes \(function, params, example\)"):
        sparsity.units(lambda p, x: p @ x, shape(3))
    with pytest.raises(TypeError, match="function is dict; it must be a function of"):
        sparsity.units({"a": shape(3)}, lambda p, x: x, shape(3))


def test_several_arguments():
    params = {"a": shape(3, 6), "b": shape(6, 2)}
    example = (shape(5, 3), shape(5, 3))
    (group,) = sparsity.units(lambda p, x, y: (x + y) @ p["a"] @ p["b"], params, example).groups
    assert group.size == 6


def test_units_written_by_hand_are_checked():
    params = {"a": jnp.ones((3, 6)), "b": jnp.ones((6, 2))}

    def group(path="['a']", axis=1, unit_of=range(6), role="output", name="hidden"):
        return Group(name, "neurons", 6, (Member(path, axis, np.array(unit_of), role),))

    sparsity.check_units(Units((group(),)), params)
    for wrong, message in (
        (group(axis=2), r"'hidden' names axis 2 of \['a'\], whose shape is \(3, 6\)"),
        (group(axis=0), r"has 6 positions along axis 0 of \['a'\], whose shape is \(3, 6\)"),
        (group(unit_of=[0, 1, 2, 3, 4, 6]), r"has 6 units, .* there are 0 … 6"),
        (group(role="reader"), "role='reader' is not known"),
        (group(path="['c']"), r"lies in \['c'\], and params holds \['a'\], \['b'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsity.check_units(Units((wrong,)), params)
    with pytest.raises(ValueError, match="'hidden' stands there twice"):
        sparsity.check_units(Units((group(), group())), params)
