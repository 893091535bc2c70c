"""The engine: what every wrapper whose masks change promises, and methods of one's own."""

import functools
import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from problems import assert_close, assert_equal, flatten, mlp_batch, mlp_loss, mlp_params, slow_but

import zosam_jax
from zosam_jax import ascent, sparsity
from zosam_jax.integrations.plain import apply_loss
from zosam_jax.sparsity import budgets, schedules
from zosam_jax.sparsity.scores import magnitude, uniform_random

RHO = 0.3
RANDOM = ascent.random_gradient_estimate()


def loss_without_ties(params, x, y):
    """The gradients of two classes are opposite: a small slope tells their magnitudes apart."""
    slopes = [jnp.vdot(jnp.cos(jnp.arange(p.size)), p.ravel()) for p in jax.tree.leaves(params)]
    return mlp_loss(params, x, y) + 0.01 * sum(slopes)


def custom(inner, **options):
    """A method that is in no registry: Taylor scores, a sixth of the weights every other step."""
    return sparsity.drop_and_grow(
        inner,
        lambda params: sparsity.random(params, 0.5),
        drop=lambda weights, gradient: jnp.abs(weights * gradient),
        grow=lambda gradient, noise: jnp.abs(gradient) * noise,
        schedule=schedules.periodic(2, 1 / 6),
        **options,
    )


def hidden_neurons():
    """The units of `mlp_params`."""
    members = [("hidden", "kernel", 1, "output"), ("hidden", "bias", 0, "elementwise")]
    return sparsity.Units(
        (
            sparsity.Group(
                "['hidden']",
                "neurons",
                5,
                tuple(
                    sparsity.Member(f"['{layer}']['{part}']", axis, np.arange(5), role)
                    for layer, part, axis, role in [*members, ("out", "kernel", 0, "input")]
                ),
            ),
        )
    )


WRAPPERS = {
    "fixed": lambda inner, **o: sparsity.fixed(inner, lambda p: sparsity.random(p, 0.5), **o),
    "custom": custom,
    **{
        name: functools.partial(
            method,
            sparsity=0.5,
            total_steps=20,
            every=[2] * 4 if name == "dsr" else 2,
            **({"threshold": 0.3} if name == "dsr" else {}),
        )
        for name, method in sparsity.METHODS.items()
    },
    "gradual": functools.partial(sparsity.gradual, sparsity=0.5, total_steps=8, every=2),
    "s2vite": functools.partial(
        sparsity.s2vite, sparsity=0.5, units=hidden_neurons(), total_steps=20, every=2
    ),
}
FIRSTS = {
    "sgd": lambda: None,
    "zo_sam": lambda: zosam_jax.zo_sam(RHO),
    "sam": lambda: zosam_jax.sam(RHO),
}


# All share one engine: each run asks one of them, `-m slow` the others as well.
CORE = ("rigl",)


@pytest.fixture(
    params=[pytest.param(n, marks=() if n in CORE else pytest.mark.slow) for n in WRAPPERS]
)
def wrap(request):
    """Every sparse wrapper in turn: inner → transformation."""
    return WRAPPERS[request.param]


@pytest.fixture(params=slow_but({"zo_sam"}, ["sgd", "zo_sam"]))
def first(request):
    """The sharpness-aware first link inside, or none."""
    return FIRSTS[request.param]()


def chain(first=None, rest=None):
    rest = rest or optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.1, momentum=0.9))
    return rest if first is None else optax.chain(first, rest)


def stepper(tx, first, jit=True):
    def step(params, state, batch):
        grads = jax.grad(loss_without_ties)(params, **batch) if first is None else None
        updates, state = tx.update(grads, state, params, value_fn=loss_without_ties, **batch)
        return optax.apply_updates(params, updates), state

    return jax.jit(step) if jit else step


def start(tx, dtype=jnp.float32):
    state = tx.init(mlp_params(dtype))
    return sparsity.apply_masks(mlp_params(dtype), sparsity.get_masks(state)), state


def trained(tx, first, steps=5):
    (params, state), step = start(tx), stepper(tx, first)
    for _ in range(steps):
        params, state = step(params, state, mlp_batch())
    return params, state


