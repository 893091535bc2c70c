"""`subbatch_sam` where sparse training regrows a whole channel in front of a BatchNorm."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import slow_but

import zosam_jax

NEW = 3  # the channel whose kept weights are new, at zero


def loss(params, x, y):
    """Linear layer, BatchNorm, ReLU, linear layer; cross-entropy."""
    h = x @ params["kernel"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) + params["bias"]
    logits = jax.nn.relu(h) @ params["head"]
    return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()


def problem():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(64, 6)).astype(np.float32)
    kernel = 0.3 * rng.normal(size=(6, 8))
    kernel[:, NEW] = 0
    params = {
        "kernel": jnp.asarray(kernel, jnp.float32),
        "bias": jnp.full(8, 0.1),
        "head": jnp.asarray(0.5 * rng.normal(size=(8, 2)), jnp.float32),
    }
    labels = (x[:, 0] * x[:, 1] + x[:, 2] > 0).astype(int)
    return params, {"x": jnp.asarray(x), "y": jnp.asarray(labels)}


@pytest.mark.parametrize("radius", slow_but(["layerwise"], ["adaptive_layerwise", "layerwise"]))
def test_new_weights_alone_in_a_channel_before_batch_norm_do_not_run_away(radius):
    params, batch = problem()
    at_theta = jax.grad(loss)(params, **batch)["kernel"]
    others = np.delete(np.linalg.norm(at_theta, axis=0), NEW).max()
    assert np.linalg.norm(at_theta[:, NEW]) > 50 * others

    tx = optax.chain(zosam_jax.subbatch_sam(0.02, radius=radius), optax.sgd(0.1, momentum=0.9))

    @jax.jit
    def step(params, state):
        updates, state = tx.update(None, state, params, value_fn=loss, **batch)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(10):
        params, state = step(params, state)
    norms = np.linalg.norm(params["kernel"], axis=0)
    # 21 where the new weights are not perturbed, as under SGD.
    assert norms[NEW] < 1.5
