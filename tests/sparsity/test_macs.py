"""MACs of each parameter, against counting by hand and XLA's own figure."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from problems import mlp_mask, mlp_params

from zosam_jax import models
from zosam_jax.integrations.nnx import split
from zosam_jax.sparsity import macs


def test_matrix_products_and_convolutions():
    model = models.cifar_resnet(10, depth=8, width=8, image_shape=(8, 8, 1), rngs=nnx.Rngs(0))
    model.eval()
    graphdef, params, model_state = split(model)
    costs = macs.macs(
        lambda p, x: nnx.merge(graphdef, p, model_state)(x), params, jnp.ones((1, 8, 8, 1))
    )
    assert costs["stem"]["kernel"] == 8 * 8 * (3 * 3 * 1 * 8)
    assert costs["blocks"][1]["conv1"]["kernel"] == 4 * 4 * (3 * 3 * 8 * 16)
    assert costs["blocks"][1]["projection"]["kernel"] == 4 * 4 * (8 * 16)
    assert costs["head"]["kernel"] == 32 * 10
    assert costs["head"]["bias"] == costs["stem_norm"]["scale"] == 0


def test_what_the_compiler_counts():
    params = {"a": jnp.ones((20, 30)), "b": jnp.ones((30, 5))}

    def apply(params, x):
        return (x @ params["a"]) @ params["b"]

    costs = macs.macs(apply, params, jnp.ones((7, 20)))
    analysis = jax.jit(apply).lower(params, jnp.ones((7, 20))).compile().cost_analysis()
    assert 2 * sum(jax.tree.leaves(costs)) == analysis["flops"]


@pytest.mark.parametrize(
    "apply",
    [
        lambda w, x: jax.jit(lambda x: x @ w.T)(x),
        lambda w, x: jax.checkpoint(lambda x: x @ (w * (w > 0)).T)(x),
        lambda w, x: jnp.einsum("ij,nj->ni", w.reshape(2, 2, 4).reshape(4, 4), x),
        lambda w, x: x @ w.astype(jnp.bfloat16).astype(jnp.float32),
        lambda w, x: jax.lax.cond(True, lambda: x @ w, lambda: x @ w),
        lambda w, x: x @ jnp.where(jnp.eye(4) > 0, w, 0.0),
        lambda w, x: x @ jax.jit(lambda w: 2 * w)(w),
        lambda w, x: x @ (w - w.mean()) + jnp.ones(4),
    ],
)
def test_parameters_are_followed_to_their_product(apply):
    assert macs.macs(apply, jnp.ones((4, 4)), jnp.ones((3, 4))) == 3 * 16


def test_loops_count_as_often_as_they_run():
    def apply(w, x):
        return jax.lax.scan(lambda c, _: (c @ w, None), x, length=7)[0]

    assert macs.macs(apply, jnp.ones((4, 4)), jnp.ones((3, 4))) == 7 * 3 * 16


def test_activations_of_a_scaled_input_are_no_parameter():
    def apply(params, x):
        return (x * params["scale"]) @ params["w"]

    costs = macs.macs(apply, {"scale": jnp.ones(4), "w": jnp.ones((4, 5))}, jnp.ones((3, 4)))
    assert costs == {"scale": 0, "w": 60}


@pytest.mark.parametrize("activation", [jax.nn.relu, jnp.tanh, jax.nn.gelu, jax.nn.softmax])
def test_biases_enter_no_product_whatever_the_activation(activation):
    """One example's activations have the bias's own shape."""
    params = {"w1": jnp.ones((6, 5)), "b1": jnp.ones(5), "w2": jnp.ones((5, 3))}

    def apply(params, x):
        return activation(x @ params["w1"] + params["b1"]) @ params["w2"]

    assert macs.macs(apply, params, jnp.ones((1, 6))) == {"w1": 30, "b1": 0, "w2": 15}


def test_masks_leave_their_share():
    costs = jax.tree.map(lambda p: p.size, mlp_params())
    kept = macs.kept_macs(costs, mlp_mask(), mlp_params())
    assert kept == pytest.approx(16)
    assert macs.kept_macs(costs, None, mlp_params()) == 32
