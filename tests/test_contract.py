"""What every ready-made transformation promises, asked of each row of the registry.

`factory` runs over `zosam_jax.REGISTRY` (see conftest.py), so that no method can be forgotten.
The cases are those in which optax.contrib.sam goes wrong, and some more.
"""

import functools
import inspect
import io
import pickle

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import (
    RHO,
    assert_close,
    assert_equal,
    keys,
    mlp_batch,
    mlp_logits,
    mlp_loss,
    mlp_params,
    stepper,
    train,
)

import zosam_jax

FALLING = optax.linear_schedule(RHO, 0.1, 3)
RHOS = pytest.mark.parametrize("rho", [RHO, FALLING], ids=["number", "schedule"])
BASES = {"sgd": lambda: optax.sgd(0.1, momentum=0.9), "adamw": lambda: optax.adamw(1e-2)}


def sgd():
    return optax.sgd(0.1, momentum=0.9)


# They evaluate parts of the batch, which they find among the arguments of the loss.
SPLITTING = (zosam_jax.esam, zosam_jax.msam)


def injected(factory):
    """The factory under inject_hyperparams, without what decides the shapes of arrays."""
    options = inspect.signature(factory).parameters
    counts = [k for k, p in options.items() if isinstance(p.default, int) and k != "key"]
    fractions = {"gamma"} & set(options)
    return optax.inject_hyperparams(factory, static_args=[*counts, *fractions])


def skip_if_splitting(factory):
    if factory in SPLITTING:
        pytest.skip("a part of the batch that the loss is closed over cannot be split")


def emitted(tx, value_fn=mlp_loss, updates=None, **extra_args):
    """What the transformation emits in its first step, run op by op (nothing to compile)."""
    params = mlp_params()
    extra_args = mlp_batch() | extra_args
    return tx.update(updates, tx.init(params), params, value_fn=value_fn, **extra_args)[0]


# The numbers that other ways of running the same thing are compared with, compiled once.


@functools.cache
def plainly_emitted(factory):
    return emitted(factory(RHO))


@functools.cache
def plainly_trained(factory, rho=RHO):
    return train(optax.chain(factory(rho), sgd()))


@functools.cache
def scheduled(factory):
    """A transformation with a falling ρ, and its jitted step."""
    tx = optax.chain(factory(FALLING), sgd())
    return tx, stepper(tx)


# Extra arguments.


@pytest.mark.three_rows
def test_extra_arguments_reach_the_rest_of_the_chain(factory):
    seen = {}

    def record(updates, state, params=None, **extra_args):
        seen.update(extra_args)
        return updates, state

    recorder = optax.GradientTransformationExtraArgs(lambda params: optax.EmptyState(), record)
    emitted(optax.chain(factory(RHO), recorder), tag="mine")
    assert seen["tag"] == "mine"
    assert seen.keys() >= {"value_fn", "x", "y"}


@pytest.mark.three_rows
def test_a_linesearch_can_follow(factory):
    search = optax.scale_by_backtracking_linesearch(max_backtracking_steps=10)
    tx = optax.chain(factory(RHO), optax.sgd(4.0), search)
    params, batch = mlp_params(), mlp_batch()

    @jax.jit
    def step(params, state):
        value, grad = jax.value_and_grad(mlp_loss)(params, **batch)
        updates, state = tx.update(
            None, state, params, value=value, grad=grad, value_fn=mlp_loss, **batch
        )
        return optax.apply_updates(params, updates), state

    moved, _ = step(params, tx.init(params))
    assert mlp_loss(moved, **batch) < mlp_loss(params, **batch)


@pytest.mark.three_rows
def test_reduce_on_plateau_can_follow(factory):
    plateau = optax.contrib.reduce_on_plateau(factor=0.5, patience=1, cooldown=0)
    tx = optax.chain(factory(RHO), sgd(), plateau)
    params, state = mlp_params(), tx.init(mlp_params())
    step = stepper(tx, value=1.0)
    for _ in range(4):  # of a value that never improves
        params, state = step(params, state, mlp_batch())
    assert optax.tree.get(state, "scale") < 1


@pytest.mark.three_rows
def test_value_fn_takes_its_own_arguments_by_name(factory):
    def value_fn(params, y, *, x, weight=1.0):
        return weight * mlp_loss(params, x, y)

    updates = emitted(factory(RHO), value_fn, tag="not its own")
    assert_close(updates, plainly_emitted(factory))


