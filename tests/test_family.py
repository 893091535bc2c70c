"""The rest of the family: each method against its paper's formulas in NumPy, and its limits."""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from numpy_mlp import NumpyMLP, inner, length, move, step_key, to_numpy
from problems import (
    RHO,
    assert_close,
    assert_equal,
    mlp_batch,
    mlp_logits,
    mlp_loss,
    mlp_mask,
    mlp_params,
    stepper,
    train,
)

import zosam_jax
from zosam_jax import ascent, descent, directions, masks, objective

SEED, ALPHA = 11, 0.7


# The formulas. Each is given the problem and a step, and returns the value and what is emitted.


class Formulas:
    """What the methods share: NumPy's problem, the mask, and the documented draws."""

    def __init__(self, mask):
        self.problem = NumpyMLP(**mlp_batch())
        self._mask = masks.resolve(mask, mlp_params())
        self._ones = to_numpy(masks.restrict(jax.tree.map(jnp.ones_like, mlp_params()), self._mask))

    def kept(self, p):
        return {k: p[k] * self._ones[k] for k in p}

    def draw(self, key):
        return to_numpy(directions.normal(key, mlp_params(), self._mask))

    def climb(self, p, direction, rho=RHO):
        direction = self.kept(direction)
        norm = length(direction)
        return move(p, direction, rho / norm if norm else 0.0)

    def across(self, p, along):
        """p − ⟨p, r̂⟩ r̂, angles between the kept weights."""
        kept = self.kept(along)
        return move(p, along, -inner(self.kept(p), kept) / inner(kept, kept))

    def at(self, p):
        return self.problem.loss(p), self.problem.gradient(p)


class Asam(Formulas):
    def step(self, p, count):
        g = self.kept(self.problem.gradient(p))
        t = {k: np.ones_like(v) if k.startswith("b") else np.abs(v) + 0.01 for k, v in p.items()}
        norm = length({k: t[k] * g[k] for k in p})
        return self.at({k: p[k] + RHO * t[k] ** 2 * g[k] / norm for k in p})


class Gsam(Formulas):
    def step(self, p, count):
        g = self.problem.gradient(p)
        value, perturbed = self.at(self.climb(p, g))
        return value, move(perturbed, self.across(g, perturbed), -ALPHA)


class LookSam(Formulas):
    interval = 2

    def step(self, p, count):
        g = self.problem.gradient(p)
        if count % self.interval == 0:
            value, perturbed = self.at(self.climb(p, g))
            self.bend = self.across(perturbed, g)
            return value, perturbed
        return self.problem.loss(p), self.bent(g, self.bend)

    def bent(self, g, bend):
        norm = length(self.kept(bend))
        return move(g, bend, ALPHA * length(self.kept(g)) / norm if norm > 1e-9 else 0.0)


class LookSamByArray(LookSam):
    def across(self, p, along):
        return {k: Formulas.across(self, {k: p[k]}, {k: along[k]})[k] for k in p}

    def bent(self, g, bend):
        return {k: LookSam.bent(self, {k: g[k]}, {k: bend[k]})[k] for k in g}


class S2Sam(Formulas):
    last = None

    def step(self, p, count):
        value, self.last = self.at(p if self.last is None else self.climb(p, self.last))
        return value, self.last


class MSharpness(Formulas):
    def step(self, p, count):
        parts = [self.problem.on(slice(j, None, 2)) for j in range(2)]
        points = [self.climb(p, part.gradient(p)) for part in parts]
        values = [part.loss(q) for part, q in zip(parts, points, strict=True)]
        gradients = [part.gradient(q) for part, q in zip(parts, points, strict=True)]
        return np.mean(values), {k: np.mean([g[k] for g in gradients], axis=0) for k in p}


class GuidedZoSam(Formulas):
    last = None

    def step(self, p, count):
        """ĝ is the projection of the gradient on the span of the last one and a random one."""
        flat = functools.partial(np.concatenate, axis=None)
        names = list(p)
        span = [self.draw(jax.random.fold_in(step_key(SEED, count), 0))]
        if self.last is not None:
            span.append(self.kept(self.last))
        basis, _ = np.linalg.qr(np.stack([flat([v[k] for k in names]) for v in span], axis=1))
        g = flat([self.kept(self.problem.gradient(p))[k] for k in names])
        splits = np.cumsum([p[k].size for k in names])[:-1]
        parts = np.split(basis @ (basis.T @ g), splits)
        estimate = {k: x.reshape(p[k].shape) for k, x in zip(names, parts, strict=True)}
        value, self.last = self.at(self.climb(p, estimate))
        return value, self.last


