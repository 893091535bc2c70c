"""A wrong argument fails early; the sentence names it, its value and what would be right."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import mlp_batch, mlp_loss, mlp_params

import zosam_jax
from zosam_jax import ascent, descent, sparsity
from zosam_jax.sparsity import distributions


def zo_sam(**options):
    return zosam_jax.zo_sam(**({"rho": 0.05} | options))


AT_CONSTRUCTION = [
    (lambda: zo_sam(rho=-0.1), ValueError, r"rho=-0\.1 .*at least 0"),
    (lambda: zo_sam(rho=float("nan")), ValueError, "rho=nan .*finite number at least 0"),
    (lambda: zo_sam(rho=float("inf")), ValueError, "rho=inf .*finite number at least 0"),
    (lambda: zo_sam(rho=jnp.array(-1.0)), ValueError, "rho=.*-1.* at least 0"),
    (lambda: zo_sam(rho="large"), TypeError, "rho='large' must be a number at least 0"),
    (lambda: zo_sam(rho="0.05"), TypeError, r"rho='0\.05' must be a number at least 0"),
    (lambda: zo_sam(rho=None), TypeError, "rho=None must be a number at least 0"),
    (lambda: zo_sam(rho=jnp.ones(2)), TypeError, r"rho=.*1\..* must be a number"),
    (lambda: zo_sam(num_directions=0), ValueError, "num_directions=0 must be at least 1"),
    (lambda: zo_sam(num_directions=-3), ValueError, "num_directions=-3 must be at least 1"),
    (lambda: zo_sam(num_directions=1.5), TypeError, r"num_directions=1\.5 must be an integer"),
    (lambda: zo_sam(num_directions=True), TypeError, "num_directions=True must be an integer"),
    (lambda: zo_sam(num_directions="two"), TypeError, "num_directions='two' must be an integer"),
    (lambda: zo_sam(num_directions=None), TypeError, "num_directions=None must be an integer"),
    (lambda: zo_sam(delta=0), ValueError, "delta=0 .*greater than 0"),
    (lambda: zo_sam(delta=-1e-3), ValueError, r"delta=-0\.001 .*greater than 0"),
    (lambda: zo_sam(delta=1e-30), ValueError, r"delta=1e-30 must lie between 1e-12 and 1e6.*to θ"),
    (lambda: zo_sam(delta=1e30), ValueError, r"delta=1e\+30 must lie between 1e-12 and 1e6"),
    (lambda: zo_sam(delta="small"), TypeError, "delta='small' must be a number greater than 0"),
    (lambda: zo_sam(distribution="cauchy"), ValueError, "distribution='cauchy' .*'rademacher'"),
    (lambda: zo_sam(distribution=3), ValueError, "distribution=3 .*'normal'"),
    (lambda: zo_sam(radius="rowwise"), ValueError, "radius='rowwise' .*'layerwise'.*'calibrated'"),
    (lambda: zo_sam(batching="scan"), ValueError, "batching='scan' .*'unroll'"),
    (lambda: zo_sam(batching=None), ValueError, "batching=None .*'unroll'"),
    (lambda: zosam_jax.sam(-1), ValueError, "rho=-1 "),
    (lambda: zosam_jax.random_weight_perturbation(-1), ValueError, "rho=-1 "),
    (lambda: zo_sam(fraction=0), ValueError, "fraction=0 .*greater than 0"),
    (lambda: zo_sam(fraction=2), ValueError, "fraction=2 must be at most 1"),
    (lambda: zo_sam(difference="left"), ValueError, "difference='left' .*'forward'"),
    (lambda: zosam_jax.sam(0.1, fraction="half"), TypeError, "fraction='half' must be a number"),
    (lambda: zosam_jax.asam(-1), ValueError, "rho=-1 "),
    (lambda: zosam_jax.asam(eta=-1), ValueError, "eta=-1 .*at least 0"),
    (lambda: zosam_jax.gsam(0.1, alpha=-1), ValueError, "alpha=-1 .*at least 0"),
    (lambda: zosam_jax.look_sam(interval=0), ValueError, "interval=0 must be at least 1"),
    (lambda: zosam_jax.look_sam(interval=1.5), TypeError, r"interval=1\.5 must be an integer"),
    (lambda: zosam_jax.look_sam(alpha=-1), ValueError, "alpha=-1 .*at least 0"),
    (lambda: zosam_jax.esam("large"), TypeError, "rho='large' must be a number at least 0"),
    (lambda: zosam_jax.esam(-1), ValueError, "rho=-1 .*at least 0"),
    (lambda: zosam_jax.esam(0.1, beta=0), ValueError, "beta=0 .*greater than 0"),
    (lambda: zosam_jax.esam(0.1, beta=1.5), ValueError, r"beta=1\.5 must be at most 1"),
    (lambda: zosam_jax.esam(0.1, gamma=1.5), ValueError, r"gamma=1\.5 must be at most 1"),
    (lambda: descent.sharpness_sensitive_selection(0), ValueError, "fraction=0 .*greater than 0"),
    (
        lambda: ascent.stochastic_weight_perturbation(ascent.backprop(), 2),
        ValueError,
        "keep=2 must be at most 1",
    ),
    (lambda: zosam_jax.sam(0.1, batch_fraction=0), ValueError, "batch_fraction=0 .*greater than 0"),
    (lambda: zosam_jax.sam(0.1, batch_fraction=2), ValueError, "batch_fraction=2 .*at most 1"),
    (lambda: zosam_jax.msam(0.1, microbatches=0), ValueError, "microbatches=0 must be"),
    (lambda: zosam_jax.s2_sam(0.1, decay=1), ValueError, "decay=1 must be below 1"),
    (lambda: zosam_jax.friendly_sam(0.1, sigma=-1), ValueError, "sigma=-1 .*at least 0"),
    (lambda: zosam_jax.friendly_sam(0.1, decay=1), ValueError, "decay=1 must be below 1"),
    (lambda: zosam_jax.sam(0.1, extrapolation=-1), ValueError, "extrapolation=-1 .*at least"),
    (lambda: zosam_jax.xsam(0.1, interval=0), ValueError, "interval=0 must be at least 1"),
    (lambda: zosam_jax.xsam(0.1, reach=0), ValueError, "reach=0 .*greater than 0"),
    (lambda: zosam_jax.vasso(0.1, theta=0), ValueError, "theta=0 .*greater than 0"),
    (lambda: zosam_jax.vasso(0.1, theta=2), ValueError, "theta=2 must be at most 1"),
    (lambda: zosam_jax.momentum_sam(0.1, decay=1), ValueError, "decay=1 must be below 1"),
    (lambda: zosam_jax.le_sam(rho_max=0), ValueError, "rho_max=0 .*greater than 0"),
    (lambda: zosam_jax.antithetic_sam(-1), ValueError, "rho=-1 "),
    (lambda: zosam_jax.mezo(0), ValueError, "num_directions=0 must be at least 1"),
    (lambda: zosam_jax.mezo(delta=0), ValueError, "delta=0 .*greater than 0"),
    (lambda: zosam_jax.forward_gradient(0), ValueError, "num_directions=0 must be at least 1"),
    (
        lambda: zosam_jax.gsam_rho(0.1, 0.4, 0.2, 0.1, 0.0),
        TypeError,
        r"learning_rate=0\.1 must be an optax schedule",
    ),
    (
        lambda: zosam_jax.gsam_rho(optax.constant_schedule(0.1), 0.4, 0.2, 0.1, 0.1),
        ValueError,
        r"lr_max=0\.1 .*greater than 0\.1",
    ),
    (
        lambda: zosam_jax.gsam_rho(optax.constant_schedule(0.1), -0.4, 0.2, 0.1, 0.0),
        ValueError,
        r"rho_max=-0\.4 .*at least 0",
    ),
    (
        lambda: zosam_jax.random_weight_perturbation(1, distribution="x"),
        ValueError,
        "distribution='x'",
    ),
    (
        lambda: ascent.coordinate_gradient_estimate(delta=-1),
        ValueError,
        "delta=-1 .*greater than 0",
    ),
    (
        lambda: ascent.coordinate_gradient_estimate(chunk_size=0),
        ValueError,
        "chunk_size=0 must be at least 1",
    ),
    (
        lambda: zosam_jax.sharpness_aware("rge", 0.1),
        TypeError,
        "ascent='rge' must be an Ascent, for example",
    ),
    (
        lambda: zosam_jax.sharpness_aware(ascent.backprop, 0.1),
        TypeError,
        "ascent=<function backprop.*must be an Ascent",
    ),
    (
        lambda: zosam_jax.sharpness_aware(ascent.backprop(), 0.1, descent="gsam"),
        TypeError,
        "descent='gsam' must be a Descent, for example",
    ),
]


@pytest.mark.parametrize(("make", "error", "sentence"), AT_CONSTRUCTION)
def test_at_construction(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


KERNEL = {"hidden": {"kernel": jnp.ones((3, 5))}}

AT_INIT = [
    (
        {"mask": KERNEL},
        ValueError,
        r"mask has the leaves \['hidden'\]\['kernel'\], the parameters have "
        r"\['hidden'\]\['bias'\], .*: give one leaf",
    ),
    ({"mask": [True, False]}, ValueError, r"mask has the leaves \[0\], \[1\], the parameters"),
    (
        {"mask": {"hidden": jnp.ones(3), "out": True}},
        ValueError,
        r"mask\['hidden'\]\['bias'\] has the shape \(3,\), its parameter has \(5,\)",
    ),
    (
        {"mask": lambda params: jax.tree.map(lambda p: jnp.ones(p.size), params)},
        ValueError,
        r"mask\['hidden'\]\['kernel'\] has the shape \(15,\)",
    ),
    (
        {"mask": {"hidden": "all", "out": True}},
        TypeError,
        r"mask\['hidden'\]\['bias'\] is 'all'; it must be a bool",
    ),
    ({"key": 0.5}, TypeError, r"key=0\.5 must be an integer seed or one random key"),
    ({"key": "seed"}, TypeError, "key='seed' must be an integer seed or one random key"),
    ({"key": None}, TypeError, "key=None must be an integer seed or one random key"),
    ({"key": jnp.ones(2)}, TypeError, "key=.* must be an integer seed or one random key"),
    ({"key": jnp.zeros(3, jnp.uint32)}, TypeError, "key=.* must be an integer seed or one"),
    ({"key": jax.random.split(jax.random.key(0), 3)}, TypeError, "(?s)key=.* one random key"),
    ({"key": jnp.zeros((2, 2), jnp.uint32)}, TypeError, "(?s)key=.* one random key"),
]


@pytest.mark.parametrize(("options", "error", "sentence"), AT_INIT)
def test_at_init(options, error, sentence):
    with pytest.raises(error, match=sentence):
        zo_sam(**options).init(mlp_params())


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: sparsity.fixed(tx, None)])
def test_random_keys_among_the_parameters_are_refused_by_name(wrap):
    with pytest.raises(TypeError, match=r"params\['key'\] is a random key.*outside the parameters"):
        wrap(zo_sam()).init({"w": jnp.ones(3), "key": jax.random.key(0)})


def test_complex_parameters_are_refused_by_name():
    params = mlp_params() | {"phase": jnp.ones(2, jnp.complex64)}
    with pytest.raises(TypeError, match=r"params\['phase'\] is complex64.*real parameters"):
        zo_sam().init(params)


AT_UPDATE = [
    ({}, ValueError, "value_fn is missing.*value_fn=loss"),
    ({"value_fn": 3.0}, TypeError, r"value_fn=3\.0 must be a function"),
    ({"value_fn": mlp_loss}, TypeError, "value_fn requires 'x', 'y'.*x=..., y=..."),
    ({"value_fn": mlp_loss, "x": 1}, TypeError, "value_fn requires 'y', .*pass y=..."),
    (
        {"value_fn": lambda p: p["out"]["bias"]},
        TypeError,
        r"value_fn returned an array of shape \(2,\) .*one real number",
    ),
    (
        {"value_fn": lambda p: (jnp.float32(0), p)},
        TypeError,
        "value_fn returned a tuple of 2; .*has_aux=True",
    ),
    ({"value_fn": lambda p: 3}, TypeError, "value_fn returned .*dtype int.*one real number"),
    ({"value_fn": lambda p: 1j * p["out"]["bias"].sum()}, TypeError, "value_fn .*complex64"),
    ({"value_fn": lambda p: None}, TypeError, "value_fn returned .*one real number"),
    ({"value_fn": lambda p: {"loss": 0.0}}, TypeError, "value_fn returned .*one real number"),
    (
        {"value_fn": lambda p: p["out"]["bias"].sum(), "has_aux": True},
        TypeError,
        "value_fn .*has_aux=True",
    ),
    (
        {"value_fn": lambda p: p["out"]["bias"].sum(), "probe_fn": lambda p, small: 0.0},
        TypeError,
        "probe_fn requires 'small'",
    ),
    (
        {"value_fn": lambda p: p["out"]["bias"].sum(), "probe_fn": lambda p: p["out"]["bias"]},
        TypeError,
        r"probe_fn returned an array of shape \(2,\)",
    ),
    (
        {"value_fn": lambda p: p["out"]["bias"].sum(), "mask": KERNEL},
        ValueError,
        "mask has the leaves",
    ),
]


@pytest.mark.parametrize(("extra_args", "error", "sentence"), AT_UPDATE)
def test_at_update(extra_args, error, sentence):
    tx, params = zo_sam(), mlp_params()
    with pytest.raises(error, match=sentence):
        tx.update(None, tx.init(params), params, **extra_args)


RGE, BACKPROP = ascent.random_gradient_estimate(), ascent.backprop()

# An ascent, a radius and a descent that do not go together.
WHILE_TRACING = [
    (RGE, 0.1, descent.surrogate_gap(0.1), TypeError, r"surrogate_gap needs .*ascent\.backprop"),
    (RGE, 0.1, descent.looksam(), TypeError, r"looksam needs the gradient at θ.*backprop"),
    (
        ascent.backprop(0.5),
        0.1,
        descent.looksam(),
        TypeError,
        "looksam needs the gradient at θ.*on the whole batch",
    ),
    (ascent.random_direction(), 0.1, descent.estimate(), TypeError, "estimate takes .*measures"),
    (RGE, 0.0, descent.estimate(), ValueError, "rho=0 leaves out .*constant_schedule"),
]


@pytest.mark.parametrize(("up", "rho", "down", "error", "sentence"), WHILE_TRACING)
def test_while_tracing(up, rho, down, error, sentence):
    tx, params = zosam_jax.sharpness_aware(up, rho, descent=down), mlp_params()
    with pytest.raises(error, match=sentence):
        jax.eval_shape(
            lambda s: tx.update(None, s, params, value_fn=mlp_loss, **mlp_batch()), tx.init(params)
        )


def test_a_traced_fraction_is_refused():
    tx = optax.inject_hyperparams(zosam_jax.esam)(rho=0.1)
    with pytest.raises(TypeError, match=r"gamma is traced.*static_args"):
        jax.eval_shape(tx.init, mlp_params())


def test_a_batch_that_cannot_be_told_is_refused():
    tx, params = zosam_jax.esam(0.1), mlp_params()
    with pytest.raises(ValueError, match="the arguments of value_fn hold no array: to evaluate"):
        tx.update(None, tx.init(params), params, value_fn=lambda p: p["out"]["bias"].sum())


def test_params_are_required():
    tx = zo_sam()
    with pytest.raises(ValueError, match="params is missing"):
        tx.update(None, tx.init(mlp_params()), value_fn=mlp_loss, **mlp_batch())


def test_the_function_calls_its_loss_a_loss():
    grad = zosam_jax.value_and_grad(lambda p: p, ascent=ascent.backprop(), rho=0.1)
    with pytest.raises(TypeError, match=r"loss returned an array of shape \(2,\)"):
        grad(jnp.ones(2), grad.init(jnp.ones(2)))


@pytest.mark.parametrize("transformations", [0, 2])
def test_aux_is_popped_from_one_transformation(transformations):
    tx = optax.chain(*[zosam_jax.sam(0.1)] * transformations, optax.sgd(0.1))
    with pytest.raises(ValueError, match=f"holds {transformations} sharpness-aware"):
        zosam_jax.pop_aux(tx.init(mlp_params()))


# Sparsity.


def prune(sparsity_=0.5, params=None, **options):
    return sparsity.random(mlp_params() if params is None else params, sparsity_, **options)


SPARSE = [
    (lambda: prune(1.0), ValueError, r"sparsity=1\.0 must be below 1"),
    (lambda: prune(1.5), ValueError, r"sparsity=1\.5 must be below 1"),
    (lambda: prune(-0.1), ValueError, r"sparsity=-0\.1 .*at least 0"),
    (lambda: prune(float("nan")), ValueError, "sparsity=nan .*finite"),
    (lambda: prune("0.9"), TypeError, r"sparsity='0\.9' must be a number"),
    (lambda: prune(params={"bias": jnp.ones(3)}), ValueError, "where= finds no parameter to mask"),
    (lambda: prune(where=lambda path, leaf: False), ValueError, "where= finds no parameter"),
    (lambda: prune(distribution="power"), ValueError, "distribution='power' .*'erk'"),
    (lambda: prune(0.99), ValueError, r"sparsity=0\.99 leaves no weight in .*lower sparsity"),
    (
        lambda: distributions.uniform([(100, 10), (2, 2)], 0.9),
        ValueError,
        r"sparsity=0\.9 leaves no weight in 1 of 2 arrays",
    ),
    (
        lambda: sparsity.get_masks(optax.sgd(0.1).init(mlp_params())),
        ValueError,
        "holds 0 sets of masks.*sparsity.fixed",
    ),
    (
        lambda: sparsity.get_masks(
            sparsity.fixed(sparsity.fixed(optax.sgd(0.1), None), None).init(mlp_params())
        ),
        ValueError,
        "holds 2 sets of masks",
    ),
    (
        lambda: sparsity.fixed(optax.sgd(0.1), {"hidden": np.ones(3)}).init(mlp_params()),
        ValueError,
        "mask has the leaves",
    ),
    (
        lambda: sparsity.fixed(optax.sgd(0.1), None).update(
            None, sparsity.fixed(optax.sgd(0.1), None).init(mlp_params())
        ),
        ValueError,
        "params is missing",
    ),
    (
        lambda: sparsity.apply_masks(mlp_params(), {"hidden": True}),
        ValueError,
        "mask has the leaves",
    ),
]


@pytest.mark.parametrize(("make", "error", "sentence"), SPARSE)
def test_in_sparse_training(make, error, sentence):
    with pytest.raises(error, match=sentence):
        make()


METHODS = pytest.mark.parametrize("method", sparsity.METHODS.values(), ids=sparsity.METHODS)


@METHODS
def test_a_misspelt_option_is_reported_by_the_method_it_was_given_to(method):
    sentence = f"^{method.__name__} takes no argument 'total_step'; it takes .*total_steps.*where"
    with pytest.raises(TypeError, match=sentence):
        method(optax.sgd(0.1), 0.9, total_step=100)


@METHODS
@pytest.mark.parametrize("wrong", [75, 1.0, -0.5])
def test_a_sparsity_that_is_no_fraction_is_what_is_complained_about(method, wrong):
    for steps in ({}, {"total_steps": 100}):
        with pytest.raises(ValueError, match=f"^sparsity={wrong} must be"):
            method(optax.sgd(0.1), wrong, **steps)