class Model:
    def loss(self, params, x, y):
        return mlp_loss(params, x, y)

    def __call__(self, params, x, y):
        return mlp_loss(params, x, y)


def variadic(*args, **kwargs):
    return mlp_loss(*args, **kwargs)


@pytest.mark.three_rows
def test_value_fn_may_be_any_callable(factory):
    callables = [Model(), Model().loss, jax.jit(mlp_loss), jax.checkpoint(mlp_loss), variadic]
    if factory not in SPLITTING:
        callables.append(functools.partial(mlp_loss, y=mlp_batch()["y"]))
    for value_fn in callables:
        assert_close(emitted(factory(RHO), value_fn), plainly_emitted(factory))


@pytest.mark.three_rows
def test_value_fn_with_kwargs_gets_all_but_the_reserved_ones(factory):
    names = set()

    def value_fn(params, **kwargs):
        names.update(kwargs)
        return mlp_loss(params, kwargs["x"], kwargs["y"])

    emitted(factory(RHO), value_fn, value=1.0, grad=mlp_params(), grad_fn=None, tag=1)
    assert names == {"x", "y", "tag"}


@pytest.mark.three_rows
def test_value_fn_as_a_partial_passes_through_jit(factory):
    skip_if_splitting(factory)
    tx, params, batch = factory(RHO), mlp_params(), mlp_batch()
    update = jax.jit(tx.update)
    for _ in range(2):
        value_fn = jax.tree_util.Partial(mlp_loss, y=batch["y"])
        updates, _ = update(None, tx.init(params), params, value_fn=value_fn, x=batch["x"])
    assert_close(updates, plainly_emitted(factory))
    assert update._cache_size() == 1


@pytest.mark.three_rows
@pytest.mark.parametrize("incoming", [jnp.nan, 7.0])
def test_incoming_updates_are_ignored(factory, incoming):
    garbage = jax.tree.map(lambda p: jnp.full_like(p, incoming), mlp_params())
    with pytest.warns(UserWarning, match="ignores the incoming updates"):
        ignoring = emitted(factory(RHO), updates=garbage)
    assert_equal(ignoring, plainly_emitted(factory))


def test_has_aux_round_trip_leaves_the_state_as_it_was(factory):
    def with_logits(params, x, y):
        return mlp_loss(params, x, y), {"logits": mlp_logits(params, x)}

    tx = optax.chain(factory(RHO), sgd())

    @jax.jit
    def step(params, state):
        updates, state = tx.update(
            None, state, params, value_fn=with_logits, has_aux=True, **mlp_batch()
        )
        aux, state = zosam_jax.pop_aux(state)
        return optax.apply_updates(params, updates), state, aux

    params, state = mlp_params(), tx.init(mlp_params())
    for _ in range(3):
        params, state, aux = step(params, state)
    examples = 4 if factory is zosam_jax.msam else 8  # the mean over two parts
    assert aux["logits"].shape == (examples, 2)
    assert step._cache_size() == 1
    assert_close((params, state), plainly_trained(factory))


def seen_by_a_step(params, state, batch, fraction):
    """Which examples of a batch SAM's step sees, from its auxiliary output."""
    alone = zosam_jax.sam(RHO, batch_fraction=fraction)
    rows = jnp.arange(len(batch["y"]))

    def telling(params, x, y, rows):
        return mlp_loss(params, x, y), rows

    state = alone.init(params)._replace(count=state.count, key=state.key)
    _, state = alone.update(None, state, params, value_fn=telling, has_aux=True, rows=rows, **batch)
    return zosam_jax.pop_aux(state)[0]


def test_a_step_on_a_part_of_the_batch_is_the_step_on_those_examples(factory):
    params, batch, parts = mlp_params(), mlp_batch(), set()
    tx, whole = factory(RHO, batch_fraction=0.5), factory(RHO)
    state = tx.init(params)
    for _ in range(3):  # since not every first step is perturbed
        rows = seen_by_a_step(params, state, batch, 0.5)
        parts.add(tuple(rows.tolist()))
        part = {name: x[rows] for name, x in batch.items()}
        expected = whole.update(None, state, params, value_fn=mlp_loss, **part)
        updates, state = tx.update(None, state, params, value_fn=mlp_loss, **batch)
        assert_close((updates, state), expected)
    assert len(parts) > 1


