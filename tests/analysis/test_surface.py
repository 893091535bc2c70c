"""Loss surfaces against the loss itself, evaluated point by point."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import assert_equal, flatten, mlp_batch, mlp_loss, mlp_mask, mlp_params

from zosam_jax import masks, trees
from zosam_jax.analysis import surface

BATCHES = [mlp_batch(seed=seed) for seed in (1, 2, 3)]


def loss_fn(params, batch):
    return mlp_loss(params, **batch)


def mean_loss(params):
    return np.mean([loss_fn(params, batch) for batch in BATCHES])


def moved(params, *steps):
    """params + Σ step·direction."""
    for step, direction in steps:
        params = jax.tree.map(lambda p, u, t=step: p + t * u, params, direction)
    return params


def filter_norms(kernel):
    return np.linalg.norm(kernel, axis=0)


def test_a_line_is_the_loss_at_each_distance():
    params, direction = mlp_params(), jax.tree.map(jnp.cos, mlp_params(seed=4))
    distances = [-1.5, 0.0, 0.25, 3.0]
    losses = surface.line(loss_fn, params, BATCHES, direction, distances)
    expected = [mean_loss(moved(params, (t, direction))) for t in distances]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_plane_has_a_row_for_each_y():
    params = mlp_params()
    u, v = mlp_params(seed=4), jax.tree.map(jnp.cos, mlp_params(seed=5))
    xs, ys = np.array([-1.0, 0.5]), np.array([0.0, 0.3, 2.0])
    losses = surface.plane(loss_fn, params, BATCHES, (u, v), xs=xs, ys=ys)
    expected = [[mean_loss(moved(params, (x, u), (y, v))) for x in xs] for y in ys]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_a_plane_of_zeros_and_a_line_agree():
    params = mlp_params()
    u, v = surface.random_plane(params, 3)
    distances = np.linspace(-1, 1, 5)
    along = surface.line(loss_fn, params, BATCHES, v, distances)
    across = surface.plane(loss_fn, params, BATCHES, (u, v), xs=[0.0], ys=distances)
    np.testing.assert_array_equal(across[:, 0], along)


def test_one_program_for_all_points_and_batches():
    traces = 0

    def counting(params, batch):
        nonlocal traces
        traces += 1
        return loss_fn(params, batch)

    params = mlp_params()
    u, v = surface.random_plane(params)
    surface.line(counting, params, BATCHES, u, np.linspace(-1, 1, 7))
    assert traces == 1
    surface.plane(counting, params, BATCHES, (u, v), xs=[-1, 0, 1], ys=[0, 1])
    assert traces == 2


@pytest.mark.parametrize("is_drawn", [True, False])
def test_filters_are_as_long_as_their_weights(is_drawn):
    params = mlp_params()
    given = 7 if is_drawn else jax.tree.map(jnp.cos, params)
    direction = surface.filter_normalised(given, params)
    for layer in ("hidden", "out"):
        np.testing.assert_allclose(
            filter_norms(direction[layer]["kernel"]),
            filter_norms(params[layer]["kernel"]),
            rtol=1e-5,
        )
        assert not np.any(direction[layer]["bias"])
    if not is_drawn:  # only lengths change: each filter is a positive multiple of what was given
        u, given = direction["out"]["kernel"], given["out"]["kernel"]
        cosines = np.sum(u * given, axis=0) / filter_norms(u) / filter_norms(given)
        np.testing.assert_allclose(cosines, 1, rtol=1e-5)


def test_a_mask_is_exact_and_its_filters_count_kept_weights():
    params, mask = mlp_params(), masks.resolve(mlp_mask(), mlp_params())
    given = mlp_mask()
    for direction in surface.random_plane(params, 1, mask=given):
        assert_equal(direction, masks.restrict(direction, mask))
        kept = masks.restrict(params, mask)
        for layer in ("hidden", "out"):
            np.testing.assert_allclose(
                filter_norms(direction[layer]["kernel"]),
                filter_norms(kept[layer]["kernel"]),
                rtol=1e-5,
            )


@pytest.mark.parametrize(
    "key", [np.int64(5), jax.random.key(5), jax.random.key_data(jax.random.key(5))]
)
def test_seeds_and_keys_are_the_same(key):
    expected = surface.filter_normalised(5, mlp_params())
    assert_equal(surface.filter_normalised(key, mlp_params()), expected)


def test_the_directions_of_a_plane_are_independent_or_orthogonal():
    params = mlp_params()
    u, v = surface.random_plane(params, 2)
    assert 1e-4 < abs(np.vdot(flatten(u), flatten(v))) < 0.9 * trees.norm(u) * trees.norm(v)
    u, w = surface.random_plane(params, 2, orthogonal=True)
    assert abs(np.vdot(flatten(u), flatten(w))) < 1e-5
    assert np.vdot(flatten(v), flatten(w)) > 0


def test_parameters_that_are_not_floating_point_stay():
    params = {"table": jnp.array([3, 1]), "w": jnp.array([[0.5, -2.0], [1.0, 4.0]])}

    def loss(params, batch):
        assert params["table"].dtype == jnp.int32
        return jnp.sum(params["w"] @ params["table"] * batch)

    direction = surface.filter_normalised(0, params, mask={"table": None, "w": None})
    for given in (direction, {**direction, "table": jnp.zeros(2, jnp.int32)}):
        (value,) = surface.line(loss, params, [1.0], given, [2.0])
        there = params["w"] + 2 * direction["w"]
        np.testing.assert_allclose(value, np.sum(there @ params["table"]), rtol=1e-5)


def test_narrow_parameters_are_rounded_once():
    params = {"w": jnp.array([1.0, 3.0], jnp.bfloat16)}
    # Half a unit in the last place of 1 and a bit: no step of these shows alone.
    u, v = {"w": jnp.array([2**-9, 0.0])}, {"w": jnp.array([2**-8, 0.0])}

    def loss(params, batch):
        return jnp.sum(params["w"].astype(jnp.float32)) * batch

    losses = surface.plane(loss, params, [1.0], (u, v), xs=[0.0, 1.0], ys=[0.0, 1.0])
    np.testing.assert_array_equal(losses, [[4, 4], [4, 4 + 2**-7]])


def test_what_cannot_be_drawn_is_refused():
    params = mlp_params()
    other = {**params, "out": {**params["out"], "bias": jnp.zeros(3)}}
    with pytest.raises(ValueError, match=r"direction\['out'\]\['bias'\] has the shape \(3,\)"):
        surface.line(loss_fn, params, BATCHES, other, [0.0])
    with pytest.raises(ValueError, match=r"directions\[1\] has the structure"):
        surface.plane(loss_fn, params, BATCHES, (params, {}), xs=[0.0], ys=[0.0])
    with pytest.raises(ValueError, match="directions must be two"):
        surface.plane(loss_fn, params, BATCHES, params, xs=[0.0], ys=[0.0])
    for wrong in ([], 1.0, [[1.0]], [float("nan")]):
        with pytest.raises(ValueError, match="one or more finite numbers"):
            surface.line(loss_fn, params, BATCHES, params, wrong)
    with pytest.raises(ValueError, match="batches is empty"):
        surface.line(loss_fn, params, [], params, [0.0])
    with pytest.raises(TypeError, match="loss_fn returned an array of shape"):
        surface.line(lambda p, b: p["out"]["bias"], params, BATCHES, params, [0.0])
    with pytest.raises(ValueError, match="mask"):
        surface.filter_normalised(0, params, mask={"hidden": None})
    with pytest.raises(TypeError, match="key=True"):
        surface.filter_normalised(True, params)
