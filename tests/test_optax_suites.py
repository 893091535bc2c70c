"""Optax's own suites, asked of every row and every sparse wrapper.

Those of its contributed optimizers (contrib/_common_test.py) and of its utilities for states
(tree_utils/_state_utils_test.py); those of layouts are in test_sharding.py. Types are asked of the
traced program, which costs no compilation.
"""

import functools

import everything
import jax
import jax.numpy as jnp
import optax
import pytest
from everything import every_one
from problems import assert_close, assert_equal

import zosam_jax
from zosam_jax import sparsity


def an_update(tx, loss=everything.loss):
    def step(params, state, batch):
        updates, state = tx.update(None, state, params, value_fn=loss, unexpected=1, **batch)
        return optax.apply_updates(params, updates), state

    return step


# Of its contributed optimizers.


@pytest.mark.parametrize(
    "dtype",
    [jnp.bfloat16, *(pytest.param(d, marks=pytest.mark.slow) for d in ("f2", "f4", "f8"))],
)
@every_one
def test_types_of_parameters_and_state_are_kept(make, dtype):
    """Under a condition, which wants the two sides to have the same types; so no step is traced
    anew."""
    with jax.enable_x64(dtype == "f8"):
        tx, params = make(), everything.params(dtype)
        state = jax.eval_shape(tx.init, params)

        def either(coin, params, state):
            step = functools.partial(an_update(tx), params, state, everything.batch())
            return jax.lax.cond(coin, step, lambda: (params, state))

        after = jax.eval_shape(either, True, params, state)
        assert jax.tree.map(jax.typeof, after) == jax.tree.map(
            jax.typeof, jax.eval_shape(lambda *x: x, params, state)
        )


def sums_of_squares(target):
    def loss(params, x):
        del x
        errors = jax.tree.map(lambda p, t: jnp.sum((p - t) ** 2), params, target)
        return sum(jax.tree.leaves(errors))

    return loss


@everything.some_of({"zo_sam", "sam", "look_sam", "rigl"})
def test_it_converges(make):
    """To the target where the weights are kept, from optax's start for arrays of mixed shapes."""
    if make in map(everything.MAKERS.get, ("gradual, units", "s2vite")):
        pytest.skip("their units are those of another network")
    target = {"bias": jnp.array([1.0, -1.0, 2.0]), "kernel": jnp.linspace(-2.0, 1.7, 32)}
    target["kernel"] = target["kernel"].reshape(4, 8)
    params = jax.tree.map(jnp.zeros_like, target)
    fades = optax.linear_schedule(0.01, 0.0, 1500)
    tx = optax.chain(make(), optax.scale_by_schedule(fades))
    step = an_update(tx, sums_of_squares(target))

    @jax.jit
    def run(params, state):
        ones = {"x": jnp.ones((8, 1))}
        return jax.lax.scan(lambda c, _: (step(*c, ones), None), (params, state), length=2000)[0]

    params, state = run(params, optax.tree.map_params(tx, lambda v: v, tx.init(params)))
    masks = None if make in map(everything.MAKERS.get, everything.ROWS) else state[0].masks
    assert_close(params, sparsity.apply_masks(target, masks), rtol=3e-2, atol=3e-2)


# How near 20,000 steps come; look_sam, which does not, has a test of its own.
NEAR = dict.fromkeys(everything.ROWS.keys() - {"look_sam"}, 0.03) | {"mezo": 0.08, "s2_sam": 0.08}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n == "zo_sam" else pytest.mark.slow) for n in sorted(NEAR)]
)
def test_it_finds_the_minimum_of_rosenbrocks_function(name):
    def loss(params, x):
        del x
        return (1 - params[0]) ** 2 + 100 * (params[1] - params[0] ** 2) ** 2

    record = zosam_jax.RECORDS[name]
    is_noisy = name in ("mezo", "forward_gradient")  # their updates are estimates
    base = optax.sgd(3e-4 if name == "mezo" else 1e-3, momentum=None if is_noisy else 0.9)
    tx = optax.chain(record.make(*[1e-3] * record.has_rho), base)
    step = an_update(tx, loss)

    @jax.jit
    def run(params, state):
        ones = {"x": jnp.ones((8, 1))}
        return jax.lax.scan(lambda c, _: (step(*c, ones), None), (params, state), length=20_000)[0]

    params, _ = run(jnp.zeros(2), tx.init(jnp.zeros(2)))
    assert_close(params, jnp.ones(2), rtol=0, atol=NEAR[name])