# Types and shapes.


@RHOS
def test_one_compilation_serves_all_steps(factory, rho):
    tx = optax.chain(factory(rho), sgd())
    step, params = stepper(tx), mlp_params()
    state = tx.init(params)
    for seed in range(4):
        params, state = step(params, state, mlp_batch(seed=seed))
    assert step._cache_size() == 1
    assert optax.tree.get(state, "count") == 4


def dtypes(tree):
    return jax.tree.map(lambda leaf: leaf.dtype, tree)


@pytest.mark.every_row
@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_dtypes_are_kept(factory, dtype):
    tx, params = factory(RHO), mlp_params(dtype)
    before, batch = tx.init(params), mlp_batch()
    updates, after = jax.jit(lambda s: tx.update(None, s, params, value_fn=mlp_loss, **batch))(
        before
    )
    assert all(u.dtype == dtype for u in jax.tree.leaves(updates))
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))
    assert zosam_jax.value(after).dtype == jnp.float32
    assert dtypes(after) == dtypes(before)


def test_float64_parameters_get_float64_gradients(factory):
    with jax.enable_x64(True):
        tx, params = factory(RHO), mlp_params(jnp.float64)
        before = tx.init(params)
        updates, after = tx.update(None, before, params, value_fn=mlp_loss, **mlp_batch())
        assert dtypes(updates) == dtypes(params)
        assert dtypes(after) == dtypes(before)


def test_leaves_that_are_none_or_integers_stay_as_they_are(factory):
    params = mlp_params() | {"steps": jnp.asarray(3), "nothing": None, "table": jnp.arange(4)}
    moved, _ = train(optax.chain(factory(RHO), sgd()), params=params)
    others = {"steps", "nothing", "table"}
    assert_equal({k: moved[k] for k in others}, {k: params[k] for k in others})
    expected, _ = plainly_trained(factory)
    assert_close({k: moved[k] for k in expected}, expected)


TREES = {
    "array": jnp.arange(1.0, 4.0),
    "scalar": jnp.float32(2.0),
    "nested": (jnp.ones(2), [jnp.ones((1, 2))]),
    "part empty": {"a": jnp.ones(2), "empty": jnp.ones((0, 3))},
    "mixed": {"a": np.ones(3, np.float32), "count": 3, "flag": np.bool_(True), "nothing": None},
    "empty": {"empty": jnp.ones((0, 3))},
    "integers": {"count": jnp.arange(3)},
    "nothing": {},
}


@pytest.mark.parametrize("mask", [None, True], ids=["dense", "masked"])
def test_parameters_may_be_any_tree(factory, mask):
    def squares(p, x):
        assert x.shape[1:] == (1,)
        return sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(p)) * 0.5 + 0.0

    tx, x = factory(RHO, mask=mask), jnp.ones((4, 1))
    for name, params in TREES.items():
        updates, state = tx.update(None, tx.init(params), params, value_fn=squares, x=x)
        assert jax.tree.map(jnp.shape, updates) == jax.tree.map(jnp.shape, params), name
        assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates)), name
        assert jnp.isfinite(zosam_jax.value(state)), name


def test_optax_finds_the_state(factory):
    _, state = plainly_trained(factory)
    assert optax.tree.get(state, "count") == 3
    assert jnp.isfinite(zosam_jax.value(state))
    assert optax.tree.get(state, "key").dtype == jnp.uint32


def test_the_state_holds_arrays_only(factory):
    leaves = jax.tree.leaves(factory(RHO).init(mlp_params()))
    assert all(isinstance(leaf, jax.Array) for leaf in leaves)


# Other transformations around it.


@pytest.mark.three_rows
def test_multi_steps_averages_gradients_of_microbatches(factory):
    micro = [mlp_batch(rows=4, seed=seed) for seed in range(3)]
    params, alone = mlp_params(), factory(RHO)
    state, gradients = alone.init(params), []
    for batch in micro:
        updates, state = alone.update(None, state, params, value_fn=mlp_loss, **batch)
        gradients.append(updates)
    expected = jax.tree.map(lambda p, *g: p - 0.1 * sum(g) / 3, params, *gradients)

    accumulated = optax.MultiSteps(optax.sgd(0.1), 3).gradient_transformation()
    tx = optax.chain(factory(RHO), accumulated)
    step, state, moving = stepper(tx), tx.init(params), params
    for batch in micro[:2]:
        moving, state = step(moving, state, batch)
    assert_equal(moving, params)
    moving, state = step(moving, state, micro[2])
    assert_close(moving, expected)


