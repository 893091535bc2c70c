"""The ascents beside the paper's: against NumPy, in what they cost, and in what they survive."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from problems import (
    RHO,
    assert_close,
    assert_equal,
    flatten,
    mlp_batch,
    mlp_loss,
    mlp_mask,
    mlp_params,
    stepper,
    train,
    uneven_mask,
    uneven_params,
)
from test_oracles import NumpyMLP, PassCounter, length, move, to_numpy

import zosam_jax
from zosam_jax import ascent, directions, masks, objective, radius

KEY = jax.random.key(3)
every_mask = pytest.mark.parametrize("mask", [None, uneven_mask()], ids=["dense", "masked"])

FAMILY = {
    "previous gradient": ascent.previous_gradient(0.5),
    "forward gradient": ascent.forward_gradient(2),
    "guided": ascent.guided_gradient_estimate(delta=1e-2, decay=0.9),
    "mixture": ascent.mixture(
        (ascent.random_gradient_estimate(delta=1e-2), 1.0), (ascent.previous_gradient(), 0.5)
    ),
    "worst of two pairs": ascent.worst_of(4, antithetic=True),
    "every second": ascent.every(2, ascent.random_gradient_estimate(delta=1e-2)),
    "shaped random": ascent.shaped_random_direction(-0.5, 0.5),
}
every_ascent = pytest.mark.parametrize("name", FAMILY)
# Those that find nothing where no loss is finite.
LOOKING = ["forward gradient", "guided", "worst of two pairs", "every second"]


def quadratic(params):
    """Curved differently along every coordinate, with its minimum off the origin."""
    parts = [jnp.sum((1 + jnp.arange(p.size)) * (p.ravel() - 0.3) ** 2) for p in params.values()]
    return sum(parts) / 10


def climb(up, loss, params, state=None, *, mask=None, rho=0.1, rule=radius.global_, **options):
    """What an ascent finds for a loss of the parameters alone, inside a step of radius ρ."""

    def epsilon(direction):
        return radius.perturbation(rule, direction, params, jnp.asarray(rho), mask)

    problem = objective.Objective(loss, name="loss", **options).with_perturbation(epsilon)
    state = up.init(params) if state is None else state
    return up.direction(problem, params, state, key=KEY, mask=mask)


def drawn(count, distribution="normal", params=None, mask=None):
    """The draws of a step: the direction's key, folded with the index."""
    params = uneven_params() if params is None else params
    draw = directions.get(distribution)
    return [draw(jax.random.fold_in(KEY, i), params, mask) for i in range(count)]


def gradients(count, params=None):
    """Descent gradients to be told of, of unequal lengths."""
    params = uneven_params() if params is None else params
    return [optax.tree.scale(2.0**i, u) for i, u in enumerate(drawn(count, params=params))]


def told(up, params, observed):
    state = up.init(params)
    for gradient in observed:
        state = up.observe(state, gradient)
    return state


# The previous gradient.


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_four_steps_along_the_previous_gradients_equal_numpy(decay, masked):
    mask = masks.resolve(mlp_mask() if masked else None, mlp_params())
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())
    kept = to_numpy(masks.restrict(jax.tree.map(jnp.ones_like, mlp_params()), mask))
    average = {k: np.zeros_like(v) for k, v in p.items()}
    for count in range(4):
        up = {k: average[k] * kept[k] for k in p}
        there = move(p, up, RHO / length(up)) if count else p
        gradient = problem.gradient(there)
        average = {k: decay * average[k] + (1 - decay) * gradient[k] for k in p}
        p = move(p, gradient, -0.1)

    tx = zosam_jax.sharpness_aware(ascent.previous_gradient(decay), RHO, mask=mask)
    # Weight decay and momentum come later and stay out of what is remembered.
    params, state = train(optax.chain(tx, optax.sgd(0.1)), steps=4)
    assert_close(to_numpy(params), p, rtol=1e-4, atol=1e-5)
    assert_close(to_numpy(state[0].ascent.average), average, rtol=1e-4, atol=1e-5)