@everything.some_of({"zo_sam", "set", "rigl"})
def test_accumulation_around_it_emits_nothing_before_its_turn_and_is_warned_of(make):
    """Of microbatches it would see the last alone."""
    tx, params = optax.MultiSteps(make(), 2).gradient_transformation(), everything.params()
    update = functools.partial(tx.update, value_fn=everything.loss)
    with pytest.warns(UserWarning, match=r"chain\(zo_sam\(\.\.\.\), optax\.MultiSteps"):
        found = jax.eval_shape(update, params, tx.init(params), params, **everything.batch())
    assert jax.tree.map(jax.typeof, found[0]) == jax.tree.map(jax.typeof, params)


# Of its utilities for states.


@every_one
def test_states_map_to_what_is_said_of_the_parameters(make):
    tx, params = make(), everything.params()
    state = tx.init(params)
    assert_equal(optax.tree.map_params(tx, lambda v: v, state), state)
    said = jax.tree.map(lambda p: str(p.shape), params)
    mapped = optax.tree.map_params(
        tx, lambda _, s: s, state, said, transform_non_params=lambda _: "whole"
    )
    assert optax.tree.get(mapped, "trace") == said
    assert set(jax.tree.leaves(mapped)) == {"whole", *jax.tree.leaves(said)}


@every_one
def test_half_precision_moments_leave_masks_alone(make):
    tx = make()
    state = tx.init(everything.params())
    narrow = optax.tree.map_params(tx, lambda x: x.astype(jnp.bfloat16), state)
    assert optax.tree.get(narrow, "trace")["out"]["bias"].dtype == jnp.bfloat16
    if hasattr(state, "masks"):
        assert_equal(narrow.masks, state.masks)


@every_one
def test_fields_of_a_state_are_found_and_replaced(make):
    tx = make()
    state = tx.init(everything.params())
    assert jnp.isposinf(optax.tree.get(state, "value"))
    changed = optax.tree.set(state, value=jnp.float32(7.0))
    assert zosam_jax.value(changed) == 7
    assert jax.tree.structure(changed) == jax.tree.structure(state)


@every_one
def test_init_takes_shapes_alone(make):
    tx, params = make(), everything.params()
    shapes = jax.eval_shape(lambda: params)
    expected = jax.tree.map(jax.typeof, tx.init(params))
    for state in (tx.init(shapes), jax.eval_shape(tx.init, shapes)):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == jax.tree.map(
            lambda x: (x.shape, x.dtype), expected
        )


def test_parameters_that_are_masked_by_shape_alone_have_masks_of_shapes():
    tx = sparsity.fixed(optax.sgd(0.1), lambda p: sparsity.magnitude(p, 0.5))
    state = tx.init(jax.eval_shape(everything.params))
    assert state.masks["out"]["kernel"] == jax.ShapeDtypeStruct((8, 4), bool)
    assert state.masks["out"]["bias"] is None


def test_the_state_of_a_row_with_a_mask_maps_too():
    params = everything.params()
    tx = zosam_jax.s2_sam(0.1, mask=jax.tree.map(lambda _: True, params))
    state = optax.tree.map_params(tx, lambda v: v + 1, tx.init(params))
    assert_equal(state.ascent.average, jax.tree.map(jnp.ones_like, params))
    assert state.count == 0