class AntitheticSam(Formulas):
    def step(self, p, count):
        u = self.draw(step_key(SEED, count))
        sides = [self.climb(p, u, rho) for rho in (RHO, -RHO)]
        return self.at(max(sides, key=self.problem.loss))


class ForwardGradient(Formulas):
    def step(self, p, count):
        g, total = self.problem.gradient(p), {k: np.zeros_like(v) for k, v in p.items()}
        for i in range(2):
            u = self.draw(jax.random.fold_in(step_key(SEED, count), i))
            total = move(total, u, inner(g, u) / 2)
        return self.problem.loss(p), total


METHODS = {
    "asam": (Asam, functools.partial(zosam_jax.asam, RHO)),
    "gsam": (Gsam, functools.partial(zosam_jax.gsam, RHO, alpha=ALPHA)),
    "look_sam": (LookSam, functools.partial(zosam_jax.look_sam, RHO, interval=2, alpha=ALPHA)),
    "look_sam by array": (
        LookSamByArray,
        functools.partial(zosam_jax.look_sam, RHO, interval=2, alpha=ALPHA, per_array=True),
    ),
    "s2_sam": (S2Sam, functools.partial(zosam_jax.s2_sam, RHO)),
    "msam": (MSharpness, functools.partial(zosam_jax.msam, RHO)),
    "guided_zo_sam": (GuidedZoSam, functools.partial(zosam_jax.guided_zo_sam, RHO, key=SEED)),
    "antithetic_sam": (AntitheticSam, functools.partial(zosam_jax.antithetic_sam, RHO, key=SEED)),
    "mezo": (ForwardGradient, functools.partial(zosam_jax.mezo, 2, key=SEED)),
    "forward_gradient": (
        ForwardGradient,
        functools.partial(zosam_jax.forward_gradient, 2, key=SEED),
    ),
}
WITH_ANGLES = ("gsam",)

# Long to compile, and tested piece by piece elsewhere.
SLOW = ("guided_zo_sam", "look_sam by array", "msam", "mezo")

# An array all of whose weights are pruned has no length to compare with.
PARTLY_KEPT = mlp_mask() | {"out": {"bias": jnp.array([True, False]), "kernel": None}}


def rows(names, *values):
    return [
        pytest.param(name, *values, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in names
    ]


@pytest.mark.parametrize(
    ("name", "mask"),
    [*rows(METHODS, PARTLY_KEPT), *rows(WITH_ANGLES, None)],
    ids=[*(f"{name}, masked" for name in METHODS), *WITH_ANGLES],
)
def test_three_steps_equal_the_formulas_in_numpy(name, mask):
    formulas, make = METHODS[name]
    formulas, p = formulas(mask), to_numpy(mlp_params())
    for count in range(3):
        value, emitted = formulas.step(p, count)
        p = move(p, emitted, -0.1)
    params, state = train(optax.chain(make(mask=mask), optax.sgd(0.1)), steps=3)
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if "zo" in name else {"rtol": 1e-4, "atol": 1e-5}
    assert_close(to_numpy(params), p, **tolerance)
    np.testing.assert_allclose(optax.tree.get(state, "value"), value, rtol=1e-3)


def test_three_steps_of_esam_equal_its_formulas_in_numpy():
    """Which arrays are live is read off ε; its length, the examples and their gradient are not."""
    tx = zosam_jax.esam(RHO, beta=0.6, gamma=0.4, key=SEED)
    update = jax.jit(functools.partial(tx.update, value_fn=mlp_loss), static_argnames="emit")
    problem, params, batch = NumpyMLP(**mlp_batch()), mlp_params(), mlp_batch()
    state, subsets = tx.init(params), set()
    for _ in range(3):
        epsilon, _ = update(None, state, params, emit="perturbation", **batch)
        live = {k for k, v in to_numpy(epsilon).items() if v.any()}
        p = to_numpy(params)
        g = {k: v if k in live else 0 * v for k, v in problem.gradient(p).items()}
        there = move(p, g, RHO / 0.6 / length(g))
        order = np.argsort(problem.losses(p) - problem.losses(there), kind="stable")[:3]  # of 8
        updates, state = update(None, state, params, **batch)
        assert_close(to_numpy(updates), problem.on(order).gradient(there), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(state.value, problem.loss(there), rtol=1e-5)
        params = optax.apply_updates(params, jax.tree.map(lambda u: -0.1 * u, updates))
        subsets.add((frozenset(live), frozenset(order)))
    assert len(subsets) == 3


# What they are in a limit.


def emitted(tx, value_fn=mlp_loss, **extra_args):
    """The first step's updates and state, compiled."""
    params = mlp_params()
    return jax.jit(
        lambda state, batch: tx.update(
            None, state, params, value_fn=value_fn, **extra_args, **batch
        )
    )(tx.init(params), mlp_batch())


SAM_AGAIN = {
    "gsam": lambda: zosam_jax.gsam(RHO, alpha=0.0),
    "look_sam": lambda: zosam_jax.look_sam(RHO, interval=1),
    "esam": lambda: zosam_jax.esam(RHO, beta=1.0, gamma=1.0),
    "msam": lambda: zosam_jax.msam(RHO, microbatches=1),
}


@pytest.mark.parametrize("name", SAM_AGAIN)
def test_in_a_limit_it_is_sam(name):
    again, _ = train(optax.chain(SAM_AGAIN[name](), optax.sgd(0.1)))
    assert_close(again, train(optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1)))[0])


