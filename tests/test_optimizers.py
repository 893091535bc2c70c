"""Each optimizer against its paper's formulas in NumPy, its limits, and what its steps cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from jax.sharding import PartitionSpec
from numpy_mlp import NumpyMLP, inner, length, move, step_key, to_numpy
from problems import (
    RHO,
    PassCounter,
    assert_close,
    emitted,
    mlp_batch,
    mlp_logits,
    mlp_loss,
    mlp_mask,
    mlp_params,
    slow_but,
    stepper,
    train,
)

import zosam_jax
from zosam_jax import ascent, directions, masks
from zosam_jax.training import passes as bench_passes

SEED, ALPHA = 11, 0.7


# SAM against optax.


def test_sam_equals_the_opaque_sam_of_optax():
    rho = optax.sgd(RHO)
    adversary = optax.chain(optax.contrib.normalize(), rho)
    theirs = optax.contrib.sam(optax.sgd(0.1, momentum=0.9), adversary, opaque_mode=True)
    batch, params = mlp_batch(), mlp_params()

    @jax.jit
    def step(params, state):
        def grad_fn(p, _):
            return jax.grad(mlp_loss)(p, **batch)

        updates, state = theirs.update(grad_fn(params, 0), state, params, grad_fn=grad_fn)
        return optax.apply_updates(params, updates), state

    state = theirs.init(params)
    for _ in range(5):
        params, state = step(params, state)
    ours = optax.chain(zosam_jax.sam(RHO), optax.sgd(0.1, momentum=0.9))
    assert_close(train(ours, steps=5)[0], params)


# ZO-SAM and its control against NumPy: the loss and its gradient are written out by hand.


M, DELTA = 3, 1e-2


def zo_sam_direction(problem, p, draw, key):
    """ĝ = (1/m) Σᵢ [L(θ+δuᵢ) − L(θ−δuᵢ)] / (2δ) · uᵢ"""
    total = {k: np.zeros_like(v) for k, v in p.items()}
    for i in range(M):
        u = draw(jax.random.fold_in(key, i))
        above, below = problem.loss(move(p, u, DELTA)), problem.loss(move(p, u, -DELTA))
        total = move(total, u, (above - below) / (2 * DELTA) / M)
    return total


def random_direction(problem, p, draw, key):
    del problem, p
    return draw(key)


RANDOM = {
    "zo_sam": (zo_sam_direction, {"num_directions": M, "delta": DELTA}),
    "random_weight_perturbation": (random_direction, {}),
}


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distribution", slow_but({"rademacher"}, directions.DISTRIBUTIONS))
@pytest.mark.parametrize("name", RANDOM)
def test_three_steps_equal_the_papers_formulas_in_numpy(name, distribution, masked):
    uphill, options = RANDOM[name]
    mask = masks.resolve(mlp_mask() if masked else None, mlp_params())
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())

    def draw(key):
        return to_numpy(directions.get(distribution)(key, mlp_params(), mask))

    for count in range(3):
        g = uphill(problem, p, draw, step_key(11, count))
        perturbed = move(p, g, RHO / length(g))
        p = move(p, problem.gradient(perturbed), -0.1)

    tx = zosam_jax.REGISTRY[name](RHO, distribution=distribution, mask=mask, key=11, **options)
    params, state = train(optax.chain(tx, optax.sgd(0.1)), steps=3)
    assert_close(to_numpy(params), p, rtol=1e-4, atol=1e-5)
    value = zosam_jax.value(state)
    np.testing.assert_allclose(value, problem.loss(perturbed), rtol=1e-5)


def test_the_numpy_gradient_is_the_gradient():
    problem, p = NumpyMLP(**mlp_batch()), to_numpy(mlp_params())
    np.testing.assert_allclose(problem.loss(p), mlp_loss(mlp_params(), **mlp_batch()), rtol=1e-6)
    exact = jax.grad(mlp_loss)(mlp_params(), **mlp_batch())
    assert_close(problem.gradient(p), to_numpy(exact))


# The others. Each is given the problem and a step, and returns the value and what is emitted.


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

    def perturb(self, p, direction, rho=RHO):
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
        value, perturbed = self.at(self.perturb(p, g))
        return value, move(perturbed, self.across(g, perturbed), -ALPHA)


class LookSam(Formulas):
    interval = 2

    def step(self, p, count):
        g = self.problem.gradient(p)
        if count % self.interval == 0:
            value, perturbed = self.at(self.perturb(p, g))
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
        value, self.last = self.at(p if self.last is None else self.perturb(p, self.last))
        return value, self.last


class FriendlySam(Formulas):
    sigma, decay, average = 0.8, 0.6, None

    def step(self, p, count):
        """d = g − σ m, then m ← λ m + (1 − λ) g; the first d and the first m are g."""
        g = self.problem.gradient(p)
        if self.average is None:
            d, self.average = g, g
        else:
            d = move(g, self.average, -self.sigma)
            self.average = {k: self.decay * self.average[k] + (1 - self.decay) * g[k] for k in g}
        return self.at(self.perturb(p, d))


class Xsam(Formulas):
    """α measured at every second step; the third and the fifth have the α of the step before."""

    interval, reach, alpha = 2, 1.5, None

    def along_arc(self, epsilon, gradient, alpha):
        """A vector of length 1."""
        v0 = {k: e / length(epsilon) for k, e in epsilon.items()}
        v1 = {k: g / length(gradient) for k, g in gradient.items()}
        angle = np.arccos(inner(v0, v1))
        start, end = np.sin((1 - alpha) * angle), np.sin(alpha * angle)
        return {k: (start * v0[k] + end * v1[k]) / np.sin(angle) for k in v0}

    def turned(self, p, epsilon, gradient, alpha):
        """‖G‖ v(α) on the kept weights, G on the others."""
        kept = self.kept(gradient)
        v = self.along_arc(epsilon, kept, alpha)
        return {k: length(kept) * v[k] + gradient[k] - kept[k] for k in p}

    def step(self, p, count):
        there = self.perturb(p, self.problem.gradient(p))
        value, gradient = self.at(there)
        epsilon = move(there, p, -1)
        if count % self.interval == 0:
            self.alpha = max(
                np.linspace(0, 2, 21),
                key=lambda a: self.problem.loss(
                    move(p, self.along_arc(epsilon, self.kept(gradient), a), self.reach * RHO)
                ),
            )
            assert 0 < self.alpha < 2  # so that the arc's inside is seen
        return value, self.turned(p, epsilon, gradient, self.alpha)


class Extrapolated(Xsam):
    alpha = 1.3

    def step(self, p, count):
        g = self.problem.on(slice(None, None, 2)).gradient(p)
        there = self.perturb(p, g)
        value, gradient = self.at(there)
        return value, self.turned(p, move(there, p, -1), gradient, self.alpha)


class SamOn(Formulas):
    """SAM on the biases alone."""

    def step(self, p, count):
        g = self.problem.gradient(p)
        return self.at(self.perturb(p, {k: g[k] * k.startswith("b") for k in g}))


class Bisam(Formulas):
    """B by its definition, its gradient by central differences in float64."""

    def step(self, p, count):
        g = {k: np.zeros_like(v) for k, v in p.items()}
        for k, v in p.items():
            for i in np.ndindex(v.shape):
                h = np.zeros_like(v)
                h[i] = 1e-6
                above, below = (self.bound({**p, k: v + s * h}) for s in (1, -1))
                g[k][i] = (above - below) / 2e-6
        return self.at(self.perturb(p, g))

    def bound(self, p):
        _, logp = self.problem.forward(p)  # logits up to a constant in each row
        margins = logp - np.take_along_axis(logp, self.problem.y[:, None], 1)
        phi = 1 - np.log1p((np.e - 1) * np.exp(-margins))
        return np.log(np.exp(phi).sum(axis=1)).mean()


def bisam(mask):
    """With the bound as its `probe_fn`."""
    tx = zosam_jax.bisam(RHO, mask=mask)

    def bound(params, x, y):
        return ascent.misclassification_bound(mlp_logits(params, x), y).mean()

    return optax.GradientTransformationExtraArgs(
        tx.init, functools.partial(tx.update, probe_fn=bound)
    )


def biases(params):
    return {layer: {"bias": True, "kernel": False} for layer in params}


def sam_on(mask):
    return zosam_jax.perturbing(zosam_jax.sam(RHO, mask=mask), biases)


class Vasso(Formulas):
    theta, d = 0.4, None

    def step(self, p, count):
        g = self.problem.gradient(p)
        share = 1.0 if self.d is None else self.theta
        self.d = {k: (1 - share) * (0 if self.d is None else self.d[k]) + share * g[k] for k in g}
        return self.at(self.perturb(p, self.d))


class MomentumSam(Formulas):
    """SGD's own buffer, v ← μ v + G, and the point θ − ρ v/‖v‖."""

    momentum, v = 0.8, None

    def step(self, p, count):
        value, gradient = self.at(p if self.v is None else self.perturb(p, self.v, -RHO))
        self.v = gradient if self.v is None else move(gradient, self.v, self.momentum)
        return value, gradient


