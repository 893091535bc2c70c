"""What a step tells about itself at no further pass, and the radius that calibrates itself."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import RHO, assert_close, flatten, mlp_batch, mlp_loss, mlp_mask, mlp_params, stepper

import zosam_jax
from zosam_jax import radius, transform


def one_step(tx, params=None, mask=None):
    """The diagnostics of the first step, and the ε it took."""
    params, batch = mlp_params() if params is None else params, mlp_batch()
    state, options = tx.init(params), {"value_fn": mlp_loss, "mask": mask, **batch}
    epsilon, _ = tx.update(None, state, params, emit="perturbation", **options)
    _, after = tx.update(None, state, params, **options)
    return after.diagnostics, epsilon


def slope_along(direction, params):
    gradient = jax.grad(mlp_loss)(params, **mlp_batch())
    return flatten(gradient) @ flatten(direction) / np.linalg.norm(flatten(direction))


def rise(epsilon, params):
    moved = jax.tree.map(jnp.add, params, epsilon)
    return mlp_loss(moved, **mlp_batch()) - mlp_loss(params, **mlp_batch())


@pytest.mark.parametrize("mask", [None, mlp_mask()], ids=["dense", "masked"])
@pytest.mark.parametrize(
    ("make", "rtol"),
    [
        (zosam_jax.sam, 1e-4),
        (lambda rho: zosam_jax.zo_sam(rho, delta=1e-2), 2e-2),
        (lambda rho: zosam_jax.zo_sam(rho, delta=1e-2, num_directions=4), 2e-2),
    ],
    ids=["sam", "zo m=1", "zo m=4"],
)
def test_slope_gain_and_length_are_those_of_the_step(make, rtol, mask):
    found, epsilon = one_step(make(RHO), mask=mask)
    np.testing.assert_allclose(found.rho_used, RHO, rtol=1e-6)
    np.testing.assert_allclose(found.epsilon_norm, RHO, rtol=1e-5)
    np.testing.assert_allclose(found.slope, slope_along(epsilon, mlp_params()), rtol=rtol)
    np.testing.assert_allclose(found.ascent_gain, rise(epsilon, mlp_params()), atol=2e-4)


def test_forward_differences_know_the_loss_itself():
    found, epsilon = one_step(zosam_jax.zo_sam(RHO, difference="forward"))
    np.testing.assert_allclose(found.ascent_gain, rise(epsilon, mlp_params()), rtol=1e-4)


@pytest.mark.parametrize(
    "make",
    [
        zosam_jax.random_weight_perturbation,
        lambda rho: zosam_jax.sam(rho, fraction=0.25),
        lambda rho: zosam_jax.zo_sam(rho, fraction=0.25),
    ],
    ids=["random", "sam on a part", "zo on a part"],
)
def test_what_no_pass_on_the_whole_batch_tells_is_unknown(make):
    found, _ = one_step(make(RHO))
    assert jnp.isnan(found.ascent_gain)
    np.testing.assert_allclose(found.epsilon_norm, RHO, rtol=1e-5)


def test_without_a_radius_there_is_no_length():
    found, _ = one_step(zosam_jax.sam(0.0))
    assert found.epsilon_norm == found.rho_used == 0


def bowl(params):
    """L = 4 + ½ ‖θ‖², whose even rise along any ε is ½ ‖ε‖²."""
    return 4.0 + optax.tree.norm(params, squared=True) / 2


def calibrate(tx, steps, params, value_fn=bowl):
    update = jax.jit(lambda state: tx.update(None, state, params, value_fn=value_fn)[1])
    state = tx.init(params)
    for _ in range(steps):
        state = update(state)
    return state


@pytest.mark.parametrize("make", [zosam_jax.sam, zosam_jax.random_weight_perturbation])
@pytest.mark.parametrize("rho", [0.02, 0.5, 3.0])
def test_a_calibrated_radius_finds_where_the_loss_rises_as_told(make, rho):
    """½ ‖ε‖² = c √L, whatever ρ it starts from and whichever way it points."""
    params = {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}
    own = radius.calibrated("global", target=0.1, interval=2, bounds=(1e-3, 1e3))
    found = calibrate(make(rho, radius=own), 60, params).diagnostics
    expected = np.sqrt(2 * 0.1 * np.sqrt(bowl(params)))
    np.testing.assert_allclose(found.epsilon_norm, expected, rtol=1e-2)


def test_it_measures_at_every_kth_step_only():
    own = radius.calibrated("global", interval=5, bounds=(1e-3, 1e3))
    tx, params = zosam_jax.sam(0.1, radius=own), mlp_params()
    step, state, factors = stepper(tx), tx.init(params), []
    for _ in range(11):
        _, state = step(params, state, mlp_batch())
        factors.append(float(state.radius.factor))
    changes = [i for i in range(1, 11) if factors[i] != factors[i - 1]]
    assert changes == [5, 10]
    assert factors[0] != 1.0


def test_it_stays_within_its_bounds_and_moves_by_two_at_most():
    params = {"w": jnp.ones(8)}
    own = radius.calibrated("global", interval=1, bounds=(0.5, 3.0), rate=1.0)
    tx = zosam_jax.random_weight_perturbation(1e-4, radius=own)  # far too small
    factors = [float(calibrate(tx, n, params).radius.factor) for n in (1, 2, 3)]
    assert factors == [2.0, 3.0, 3.0]
    tx = zosam_jax.random_weight_perturbation(1e4, radius=own)  # far too large
    assert [float(calibrate(tx, n, params).radius.factor) for n in (1, 2)] == [0.5, 0.5]


def concave(params):
    return 9.0 - optax.tree.norm(params, squared=True) / 2


def overflowing(params):
    return jnp.where(jnp.all(params["w"] == 1.0), 1.0, jnp.inf) + 0.0 * jnp.sum(params["w"])


def negative(params):
    return bowl(params) - 100.0


@pytest.mark.parametrize(
    ("value_fn", "factor"), [(concave, 2.0), (overflowing, 0.5), (negative, 1.0)]
)
def test_what_it_does_where_the_rise_is_no_positive_number(value_fn, factor):
    own = radius.calibrated("global", interval=1, rate=1.0)
    tx = zosam_jax.random_weight_perturbation(0.5, radius=own)
    assert calibrate(tx, 1, {"w": jnp.ones(8)}, value_fn).radius.factor == factor


def test_it_does_not_grow_while_there_is_no_perturbation():
    own = radius.calibrated("global", interval=1)
    warm = optax.linear_schedule(0.0, 0.5, 10)
    tx = zosam_jax.random_weight_perturbation(warm, radius=own)
    assert calibrate(tx, 1, {"w": jnp.ones(8)}).radius.factor == 1.0


@pytest.mark.parametrize("rule", ["layerwise", "adaptive"])
def test_the_slope_is_that_along_epsilon_not_along_the_gradient(rule):
    found, epsilon = one_step(zosam_jax.sam(RHO, radius=rule))
    np.testing.assert_allclose(found.slope, slope_along(epsilon, mlp_params()), rtol=1e-4)
    found, _ = one_step(zosam_jax.zo_sam(RHO, radius=rule))
    assert jnp.isnan(found.slope)


def test_steps_that_do_not_climb_say_so():
    tx, params = zosam_jax.look_sam(0.1, interval=3), mlp_params()
    state, lengths, gains = tx.init(params), [], []
    for _ in range(4):
        options = {"value_fn": mlp_loss, **mlp_batch()}
        epsilon, _ = tx.update(None, state, params, emit="perturbation", **options)
        _, state = tx.update(None, state, params, **options)
        lengths.append(float(state.diagnostics.epsilon_norm))
        gains.append(float(state.diagnostics.ascent_gain))
        np.testing.assert_allclose(optax.tree.norm(epsilon), lengths[-1], rtol=1e-5)
    np.testing.assert_allclose(lengths, [0.1, 0, 0, 0.1], rtol=1e-5)
    assert [np.isnan(gain) for gain in gains] == [False, True, True, False]


def test_a_look_at_the_worst_side_is_at_the_side_it_takes():
    tx, params, batch = zosam_jax.antithetic_sam(0.5), mlp_params(), mlp_batch()
    state = tx.init(params)
    for _ in range(6):
        options = {"value_fn": mlp_loss, **batch}
        epsilon, _ = tx.update(None, state, params, emit="perturbation", **options)
        _, state = tx.update(None, state, params, **options)
        moved = jax.tree.map(jnp.add, params, epsilon)
        np.testing.assert_allclose(mlp_loss(moved, **batch), state.value, rtol=1e-5)


def test_masks_cannot_grow_by_an_estimate():
    tx = zosam_jax.sparsity.rigl(
        optax.chain(zosam_jax.mezo(), optax.sgd(0.1)), sparsity=0.5, total_steps=10
    )
    params = mlp_params()
    with pytest.raises(ValueError, match="estimates no gradient at pruned weights"):
        tx.update(None, tx.init(params), params, value_fn=mlp_loss, **mlp_batch())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"target": 0.0}, "target=0.0 must be a finite number greater than 0"),
        ({"interval": 0}, "interval=0 must be at least 1"),
        ({"rate": 2}, "rate=2 must be at most 1"),
        ({"bounds": (0.0, 1.0)}, "bounds"),
        ({"bounds": (2.0, 1.0)}, "bounds"),
        ({"rule": "euclidean"}, "rule='euclidean' is not known"),
    ],
)
def test_wrong_options_of_a_calibration_are_named(options, sentence):
    with pytest.raises(ValueError, match=sentence.replace("(", "\\(")):
        radius.calibrated(**options)


@pytest.fixture
def _warns_anew():
    transform._warn_of_plain_step.cache_clear()


@pytest.mark.usefixtures("_warns_anew")
@pytest.mark.parametrize("rho", [-0.05, jnp.nan, jnp.inf])
def test_a_schedule_out_of_range_takes_the_plain_gradient_flags_it_and_warns_once(rho):
    tx = zosam_jax.sam(lambda count: jnp.where(count < 2, 0.05, rho))
    params, state = mlp_params(), tx.init(mlp_params())
    update = jax.jit(functools.partial(tx.update, value_fn=mlp_loss))
    for _ in range(2):
        _, state = update(None, state, params, **mlp_batch())
        assert zosam_jax.diagnostics(state).plain_step == 0
    updates, state = update(None, state, params, **mlp_batch())
    assert_close(updates, jax.grad(mlp_loss)(params, **mlp_batch()))
    with pytest.warns(UserWarning, match="rho is below zero or not finite"):
        found = zosam_jax.diagnostics(state)
    assert found.plain_step == 1
    assert found.epsilon_norm == 0
    np.testing.assert_equal(float(found.rho_used), float(jnp.float32(rho)))
    assert zosam_jax.diagnostics(state).plain_step == 1  # and no second warning, an error here


def test_a_traced_delta_that_tells_nothing_is_flagged():
    make = optax.inject_hyperparams(zosam_jax.zo_sam, static_args=("num_directions", "fraction"))
    tx = make(RHO, delta=lambda count: jnp.where(count < 1, 1e-3, 1e-30))
    state, update = tx.init(mlp_params()), jax.jit(functools.partial(tx.update, value_fn=mlp_loss))
    for is_plain in (0, 1):
        _, state = update(None, state, mlp_params(), **mlp_batch())
        assert transform.states(state)[0].diagnostics.plain_step == is_plain