def test_the_gradient_is_remembered_before_weight_decay():
    tx = optax.chain(
        zosam_jax.sharpness_aware(ascent.previous_gradient(), RHO),
        optax.add_decayed_weights(10.0),
        optax.sgd(0.1),
    )
    _, state = train(tx, steps=1)
    assert_close(state[0].ascent.average, jax.grad(mlp_loss)(mlp_params(), **mlp_batch()))


# The forward gradient.


@every_mask
@pytest.mark.parametrize("distribution", directions.DISTRIBUTIONS)
def test_a_forward_gradient_is_the_mean_of_exact_slopes_times_directions(distribution, mask):
    params = uneven_params()
    found = climb(ascent.forward_gradient(3, distribution), quadratic, params, mask=mask)
    gradient = flatten(jax.grad(quadratic)(params))
    u = [flatten(x) for x in drawn(3, distribution, mask=mask)]
    expected = np.mean([(gradient @ u_i) * u_i for u_i in u], axis=0)
    np.testing.assert_allclose(flatten(found.direction), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.value, quadratic(params), rtol=1e-6)
    slope = gradient @ expected / np.linalg.norm(expected)
    np.testing.assert_allclose(found.slope, slope, rtol=1e-4)


@pytest.mark.parametrize("batching", ["vmap", "map"])
def test_forward_gradients_do_not_depend_on_the_batching(batching):
    one, other = (
        climb(ascent.forward_gradient(5, batching=mode), quadratic, uneven_params())
        for mode in ("unroll", batching)
    )
    assert_close(other, one)


def test_a_number_of_forward_gradients_may_be_traced():
    def found(count):
        return climb(ascent.forward_gradient(count), quadratic, uneven_params())

    assert_close(jax.jit(found)(3), found(3))