def test_gsams_radius_follows_the_learning_rate():
    rate = optax.linear_schedule(0.5, 0.1, 4)
    rho = zosam_jax.gsam_rho(rate, rho_max=0.6, rho_min=0.2, lr_max=0.5, lr_min=0.1)
    np.testing.assert_allclose([rho(t) for t in (0, 1, 4)], [0.6, 0.5, 0.2], rtol=1e-6)
    _, state = emitted(zosam_jax.gsam(rho))
    np.testing.assert_allclose(state.diagnostics.epsilon_norm, 0.6, rtol=1e-5)


# LookSAM's memory and its condition.


def six_steps(tx, batches=None):
    params, state, step = mlp_params(), tx.init(mlp_params()), stepper(tx)
    for t in range(6):
        params, state = step(params, state, mlp_batch() if batches is None else batches[t])
    return params


def test_a_look_without_a_perturbation_leaves_no_bend():
    """Rounding apart ∇L(θ+0) is ∇L(θ): the difference must not be blown up to ∇L's length."""
    looking = zosam_jax.look_sam(optax.constant_schedule(0.0), interval=3)
    plain = zosam_jax.sam(0.0)
    assert_equal(*(six_steps(optax.chain(tx, optax.sgd(0.1))) for tx in (looking, plain)))


def test_a_bad_batch_at_a_look_is_forgotten():
    tx = zosam_jax.look_sam(RHO, interval=3)
    bad = mlp_batch() | {"x": mlp_batch()["x"].at[0].set(jnp.nan)}
    params, state = mlp_params(), tx.init(mlp_params())
    update = jax.jit(functools.partial(tx.update, value_fn=mlp_loss))
    updates, state = update(None, state, params, **bad)
    assert not jnp.isfinite(updates["out"]["bias"]).any()
    updates, _ = update(None, state, params, **mlp_batch())
    assert_close(updates, jax.grad(mlp_loss)(params, **mlp_batch()))


def convolving(params, x, y):
    kernel = params["hidden"]["kernel"][:, :1, None]
    layout = ("NHC", "HIO", "NHC")
    channel = jax.lax.conv_general_dilated(
        x[..., None], kernel, (1,), "SAME", dimension_numbers=layout
    )
    return mlp_loss(params, channel[..., 0], y)


@pytest.mark.parametrize(("loss", "conditions"), [(mlp_loss, 1), (convolving, 0)])
def test_no_convolution_is_put_under_a_condition_on_a_cpu(loss, conditions):
    tx, params = zosam_jax.look_sam(RHO), mlp_params()
    program = jax.make_jaxpr(lambda s: tx.update(None, s, params, value_fn=loss, **mlp_batch()))
    assert str(program(tx.init(params))).count("cond[") == conditions