@pytest.mark.three_rows
def test_apply_if_finite_after_it_skips_a_bad_batch(factory):
    tx = optax.chain(factory(RHO), optax.apply_if_finite(sgd(), 3))
    step, good = stepper(tx), mlp_batch()
    bad = good | {"x": good["x"].at[0].set(jnp.nan)}
    params, state = step(mlp_params(), tx.init(mlp_params()), good)
    skipped, state = step(params, state, bad)
    assert_equal(skipped, params)
    assert optax.tree.get(state, "total_notfinite") == 1
    moved, _ = step(skipped, state, good)
    assert all(jnp.isfinite(p).all() for p in jax.tree.leaves(moved))
    assert not jnp.array_equal(moved["hidden"]["kernel"], params["hidden"]["kernel"])


@pytest.mark.three_rows
def test_apply_if_finite_around_the_chain_changes_nothing(factory):
    tx = optax.apply_if_finite(optax.chain(factory(RHO), optax.scale(2.0)), 3)
    with pytest.warns(UserWarning, match="ignores the incoming updates"):
        updates = emitted(tx, updates=jax.tree.map(jnp.zeros_like, mlp_params()))
    assert_close(updates, jax.tree.map(lambda g: 2 * g, plainly_emitted(factory)))


@RHOS
def test_inject_hyperparams_gives_the_same_numbers(factory, rho):
    params, state = train(optax.chain(injected(factory)(rho=rho), sgd()))
    assert_close(params, plainly_trained(factory, rho)[0])
    assert state[0].hyperparams["rho"] > 0


@pytest.mark.three_rows
def test_an_injected_rho_can_be_edited(factory):
    tx, params, batch = injected(factory)(rho=0.01), mlp_params(), mlp_batch()
    update = jax.jit(lambda s: tx.update(None, s, params, value_fn=mlp_loss, **batch))

    def two_steps(rho):
        state = tx.init(params)
        state.hyperparams["rho"] = jnp.asarray(rho, jnp.float32)
        first, state = update(state)
        return first, update(state)[0]

    first, second = two_steps(RHO)
    assert_close(first, plainly_emitted(factory))
    assert not jnp.allclose(second["out"]["bias"], two_steps(0.01)[1]["out"]["bias"])
    assert update._cache_size() == 1


@pytest.mark.three_rows
def test_clipping_before_it_has_no_effect(factory):
    tx = optax.chain(optax.clip_by_global_norm(1e-3), factory(RHO))
    with pytest.warns(UserWarning, match=r"write optax\.chain\(zo_sam\(\.\.\.\), clip"):
        clipped = emitted(tx, updates=mlp_params())
    assert_close(clipped, plainly_emitted(factory))


@pytest.mark.three_rows
def test_clipping_after_it_clips_the_emitted_gradient(factory):
    plain = plainly_emitted(factory)
    clipped = emitted(optax.chain(factory(RHO), optax.clip_by_global_norm(1e-3)))
    shrink = 1e-3 / optax.tree.norm(plain)
    assert shrink < 1
    assert_close(clipped, jax.tree.map(lambda g: shrink * g, plain), atol=1e-9)


@pytest.mark.three_rows
def test_the_rest_of_the_chain_may_partition_the_parameters(factory):
    rest = optax.partition(
        {"train": sgd(), "freeze": optax.set_to_zero()}, {"hidden": "train", "out": "freeze"}
    )
    moved, _ = train(optax.chain(factory(RHO), rest))
    assert_equal(moved["out"], mlp_params()["out"])
    assert not jnp.array_equal(moved["hidden"]["bias"], mlp_params()["hidden"]["bias"])


def wrap_in_masked(tx):
    return optax.masked(tx, {"hidden": True, "out": False})


def wrap_in_partition(tx):
    labels = {"hidden": "own", "out": "other"}
    return optax.partition({"own": tx, "other": optax.set_to_zero()}, labels)