def test_a_forward_gradient_of_narrow_parameters_has_the_sign_and_size_of_a_wide_one():
    def loss(params):
        return quadratic(jax.tree.map(lambda p: p.astype(jnp.float32), params))

    narrow = jax.tree.map(lambda p: p.astype(jnp.bfloat16), uneven_params())
    found, wide = (climb(ascent.forward_gradient(), loss, p) for p in (narrow, uneven_params()))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.direction)} == {jnp.dtype("float32")}
    assert_close(found.direction, wide.direction, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("up", [ascent.forward_gradient(), ascent.guided_gradient_estimate()])
def test_the_value_is_that_of_the_loss_on_the_whole_batch_or_unknown(up):
    """A stand-in's value is not the loss's, and neither is a part's."""
    assert climb(up, quadratic, uneven_params()).value is not None
    assert climb(up, quadratic, uneven_params(), probe=quadratic).value is None


@pytest.mark.parametrize(
    ("make", "passes"),
    [
        (functools.partial(ascent.forward_gradient, 2), 2),
        (functools.partial(ascent.guided_gradient_estimate, 1, 2), 6),
        (functools.partial(ascent.worst_of, 3), 3),
    ],
    ids=["forward gradient", "guided", "worst of"],
)
def test_a_fraction_of_the_batch_is_enough_for_the_probes(make, passes):
    """Each of them sees two of the eight examples, the descent all."""
    seen = []

    def loss(params, x, y):
        jax.debug.callback(lambda rows: seen.append(rows.shape[0]), x)
        return mlp_loss(params, x, y)

    tx = zosam_jax.sharpness_aware(make(fraction=0.25), RHO)
    stepper(tx, loss)(mlp_params(), tx.init(mlp_params()), mlp_batch())
    jax.effects_barrier()
    assert sorted(seen) == [2] * passes + [8]


# Guided gradient estimation.


def projection(vector, spanning):
    """The least-squares projection on the span, in NumPy."""
    matrix = np.stack(spanning, axis=1)
    return matrix @ np.linalg.lstsq(matrix, vector, rcond=1e-6)[0]


def averaged(observed, decay):
    average = np.zeros_like(observed[0])
    for gradient in observed:
        average = decay * average + (1 - decay) * gradient
    return average


HISTORIES = {
    "none yet": lambda: [],
    "one of two": lambda: gradients(4)[3:],
    "three, so two": lambda: gradients(5)[2:],
    "twice the same": lambda: 2 * gradients(3)[2:],
    "none but zeros": lambda: [jax.tree.map(jnp.zeros_like, uneven_params())] * 2,
    "almost the same": lambda: [
        gradients(3)[2],
        optax.tree.add_scale(gradients(3)[2], 1e-2, gradients(4)[3]),
    ],
}


@functools.cache
def guided(decay, masked):
    """(estimate, its climb on the quadratic as a compiled function of its state)."""
    up = ascent.guided_gradient_estimate(2, 2, 0.05, decay=decay)
    mask = uneven_mask() if masked else None
    found = functools.partial(climb, up, quadratic, uneven_params(jnp.float64), mask=mask)
    return up, jax.jit(found)


@pytest.mark.parametrize("masked", [False, True], ids=["dense", "masked"])
@pytest.mark.parametrize("decay", [None, 0.6])
@pytest.mark.parametrize("seen", HISTORIES)
def test_a_guided_estimate_is_the_projection_on_the_span_of_all_directions(seen, decay, masked):
    """Exactly so on a quadratic, whose central differences have no error."""
    with jax.enable_x64(True):
        params, observed = uneven_params(jnp.float64), HISTORIES[seen]()
        observed = [jax.tree.map(lambda x: x.astype(jnp.float64), g) for g in observed]
        mask = uneven_mask() if masked else None
        up, look = guided(decay, masked)
        found = look(told(up, params, observed))
        gradient = flatten(jax.grad(quadratic)(params))
        past = [flatten(masks.restrict(g, mask)) for g in observed]
        spanning = past[-2:] + [flatten(u) for u in drawn(2, params=params, mask=mask)]
        if decay is not None and past:
            spanning.append(averaged(past, decay))
        expected = projection(gradient, spanning)
        np.testing.assert_allclose(flatten(found.direction), expected, rtol=1e-7, atol=1e-7)
        np.testing.assert_allclose(found.slope, np.linalg.norm(expected), rtol=1e-7)


@pytest.mark.parametrize("batching", ["unroll", "vmap", "map"])
def test_a_guided_estimate_in_float32_is_the_projection_with_any_batching(batching):
    up = ascent.guided_gradient_estimate(2, 3, 0.1, batching=batching)
    state = told(up, uneven_params(), gradients(7)[5:])
    found = jax.jit(functools.partial(climb, up, quadratic, uneven_params()))(state)
    spanning = [flatten(u) for u in [*gradients(7)[5:], *drawn(3)]]
    expected = projection(flatten(jax.grad(quadratic)(uneven_params())), spanning)
    np.testing.assert_allclose(flatten(found.direction), expected, rtol=1e-3, atol=1e-3)
    assert abs(found.value - quadratic(uneven_params())) < 0.1


def test_directions_that_span_everything_find_the_gradient():
    """Twelve of them for twelve weights, and four that have nothing to add."""
    with jax.enable_x64(True):
        params = uneven_params(jnp.float64)
        found = climb(ascent.guided_gradient_estimate(1, 16, 0.1), quadratic, params)
        assert_close(found.direction, jax.grad(quadratic)(params), rtol=1e-6, atol=1e-6)


@every_mask
def test_guided_probes_are_as_far_away_as_random_ones(mask):
    """δ√d, for d kept weights, to either side and along every direction."""
    params, delta, seen = uneven_params(), 0.02, []

    def loss(p):
        seen.append(optax.tree.sub(p, params))
        return quadratic(p)

    up = ascent.guided_gradient_estimate(1, 2, delta, batching="unroll")
    climb(up, loss, params, told(up, params, gradients(3)[2:]), mask=mask)
    expected = delta * np.sqrt(12 if mask is None else 7)
    distances = [np.linalg.norm(flatten(step)) for step in seen]
    np.testing.assert_allclose(distances, [expected] * 6, rtol=1e-4)
    for above, below in zip(seen[::2], seen[1::2], strict=True):
        assert_close(above, optax.tree.scale(-1, below))


def test_guided_estimates_are_nearer_to_the_gradient_than_random_ones_at_the_same_price():
    """Mean cosine along ten steps, each on a batch of its own."""
    estimates = {
        "guided": ascent.guided_gradient_estimate(1, 1, 1e-2),
        "random": ascent.random_gradient_estimate(2, 1e-2),
    }
    cosines = {}
    for name, up in estimates.items():
        grad = zosam_jax.value_and_grad(mlp_loss, ascent=up, rho=0.05)

        @jax.jit
        def step(params, state, batch, grad=grad):
            epsilon = grad.perturbation(params, state, **batch)
            uphill = jax.grad(mlp_loss)(params, **batch)
            cosine = optax.tree.vdot(epsilon, uphill) / (0.05 * optax.tree.norm(uphill))
            (_, gradient), state = grad(params, state, **batch)
            return optax.tree.add_scale(params, -0.1, gradient), state, cosine

        params, state = mlp_params(), grad.init(mlp_params())
        found = []
        for i in range(11):
            params, state, cosine = step(params, state, mlp_batch(32, seed=i))
            found.append(cosine)
        cosines[name] = np.mean(found[1:])
    assert cosines["guided"] > 0.5
    assert cosines["guided"] > 1.5 * cosines["random"]


# Mixtures.


def at_length(vector, rho=0.1):
    return rho * vector / np.linalg.norm(vector)


@every_mask
def test_a_mixture_adds_its_parts_at_the_same_length(mask):
    params = uneven_params()
    up = ascent.mixture((ascent.backprop(), 0.5), (ascent.random_direction(), 2.0))
    found = climb(up, quadratic, params, mask=mask).direction
    gradient = flatten(masks.restrict(jax.grad(quadratic)(params), mask))
    u = flatten(directions.normal(jax.random.fold_in(KEY, 1), params, mask))
    expected = 0.5 * at_length(gradient) + 2 * at_length(u)
    np.testing.assert_allclose(flatten(found), expected, rtol=1e-5, atol=1e-7)


def test_a_mixture_under_a_layerwise_radius_mixes_array_by_array():
    params = uneven_params()
    up = ascent.mixture((ascent.backprop(), 0.5), (ascent.random_direction(), 2.0))
    found = climb(up, quadratic, params, rule=radius.layerwise).direction
    gradient = jax.grad(quadratic)(params)
    u = directions.normal(jax.random.fold_in(KEY, 1), params)
    for name, p in params.items():
        rho = 0.1 * np.linalg.norm(p)
        expected = 0.5 * at_length(np.asarray(gradient[name]), rho)
        expected = expected + 2 * at_length(np.asarray(u[name]), rho)
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rule", ["global", "layerwise"])
def test_a_mixture_of_one_is_that_one(rule):
    params, batch = mlp_params(), mlp_batch()
    epsilons = []
    for up in (ascent.backprop(), ascent.mixture((ascent.backprop(), 3.0))):
        grad = zosam_jax.value_and_grad(mlp_loss, ascent=up, rho=RHO, radius=rule)
        epsilons.append(grad.perturbation(params, grad.init(params), **batch))
    assert_close(*epsilons)


def test_parts_of_a_mixture_draw_with_keys_of_their_own():
    one = ascent.random_direction()
    found = climb(ascent.mixture((one, 1.0), (one, 1.0)), quadratic, uneven_params()).direction
    # Two unit vectors at an angle; of the same draw the sum would have length two.
    assert np.linalg.norm(flatten(found)) < 1.9 * 0.1


def test_a_part_that_finds_nothing_is_left_out():
    nothing = ascent.stateless(
        lambda problem, params, **_: ascent.AscentResult(
            jax.tree.map(lambda p: jnp.nan * p, params)
        )
    )
    up = ascent.mixture((nothing, 5.0), (ascent.previous_gradient(), 1.0), (ascent.backprop(), 1.0))
    found = climb(up, quadratic, uneven_params()).direction
    expected = at_length(flatten(jax.grad(quadratic)(uneven_params())))
    np.testing.assert_allclose(flatten(found), expected, rtol=1e-5)


def test_a_mixture_hands_on_what_its_parts_know():
    first, second = ascent.forward_gradient(), ascent.backprop()
    found = climb(ascent.mixture((first, 1.0), (second, 1.0)), quadratic, uneven_params())
    assert_equal(found.clean.gradient, jax.grad(quadratic)(uneven_params()))
    np.testing.assert_allclose(found.value, quadratic(uneven_params()), rtol=1e-6)
    assert found.slope is None
    found = climb(ascent.mixture((ascent.random_direction(), 1.0)), quadratic, uneven_params())
    assert found.clean is None
    assert found.value is None


def test_the_states_of_all_parts_go_on():
    inner = ascent.every(3, ascent.backprop())
    up = ascent.mixture((inner, 1.0), (ascent.previous_gradient(), 1.0))
    grad = zosam_jax.value_and_grad(mlp_loss, ascent=up, rho=RHO)
    state = grad.init(mlp_params())
    (_, gradient), state = grad(mlp_params(), state, **mlp_batch())
    asked, remembered = state.ascent
    assert asked.wait == 2
    assert_close(asked.direction, jax.grad(mlp_loss)(mlp_params(), **mlp_batch()))
    assert_equal(remembered.average, gradient)


# The worst of several.


def by_hand(loss, candidates, params, *, rule=radius.global_, mask=None, rho=0.1):
    """ε of the worst of these candidates, whose losses are looked at one by one."""
    epsilons = [radius.perturbation(rule, u, params, jnp.asarray(rho), mask) for u in candidates]
    losses = [float(loss(jax.tree.map(jnp.add, params, e))) for e in epsilons]
    return epsilons[np.nanargmax([x if np.isfinite(x) else np.nan for x in losses])]


def worst(up, loss, params, *, rule=radius.global_, mask=None, rho=0.1):
    found = climb(up, loss, params, mask=mask, rule=rule, rho=rho)
    return radius.perturbation(rule, found.direction, params, jnp.asarray(rho), mask)


@every_mask
@pytest.mark.parametrize(("rule", "count"), [("global", 20), ("layerwise", 4), ("adaptive", 1)])
def test_the_worst_of_several_is_the_one_with_the_largest_loss(count, rule, mask):
    """Twenty are looked at in a loop."""
    params, where = uneven_params(), {"rule": radius.RULES[rule], "mask": mask}
    found = worst(ascent.worst_of(count, "normal"), quadratic, params, **where)
    assert_close(found, by_hand(quadratic, drawn(count, mask=mask), params, **where))


@pytest.mark.parametrize("count", [6, 20])
def test_antithetic_candidates_come_in_pairs(count):
    params = uneven_params()
    pairs = [(u, optax.tree.scale(-1, u)) for u in drawn(count // 2, "rademacher")]
    found = worst(ascent.worst_of(count, antithetic=True), quadratic, params)
    assert_close(found, by_hand(quadratic, [u for pair in pairs for u in pair], params))


def test_the_better_side_of_a_pair_is_uphill():
    """On a linear loss it is the side the gradient points to."""
    found = climb(ascent.worst_of(2, antithetic=True), lambda p: -p["vector"][0], uneven_params())
    assert found.direction["vector"][0] == -1


@pytest.mark.parametrize("count", [5, 20])
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_a_candidate_whose_loss_is_not_finite_cannot_win(bad, count):
    params = uneven_params()
    epsilon = by_hand(quadratic, drawn(count, "rademacher"), params)

    def loss(p):
        moved = optax.tree.sub(p, params)
        return jnp.where(optax.tree.vdot(moved, epsilon) > 0.0099, bad, quadratic(p))

    found = worst(ascent.worst_of(count), loss, params)
    assert_close(found, by_hand(loss, drawn(count, "rademacher"), params))
    assert not np.allclose(flatten(found), flatten(epsilon))


def test_a_number_of_candidates_may_be_traced():
    def found(count):
        return worst(ascent.worst_of(count), quadratic, uneven_params())

    traced = jax.jit(found)
    for count in (2, 5):
        assert_close(traced(count), found(count))
    assert traced._cache_size() == 1


# Every so often.


def test_a_direction_is_kept_until_the_ascent_is_asked_again():
    """Asked at its first, fourth and seventh step; told of every gradient."""
    asked = []

    def direction(problem, params, state, *, key, mask):
        return ascent.AscentResult(jax.tree.map(lambda p: p + state, params), state=state + 10)

    def observe(state, gradient):
        asked.append(gradient)
        return state + 1

    inner = ascent.Ascent(lambda params: jnp.zeros(()), direction, observe)
    up, params = ascent.every(3, inner), uneven_params()
    state, offsets = up.init(params), []
    for i in range(7):
        found = climb(up, quadratic, params, state)
        assert found.clean is found.value is found.slope is None
        offsets.append(float(found.direction["scalar"] - params["scalar"]))
        state = up.observe(found.state, i)
    np.testing.assert_allclose(offsets, [0, 0, 0, 13, 13, 13, 26], rtol=1e-5)
    assert asked == list(range(7))


def test_every_step_is_the_ascent_itself():
    inner, params = ascent.random_gradient_estimate(2, 1e-2), uneven_params()
    up = ascent.every(1, inner)
    state = climb(up, lambda p: -quadratic(p), params).state
    found = climb(up, quadratic, params, state)
    assert_close(found.direction, climb(inner, quadratic, params).direction, rtol=1e-4)


def test_an_answer_that_is_not_finite_leaves_the_one_before():
    up, params = ascent.every(1, ascent.backprop()), uneven_params()
    first = climb(up, quadratic, params)
    second = climb(up, lambda p: jnp.nan * quadratic(p), params, first.state)
    assert_equal(second.direction, first.direction)


# Shaped random directions.


@every_mask
@pytest.mark.parametrize("power", [-1.0, -0.5, 0.0, 1.0])
def test_a_shaped_direction_follows_its_formula(power, mask):
    params, observed, decay = uneven_params(), gradients(3), 0.9
    up = ascent.shaped_random_direction(power, decay, damping=0.01)
    found = climb(up, quadratic, params, told(up, params, observed), mask=mask).direction
    v = np.zeros(12)
    for gradient in observed:
        v = decay * v + (1 - decay) * flatten(gradient) ** 2
    (u,) = (flatten(directions.rademacher(KEY, params, mask)),)
    v = v / v[u != 0].mean()  # a sign is zero only where the mask is
    np.testing.assert_allclose(flatten(found), u * ((v + 0.01) / 1.01) ** power, rtol=1e-4)


def test_a_shaped_direction_starts_as_a_plain_one():
    found = climb(ascent.shaped_random_direction(), quadratic, uneven_params()).direction
    assert_equal(found, directions.rademacher(KEY, uneven_params()))


def test_weights_without_a_gradient_do_not_take_the_whole_radius():
    """With damping c, the power −1 lets them move (1 + c)/c times as far as others, no more."""
    params = uneven_params()
    gradient = jax.tree.map(jnp.ones_like, params) | {"scalar": jnp.zeros(())}
    up = ascent.shaped_random_direction(-1.0, damping=0.1)
    found = climb(up, quadratic, params, told(up, params, [gradient])).direction
    sizes = np.abs(flatten(found))
    np.testing.assert_allclose(sizes.max() / sizes.min(), (12 / 11 + 0.1) / 0.1, rtol=1e-4)


# What a step costs.


@pytest.mark.parametrize(
    ("up", "steps", "forward", "backward"),
    [
        (ascent.previous_gradient(), 1, 0, 1),
        (ascent.guided_gradient_estimate(2, decay=0.9), 1, 8, 1),
        (ascent.worst_of(4, antithetic=True), 1, 4, 1),
        (ascent.worst_of(20), 1, 20, 1),
        (ascent.every(3, ascent.random_gradient_estimate(2)), 5, 8, 5),
        (ascent.every(2, ascent.backprop()), 3, 0, 5),
        (ascent.shaped_random_direction(), 1, 0, 1),
        (ascent.mixture((ascent.backprop(), 1.0), (ascent.worst_of(2), 1.0)), 1, 2, 2),
    ],
)
def test_a_step_makes_the_passes_it_claims(up, steps, forward, backward):
    counter = PassCounter()
    tx, params = zosam_jax.sharpness_aware(up, RHO), mlp_params()
    state, step = tx.init(params), stepper(tx, counter.loss)
    for _ in range(steps):
        params, state = step(params, state, mlp_batch())
    jax.effects_barrier()
    assert counter.passes["forward alone"] == forward
    assert counter.passes["forward with gradient"] == counter.passes["backward"] == backward


# What all of them promise, on parameters with leaves that are none of their business.


def family_params(seed=0, dtype=jnp.float32):
    return mlp_params(dtype, seed) | {"none": None, "table": jnp.arange(3)}


def family_batch(seed=1, scale=1.0):
    return mlp_batch(seed=seed) | {"scale": jnp.asarray(scale)}


def family_loss(params, x, y, scale):
    return scale * mlp_loss(params, x, y) + 0.0 * params["table"].sum()


def gradient_of(name, **options):
    return zosam_jax.value_and_grad(family_loss, ascent=FAMILY[name], rho=RHO, **options)


def training_step(grad, params, state, batch):
    (_, gradient), state = grad(params, state, **batch)
    gradient = optax.tree.scale(-0.1, gradient)
    return optax.apply_updates(params, gradient), state


@functools.cache
def stepping(name):
    """The gradient, and a compiled training step that consumes the state it is given."""
    grad = gradient_of(name)
    return grad, jax.jit(functools.partial(training_step, grad), donate_argnums=1)


def three_steps(name, seed=0):
    """Parameters and state, from seed to end."""
    grad, step = stepping(name)
    params = family_params(seed)
    state = grad.init(params, seed)
    for i in range(3):
        params, state = step(params, state, family_batch(i))
    return params, state


def comparable(params, state):
    """Without the gain of the ascent, a difference of nearly equal numbers."""
    return params, state.ascent, state.value, state.diagnostics.epsilon_norm


@every_ascent
def test_a_scan_over_steps_of_several_runs_equals_loops(name):
    grad, _ = stepping(name)

    @jax.jit
    @jax.vmap
    def scanned(params, seed):
        def body(carry, batch):
            return training_step(grad, *carry, batch), None

        batches = jax.tree.map(lambda *x: jnp.stack(x), *(family_batch(i) for i in range(3)))
        return jax.lax.scan(body, (params, grad.init(params, seed)), batches)[0]

    runs = jax.tree.map(lambda *x: jnp.stack(x), *(family_params(i) for i in range(2)))
    together = scanned(runs, jnp.arange(2))
    for i in range(2):
        alone = jax.tree.map(lambda x, i=i: x[i], together)
        assert_close(comparable(*alone), comparable(*three_steps(name, i)), rtol=5e-3, atol=5e-4)


@pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")
@pytest.mark.parametrize("name", LOOKING)
def test_four_devices_take_the_steps_of_one(name):
    """Inside a checked shard_map, each with its part of the batch."""
    replicated, split = PartitionSpec(), PartitionSpec("data")
    grad = gradient_of(name, axis_name="data")
    step = jax.shard_map(
        functools.partial(training_step, grad),
        mesh=jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(replicated, replicated, {"x": split, "y": split, "scale": replicated}),
        out_specs=replicated,
    )
    step, params = jax.jit(step), family_params()
    state = grad.init(params, 0)
    for i in range(3):
        params, state = step(params, state, family_batch(i))
    # A slope is a small difference of losses, which are summed in another order.
    assert_close(comparable(params, state), comparable(*three_steps(name)), rtol=5e-3, atol=1e-3)


@every_ascent
def test_only_kept_weights_are_perturbed(name):
    params, state = three_steps(name)
    mask = mlp_mask() | {"none": None, "table": None}
    look = jax.jit(gradient_of(name).perturbation)
    found = look(params, state, **family_batch(), mask=mask)
    np.testing.assert_allclose(optax.tree.norm(found), RHO, rtol=1e-5)
    assert_equal(found, masks.restrict(found, masks.resolve(mask, params)))
    assert np.count_nonzero(flatten(found)) == 16
    assert found["none"] is None
    assert not found["table"].any()


@every_ascent
@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_batch_that_is_not_finite_is_forgotten(name, bad):
    """Neither its losses nor its gradient are seen in the steps after."""
    grad, step = stepping(name)
    state, lengths = grad.init(family_params()), []
    for scale in (bad, 1.0, bad, 1.0, 1.0):
        _, state = step(family_params(), state, family_batch(scale=scale))
        lengths.append(float(state.diagnostics.epsilon_norm))
    assert np.isfinite(lengths).all()
    if name in LOOKING:
        assert lengths[0] == 0
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ascent))
    np.testing.assert_allclose(lengths[-1], RHO, rtol=1e-5)


@every_ascent
def test_a_flat_loss_gives_its_gradient_and_stays_finite(name):
    """Zero gradients, observed and looked for."""
    grad, step = stepping(name)
    params, state = family_params(), grad.init(family_params())
    for _ in range(3):
        params, state = step(params, state, family_batch(scale=0.0))
        assert state.diagnostics.epsilon_norm in (0, pytest.approx(RHO, rel=1e-5))
    assert_equal(params, family_params())
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state.ascent))


