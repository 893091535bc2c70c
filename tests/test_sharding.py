"""The batch split over four devices gives the step that one device takes with all of it."""

import functools
import re

import everything
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from problems import (
    RHO,
    assert_close,
    mlp_batch,
    mlp_logits,
    mlp_loss,
    mlp_params,
    slow_but,
)

import zosam_jax
from zosam_jax import ascent, descent, directions, sparsity
from zosam_jax.binding import Call
from zosam_jax.objective import Objective

DEVICES = 4
REPLICATED, SPLIT = PartitionSpec(), PartitionSpec("data")

pytestmark = pytest.mark.skipif(jax.device_count() < DEVICES, reason="needs four devices")


def mesh():
    return jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))


def two_steps(tx, value_fn=mlp_loss):
    """(params, batch) → (updates of the second step, its loss)."""

    def run(params, batch):
        state = tx.init(params)
        updates, state = tx.update(None, state, params, value_fn=value_fn, **batch)
        params = optax.apply_updates(params, updates)
        updates, state = tx.update(None, state, params, value_fn=value_fn, **batch)
        return updates, zosam_jax.value(state)

    return run


def by_sharded_arrays(make):
    """Under jit: the compiler splits the work, and the transformation need not know."""
    return jax.jit(
        two_steps(make(axis_name=None)),
        in_shardings=(NamedSharding(mesh(), REPLICATED), NamedSharding(mesh(), SPLIT)),
    )


def by_shard_map(make, check_vma):
    run = two_steps(make(axis_name="data"))
    return jax.jit(
        jax.shard_map(
            run,
            mesh=mesh(),
            in_specs=(REPLICATED, SPLIT),
            out_specs=REPLICATED,
            check_vma=check_vma,
        )
    )


def by_pmap(make):
    run = jax.pmap(two_steps(make(axis_name="data")), axis_name="data", in_axes=(None, 0))

    def split(batch):
        return jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), batch)

    return lambda params, batch: jax.tree.map(lambda x: x[0], run(params, split(batch)))


WAYS = {
    "sharded arrays": by_sharded_arrays,
    "checked shard_map": functools.partial(by_shard_map, check_vma=True),
    "unchecked shard_map": functools.partial(by_shard_map, check_vma=False),
    "pmap": by_pmap,
}


@functools.cache
def on_one_device(factory):
    return jax.jit(two_steps(factory(RHO)))(mlp_params(), mlp_batch())


def skip_if_choosing(factory):
    if factory in (zosam_jax.esam, zosam_jax.subbatch_sam):
        pytest.skip("each device takes a part of its own examples")


@pytest.mark.parametrize("way", WAYS)
def test_every_way_of_splitting_the_batch_takes_the_same_step(factory, way):
    if way != "sharded arrays":
        skip_if_choosing(factory)
    run = WAYS[way](functools.partial(factory, RHO))
    assert_close(run(mlp_params(), mlp_batch()), on_one_device(factory), rtol=1e-4, atol=1e-5)


def test_the_batch_may_be_split_over_several_axes(factory):
    skip_if_choosing(factory)
    both, kind = ("a", "b"), jax.sharding.AxisType.Auto
    run = jax.shard_map(
        two_steps(factory(RHO, axis_name=both)),
        mesh=jax.make_mesh((2, 2), both, axis_types=(kind, kind)),
        in_specs=(REPLICATED, PartitionSpec(both)),
        out_specs=REPLICATED,
    )
    stepped = jax.jit(run)(mlp_params(), mlp_batch())
    assert_close(stepped, on_one_device(factory), rtol=1e-4, atol=1e-5)


ASCENTS = {
    "backprop": ascent.backprop(),
    "random direction": ascent.random_direction(),
    "random gradient": ascent.random_gradient_estimate(2),
    "random gradient, looped": ascent.random_gradient_estimate(2, batching="map"),
    "random gradient, vmapped": ascent.random_gradient_estimate(2, batching="vmap"),
    "coordinate gradient": ascent.coordinate_gradient_estimate(delta=1e-2, chunk_size=8),
}


