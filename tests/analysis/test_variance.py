"""The variance of minibatch gradients against NumPy's, of gradients known in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import mlp_batch, mlp_loss, mlp_mask, mlp_params

import zosam_jax
from zosam_jax import ascent, masks
from zosam_jax.analysis.variance import gradient_variance

RNG = np.random.default_rng(0)
PARAMS = {"bias": np.float32(0.7), "w": RNG.normal(size=3).astype(np.float32)}
BATCHES = [
    {"x": RNG.normal(0.3, 1.0, (4, 3)).astype(np.float32), "y": RNG.normal(size=4)}
    for _ in range(5)
]


def regression_loss(params, batch):
    """Mean of (x·w + b − y)² / 2."""
    return jnp.mean(jnp.square(batch["x"] @ params["w"] + params["bias"] - batch["y"])) / 2


def gradients(weights, bias, kept):
    """Their closed form, of shape [batches, 4], bias first."""
    rows = []
    for batch in BATCHES:
        residual = batch["x"].astype(np.float64) @ weights + bias - batch["y"]
        rows.append(np.append(np.mean(residual), batch["x"].T @ residual / len(residual)) * kept)
    return np.array(rows)


def assert_statistics_of(found, rows):
    mean = rows.mean(axis=0)
    variance = np.sum(rows.var(axis=0, ddof=1))
    np.testing.assert_allclose(found.variance, variance, rtol=1e-5)
    np.testing.assert_allclose(found.gradient_norm, np.linalg.norm(mean), rtol=1e-5)
    np.testing.assert_allclose(found.relative, variance / np.sum(mean**2), rtol=1e-5)
    np.testing.assert_allclose(found.mean_squared_norm, np.mean(np.sum(rows**2, 1)), rtol=1e-5)
    assert found.num_batches == len(rows)


@pytest.mark.parametrize("kept", [(1, 1, 1, 1), (0, 1, 0, 1)])
@pytest.mark.parametrize("step", [0.0, 0.5])
def test_linear_regression(kept, step):
    mask = None if all(kept) else {"bias": False, "w": jnp.array([True, False, True])}

    def ascend(params, batch):
        """Another one in each batch, and not within the mask."""
        return jax.tree.map(lambda p: step * batch["y"][0] * jnp.ones_like(p), params)

    kept = np.array(kept)
    found = gradient_variance(
        regression_loss, PARAMS, BATCHES, mask=mask, perturbation=ascend if step else None
    )
    rows = []
    for i, batch in enumerate(BATCHES):
        moved = np.append(PARAMS["bias"], PARAMS["w"]) + step * batch["y"][0] * kept
        rows.append(gradients(moved[1:], moved[0], kept)[i])
    assert_statistics_of(found, np.array(rows))


def test_a_small_variance_around_a_large_mean():
    """Mean of squares minus square of the mean has no correct digit here in float32."""
    batches = list((3e3 + RNG.normal(size=(50, 20))).astype(np.float32))
    found = gradient_variance(jnp.vdot, jnp.zeros(20), batches)
    exact = np.sum(np.var(np.float64(batches), axis=0, ddof=1))
    np.testing.assert_allclose(found.variance, exact, rtol=1e-3)


def test_the_climb_of_a_sharpness_aware_step():
    params, mask = mlp_params(), masks.resolve(mlp_mask(), mlp_params())
    batches = [mlp_batch(seed=seed) for seed in range(3)]

    def loss_fn(params, batch):
        return mlp_loss(params, **batch)

    grad = zosam_jax.value_and_grad(loss_fn, ascent=ascent.backprop(), rho=0.5, mask=mask)
    state = grad.init(params)
    found = gradient_variance(
        loss_fn,
        params,
        batches,
        mask=mlp_mask(),
        perturbation=lambda params, batch: grad.perturbation(params, state, batch),
    )
    step = jax.jit(grad)
    rows = [masks.restrict(step(params, state, batch)[0][1], mask) for batch in batches]
    rows = [np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(row)]) for row in rows]
    assert_statistics_of(found, np.array(rows, np.float64))


def test_equal_gradients_have_none_and_a_mean_of_zero_no_relative_one():
    same = gradient_variance(jnp.vdot, jnp.ones(2), 2 * [jnp.array([1.0, 2.0])])
    assert same.variance == same.relative == 0
    opposite = [jnp.array([1.0, 2.0]), jnp.array([-1.0, -2.0])]
    found = gradient_variance(jnp.vdot, jnp.ones(2), opposite)
    assert (found.variance, found.gradient_norm, found.relative) == (10, 0, np.inf)


def test_parameters_that_are_not_floating_point_stay():
    params = {"table": jnp.array([1, 0]), "w": jnp.array([1.0, 2.0])}

    def loss(params, batch):
        return batch * jnp.sum(params["w"][params["table"]] * jnp.array([2.0, 3.0]))

    # Gradients batch · (3, 2), of which the mask keeps the second coordinate.
    mask = {"table": None, "w": jnp.array([False, True])}
    found = gradient_variance(loss, params, [jnp.float32(1), jnp.float32(5)], mask=mask)
    np.testing.assert_allclose((found.variance, found.gradient_norm), (32, 6), rtol=1e-6)


def test_one_program_for_all_batches():
    traces = 0

    def counting(params, batch):
        nonlocal traces
        traces += 1
        return regression_loss(params, batch)

    gradient_variance(counting, PARAMS, BATCHES)
    assert traces == 1


def test_one_batch_has_no_variance():
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"batches holds {count}: .* two or more"):
            gradient_variance(regression_loss, PARAMS, BATCHES[:count])