def assert_zero_where_pruned(params, state):
    masks = sparsity.get_masks(state)
    for layer in ("hidden", "out"):
        weights, mask = params[layer]["kernel"], np.asarray(masks[layer]["kernel"])
        assert not np.asarray(weights, np.float32)[~mask].any()
    assert masks["out"]["bias"] is None


# The contract.


def test_one_program_for_all_steps(wrap, first):
    tx = wrap(chain(first))
    (params, state), step = start(tx), stepper(tx, first)
    for _ in range(5):
        params, state = step(params, state, mlp_batch())
    assert step._cache_size() == 1
    assert_zero_where_pruned(params, state)


def test_scan_equals_a_loop(wrap, first):
    tx = wrap(chain(first))
    step = stepper(tx, first)
    scanned, _ = jax.jit(
        lambda carry: jax.lax.scan(lambda c, _: (step(*c, mlp_batch()), None), carry, length=5)
    )(start(tx))
    looped = trained(tx, first)
    assert_equal(sparsity.get_masks(scanned[1]), sparsity.get_masks(looped[1]))
    assert_close(scanned[0], looped[0])


def test_donated_states_and_checkpoints(wrap):
    """Half a run, through every form of storage, and the other half."""
    first = zosam_jax.zo_sam(RHO)
    tx = wrap(chain(first))
    donating = jax.jit(stepper(tx, first, jit=False), donate_argnums=(0, 1))
    carry = start(tx)
    for _ in range(3):
        carry = donating(*carry, mlp_batch())
    plain = jax.tree.map(np.asarray, carry)
    restored = [
        pickle.loads(pickle.dumps(plain)),
        flax.serialization.from_bytes(start(tx), flax.serialization.to_bytes(carry)),
    ]
    expected = trained(tx, first)
    for params, state in restored:
        carry = jax.tree.map(jnp.asarray, (params, state))
        for _ in range(2):
            carry = donating(*carry, mlp_batch())
        assert_equal(sparsity.get_masks(carry[1]), sparsity.get_masks(expected[1]))
        assert_close(carry, expected)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_parameters(wrap, dtype):
    first = zosam_jax.zo_sam(RHO, delta=1e-2)
    tx = wrap(chain(first, optax.sgd(0.1, momentum=0.9)))
    (params, state), step = start(tx, dtype), stepper(tx, first)
    for _ in range(3):
        params, state = step(params, state, mlp_batch())
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype(dtype)}
    assert_zero_where_pruned(params, state)


@pytest.mark.parametrize("rest", [optax.adamw(1e-2), optax.lion(1e-2), optax.rmsprop(1e-2)])
def test_any_base_optimizer(wrap, rest):
    params, state = trained(wrap(chain(zosam_jax.zo_sam(RHO), rest)), zosam_jax.zo_sam)
    assert_zero_where_pruned(params, state)
    assert np.isfinite(flatten(params)).all()


def test_clipping_accumulating_and_injecting_inside(wrap):
    inner = optax.chain(
        zosam_jax.zo_sam(RHO),
        optax.clip_by_global_norm(0.1),
        optax.MultiSteps(
            optax.inject_hyperparams(optax.sgd)(learning_rate=0.1, momentum=0.9), 2
        ).gradient_transformation(),
    )
    params, state = trained(wrap(inner), zosam_jax.zo_sam)
    assert_zero_where_pruned(params, state)


def test_auxiliary_outputs_come_out_of_the_wrapper(wrap):
    tx = wrap(chain(zosam_jax.zo_sam(RHO)))

    def loss(params, x, y):
        return loss_without_ties(params, x, y), {"rows": x.shape[0], "norm": jnp.sum(x**2)}

    params, state = start(tx)
    step = jax.jit(lambda p, s: apply_loss(tx, loss, p, s, has_aux=True, **mlp_batch()))
    structure = jax.tree.structure(state)
    for _ in range(3):
        value, aux, params, state = step(params, state)
        assert jnp.isfinite(value)
        assert aux["rows"] == 8
        assert jax.tree.structure(state) == structure
    assert_zero_where_pruned(params, state)