def test_computing_every_look_gives_the_same_numbers(monkeypatch):
    tx = optax.chain(zosam_jax.look_sam(RHO, interval=2), optax.sgd(0.1))
    skipped = six_steps(tx)
    module = importlib.import_module("zosam_jax.descent.looksam")  # the function hides it
    monkeypatch.setattr(module, "_is_slow_under_a_condition", lambda *_: True)
    assert_close(six_steps(tx), skipped)


# ESAM's choices.


def test_the_hardest_examples_are_those_that_lose_most_and_the_first_of_equals():
    """ℓᵢ = wᵢ: a rise is a coordinate of ε, and the gradient shows who was taken."""

    def loss(w, index):
        return w[index].mean()

    problem = objective.Objective(loss, (jnp.arange(6),), name="loss")
    w, epsilon = jnp.zeros(6), jnp.array([1.0, 3.0, 2.0, 3.0, 3.0, -4.0])
    summit = descent.PerturbedPoint(problem, w, epsilon, ascent.AscentResult(None), mask=None)
    landing = descent.sharpness_sensitive_selection(0.5).gradient(summit, ())
    np.testing.assert_allclose(landing.gradient, np.array([0, 1, 0, 1, 1, 0]) / 3)
    landing = descent.sharpness_sensitive_selection(0.01).gradient(summit, ())
    np.testing.assert_allclose(landing.gradient, [0, 1, 0, 0, 0, 0])


def test_arrays_are_kept_with_their_probability_each():
    tree = {str(i): jnp.ones(2) for i in range(100)}
    constant = ascent.stateless(lambda objective, params, *, key, mask: ascent.AscentResult(params))
    kept = ascent.stochastic_weight_perturbation(constant, keep=0.3)
    drawn = [
        kept.direction(None, tree, (), key=jax.random.key(i), mask=None).direction for i in (0, 1)
    ]
    first, second = (np.array([leaf[0] for leaf in jax.tree.leaves(d)]) for d in drawn)
    assert set(first) == {0, 1}
    assert abs(first.mean() - 0.3) < 0.16  # three and a half standard deviations
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.35


def test_with_no_array_kept_there_is_no_perturbation():
    tx = zosam_jax.esam(RHO, beta=1e-6)
    epsilon, _ = emitted(tx, emit="perturbation")
    assert not any(leaf.any() for leaf in jax.tree.leaves(epsilon))
    updates, _ = emitted(tx)
    assert all(jnp.isfinite(u).all() for u in jax.tree.leaves(updates))


def test_losses_fn_gives_the_losses_and_their_mean():
    seen = []

    def losses(params, x, y):
        seen.append(len(y))
        logits = mlp_logits(params, x)
        return optax.losses.softmax_cross_entropy_with_integer_labels(logits, y)

    tx = zosam_jax.esam(RHO)
    assert_close(emitted(tx, losses_fn=losses)[0], emitted(tx)[0])
    assert seen == [8, 8]  # with the gradient at θ, and at θ+ε


# Where aux comes from, and what needs what.


def with_point(params, x, y):
    return mlp_loss(params, x, y), (params, y)


@pytest.mark.parametrize(
    "tx",
    [zosam_jax.gsam(RHO), zosam_jax.look_sam(RHO), zosam_jax.esam(RHO), zosam_jax.mezo()],
    ids=["gsam", "look_sam", "esam", "mezo"],
)
def test_aux_comes_from_the_whole_batch_at_the_point_itself(tx):
    _, state = emitted(tx, with_point, has_aux=True)
    point, seen = state.aux
    assert_close(point, mlp_params())
    assert seen.shape == (8,)


def test_aux_of_an_antithetic_pair_is_that_of_the_side_taken():
    tx = zosam_jax.antithetic_sam(RHO, key=SEED)
    taken = set()
    for sign in (1, -1):  # one of the two losses is larger on the other side

        def loss(params, x, y, sign=sign):
            value, aux = with_point(params, x, y)
            return sign * value, aux[0]

        gradient, state = emitted(tx, loss, has_aux=True)
        there = state.aux
        epsilon = jax.tree.map(jnp.subtract, there, mlp_params())
        opposite = jax.tree.map(jnp.subtract, mlp_params(), epsilon)
        np.testing.assert_allclose(optax.tree.norm(epsilon), RHO, rtol=1e-5)
        (value, _), expected = jax.value_and_grad(loss, has_aux=True)(there, **mlp_batch())
        assert_close((state.value, gradient), (value, expected))
        assert value > loss(opposite, **mlp_batch())[0]
        taken.add(bool(epsilon["out"]["bias"][0] > 0))
    assert taken == {True, False}