@pytest.mark.parametrize("check_vma", slow_but([True], [True, False]))
@pytest.mark.parametrize("name", slow_but({"backprop", "random gradient"}, ASCENTS))
def test_every_device_finds_the_same_perturbation(name, check_vma):
    params, batch = mlp_params(), mlp_batch()

    def epsilon(params, batch, axis_name):
        grad = zosam_jax.value_and_grad(
            mlp_loss, ascent=ASCENTS[name], rho=RHO, axis_name=axis_name
        )
        return grad.perturbation(params, grad.init(params), **batch)

    def on_each_device(params, batch):
        return jax.tree.map(lambda e: e[None], epsilon(params, batch, "data"))

    split = jax.shard_map(
        on_each_device,
        mesh=mesh(),
        in_specs=(REPLICATED, SPLIT),
        out_specs=SPLIT,
        check_vma=check_vma,
    )
    each = jax.jit(split)(params, batch)
    for leaf in jax.tree.leaves(each):
        np.testing.assert_array_equal(leaf, jnp.broadcast_to(leaf[:1], leaf.shape))
    alone = jax.jit(functools.partial(epsilon, axis_name=None))(params, batch)
    assert_close(jax.tree.map(lambda e: e[0], each), alone, rtol=1e-3, atol=1e-4)


def test_devices_without_an_axis_name_find_their_own():
    """The control of the test above: without averaging the devices do differ."""
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=ascent.backprop(), rho=RHO)

    def on_each_device(params, batch):
        epsilon = grad.perturbation(params, grad.init(params), **batch)
        return epsilon["hidden"]["kernel"][None]

    split = jax.shard_map(
        on_each_device, mesh=mesh(), in_specs=(REPLICATED, SPLIT), out_specs=SPLIT, check_vma=False
    )
    each = jax.jit(split)(mlp_params(), mlp_batch())
    assert not jnp.allclose(each[0], each[1])


def test_an_axis_of_vmap_averages_too(factory):
    """Microbatches under vmap with a named axis: what pmap is, on one device."""
    skip_if_choosing(factory)
    run = two_steps(factory(RHO, axis_name="data"))
    batch = jax.tree.map(lambda x: x.reshape(DEVICES, -1, *x.shape[1:]), mlp_batch())
    vmapped = jax.jit(jax.vmap(run, in_axes=(None, 0), axis_name="data"))(mlp_params(), batch)
    first = jax.tree.map(lambda x: x[0], vmapped)
    assert_close(first, on_one_device(factory), rtol=1e-4, atol=1e-5)


# Forgetting axis_name.


def no_axis_name(loss=mlp_loss, split_params=False, **options):
    """One step of a value_and_grad without axis_name, inside a checked shard_map."""
    grad = zosam_jax.value_and_grad(loss, **({"rho": RHO} | options))

    def step(params, batch):
        (value, gradient), _ = grad(params, grad.init(params), **batch)
        return jax.tree.map(lambda x: x[None], (value, gradient))

    params = mlp_params()
    if split_params:
        params = jax.tree.map(lambda p: jnp.tile(p, (DEVICES,) + (1,) * (p.ndim - 1)), params)
    specs = (SPLIT if split_params else REPLICATED, SPLIT)
    return jax.jit(jax.shard_map(step, mesh=mesh(), in_specs=specs, out_specs=SPLIT))(
        params, mlp_batch()
    )


def examples_losses(params, x, y):
    return optax.losses.softmax_cross_entropy_with_integer_labels(mlp_logits(params, x), y)


HALF_BATCH = functools.partial(zosam_jax.sam, RHO, batch_fraction=0.5)


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_part_of_a_batch_that_is_split_stays_where_it_is(kind):
    """The numbers are those of one device, and no device gets an example of another."""
    mesh = jax.make_mesh((DEVICES,), ("data",), axis_types=(jax.sharding.AxisType[kind],))

    def loss(params, x, y):
        assert len(y) == 8
        return mlp_loss(params, x, y)

    def select(key, x):
        call = Call(lambda params, x: x, (x,))
        return Objective(call, name="loss").on_random_part(0.5, key)._loss.args[0]

    batch = jax.device_put(mlp_batch(16), NamedSharding(mesh, SPLIT))
    program = jax.jit(select).lower(jax.random.key(0), batch["x"]).compile()
    assert not re.search("all-gather|all-reduce|all-to-all|permute", program.as_text())
    assert program.output_shardings.is_equivalent_to(NamedSharding(mesh, SPLIT), 2)
    run = jax.jit(two_steps(HALF_BATCH(), loss))
    whole = run(mlp_params(), mlp_batch(16))
    with jax.set_mesh(mesh):
        assert_close(run(mlp_params(), batch), whole, rtol=1e-4, atol=1e-5)


