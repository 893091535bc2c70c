"""Masks: how they are resolved, applied and found again."""

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from problems import assert_equal, flatten, mlp_mask, mlp_params, uneven_mask, uneven_params

from zosam_jax import masks, sparsity

KEPT, SIZE = 7, 12


def as_float(tree):
    return jax.tree.map(lambda m: m.astype(jnp.float32), tree)


def as_numpy(tree):
    return jax.tree.map(np.asarray, tree)


@pytest.mark.parametrize("dressed", [as_float, as_numpy, lambda m: lambda params: m])
def test_masks_of_every_kind_resolve_to_bool(dressed):
    assert_equal(masks.resolve(dressed(uneven_mask()), uneven_params()), uneven_mask())


@pytest.mark.parametrize("kept", [True, 1, 1.0, np.bool_(True), jnp.array(1)])
def test_a_scalar_stands_for_a_whole_subtree(kept):
    resolved = masks.resolve({"hidden": kept, "out": False}, mlp_params())
    assert_equal(
        resolved, jax.tree.map(lambda p: jnp.full(p.shape, p.shape[-1] == 5), mlp_params())
    )


def test_none_stands_for_dense():
    assert masks.resolve(None, mlp_params()) is None
    resolved = masks.resolve({"hidden": None, "out": False}, mlp_params())
    assert resolved["hidden"] == {"bias": None, "kernel": None}
    assert not resolved["out"]["kernel"].any()


def test_parameters_that_are_none_need_no_mask():
    params = {"a": jnp.ones(2), "frozen": None}
    resolved = masks.resolve({"a": jnp.array([1, 0]), "frozen": None}, params)
    assert_equal(
        sparsity.apply_masks(params, resolved), {"a": jnp.array([1.0, 0.0]), "frozen": None}
    )


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -0.0])
def test_pruned_weights_become_exactly_zero(bad):
    params = jax.tree.map(lambda p, m: jnp.where(m, p, bad), uneven_params(), uneven_mask())
    masked = sparsity.apply_masks(params, uneven_mask())
    kept = flatten(uneven_mask()).astype(bool)
    np.testing.assert_array_equal(flatten(masked)[kept], flatten(uneven_params())[kept])
    assert not flatten(masked)[~kept].any()
    assert not np.signbit(flatten(masked)[~kept]).any()


def test_applying_masks_keeps_dtypes():
    params = uneven_params(jnp.bfloat16) | {"scalar": jnp.asarray(3)}
    masked = sparsity.apply_masks(params, uneven_mask())
    assert masked["matrix"].dtype == jnp.bfloat16
    assert_equal(masked["scalar"], jnp.asarray(0))


@pytest.mark.parametrize("traced", [False, True])
def test_kept_coordinates_are_counted(traced):
    def count(mask):
        return masks.count_kept(uneven_params(), mask)

    counted = jax.jit(count)(uneven_mask()) if traced else count(uneven_mask())
    assert counted == KEPT
    assert count(None) == SIZE
    assert count(uneven_mask() | {"vector": None}) == KEPT + 1


def test_sparsity_is_measured_on_masked_arrays_alone():
    assert sparsity.sparsity_of(uneven_mask(), uneven_params()) == pytest.approx(1 - KEPT / SIZE)
    partial = uneven_mask() | {"matrix": None}
    assert sparsity.sparsity_of(partial, uneven_params()) == pytest.approx(1 - 4 / 6)
    assert sparsity.sparsity_of(None, uneven_params()) == 0


def test_masks_are_found_in_a_nested_state():
    wrapped = sparsity.fixed(optax.sgd(0.1, momentum=0.9), mlp_mask())
    state = optax.apply_if_finite(optax.chain(optax.clip(1.0), wrapped), 3).init(mlp_params())
    assert_equal(sparsity.get_masks(state), masks.resolve(mlp_mask(), mlp_params()))


def test_dense_masks_are_found_too():
    state = sparsity.fixed(optax.sgd(0.1), None).init(mlp_params())
    assert_equal(sparsity.apply_masks(mlp_params(), sparsity.get_masks(state)), mlp_params())


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize(
    ("wrong", "error", "sentence"),
    [
        (jnp.full(3, 0.5), ValueError, "mask\\['w'\\] holds 0.5; a mask is 1 where"),
        (np.array([1.0, np.nan, 0.0]), ValueError, "holds nan"),
        (2, ValueError, "holds 2"),
        (jnp.ones(3, jnp.complex64), TypeError, "is complex64; it must be bool, or 1 and 0"),
    ],
)
def test_masks_of_other_values_than_0_and_1_are_refused(wrong, error, sentence, inside):
    def applied(params):
        return masks.apply_masks(params, {"w": wrong})

    with pytest.raises(error, match=sentence):
        (jax.jit(applied) if inside else applied)({"w": jnp.ones(3)})