def test_an_estimate_is_the_direction_with_its_length_where_the_mask_is():
    exact, params = jax.grad(mlp_loss)(mlp_params(), **mlp_batch()), mlp_params()
    grad = zosam_jax.value_and_grad(
        mlp_loss,
        ascent=ascent.backprop(),
        rho=optax.constant_schedule(7.0),
        descent=descent.estimate(),
    )
    (value, found), _ = grad(params, grad.init(params), mask=mlp_mask(), **mlp_batch())
    assert_close(found, masks.apply_masks(exact, mlp_mask()))
    np.testing.assert_allclose(value, mlp_loss(params, **mlp_batch()), rtol=1e-6)


@pytest.mark.parametrize("name", zosam_jax.ESTIMATORS)
def test_estimators_keep_dtypes_and_perturb_nothing(name):
    params = mlp_params(jnp.bfloat16)
    tx = zosam_jax.ESTIMATORS[name]()
    updates, state = tx.update(None, tx.init(params), params, value_fn=mlp_loss, **mlp_batch())
    assert all(u.dtype == jnp.bfloat16 for u in jax.tree.leaves(updates))
    assert state.diagnostics.epsilon_norm == 0
    assert jnp.isnan(state.diagnostics.slope)  # along an ε that there is none of


def test_an_estimate_on_a_part_of_the_batch_has_the_value_of_all_of_it():
    _, state = emitted(zosam_jax.mezo(fraction=0.5))
    np.testing.assert_allclose(state.value, mlp_loss(mlp_params(), **mlp_batch()), rtol=1e-6)


def test_without_a_perturbation_the_gap_is_closed_exactly():
    updates, _ = emitted(zosam_jax.gsam(jnp.zeros(()), alpha=100.0))
    assert_close(updates, jax.grad(mlp_loss)(mlp_params(), **mlp_batch()))


# The batch split over devices.


def second_step(tx, params, batch):
    state = tx.init(params)
    for _ in range(2):
        updates, state = tx.update(None, state, params, value_fn=mlp_loss, **batch)
        params = optax.apply_updates(params, jax.tree.map(lambda u: -0.1 * u, updates))
    return updates, state.value


def on_four_devices(make, batch):
    run = jax.shard_map(
        functools.partial(second_step, make(axis_name="data")),
        mesh=jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(PartitionSpec(), PartitionSpec("data")),
        out_specs=PartitionSpec(),
    )
    return jax.jit(run)(mlp_params(), batch)


needs_devices = pytest.mark.skipif(jax.device_count() < 4, reason="needs four devices")


@needs_devices
@pytest.mark.parametrize(
    "name",
    [
        "look_sam",
        "antithetic_sam",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("gsam", "msam", "mezo")),
    ],
)
def test_devices_that_share_a_batch_take_one_step(name):
    make = METHODS[name][1]
    together = on_four_devices(make, mlp_batch())
    assert_close(together, second_step(make(), mlp_params(), mlp_batch()), rtol=1e-3, atol=1e-4)


@needs_devices
def test_every_device_chooses_its_own_hardest_examples():
    make, batch = functools.partial(zosam_jax.esam, RHO, beta=1.0), mlp_batch()
    problem, p = NumpyMLP(**batch), to_numpy(mlp_params())
    for _ in range(2):
        g = problem.gradient(p)
        there = move(p, g, RHO / length(g))
        rises = (problem.losses(there) - problem.losses(p)).reshape(4, 2)
        rows = 2 * np.arange(4) + rises.argmax(axis=1)
        gradient = problem.on(rows).gradient(there)
        p = move(p, gradient, -0.1)
    updates, value = on_four_devices(make, batch)
    assert_close(to_numpy(updates), gradient, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(value, problem.loss(there), rtol=1e-5)