@pytest.mark.three_rows
@pytest.mark.parametrize("wrap", [wrap_in_masked, wrap_in_partition])
def test_inside_optax_masked_it_sees_its_own_leaves_alone(factory, wrap):
    params = mlp_params()

    def value_fn(own, x, y):  # optax passes the masked tree on; the other leaves are filled in
        return mlp_loss({"hidden": own["hidden"], "out": params["out"]}, x, y)

    inner = optax.chain(factory(RHO), sgd())
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates = emitted(wrap(inner), value_fn, updates=zeros)
    own = {"hidden": params["hidden"]}
    expected, _ = inner.update(None, inner.init(own), own, value_fn=value_fn, **mlp_batch())
    assert_close(updates["hidden"], expected["hidden"])
    assert all(not u.any() for u in jax.tree.leaves(updates["out"]))


# Compilation, transformation, storage.


def test_buffers_can_be_donated_and_init_called_again(factory):
    tx = optax.chain(factory(RHO), sgd())
    step = jax.jit(stepper(tx), donate_argnums=(0, 1))
    params, first = mlp_params(), tx.init(mlp_params())
    kept, state, donated = jax.tree.map(np.array, first), first, [*jax.tree.leaves(params)]
    for _ in range(3):
        params, state = step(params, state, mlp_batch())
    assert all(leaf.is_deleted() for leaf in [*donated, optax.tree.get(first, "key")])
    assert_equal(tx.init(mlp_params()), kept)
    assert_close((params, state), plainly_trained(factory))


def test_donating_the_state_spares_the_callers_key(random_factory):
    key = jax.random.PRNGKey(3)
    state = random_factory(RHO, key=key).init(mlp_params())
    jax.jit(lambda s: jax.tree.map(lambda leaf: leaf + 0, s), donate_argnums=0)(state)
    assert optax.tree.get(state, "key").is_deleted()
    assert not key.is_deleted()


@pytest.mark.three_rows
def test_init_can_be_traced(factory):
    tx, params = optax.chain(factory(RHO), sgd()), mlp_params()
    assert_equal(jax.jit(tx.init)(params), tx.init(params))
    shapes = jax.eval_shape(tx.init, params)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, tx.init(params))


@pytest.mark.three_rows
def test_every_kind_of_key_is_a_seed(random_factory):
    expected = random_factory(RHO, key=3).init(mlp_params())
    for key in (np.int64(3), jnp.asarray(3), jax.random.key(3), jax.random.PRNGKey(3)):
        assert_equal(random_factory(RHO, key=key).init(mlp_params()), expected)


@pytest.mark.three_rows
def test_another_generator_draws_its_own_directions(random_factory):
    updates = emitted(random_factory(RHO, key=jax.random.key(0, impl="rbg")))
    assert not jnp.allclose(
        updates["out"]["kernel"], plainly_emitted(random_factory)["out"]["kernel"]
    )


def test_scan_over_steps_equals_a_loop(factory):
    tx, step = scheduled(factory)
    start = (mlp_params(), tx.init(mlp_params()))
    batches = [mlp_batch(seed=seed) for seed in range(4)]
    scanned, _ = jax.jit(
        lambda carry, xs: jax.lax.scan(lambda c, batch: (step(*c, batch), None), carry, xs)
    )(start, jax.tree.map(lambda *b: jnp.stack(b), *batches))
    looped = start
    for batch in batches:
        looped = step(*looped, batch)
    assert_close(scanned, looped)


