"""What is said of ascents against closed forms, on losses whose gradient is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import mlp_batch, mlp_loss, mlp_mask, mlp_params, uneven_mask, uneven_params

from zosam_jax import ascent, masks, trees
from zosam_jax.analysis import estimator

BATCHES = [mlp_batch(seed=seed) for seed in (1, 2, 3)]
DIMENSION = 7  # what uneven_mask keeps


def loss_fn(params, batch):
    return mlp_loss(params, **batch)


def linear_loss(params, batch):
    """⟨g, θ⟩ with a gradient g of the batch's length in every coordinate."""
    return batch * sum(jnp.sum(leaf) for leaf in jax.tree.leaves(params))


def on_linear(looked_at, draws=1500, **options):
    """The quality on a linear loss under a mask that keeps 7 weights, with global radius."""
    return estimator.quality(
        linear_loss,
        uneven_params(),
        [jnp.float32(2)],
        looked_at,
        rho=0.5,
        radius="global",
        mask=uneven_mask(),
        num_draws=draws,
        **options,
    )


def assert_mean(spread, expected, looks, within):
    """As expected, where four standard errors are less than what it must be told from."""
    assert 4 * spread.sd / np.sqrt(looks) < within
    assert abs(spread.mean - expected) < within


@pytest.mark.parametrize("mask", [None, mlp_mask()])
@pytest.mark.parametrize("radius", ["global", "layerwise"])
def test_the_exact_gradient_is_perfect(mask, radius):
    found = estimator.quality(
        loss_fn,
        mlp_params(),
        BATCHES,
        ascent.backprop(),
        rho=0.1,
        radius=radius,
        mask=mask,
        num_draws=2,
    )
    np.testing.assert_allclose(found.cosine, (1, 0), atol=1e-5)
    np.testing.assert_allclose(found.relative_error, (0, 0), atol=1e-10)
    assert found.gain == found.gradient_gain
    assert found.relative_gain == 1
    assert (found.dimension, found.num_samples) == (32 if mask is None else 16, 6)


def test_gains_are_differences_of_the_loss_itself():
    params, mask = mlp_params(), masks.resolve(mlp_mask(), mlp_params())
    against = ascent.stateless(
        lambda objective, params, key, mask: ascent.AscentResult(
            trees.scale(objective.value_and_grad(params).gradient, -1.0)
        )
    )
    found = estimator.quality(
        loss_fn, params, BATCHES, against, rho=0.3, radius="global", mask=mask, num_draws=1
    )
    gains = {1: [], -1: []}
    for batch in BATCHES:
        gradient = masks.restrict(jax.grad(loss_fn)(params, batch), mask)
        length = trees.norm(gradient)
        for sign, values in gains.items():
            there = jax.tree.map(lambda p, g: p + 0.3 * sign * g / length, params, gradient)  # noqa: B023
            values.append(loss_fn(there, batch) - loss_fn(params, batch))
    for spread, values in ((found.gradient_gain, gains[1]), (found.gain, gains[-1])):
        np.testing.assert_allclose(spread, (np.mean(values), np.std(values, ddof=1)), rtol=1e-4)
    np.testing.assert_allclose(found.relative_gain, np.mean(gains[-1]) / np.mean(gains[1]), 1e-4)
    np.testing.assert_allclose(found.cosine, (-1, 0), atol=1e-5)
    np.testing.assert_allclose(found.relative_error, (4, 0), atol=1e-5)


def test_a_random_direction_has_a_cosine_of_mean_zero_and_variance_one_over_d():
    found = on_linear(ascent.random_direction())
    assert_mean(found.cosine, 0, found.num_samples, within=0.05)
    np.testing.assert_allclose(found.cosine.sd, DIMENSION**-0.5, rtol=0.08)
    # L is linear: the gain is ρ ‖g‖ times the cosine.
    np.testing.assert_allclose(found.gradient_gain, (0.5 * 2 * DIMENSION**0.5, 0), atol=1e-5)
    np.testing.assert_allclose(found.relative_gain, found.cosine.mean, atol=1e-4)


def test_with_the_right_sign_the_cosine_is_that_of_a_uniform_direction():
    """E|⟨u, g⟩| / (‖u‖ ‖g‖) = Γ(d/2) / (√π Γ((d+1)/2)) exactly, √(2/(πd)) for large d."""
    found = on_linear(ascent.random_gradient_estimate(1, delta=0.1))
    half = DIMENSION / 2
    exact = np.exp(_log_gamma(half) - _log_gamma(half + 0.5)) / np.sqrt(np.pi)
    assert_mean(found.cosine, exact, found.num_samples, within=0.03)
    np.testing.assert_allclose(exact, np.sqrt(2 / (np.pi * DIMENSION)), rtol=0.05)


def _log_gamma(x):
    return float(jax.scipy.special.gammaln(x))