def test_inside_shard_map_each_device_draws_from_its_own_examples():
    def rows_seen(params, x, y, rows):
        return mlp_loss(params, x, y), rows

    def step(params, batch):
        tx = HALF_BATCH(axis_name="data")
        updates, state = tx.update(
            None, tx.init(params), params, value_fn=rows_seen, has_aux=True, **batch
        )
        return updates, zosam_jax.pop_aux(state)[0]

    batch = mlp_batch(16) | {"rows": jnp.arange(16)}
    run = jax.shard_map(
        step, mesh=mesh(), in_specs=(REPLICATED, SPLIT), out_specs=(REPLICATED, SPLIT)
    )
    updates, rows = jax.jit(run)(mlp_params(), batch)
    np.testing.assert_array_equal(rows // 4, np.repeat(np.arange(DEVICES), 2))
    part = {name: x[rows] for name, x in mlp_batch(16).items()}
    tx, params = zosam_jax.sam(RHO), mlp_params()
    expected, _ = tx.update(None, tx.init(params), params, value_fn=mlp_loss, **part)
    assert_close(updates, expected, rtol=1e-4, atol=1e-5)


FORGETTING = {name: {"ascent": up} for name, up in ASCENTS.items()} | {
    "forward gradient": {"ascent": ascent.forward_gradient(2)},
    "forward gradient, looped": {"ascent": ascent.forward_gradient(2, batching="map")},
    "previous gradient": {"ascent": ascent.previous_gradient()},
    "friendly": {"ascent": ascent.friendly()},
    "smoothed": {"ascent": ascent.smoothed()},
    "losses of examples": {
        "ascent": ascent.backprop(losses=True),
        "losses_fn": examples_losses,
        "descent": descent.sharpness_sensitive_selection(0.5),
    },
    "worst side": {"ascent": ascent.random_direction(), "descent": descent.worst_side()},
    "extrapolated": {
        "ascent": ascent.backprop(),
        "descent": descent.extrapolated_as_measured(),
    },
    "estimate": {"ascent": ascent.random_gradient_estimate(), "descent": descent.estimate()},
    "without a perturbation": {"ascent": ascent.backprop(), "rho": 0.0},
    "calibrated": {"ascent": ascent.random_direction(), "radius": "calibrated"},
    "microbatches": {"ascent": ascent.backprop(), "microbatches": 2},
}


@pytest.mark.parametrize("options", FORGETTING.values(), ids=FORGETTING)
def test_forgetting_axis_name_is_said(options):
    sentence = "differs between the devices of the mesh axis 'data', .*: pass axis_name='data'"
    with pytest.raises(ValueError, match=sentence):
        no_axis_name(**options)


UP = ascent.random_gradient_estimate(2, batching="map")


def test_a_loss_that_is_averaged_by_its_caller_needs_no_axis_name():
    def averaged(params, x, y):
        return jax.lax.pmean(mlp_loss(params, x, y), "data")

    value, _ = no_axis_name(averaged, ascent=UP)
    np.testing.assert_array_equal(value, jnp.broadcast_to(value[:1], value.shape))


def test_parameters_of_each_device_s_own_need_no_axis_name():
    """Four runs at once, each with its own parameters and its part of the batch."""
    value, _ = no_axis_name(ascent=ascent.backprop(), split_params=True)
    assert value.shape == (DEVICES,)


# Meshes with explicit axes, which jax.make_mesh gives by default: the layout of an array is part of
# its type, so that most of what can go wrong does while tracing.

LAYOUTS = {
    "hidden": {"bias": SPLIT, "kernel": PartitionSpec(None, "data")},
    "out": {"bias": SPLIT, "kernel": SPLIT},
}
EXPLICIT = {  # what is split, and into how many examples the batch is
    "both": (True, True, 16),
    "parts of the batch that do not divide": (False, True, 12),
    "parameters": (True, False, 16),
    "batch": (False, True, 16),
}
explicit_ways = pytest.mark.parametrize(
    "way", [pytest.param(w, marks=() if w == "both" else pytest.mark.slow) for w in EXPLICIT]
)


def gathering_loss(params, x, y):
    """Fully sharded data parallelism as it is written down: weights are gathered for their use."""
    whole = jax.tree.map(lambda p: jax.sharding.reshard(p, REPLICATED), params)
    return everything.loss(whole, x, y)


def laid_out(mesh, way):
    """Parameters and batch on the devices."""
    split_params, split_batch, rows = EXPLICIT[way]

    def put(tree, spec):
        return jax.tree.map(lambda x, s: jax.device_put(x, NamedSharding(mesh, s)), tree, spec)

    params, batch = everything.params(), everything.batch(rows)
    whole = jax.tree.map(lambda _: REPLICATED, params)
    axes = SPLIT if split_batch else REPLICATED
    return put(params, LAYOUTS if split_params else whole), put(batch, dict.fromkeys(batch, axes))


def explicit_step(tx, loss, traces):
    def step(params, state, batch):
        traces.append(1)
        updates, state = tx.update(None, state, params, value_fn=loss, **batch)
        return optax.apply_updates(params, updates), state, updates

    return step


def types(tree):
    return jax.tree.map(jax.typeof, tree)


@explicit_ways
@everything.some_of({"zo_sam", "sam", "rigl", "2:4", "s2vite"})
def test_explicit_layouts_are_kept(make, way):
    """Those of the parameters by the updates, those of the state by the step."""
    tx, mesh = make(), jax.make_mesh((DEVICES,), ("data",))
    assert mesh.axis_types == (jax.sharding.AxisType.Explicit,)
    with jax.set_mesh(mesh):
        params, batch = laid_out(mesh, way)

        def check(params, state, batch):
            moved, after, updates = explicit_step(tx, gathering_loss, [])(params, state, batch)
            assert types(updates) == types(moved) == types(params)
            assert types(after) == types(state)
            if hasattr(state, "masks"):
                for mask, param in zip(
                    *map(sparsity.layers.select(params).take, (state.masks, params)), strict=True
                ):
                    assert jax.typeof(mask).sharding == jax.typeof(param).sharding

        jax.eval_shape(check, params, tx.init(params), batch)


@explicit_ways
@everything.some_of({"zo_sam", "rigl"})
def test_explicit_layouts_take_the_steps_of_one_device(make, way):
    def three_steps(params, batch, loss):
        tx, traces = make(), []
        step, state = jax.jit(explicit_step(tx, loss, traces)), tx.init(params)
        for _ in range(3):
            params, state, _ = step(params, state, batch)
        assert len(traces) == 1
        return params

    expected = three_steps(everything.params(), everything.batch(EXPLICIT[way][2]), everything.loss)
    mesh = jax.make_mesh((DEVICES,), ("data",))
    with jax.set_mesh(mesh):
        found = three_steps(*laid_out(mesh, way), gathering_loss)
    assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_large_arrays_are_drawn_in_pieces_and_the_same_numbers():
    mesh = jax.make_mesh((DEVICES,), ("data",))
    whole = {"large": jnp.ones((256, 128)), "small": jnp.ones((4, 3))}
    with jax.set_mesh(mesh):
        split = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, SPLIT)), whole)
        for name, draw in directions.DISTRIBUTIONS.items():
            key = jax.random.key(0)
            pieces = jax.jit(draw)(key, split)
            assert types(pieces) == types(split), name
            assert_close(jax.device_get(pieces), jax.device_get(draw(key, whole)))


def test_no_mesh_need_be_set_for_arrays_that_are_on_one():
    mesh = jax.make_mesh((DEVICES,), ("data",))
    params = jax.device_put({"w": jnp.ones((8, 4))}, NamedSharding(mesh, SPLIT))
    tx = sparsity.fixed(optax.chain(zosam_jax.zo_sam(RHO), optax.sgd(0.1)), everything.half)

    def update(params):
        state = tx.init(params)
        return tx.update(None, state, params, value_fn=lambda p: jnp.sum(p["w"] ** 2))[0]

    updates = jax.jit(update)(params)
    assert types(updates) == types(params)