def test_vmap_over_seeds_equals_runs_one_by_one(wrap):
    tx = wrap(chain())
    step = stepper(tx, None, jit=False)

    def run(batch):
        carry = start(tx)
        for _ in range(3):
            carry = step(*carry, batch)
        return carry[0], sparsity.get_masks(carry[1])

    batches = [mlp_batch(seed=s) for s in (1, 2)]
    together = jax.jit(jax.vmap(run))(jax.tree.map(lambda *x: jnp.stack(x), *batches))
    for i, batch in enumerate(batches):
        params, masks = jax.jit(run)(batch)
        assert_equal(jax.tree.map(lambda x, i=i: x[i], together[1]), masks)
        assert_close(jax.tree.map(lambda x, i=i: x[i], together[0]), params)


def mesh():
    return jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("way", ["sharded batch", "shard_map"])
def test_four_devices_give_the_masks_of_one(wrap, first, way):
    if way == "shard_map" and first is not None:
        first = zosam_jax.zo_sam(RHO, axis_name="data")
    tx = wrap(chain(first))

    def run(batch, average=lambda x: x):
        def step(carry, _):
            params, state = carry
            grads = average(jax.grad(loss_without_ties)(params, **batch)) if first is None else None
            updates, state = tx.update(grads, state, params, value_fn=loss_without_ties, **batch)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, start(tx), length=5)
        return params, sparsity.get_masks(state)

    if way == "sharded batch":
        run_on_four = jax.jit(run, in_shardings=(NamedSharding(mesh(), PartitionSpec("data")),))
    else:
        run_on_four = jax.jit(
            jax.shard_map(
                functools.partial(run, average=lambda g: jax.lax.pmean(g, "data")),
                mesh=mesh(),
                in_specs=PartitionSpec("data"),
                out_specs=PartitionSpec(),
                # Unchecked, gradients of replicated parameters are each device's own to average.
                check_vma=first is not None,
            )
        )
    params, masks = run_on_four(mlp_batch())
    tx = wrap(chain(None if first is None else zosam_jax.zo_sam(RHO)))
    expected_params, expected_masks = jax.jit(run)(mlp_batch())
    assert_equal(jax.tree.map(np.asarray, masks), jax.tree.map(np.asarray, expected_masks))
    assert_close(params, expected_params, rtol=1e-4, atol=1e-5)


def test_sharded_parameters_give_the_same_masks(wrap):
    if wrap is WRAPPERS["s2vite"]:
        pytest.skip("its units are those of another network")
    tx = wrap(chain())
    params = {"w": jax.random.normal(jax.random.key(0), (16, 8))}

    def run(params):
        state = tx.init(params)
        params = sparsity.apply_masks(params, sparsity.get_masks(state))
        for i in range(3):
            updates, state = tx.update({"w": jnp.cos(i + params["w"])}, state, params)
            params = optax.apply_updates(params, updates)
        return sparsity.get_masks(state)

    split = NamedSharding(mesh(), PartitionSpec("data"))
    masks = jax.jit(run, in_shardings=({"w": split},))(params)
    assert_equal(jax.tree.map(np.asarray, masks), jax.tree.map(np.asarray, jax.jit(run)(params)))


def test_a_parameter_may_be_called_masks():
    params = {"masks": jnp.ones((4, 4)), "w": jnp.ones((4, 4))}
    tx = sparsity.rigl(optax.sgd(0.1, momentum=0.9), 0.5, total_steps=10)
    masks = sparsity.get_masks(tx.init(params))
    assert masks["masks"].shape == (4, 4)


def test_parameters_are_asked_for(wrap):
    tx = wrap(chain())
    params, state = start(tx)
    with pytest.raises(ValueError, match="params is missing"):
        tx.update(params, state)


# Perturbations and gradients inside.


@pytest.mark.parametrize("up", [ascent.backprop(), RANDOM], ids=["gradient", "random"])
def test_the_perturbation_follows_the_masks(wrap, up):
    """Zero on pruned weights, somewhere on weights that are new; both through updates."""
    seen = []

    def spy(direction, params, rho, mask=None):
        seen.append(zosam_jax.radius.global_(direction, params, rho, mask))
        return seen[-1]

    first = zosam_jax.sharpness_aware(up, RHO, radius=spy)
    tx = wrap(optax.chain(first, optax.sgd(0.1)))
    (params, state), step = start(tx), stepper(tx, first, jit=False)
    for _ in range(4):
        masks = sparsity.get_masks(state)
        params, state = step(params, state, mlp_batch())
        for layer in ("hidden", "out"):
            epsilon = np.asarray(seen[-1][layer]["kernel"])
            mask = np.asarray(masks[layer]["kernel"])
            assert not epsilon[~mask].any()
            assert epsilon[mask].any()
            if up == RANDOM:  # a gradient may be zero
                assert epsilon[mask].all()