@pytest.mark.parametrize("count", [4, 16])
def test_the_error_of_the_random_gradient_estimate(count):
    """E‖ĝ − g‖² = (E‖uuᵀg‖² − ‖g‖²) / m, with E‖uuᵀg‖² = (d + 2) ‖g‖² for normal u."""
    found = on_linear(ascent.random_gradient_estimate(count, delta=0.1))
    # A dimension more or less is what it must be told from.
    assert_mean(
        found.relative_error, (DIMENSION + 1) / count, found.num_samples, within=0.95 / count
    )


def test_the_error_from_signs():
    """‖u‖² is d for signs: E‖uuᵀg‖² = d ‖g‖²."""
    found = on_linear(ascent.random_gradient_estimate(1, delta=0.1, distribution="rademacher"))
    assert_mean(found.relative_error, DIMENSION - 1, found.num_samples, within=0.9)


def test_pruned_weights_do_not_move():
    """A direction on them, and a gradient there, count for nothing."""

    def everywhere(objective, params, *, key, mask):
        return ascent.AscentResult(jax.tree.map(jnp.ones_like, params))

    found = on_linear(ascent.stateless(everywhere), draws=1)
    np.testing.assert_allclose(found.cosine.mean, 1, rtol=1e-6)
    np.testing.assert_allclose(found.gain.mean, 0.5 * 2 * DIMENSION**0.5, rtol=1e-5)
    np.testing.assert_allclose(found.relative_error.mean, 0.25, rtol=1e-5)  # ĝ = g / 2
    assert np.isnan(found.cosine.sd)


def test_parameters_that_are_not_floating_point():
    params = {**uneven_params(), "table": jnp.arange(3)}

    def loss(params, batch):
        floating = {name: leaf for name, leaf in params.items() if name != "table"}
        return linear_loss(floating, batch) + jnp.sum(params["table"])

    mask = {**uneven_mask(), "table": None}
    found = estimator.quality(
        loss, params, [jnp.float32(2)], ascent.random_direction(), rho=0.5, mask=mask, num_draws=3
    )
    assert found.dimension == DIMENSION
    plain = estimator.quality(
        linear_loss,
        uneven_params(),
        [jnp.float32(2)],
        ascent.random_direction(),
        rho=0.5,
        mask=uneven_mask(),
        num_draws=3,
    )
    np.testing.assert_allclose(found.cosine, plain.cosine, rtol=1e-5)


def test_an_ascent_that_remembers_sees_the_batches_in_turn():
    """On linear losses the last gradient is the last batch's; the first look has none."""
    params = {"w": jnp.zeros(2)}
    batches = [jnp.array([1.0, 0.0]), jnp.array([1.0, 1.0]), jnp.array([0.0, 1.0])]
    found = estimator.quality(
        lambda p, b: jnp.vdot(p["w"], b) + jnp.sum(p["w"] ** 2) / 2,
        params,
        batches,
        ascent.previous_gradient(),
        rho=1e-4,
        radius="global",
        num_draws=2,
    )
    cosines = [0, 2**-0.5, 2**-0.5, 0, 2**-0.5, 2**-0.5]
    np.testing.assert_allclose(found.cosine, (np.mean(cosines), np.std(cosines, ddof=1)), atol=1e-3)


def test_compare_gives_every_ascent_the_same_looks():
    options = {"rho": 0.1, "num_draws": 2, "key": 5}
    found = {
        m: estimator.quality(
            loss_fn, mlp_params(), BATCHES, ascent.random_gradient_estimate(m), **options
        )
        for m in (1, 64)
    }
    assert list(found) == [1, 64]
    assert found[64].cosine.mean > found[1].cosine.mean
    alone = estimator.quality(
        loss_fn, mlp_params(), BATCHES, ascent.random_gradient_estimate(1), **options
    )
    assert found[1] == alone
    other = estimator.quality(
        loss_fn,
        mlp_params(),
        BATCHES,
        ascent.random_gradient_estimate(1),
        **{**options, "key": 6},
    )
    assert other.cosine != alone.cosine


def test_the_program_does_not_depend_on_batch_and_key():
    traces = []

    def once_per_trace(objective, params, *, key, mask):
        traces.append(key)
        return ascent.random_direction().direction(objective, params, (), key=key, mask=mask)

    estimator.quality(
        loss_fn, mlp_params(), BATCHES, ascent.stateless(once_per_trace), rho=0.1, num_draws=3
    )
    assert len(traces) == 1


def test_wrong_arguments_are_named():
    def quality(looked_at=ascent.random_direction(), batches=BATCHES, **options):  # noqa: B008
        return estimator.quality(loss_fn, mlp_params(), batches, looked_at, **options)

    with pytest.raises(TypeError, match="must be an Ascent"):
        quality("zo_sam", rho=0.1)
    with pytest.raises(ValueError, match=r"rho=0.* greater than 0"):
        quality(rho=0)
    with pytest.raises(ValueError, match="num_draws=0"):
        quality(rho=0.1, num_draws=0)
    with pytest.raises(ValueError, match="radius='far' is not known"):
        quality(rho=0.1, radius="far")
    with pytest.raises(ValueError, match="batches is empty"):
        quality(rho=0.1, batches=[])
