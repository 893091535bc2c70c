"""The table of what is kept accounts for every parameter."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from problems import mlp_mask, mlp_params

from zosam_jax import sparsity


def test_every_parameter_is_named():
    summary = sparsity.summary(mlp_params(), mlp_mask())
    assert [row.name for row in summary.rows] == [
        "hidden/bias",
        "hidden/kernel",
        "out/bias",
        "out/kernel",
    ]
    assert [row.kept for row in summary.rows] == [5, 8, 0, 3]
    assert [row.masked for row in summary.rows] == [False, True, True, True]
    assert sum(row.size for row in summary.rows) == 32
    assert summary.sparsity == pytest.approx(1 - 11 / 27)
    assert summary.total_sparsity == pytest.approx(1 - 16 / 32)


def test_the_table():
    lines = str(sparsity.summary(mlp_params(), mlp_mask())).splitlines()
    assert [line.split() for line in lines if not line.startswith("-")] == [
        ["parameter", "shape", "weights", "kept", "sparsity"],
        ["hidden/bias", "5", "5", "5", "dense"],
        ["hidden/kernel", "3×5", "15", "8", "46.67%"],
        ["out/bias", "2", "2", "0", "100.00%"],
        ["out/kernel", "5×2", "10", "3", "70.00%"],
        ["masked", "27", "11", "59.26%"],
        ["all", "32", "16", "50.00%"],
    ]
    assert len({len(line) for line in lines}) == 1


def test_a_dense_network():
    summary = sparsity.summary(mlp_params(), None)
    assert not any(row.masked for row in summary.rows)
    assert summary.sparsity == summary.total_sparsity == 0


def test_masks_of_another_model_are_refused():
    with pytest.raises(ValueError, match=r"mask has the leaves \['w'\], the parameters have"):
        sparsity.summary(mlp_params(), {"w": jnp.ones(3)})


def test_a_model_of_flax_nnx_is_named_leaf_by_leaf():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    assert [row.size for row in sparsity.summary(model, None).rows] == [3, 6]
    masks = sparsity.random(nnx.as_pure(nnx.state(model, nnx.Param)), 0.5)
    with pytest.raises(ValueError, match="give one leaf for each parameter") as refused:
        sparsity.summary(model, masks)
    assert "PyTreeDef" not in str(refused.value)


def test_what_holds_no_arrays_is_refused():
    with pytest.raises(TypeError, match=r"params holds a Dense; .*variables\['params'\]"):
        sparsity.summary(nn.Dense(3), None)


def test_shapes_are_enough():
    shapes = jax.eval_shape(mlp_params)
    assert sparsity.summary(shapes, None).rows[1].size == 15