def test_a_traced_mask_keeps_what_is_not_zero():
    applied = jax.jit(masks.apply_masks)
    found = applied({"w": jnp.ones(4)}, {"w": jnp.array([0.5, jnp.nan, 0.0, 1.0])})
    np.testing.assert_array_equal(found["w"], [1, 1, 0, 1])


def test_a_number_is_a_parameter_too():
    assert_equal(masks.apply_masks({"b": 0.5}, {"b": True}), {"b": jnp.float32(0.5)})
    assert_equal(masks.apply_masks({"b": 0.5}, {"b": False}), {"b": jnp.float32(0.0)})


# Normalization layers, by the names of each library.


class EquinoxNetwork(equinox.Module):
    layers: list
    final: equinox.nn.RMSNorm

    def __init__(self):
        dense = equinox.nn.Linear(3, 4, key=jax.random.key(0))
        self.layers = [dense, equinox.nn.LayerNorm((2, 2)), equinox.nn.LayerNorm(4)]
        self.final = equinox.nn.RMSNorm(4, use_bias=False)


class LinenNetwork(linen.Module):
    @linen.compact
    def __call__(self, x):
        x = linen.LayerNorm()(linen.Dense(4)(linen.Embed(3, 4)(x)))
        return linen.BatchNorm(use_running_average=True, use_scale=False)(x)


class NnxNetwork(nnx.Module):
    def __init__(self):
        rngs = nnx.Rngs(0)
        self.first = nnx.Conv(3, 4, (2, 2), rngs=rngs)
        self.normal = nnx.Linear(4, 4, rngs=rngs)
        self.second = nnx.BatchNorm(4, use_bias=False, rngs=rngs)
        self.third = nnx.LayerNorm(4, rngs=rngs)


def linen_params():
    return jax.eval_shape(LinenNetwork().init, jax.random.key(0), jnp.zeros(3, int))["params"]


NETWORKS = {
    "linen": (linen_params, {"LayerNorm_0.scale", "LayerNorm_0.bias", "BatchNorm_0.bias"}),
    "nnx": (
        lambda: nnx.state(NnxNetwork(), nnx.Param),
        {"second.scale.value", "third.scale.value", "third.bias.value"},
    ),
    "equinox": (
        lambda: equinox.filter(EquinoxNetwork(), equinox.is_inexact_array),
        {"layers.2.weight", "layers.2.bias", "final.weight"},
    ),
    "names with dots": (
        lambda: {
            "h.0.ln_1.weight": jnp.ones((2, 2)),
            "h.0.ln_1.bias": jnp.ones((2, 2)),
            "h.0.ln_1.kernel": jnp.ones((2, 2)),
            "h.0.dense.weight": jnp.ones((2, 2)),
            "h.0.dense.bias": jnp.ones(2),
        },
        {"h.0.ln_1.weight", "h.0.ln_1.bias"},
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_normalization_layers_are_found_by_their_names(name):
    make, expected = NETWORKS[name]
    params = make()
    found = masks.normalization(params)
    assert jax.tree.structure(found) == jax.tree.structure(params)
    names = {
        jax.tree_util.keystr(path, simple=True, separator=".")
        for path, kept in jax.tree.leaves_with_path(found)
        if kept
    }
    assert names == expected


def test_a_network_without_normalization_says_so():
    with pytest.raises(ValueError, match=r"finds no scale or shift .* \['hidden'\]\['bias'\], "):
        masks.normalization(mlp_params())


def test_both_masks_keep_what_each_keeps():
    one, other = ({"a": jnp.array([x, True]), "b": None} for x in (True, False))
    assert masks.both(None, None) is None
    for a, b in ((one, None), (None, one), (one, one)):
        assert_equal(masks.both(a, b), one)
    assert_equal(masks.both(one, other), other)
    assert_equal(masks.both({"a": None, "b": one["a"]}, one), {"a": one["a"], "b": one["a"]})
