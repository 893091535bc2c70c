"""The moving average of the weights, beside any optimizer and under every sparse wrapper."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from numpy_mlp import NumpyMLP, move, to_numpy
from problems import assert_close, assert_equal, mlp_batch, mlp_loss, mlp_params, stepper, train

import zosam_jax
from zosam_jax import averages, sparsity

DECAY = 0.7


def sgd():
    return optax.chain(zosam_jax.sam(0.0), optax.sgd(0.3))


@pytest.mark.parametrize("debias", [True, False])
def test_the_average_is_that_of_the_weights_after_each_step(debias):
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())
    weights = [p]
    for _ in range(4):
        p = move(p, problem.gradient(p), -0.3)
        weights.append(p)
    shares = (1 - DECAY) * DECAY ** np.arange(3, -1, -1)
    shares = [0, *shares / shares.sum()] if debias else [DECAY**4, *shares]
    assert sum(shares) == pytest.approx(1)
    expected = {k: sum(s * w[k] for s, w in zip(shares, weights, strict=True)) for k in p}

    params, state = train(zosam_jax.averaged(sgd(), DECAY, debias=debias), steps=4)
    assert_close(to_numpy(zosam_jax.averaged_params(state)), expected, rtol=1e-4, atol=1e-5)
    assert_equal(params, train(sgd(), steps=4)[0])


@pytest.mark.parametrize("debias", [True, False])
def test_before_the_first_step_it_is_the_weights(debias):
    state = zosam_jax.averaged(sgd(), DECAY, debias=debias).init(mlp_params())
    assert_equal(zosam_jax.averaged_params(state), mlp_params())


WRAPPERS = {
    "rigl": lambda tx: sparsity.rigl(tx, 0.5, total_steps=10, every=1),
    "svite": lambda tx: sparsity.svite(tx, 0.5, total_steps=10, every=1),
    "gradual": lambda tx: sparsity.gradual(tx, 0.5, total_steps=5, every=1),
}


@pytest.mark.parametrize("inside", [True, False], ids=["inside", "outside"])
@pytest.mark.parametrize("name", WRAPPERS)
def test_pruned_weights_are_zero_in_it_and_masks_change_as_without_it(name, inside):
    wrap, rest = WRAPPERS[name], optax.chain(zosam_jax.sam(0.05), optax.sgd(0.3, momentum=0.9))
    tx = wrap(zosam_jax.averaged(rest, DECAY)) if inside else zosam_jax.averaged(wrap(rest), DECAY)
    start = sparsity.apply_masks(mlp_params(), sparsity.get_masks(tx.init(mlp_params())))
    params, state = train(tx, steps=5, params=start)
    expected, other = train(wrap(rest), steps=5, params=start)
    assert_close(params, expected)
    masks = sparsity.get_masks(state)
    assert_equal(masks, sparsity.get_masks(other))
    average = zosam_jax.averaged_params(state)
    assert_equal(average, sparsity.apply_masks(average, masks))
    kernel, kept = average["hidden"]["kernel"], masks["hidden"]["kernel"]
    assert jnp.count_nonzero(kernel[kept]) >= 4
    assert not jnp.allclose(kernel[kept], params["hidden"]["kernel"][kept])


def test_narrow_weights_have_a_wide_average_that_moves():
    """In bfloat16 a thousandth of the way would be rounded away."""
    params = {"w": jnp.ones(3, jnp.bfloat16), "steps": jnp.asarray(2)}
    tx = zosam_jax.averaged(optax.identity(), 0.999, debias=False)
    updates = {"w": jnp.full(3, 0.5, jnp.bfloat16), "steps": jnp.asarray(0)}
    _, state = tx.update(updates, tx.init(params), params)
    average = zosam_jax.averaged_params(state)
    assert average["w"].dtype == jnp.float32
    np.testing.assert_allclose(average["w"], 1.0005, rtol=1e-6)
    assert average["steps"] == 2


def test_a_perturbation_that_is_asked_for_is_no_step():
    tx = zosam_jax.averaged(zosam_jax.sam(0.1), DECAY)
    state = tx.init(mlp_params())
    epsilon, after = tx.update(
        None, state, mlp_params(), value_fn=mlp_loss, emit="perturbation", **mlp_batch()
    )
    np.testing.assert_allclose(optax.tree.norm(epsilon), 0.1, rtol=1e-5)
    assert_equal(after, state)


def test_a_scan_from_donated_buffers_equals_a_loop():
    tx, params = zosam_jax.averaged(sgd(), DECAY), mlp_params()
    expected = train(tx)
    step = stepper(tx)

    def body(carry, _):
        return step(*carry, mlp_batch()), None

    scanned = jax.jit(lambda *carry: jax.lax.scan(body, carry, length=3)[0], donate_argnums=(0, 1))
    assert_close(scanned(params, tx.init(params)), expected)


def test_statistics_are_averaged_alike():
    old = {"mean": jnp.array([1.0, 3.0]), "count": jnp.asarray(1), "key": jax.random.key(0)}
    new = {"mean": jnp.array([2.0, 2.0]), "count": jnp.asarray(5), "key": jax.random.key(1)}
    moved = averages.moved_towards(old, new, 0.25)
    assert_equal(moved["mean"], jnp.array([1.25, 2.75]))
    assert moved["count"] == 5
    assert moved["key"] == new["key"]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: zosam_jax.averaged(sgd(), 1.0), ValueError, r"decay=1\.0 must be below 1"),
        (lambda: zosam_jax.averaged(sgd(), -0.1), ValueError, r"decay=-0\.1 .*at least 0"),
        (
            lambda: zosam_jax.averaged_params(sgd().init(mlp_params())),
            ValueError,
            "holds 0 averages of the weights, expected one",
        ),
        (
            lambda: zosam_jax.averaged(optax.sgd(0.1), 0.9).update(
                mlp_params(), zosam_jax.averaged(optax.sgd(0.1), 0.9).init(mlp_params())
            ),
            ValueError,
            "params is missing",
        ),
    ],
)
def test_wrong_input_is_told_what_would_be_right(make, error, message):
    with pytest.raises(error, match=message):
        make()