@pytest.mark.parametrize("method", ["rigl", "svite", "custom"])  # s2vite in test_unit_methods
def test_the_gradient_inside_grows_like_the_one_outside(method):
    """At ρ = 0 the chain descends along the gradient at θ: the same as passing that in."""
    inside = trained(WRAPPERS[method](chain(zosam_jax.zo_sam(0.0))), zosam_jax.zo_sam)
    outside = trained(WRAPPERS[method](chain()), None)
    assert_equal(sparsity.get_masks(inside[1]), sparsity.get_masks(outside[1]))
    assert_close(inside[0], outside[0])


def test_weights_grow_by_the_gradient_at_the_perturbed_point():
    seen = {}

    def grow(gradient):
        seen.setdefault(gradient.shape, np.asarray(gradient))
        return jnp.abs(gradient)

    first = zosam_jax.sam(RHO)
    tx = sparsity.drop_and_grow(
        optax.chain(first, optax.sgd(0.1)),
        lambda p: sparsity.random(p, 0.5),
        drop=sparsity.scores.magnitude,
        grow=grow,
        schedule=schedules.periodic(1, 0.3),
    )
    params, state = start(tx)
    masks = sparsity.get_masks(state)

    def loss_at(params):
        return loss_without_ties(params, **mlp_batch())

    with jax.disable_jit():
        tx.update(None, state, params, value_fn=loss_without_ties, **mlp_batch())
    epsilon, _ = first.update(
        None,
        first.init(params),
        params,
        value_fn=lambda p: loss_at(sparsity.apply_masks(p, masks)),
        mask=masks,
        emit="perturbation",
    )
    expected = jax.grad(loss_at)(jax.tree.map(jnp.add, params, epsilon))
    for layer in ("hidden", "out"):
        kernel = expected[layer]["kernel"]
        np.testing.assert_allclose(seen[kernel.shape], kernel, rtol=1e-4, atol=1e-6)


def test_momentum_never_sees_the_gradient_of_pruned_weights():
    tx = WRAPPERS["svite"](chain(zosam_jax.zo_sam(RHO), optax.sgd(0.1, momentum=0.9)))
    (params, state), step = start(tx), stepper(tx, zosam_jax.zo_sam)
    for _ in range(2):  # until the first update, none is due
        params, state = step(params, state, mlp_batch())
    trace, masks = optax.tree.get(state, "trace"), sparsity.get_masks(state)
    for layer in ("hidden", "out"):
        assert not np.asarray(trace[layer]["kernel"])[~np.asarray(masks[layer]["kernel"])].any()


def test_no_gradient_is_asked_for_where_no_score_wants_one():
    tx = WRAPPERS["set"](optax.stateless(lambda g, p: jax.tree.map(jnp.zeros_like, p)))
    params, state = start(tx)
    tx.update(None, state, params)


# Methods of one's own.