class LeSam(Formulas):
    """ρ_max holds at some steps and not at others."""

    def __init__(self, mask):
        super().__init__(mask)
        self.limited = set()

    def step(self, p, count):
        g = self.problem.gradient(p)
        rho = RHO / length(self.kept(g))
        self.limited.add(rho > 0.55)
        assert count < 3 or self.limited == {True, False}
        return self.at(self.perturb(p, g, min(rho, 0.55)))


class MSharpness(Formulas):
    def step(self, p, count):
        parts = [self.problem.on(slice(j, None, 2)) for j in range(2)]
        points = [self.perturb(p, part.gradient(p)) for part in parts]
        values = [part.loss(q) for part, q in zip(parts, points, strict=True)]
        gradients = [part.gradient(q) for part, q in zip(parts, points, strict=True)]
        return np.mean(values), {k: np.mean([g[k] for g in gradients], axis=0) for k in p}


class AntitheticSam(Formulas):
    def step(self, p, count):
        u = self.draw(step_key(SEED, count))
        sides = [self.perturb(p, u, rho) for rho in (RHO, -RHO)]
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
    "friendly_sam": (
        FriendlySam,
        functools.partial(zosam_jax.friendly_sam, RHO, sigma=0.8, decay=0.6),
    ),
    "xsam": (Xsam, functools.partial(zosam_jax.xsam, RHO, interval=2, reach=1.5)),
    "sam, extrapolated": (
        Extrapolated,
        functools.partial(zosam_jax.sam, RHO, fraction=0.5, extrapolation=1.3),
    ),
    "sam on biases": (SamOn, sam_on),
    "bisam": (Bisam, bisam),
    "vasso": (Vasso, functools.partial(zosam_jax.vasso, RHO, theta=0.4)),
    "momentum_sam": (MomentumSam, functools.partial(zosam_jax.momentum_sam, RHO, decay=0.8)),
    "le_sam": (LeSam, functools.partial(zosam_jax.le_sam, RHO, rho_max=0.55)),
    "msam": (MSharpness, functools.partial(zosam_jax.msam, RHO)),
    "antithetic_sam": (AntitheticSam, functools.partial(zosam_jax.antithetic_sam, RHO, key=SEED)),
    "mezo": (ForwardGradient, functools.partial(zosam_jax.mezo, 2, key=SEED)),
    "forward_gradient": (
        ForwardGradient,
        functools.partial(zosam_jax.forward_gradient, 2, key=SEED),
    ),
}
DENSE_TOO = ("gsam", "friendly_sam", "xsam")