def test_vmap_over_runs_equals_a_loop(factory):
    (tx, step), batch = scheduled(factory), mlp_batch()
    several = [mlp_params(seed=seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *p: jnp.stack(p), *several)
    vmapped, _ = jax.vmap(lambda p: step(p, tx.init(p), batch))(stacked)
    looped = [step(p, tx.init(p), batch)[0] for p in several]
    assert_close(vmapped, jax.tree.map(lambda *p: jnp.stack(p), *looped))


def test_vmap_over_seeds_draws_a_direction_for_each(random_factory):
    stacked = jax.jit(jax.vmap(lambda key: emitted(random_factory(RHO, key=key))))(keys(3))
    kernels = stacked["hidden"]["kernel"]
    assert not jnp.allclose(kernels[0], kernels[1])
    alone = emitted(random_factory(RHO, key=keys(3)[1]))
    assert_close(jax.tree.map(lambda g: g[1], stacked), alone)


def through_flax(state, fresh):
    return flax.serialization.from_bytes(fresh, flax.serialization.to_bytes(state))


def through_pickle(state, fresh):
    del fresh
    return pickle.loads(pickle.dumps(state))


def through_savez(state, fresh):
    file = io.BytesIO()
    np.savez(file, *jax.tree.leaves(state))
    file.seek(0)
    with np.load(file) as arrays:
        return jax.tree.unflatten(jax.tree.structure(fresh), list(arrays.values()))


def test_a_checkpoint_continues_bit_for_bit(factory):
    (tx, step), batch = scheduled(factory), mlp_batch()
    fresh = (mlp_params(), tx.init(mlp_params()))
    saved = step(*fresh, batch)
    straight = step(*step(*saved, batch), batch)
    for through in (through_flax, through_pickle, through_savez):
        resumed = step(*step(*through(saved, fresh), batch), batch)
        assert_equal(resumed, straight)


# Where there is nothing to climb, or nothing to restrict.


def test_a_flat_loss_gives_the_plain_gradient(factory):
    def flat(params, x, y):
        return 0.0 * mlp_loss(params, x, y) + 2.0

    assert all((u == 0).all() for u in jax.tree.leaves(emitted(factory(RHO), flat)))


@pytest.mark.every_row
def test_a_stationary_point_stays_finite(factory):
    tx, params = factory(RHO), jax.tree.map(jnp.zeros_like, mlp_params())
    update = functools.partial(tx.update, value_fn=lambda p, x: optax.tree.norm(p, squared=True))
    updates, _ = jax.jit(update)(None, tx.init(params), params, x=jnp.ones((4, 1)))
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


ZEROS = {
    "static": lambda factory: factory(0.0),
    "array": lambda factory: factory(jnp.zeros(())),
    "schedule": lambda factory: factory(optax.constant_schedule(0.0)),
    "injected": lambda factory: injected(factory)(rho=0.0),
}


@functools.cache
def trained_without(base):
    """Five steps of the base optimizer on jax.grad."""
    tx, batch, params = BASES[base](), mlp_batch(), mlp_params()

    @jax.jit
    def step(params, state):
        updates, state = tx.update(jax.grad(mlp_loss)(params, **batch), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for _ in range(5):
        params, state = step(params, state)
    return params


@pytest.mark.parametrize(
    ("zero", "base"),
    [("static", "sgd"), ("array", "sgd"), ("schedule", "sgd"), ("injected", "adamw")],
)
def test_rho_zero_equals_the_base_optimizer_bit_for_bit(factory, zero, base):
    if factory is zosam_jax.esam and zero != "static":
        pytest.skip("what is known to be zero only at run time does not change what it computes")
    params, _ = train(optax.chain(ZEROS[zero](factory), BASES[base]()), steps=5)
    # A mean over parts of the batch is rounded otherwise than the mean over all of it; and a ρ
    # that the compiler does not know leaves GSAM's two gradients, which it rounds as it likes.
    is_rounded = factory is zosam_jax.msam or (factory is zosam_jax.gsam and zero == "injected")
    (assert_close if is_rounded else assert_equal)(params, trained_without(base))


ALL_ONES = {
    "bool": lambda params: jax.tree.map(lambda p: jnp.ones(p.shape, bool), params),
    "float": lambda params: jax.tree.map(jnp.ones_like, params),
    "callable": lambda params: lambda p: jax.tree.map(lambda leaf: True, p),
    "prefix": lambda params: True,
}


def test_an_all_ones_mask_equals_none_bit_for_bit(factory):
    for ones in ALL_ONES.values():
        tx = factory(RHO, mask=ones(mlp_params()))
        assert_equal(emitted(tx), plainly_emitted(factory))


def test_an_all_ones_mask_changes_nothing_in_a_compiled_program(factory):
    compiled, masked = (
        jax.jit(functools.partial(emitted, factory(RHO, mask=mask)))() for mask in (None, True)
    )
    assert_equal(masked, compiled)


def test_a_mask_given_to_update_overrides(factory):
    def second(tx, **mask):  # since not every first step is perturbed, nor one on the same batch
        params, state = mlp_params(), tx.init(mlp_params())
        for seed in range(2):
            batch = mlp_batch(seed=seed)
            updates, state = tx.update(None, state, params, value_fn=mlp_loss, **mask, **batch)
        return updates

    tx = factory(RHO, mask={"hidden": True, "out": False})
    overridden, restricted = second(tx, mask=True), second(tx)
    assert_equal(overridden, second(factory(RHO)))
    assert not jnp.allclose(restricted["out"]["bias"], overridden["out"]["bias"])