def test_a_method_of_two_scores():
    """Drops the largest and grows the first: masks small enough to check by eye."""
    weights = {"w": jnp.array([[4.0, 3.0, 2.0, 1.0], [8.0, 7.0, 6.0, 5.0]])}
    tx = sparsity.drop_and_grow(
        optax.sgd(0.0),
        {"w": jnp.array([[1, 1, 0, 0], [0, 1, 0, 1]])},
        drop=lambda weights: -weights,
        grow=lambda weights: -jnp.arange(8.0).reshape(weights.shape),
        schedule=schedules.periodic(1, 0.5),
    )
    params, state = sparsity.apply_masks(weights, tx.init(weights).masks), tx.init(weights)
    updates, state = tx.update({"w": jnp.zeros((2, 4))}, state, params)
    # 7 and 5 go; of what is not kept, positions 2 and 3 come.
    assert state.masks["w"].astype(int).tolist() == [[1, 1, 1, 1], [0, 0, 0, 0]]
    assert optax.apply_updates(params, updates)["w"].tolist() == [[4, 3, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("regrowth", "mask", "value"), [("keep", 1, 7.0), ("zero", 1, 0.0), ("last", 0, 0.0)]
)
def test_what_becomes_of_weights_dropped_in_the_very_update(regrowth, mask, value):
    weights = {"w": jnp.array([[4.0, 3.0, 2.0, 7.0]])}
    tx = sparsity.drop_and_grow(
        optax.sgd(0.0),
        {"w": jnp.array([[1, 0, 0, 1]])},
        drop=lambda weights: -weights,  # 7 goes
        grow=lambda weights: weights,  # 7 is the best, 0 the others
        schedule=schedules.periodic(1, 0.5),
        regrowth=regrowth,
    )
    params = sparsity.apply_masks(weights, tx.init(weights).masks)
    updates, state = tx.update({"w": jnp.zeros((1, 4))}, tx.init(weights), params)
    assert int(state.masks["w"][0, 3]) == mask
    assert optax.apply_updates(params, updates)["w"][0, 3] == value


def test_last_comes_back_where_nothing_else_is_left():
    tx = sparsity.drop_and_grow(
        optax.sgd(0.0),
        {"w": jnp.array([[1, 1, 1, 0]])},
        drop=lambda weights: weights,
        grow=lambda noise: noise,
        schedule=schedules.periodic(1, 0.7),
        regrowth="last",
    )
    weights = {"w": jnp.array([[1.0, 2.0, 3.0, 0.0]])}
    _, state = tx.update({"w": jnp.zeros((1, 4))}, tx.init(weights), weights)
    assert int(state.masks["w"].sum()) == 3
    assert bool(state.masks["w"][0, 3])


def test_scores_that_are_not_finite_do_no_harm():
    tx = sparsity.drop_and_grow(
        optax.sgd(0.0),
        {"w": jnp.array([[1, 1, 0, 0, 0]])},
        drop=lambda weights: jnp.where(weights > 1, jnp.inf, weights),
        grow=lambda weights: jnp.array([[0.0, 0.0, jnp.nan, jnp.inf, -jnp.inf]]),
        schedule=schedules.periodic(1, 0.5),
    )
    weights = {"w": jnp.array([[1.0, 2.0, 0.0, 0.0, 0.0]])}
    _, state = tx.update({"w": jnp.zeros((1, 5))}, tx.init(weights), weights)
    assert state.masks["w"].astype(int).tolist() == [[0, 1, 0, 1, 0]]


def test_noise_differs_from_update_to_update_and_by_key():
    def path(key):
        tx = sparsity.set_(
            optax.sgd(0.0), 0.5, total_steps=10, every=1, fraction=0.9, key=key, masks=half
        )
        state, masks = tx.init(weights), []
        for _ in range(3):
            _, state = tx.update({"w": jnp.zeros((8, 8))}, state, weights)
            masks.append(np.asarray(state.masks["w"]))
        return masks

    weights = {"w": jnp.ones((8, 8))}
    half = {"w": jnp.arange(64).reshape(8, 8) % 2 == 0}
    one, again, other = path(0), path(0), path(1)
    assert all((a == b).all() for a, b in zip(one, again, strict=True))
    assert (one[0] != other[0]).any()
    assert (one[0] != one[1]).any()


def test_schedules():
    def due(schedule, steps):
        return [step for step in range(steps) if schedule.is_due(jnp.int32(step))]

    periodic = schedules.periodic(4, 0.3, start=1, stop=13)
    assert due(periodic, 20) == [4, 8, 12]
    assert due(schedules.periodic(4, 0.3), 10) == [0, 4, 8]
    staged = schedules.staged((2, 4), (0, 8), stop=17)
    assert due(staged, 20) == [2, 4, 6, 8, 12, 16]
    cosine = schedules.cosine(0.5, 100, final=0.005)
    values = [float(cosine(jnp.int32(t))) for t in (0, 50, 100, 150)]
    np.testing.assert_allclose(values, [0.5, 0.2525, 0.005, 0.005], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"drop": lambda magnitude: magnitude}, TypeError, "drop takes 'magnitude', which is not"),
        ({"grow": "random"}, TypeError, "grow='random' must be a function of some of weights"),
        ({"regrowth": "never"}, ValueError, "regrowth='never' is not known"),
        ({"moments": "halve"}, ValueError, "moments='halve' is not known"),
    ],
)
def test_wrong_parts_are_named(options, error, message):
    parts = {
        "drop": lambda weights: weights,
        "grow": lambda noise: noise,
        "schedule": schedules.periodic(1, 0.5),
    }
    with pytest.raises(error, match=message):
        sparsity.drop_and_grow(optax.sgd(0.1), None, **(parts | options))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.periodic(0, 0.3), "every=0"),
        (lambda: schedules.periodic(5, 1.3), "fraction=1.3 must be at most 1"),
        (lambda: schedules.cosine(-0.1, 10), "fraction=-0.1"),
        (lambda: schedules.staged((1, 2), (0,), stop=5), "one period for each of 1 stages"),
        (lambda: budgets.threshold(0.1, 0.0), "initial=0.0"),
        (lambda: budgets.stages(0.5, (0.4,), (0.5,), (0,)), "upper=0.5 must be at most lower=0.4"),
        (lambda: budgets.stages(0.5, (1,), (0.5,), (0,)), "lower=1 must be below 1"),
    ],
)
def test_wrong_schedules_and_budgets_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("moments", ["reset", "keep"])
def test_a_weight_that_became_nan_is_pruned_to_exactly_zero_and_stays_sane(first, moments):
    """Its momentum is NaN too."""
    tx = sparsity.drop_and_grow(
        chain(first),
        {"w": jnp.arange(16).reshape(4, 4) % 2 == 0},
        drop=magnitude,
        grow=uniform_random,
        schedule=schedules.periodic(2, 1 / 4),
        moments=moments,
    )

    def loss(params, x):
        return jnp.mean((params["w"] - x) ** 2)

    def spoilt(tree):
        return jax.tree.map(
            lambda x: x.at[0, 0].set(jnp.nan) if x.shape == (4, 4) and x.dtype != bool else x, tree
        )

    params = {"w": jnp.ones((4, 4))}
    state = spoilt(tx.init(params))
    params = spoilt(sparsity.apply_masks(params, sparsity.get_masks(state)))
    step = jax.jit(lambda p, s: apply_loss(tx, loss, p, s, x=jnp.full((4, 4), 2.0)))
    for _ in range(9):
        was_kept = bool(state.masks["w"][0, 0])
        _, _, params, state = step(params, state)
        if not state.masks["w"][0, 0] and was_kept:
            assert params["w"][0, 0] == 0
    assert state.updates > 1
    assert jnp.isfinite(params["w"]).all()
    for moment in jax.tree.leaves(state.inner_state):
        assert moment.shape != (4, 4) or jnp.isfinite(moment).all()
    assert not params["w"][~state.masks["w"]].any()


def test_a_pruned_weight_that_is_nan_is_seen_by_nobody_and_grows_last():
    """optax.apply_updates cannot make it zero; all else is as if it were."""
    decay = optax.chain(
        optax.add_decayed_weights(0.01), optax.clip_by_global_norm(0.1), optax.sgd(0.1)
    )
    first = zosam_jax.zo_sam(RHO)
    tx = WRAPPERS["rigl"](chain(first, decay))
    (clean, state), step = start(tx), stepper(tx, first)
    pruned = tuple(np.argwhere(~np.asarray(state.masks["out"]["kernel"]))[0])
    broken = clean | {"out": dict(clean["out"])}
    broken["out"]["kernel"] = clean["out"]["kernel"].at[pruned].set(jnp.nan)
    other = state
    for _ in range(2):
        broken, state = step(broken, state, mlp_batch())
        clean, other = step(clean, other, mlp_batch())
    assert not state.masks["out"]["kernel"][pruned]
    flat = flatten(sparsity.apply_masks(broken, state.masks))
    assert np.isfinite(flat).all()
    if not other.masks["out"]["kernel"][pruned]:
        assert_close(sparsity.apply_masks(broken, state.masks), clean)