# Long to compile, and tested piece by piece elsewhere.
SLOW = ("look_sam by array", "msam", "mezo")

# An array all of whose weights are pruned has no length to compare with.
PARTLY_KEPT = mlp_mask() | {"out": {"bias": jnp.array([True, False]), "kernel": None}}


def rows(names, *values):
    return [
        pytest.param(name, *values, marks=[pytest.mark.slow] if name in SLOW else [])
        for name in names
    ]


@pytest.mark.parametrize(
    ("name", "mask"),
    [*rows(METHODS, PARTLY_KEPT), *rows(DENSE_TOO, None)],
    ids=[*(f"{name}, masked" for name in METHODS), *DENSE_TOO],
)
def test_four_steps_equal_the_formulas_in_numpy(name, mask):
    formulas, make = METHODS[name]
    formulas, p = formulas(mask), to_numpy(mlp_params())
    for count in range(4):
        value, emitted = formulas.step(p, count)
        p = move(p, emitted, -0.1)
    params, state = train(optax.chain(make(mask=mask), optax.sgd(0.1)), steps=4)
    tolerance = {"rtol": 2e-3, "atol": 2e-3} if name == "mezo" else {"rtol": 1e-4, "atol": 1e-5}
    assert_close(to_numpy(params), p, **tolerance)
    np.testing.assert_allclose(zosam_jax.value(state), value, rtol=1e-3)


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