@every_ascent
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_the_state_stays_what_it_was_and_is_never_narrow(name, dtype):
    """Arrays, with the shapes and dtypes of the start: what a loop can carry."""
    params, (grad, _) = family_params(dtype=dtype), stepping(name)
    state = grad.init(params)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    new_params, after = jax.eval_shape(
        functools.partial(training_step, grad), params, state, family_batch()
    )
    assert jax.tree.structure(after) == jax.tree.structure(state)
    kinds = [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(state)]
    assert [(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(after)] == kinds
    assert {str(x.dtype) for x in jax.tree.leaves(state.ascent)} <= {"float32", "int32"}
    assert new_params["hidden"]["kernel"].dtype == dtype


# Wrong input.


RANDOM = ascent.random_direction()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ascent.previous_gradient(1.0), ValueError, "decay=1.0 must be below 1"),
        (lambda: ascent.previous_gradient("a"), TypeError, "decay='a' must be a number"),
        (lambda: ascent.forward_gradient(0), ValueError, "num_directions=0 must be at least 1"),
        (lambda: ascent.forward_gradient(1, "x"), ValueError, "distribution='x' is not known"),
        (lambda: ascent.forward_gradient(batching="x"), ValueError, "batching='x' is not known"),
        (lambda: ascent.forward_gradient(fraction=2), ValueError, "fraction=2 must be at most 1"),
        (lambda: ascent.guided_gradient_estimate(0), ValueError, "history=0 must be at least 1"),
        (
            lambda: ascent.guided_gradient_estimate(1, 0),
            ValueError,
            "num_directions=0 must be at least 1",
        ),
        (
            lambda: ascent.guided_gradient_estimate(delta=0),
            ValueError,
            "delta=0 must be a finite number greater than 0",
        ),
        (
            lambda: ascent.guided_gradient_estimate(decay=-1),
            ValueError,
            "decay=-1 must be a finite number at least 0",
        ),
        (
            lambda: jax.jit(ascent.guided_gradient_estimate)(1),
            TypeError,
            r"history is traced .*static_args=\('history',\)",
        ),
        (ascent.mixture, ValueError, "must hold at least one pair"),
        (lambda: ascent.mixture(RANDOM), TypeError, r"parts\[0\]=.* must be a pair"),
        (lambda: ascent.mixture((RANDOM, 1), (1, 1)), TypeError, r"parts\[1\]=\(1, 1\) must be"),
        (
            lambda: ascent.mixture((RANDOM, -1)),
            ValueError,
            r"the weight of parts\[0\]=-1 must be a finite number at least 0",
        ),
        (lambda: ascent.mixture((RANDOM, 0)), ValueError, r"the weights \[0\] .* not all be 0"),
        (lambda: ascent.worst_of(0), ValueError, "candidates=0 must be at least 1"),
        (lambda: ascent.worst_of(3, antithetic=True), ValueError, "candidates=3 must be even"),
        (lambda: ascent.worst_of(2, "x"), ValueError, "distribution='x' is not known"),
        (lambda: ascent.worst_of(fraction=0), ValueError, "fraction=0 must be a finite number"),
        (lambda: ascent.every(0, RANDOM), ValueError, "interval=0 must be at least 1"),
        (lambda: ascent.every(2, "sam"), TypeError, "ascent='sam' must be an Ascent"),
        (lambda: ascent.shaped_random_direction(-2), ValueError, "power=-2 must be"),
        (lambda: ascent.shaped_random_direction(2), ValueError, "power=2 must be at most 1"),
        (lambda: ascent.shaped_random_direction(decay=1), ValueError, "decay=1 must be below 1"),
        (lambda: ascent.shaped_random_direction(damping=0), ValueError, "damping=0 must be"),
        (lambda: ascent.shaped_random_direction(distribution=3), ValueError, "distribution=3 is"),
    ],
)
def test_wrong_input_is_told_what_would_be_right(make, error, message):
    with pytest.raises(error, match=message):
        make()
