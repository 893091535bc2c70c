"""Sizes, names, dtypes and initial weights of the models, most without allocating them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.extend import core
from networks import SHAPES, SMALL, avals, quick_jit

from zosam_jax import models
from zosam_jax.integrations.nnx import split


def abstract(name, num_classes=10, **options):
    """The model with shapes in place of arrays."""
    make = functools.partial(models.create, name, num_classes, **options)
    return nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0)))


def parameters(model):
    """{path: shape and dtype}, the path as in "['head']['kernel']"."""
    _, params, _ = split(model)
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


@pytest.mark.parametrize(
    ("name", "num_classes", "total", "in_kernels"),
    [
        ("lenet-300-100", 10, 266_610, 266_200),
        ("resnet8", 10, 77_754, 77_072),
        ("resnet32", 10, 1_860_522, 1_855_584),
        ("resnet32", 100, 1_872_132, 1_867_104),
        ("resnet50", 1000, 25_557_032, 25_502_912),
        ("resnet50-cifar", 10, 23_520_842, 23_467_712),
        ("resnet50-cifar", 100, 23_705_252, 23_652_032),
        ("wrn-28-10", 10, 36_479_194, 36_461_232),
        ("wrn-28-10", 100, 36_536_884, 36_518_832),
        ("deit-tiny", 1000, 5_717_416, 5_647_872),
        ("deit-small", 1000, 22_050_664, 21_912_576),
    ],
)
def test_parameter_counts(name, num_classes, total, in_kernels):
    arrays = parameters(abstract(name, num_classes))
    assert sum(leaf.size for leaf in arrays.values()) == total
    kernels = [leaf for path, leaf in arrays.items() if path.endswith("['kernel']")]
    assert sum(leaf.size for leaf in kernels) == in_kernels


def test_counts_follow_the_image():
    arrays = parameters(abstract("lenet-300-100", image_shape=(8, 8, 1)))
    assert sum(leaf.size for leaf in arrays.values()) == 50_610
    tokens = parameters(abstract("deit-tiny", image_shape=(8, 12, 1), patch=4))["['positions']"]
    assert tokens.shape == (1 + 2 * 3, 192)


@pytest.mark.parametrize("name", models.MODELS)
def test_weights_are_the_arrays_called_kernel(name):
    arrays = parameters(abstract(name, dtype=jnp.bfloat16))
    matrices = {path for path, leaf in arrays.items() if leaf.ndim >= 2}
    kernels = {path for path in arrays if path.endswith("['kernel']")}
    assert kernels == {path for path in arrays if "kernel" in path}
    assert matrices - kernels == ({"['positions']"} if name.startswith("deit") else set())
    assert kernels <= matrices
    assert {leaf.dtype for leaf in arrays.values()} == {jnp.dtype("float32")}


# Dtypes, read off the traced program of a pass.


class Pass:
    """What a pass would compute, and what it would leave behind."""

    def __init__(self, model, image_shape, outside=jnp.float32):
        """`outside` is the dtype of parameters and images."""
        graphdef, params, self.model_state = split(model)
        params = jax.tree.map(lambda p: jax.ShapeDtypeStruct(p.shape, outside), params)
        images = jax.ShapeDtypeStruct((2, *image_shape), outside)

        def apply(params, model_state, images):
            model = nnx.merge(graphdef, params, model_state, copy=True)
            return model(images), split(model)[2]

        traced = jax.jit(apply).trace(params, self.model_state, images)
        self.logits, self.after = traced.out_info
        self.equations = list(equations(traced.jaxpr.jaxpr))

    def dtypes(self, *primitives):
        """The dtypes of the inputs of some primitives, one set for each that occurs."""
        return [
            {v.aval.dtype for v in equation.invars}
            for equation in self.equations
            if equation.primitive.name in primitives
        ]

    def products(self):
        return self.dtypes("dot_general", "conv_general_dilated")


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if isinstance(inner, core.Jaxpr):
                yield from equations(inner)


@pytest.mark.parametrize("name", models.MODELS)
def test_products_in_bfloat16_and_all_else_that_counts_in_float32(name):
    image_shape = SHAPES.get(name, (32, 32, 3))
    a_pass = Pass(abstract(name, image_shape=image_shape, dtype=jnp.bfloat16), image_shape)
    assert (a_pass.logits.shape, a_pass.logits.dtype) == ((2, 10), jnp.float32)
    assert avals(a_pass.after) == avals(a_pass.model_state)
    *products, head = a_pass.products()
    assert head == {jnp.dtype("float32")}
    assert products
    assert all(found == {jnp.dtype("bfloat16")} for found in products)
    statistics = a_pass.dtypes("reduce_sum", "rsqrt", "exp", "square")
    assert bool(statistics) == (name != "lenet-300-100")
    assert all(found == {jnp.dtype("float32")} for found in statistics)


@pytest.mark.parametrize("name", SMALL)
def test_products_in_the_parameters_dtype_by_default(name):
    """Also where that is wider than float32, as when SynFlow scores."""
    model = nnx.eval_shape(lambda: SMALL[name](rngs=nnx.Rngs(0)))
    model.eval()
    for dtype in (jnp.float32, jnp.float64):
        with jax.enable_x64(dtype == jnp.float64):
            a_pass = Pass(model, SHAPES[name], dtype)
        assert a_pass.logits.dtype == dtype
        assert all(found == {jnp.dtype(dtype)} for found in a_pass.products())


# Initial weights.


def initial(name, *paths, **options):
    """Some arrays of a model as it is made; the compiler leaves out the others."""
    make = functools.partial(models.create, name, 10, **options)

    @quick_jit
    def chosen():
        _, params, _ = split(make(rngs=nnx.Rngs(0)))
        return [functools.reduce(lambda tree, key: tree[key], path, params) for path in paths]

    return [np.asarray(array, np.float64) for array in chosen()]


def is_normal(values, sd):
    """Mean, standard deviation and tails of N(0, sd²), within 5 standard errors."""
    n = values.size
    assert abs(values.mean()) < 5 * sd / np.sqrt(n)
    assert values.std() == pytest.approx(sd, rel=5 / np.sqrt(2 * n))
    assert np.abs(values).max() > 3 * sd
    return True


def is_uniform(values, bound):
    """Spread evenly over ±bound."""
    n = values.size
    assert abs(values.mean()) < 5 * bound / np.sqrt(3 * n)
    assert values.std() == pytest.approx(bound / np.sqrt(3), rel=5 / np.sqrt(n))
    assert bound * (1 - 20 / n) < np.abs(values).max() <= bound
    return True


CONV = ("blocks", 1, "conv2", "kernel")
HEAD = ("head", "kernel")


def test_resnet32_starts_kaiming_normal_with_a_small_head():
    conv, head = initial("resnet32", CONV, HEAD)
    assert is_normal(conv, np.sqrt(2 / (9 * 32)))
    assert is_normal(head, 0.01)


def test_resnet50_starts_as_its_stem_says():
    bias = ("head", "bias")
    for name, stem, conv, head, biases in (
        (n, *initial(n, ("stem", "kernel"), ("blocks", 0, "conv3", "kernel"), HEAD, bias))
        for n in ("resnet50", "resnet50-cifar")
    ):
        if name == "resnet50":
            assert stem.shape == (7, 7, 3, 64)
            assert is_normal(stem, np.sqrt(2 / (49 * 64)))
            assert is_normal(conv, np.sqrt(2 / 256))
        else:
            assert stem.shape == (3, 3, 3, 64)
            assert is_uniform(stem, 1 / np.sqrt(27))
            assert is_uniform(conv, 1 / np.sqrt(64))
        assert is_uniform(head, 1 / np.sqrt(2048))
        assert 0 < np.abs(biases).max() <= 1 / np.sqrt(2048)


def test_wide_resnet_starts_kaiming_normal():
    conv, head = initial("wrn-28-10", ("blocks", 0, "conv1", "kernel"), HEAD)
    assert is_normal(conv, np.sqrt(2 / (9 * 160)))
    assert is_uniform(head, 1 / np.sqrt(640))


def test_deit_starts_normal_of_one_scale():
    qkv, positions, token, head, patches, bias = initial(
        "deit-tiny",
        ("blocks", 0, "attention", "qkv", "kernel"),
        ("positions",),
        ("class_token",),
        HEAD,
        ("patches", "kernel"),
        ("patches", "bias"),
    )
    assert qkv.shape == (192, 3 * 192)
    for normal in (qkv, positions, head):
        assert is_normal(normal, 0.02)
    assert token.std() == pytest.approx(0.02, rel=0.3)
    assert is_uniform(patches, 1 / np.sqrt(16 * 16 * 3))
    assert 0 < np.abs(bias).max() <= 1 / np.sqrt(16 * 16 * 3)


def test_any_image_size():
    model = abstract("resnet50", image_shape=(5, 9, 1))
    logits = nnx.eval_shape(lambda m, x: m(x), model, jnp.ones((2, 5, 9, 1)))
    assert logits.shape == (2, 10)


def test_unknown_names_and_options():
    with pytest.raises(ValueError, match="model='vgg' is not known; choose one of lenet-300-100"):
        models.create("vgg", 10, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"depth=9 must be 6n \+ 2"):
        models.cifar_resnet(10, depth=9, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"depth=27 must be 6n \+ 4"):
        models.wide_resnet(10, depth=27, widen=1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="stem='mnist' is not known; choose one of 'imagenet'"):
        models.resnet50(10, stem="mnist", rngs=nnx.Rngs(0))