SAM_AGAIN = {
    "gsam": lambda: zosam_jax.gsam(RHO, alpha=0.0),
    "look_sam": lambda: zosam_jax.look_sam(RHO, interval=1),
    "esam": lambda: zosam_jax.esam(RHO, beta=1.0, gamma=1.0),
    "friendly_sam": lambda: zosam_jax.friendly_sam(RHO, sigma=0.0),
    "msam": lambda: zosam_jax.msam(RHO, microbatches=1),
    "vasso": lambda: zosam_jax.vasso(RHO, theta=1.0),
    "le_sam": lambda: zosam_jax.le_sam(1e6, rho_max=RHO),
    "extrapolation": lambda: zosam_jax.sam(RHO, extrapolation=1.0),
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


# What a step costs.


def marked_loss(params, x, y):
    """The loss, and auxiliary output that takes a pass; the network's outputs are marked."""
    logits = bench_passes._output.bind(mlp_logits(params, x), of="output")
    loss = optax.losses.softmax_cross_entropy_with_integer_labels(logits, y).mean()
    return loss, logits.sum(axis=1)


def traced_passes(tx, has_aux, branch):
    """The passes in the program of a step, all of whose results are looked at."""
    value_fn = marked_loss if has_aux else lambda params, x, y: marked_loss(params, x, y)[0]
    params, batch = mlp_params(), mlp_batch()

    def step(state, x, y):
        loss = {"value_fn": value_fn, "has_aux": has_aux}
        return tx.update(None, state, params, x=x, y=y, **loss)

    program = jax.make_jaxpr(step)(tx.init(params), **batch)
    return bench_passes.count(program, outputs=8 * 2, branch=branch)


# Beside the defaults of each.
OPTIONS = [
    ("sam", {"fraction": 0.25}),
    ("sam", {"batch_fraction": 0.5}),
    ("subbatch_sam", {"fraction": 0.5}),
    ("subbatch_sam", {"fraction": 0.5, "batch_fraction": 0.5}),
    ("subbatch_sam", {"extrapolation": 1.2}),
    ("xsam", {"interval": 1, "fraction": 0.5}),
    ("vasso", {"fraction": 0.5}),
    ("zo_sam", {"num_directions": 4}),
    ("zo_sam", {"num_directions": 16}),
    ("zo_sam", {"num_directions": 3, "batching": "vmap"}),
    ("zo_sam", {"num_directions": 3, "difference": "forward", "fraction": 0.5}),
    ("look_sam", {"interval": 1}),
    ("esam", {"gamma": 0.25}),
    ("msam", {"microbatches": 4}),
    ("mezo", {"num_directions": 3}),
    ("mezo", {"fraction": 0.5}),
    ("forward_gradient", {"num_directions": 3, "fraction": 0.5}),
]


@pytest.mark.parametrize("has_aux", [False, True], ids=["loss", "aux"])
@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in zosam_jax.RECORDS), *OPTIONS],
    ids=lambda x: x if isinstance(x, str) else " ".join(f"{k}={v}" for k, v in x.items()),
)
def test_a_step_makes_the_passes_that_its_record_declares(name, options, has_aux):
    record = zosam_jax.RECORDS[name]
    tx = record.make(**options, **({"rho": RHO} if record.has_rho else {}))
    dearest, cheapest = (traced_passes(tx, has_aux, branch) for branch in (max, min))
    # One step in k is the dearest, for those that are not all alike.
    share = 1 / (record.defaults | options).get("interval", 1)
    declared = record.count_passes(has_aux=has_aux, **options)
    for found, other, expected in zip(dearest, cheapest, declared, strict=True):
        assert share * found + (1 - share) * other == pytest.approx(expected)


@pytest.mark.parametrize(
    ("make", "forward", "backward"),
    [
        (lambda: zosam_jax.sam(RHO, fraction=0.25), 0, 1.25),
        (lambda: zosam_jax.zo_sam(RHO, num_directions=16), 32, 1),
        (lambda: zosam_jax.zo_sam(RHO, num_directions=3, batching="vmap"), 6, 1),
        (
            lambda: zosam_jax.sharpness_aware(ascent.coordinate_gradient_estimate(), RHO),
            64,
            1,
        ),
        (lambda: zosam_jax.zo_sam(0.0), 0, 1),
        (lambda: zosam_jax.look_sam(RHO), 0, 1 + 1 / 5),
        (lambda: zosam_jax.esam(RHO), 1, 1.5),
        (lambda: zosam_jax.mezo(fraction=0.5), 2, 0),
    ],
    ids=["sam quarter", "zo m=16", "zo vmap", "cge", "rho=0", "look k=5", "esam", "mezo half"],
)
def test_a_compiled_step_makes_no_other_passes(make, forward, backward):
    """Counted as they run."""
    passes = passes_of_five_steps(make())
    assert passes["forward alone"] == pytest.approx(5 * forward)
    assert passes["forward with gradient"] == passes["backward"] == pytest.approx(5 * backward)


def test_the_side_that_is_not_taken_has_no_backward_pass():
    passes = passes_of_five_steps(zosam_jax.antithetic_sam(RHO))
    assert passes == {"forward with gradient": 10, "backward": 5}


def passes_of_five_steps(tx):
    counter = PassCounter()
    tx = optax.chain(tx, optax.sgd(0.1))
    params, state, step = mlp_params(), tx.init(mlp_params()), stepper(tx, counter.loss)
    for _ in range(5):
        params, state = step(params, state, mlp_batch())
    jax.effects_barrier()
    return counter.passes
