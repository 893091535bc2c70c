"""The same step in Linen, NNX and a plain loop; statistics move once, dropout is shared."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from problems import slow_but

import zosam_jax
from zosam_jax import sparsity
from zosam_jax.integrations.linen import TrainState
from zosam_jax.integrations.nnx import Optimizer, functional_loss, split
from zosam_jax.integrations.plain import apply_loss

X = jax.random.normal(jax.random.key(0), (16, 4))
Y = jnp.arange(16) % 3
# Those that differ in where the auxiliary output comes from and in what the state remembers.
NAMES = ("sam", "subbatch_sam", "random_weight_perturbation", "zo_sam", "s2_sam", "look_sam")
FIRSTS = {"sgd": None, **{name: zosam_jax.REGISTRY[name] for name in NAMES}}
a_few = pytest.mark.parametrize("name", slow_but({"sgd", "zo_sam"}, FIRSTS))


def chain(name, rho=0.05):
    first = FIRSTS[name]
    sgd = optax.sgd(0.1, momentum=0.9)
    return sgd if first is None else optax.chain(first(rho), sgd)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.inner = nnx.Linear(4, 8, rngs=rngs)
        self.norm = nnx.BatchNorm(8, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(8, 3, rngs=rngs)

    def __call__(self, x):
        return self.head(self.dropout(nnx.relu(self.norm(self.inner(x)))))


class LinenNet(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(8)(x))
        return nn.Dense(3)(nn.relu(x))


def nnx_loss(model, x, y):
    return cross_entropy(model(x), y)


@a_few
def test_nnx_batchnorm_and_dropout_move_once_a_step(name):
    model = NnxNet(nnx.Rngs(0))
    start = model.norm.mean[...]
    expected = 0.9 * start + 0.1 * model.inner(X).mean(axis=0)  # at θ
    optimizer = Optimizer(model, chain(name, rho=1e-3), wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer: optimizer.apply_loss(model, nnx_loss, X, Y))
    count = int(model.dropout.rngs.count[...])
    step(model, optimizer)
    tolerance = 1e-6 if name in ("sgd", "sam") else 1e-3  # the others pass at θ+ε alone
    np.testing.assert_allclose(model.norm.mean[...], expected, atol=tolerance)
    assert int(model.dropout.rngs.count[...]) == count + 1
    assert int(optimizer.step[...]) == 1


def test_nnx_hands_the_examples_losses_to_esam():
    def losses(model, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(model(x), y)

    model = NnxNet(nnx.Rngs(0))
    tx = optax.chain(zosam_jax.esam(0.05), optax.sgd(0.1, momentum=0.9))
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    step = nnx.jit(
        lambda model, optimizer: optimizer.apply_loss(model, nnx_loss, X, Y, losses_fn=losses)
    )
    first = float(step(model, optimizer))
    for _ in range(60):
        last = float(step(model, optimizer))
    assert last < 0.7 * first


@a_few
def test_nnx_trains(name):
    model = NnxNet(nnx.Rngs(0))
    optimizer = Optimizer(model, chain(name), wrt=nnx.Param)
    step = nnx.jit(lambda model, optimizer: optimizer.apply_loss(model, nnx_loss, X, Y))
    first = float(step(model, optimizer))
    for _ in range(60):
        last = float(step(model, optimizer))
    assert last < 0.7 * first
    model.eval()
    assert model(X).shape == (16, 3)


def test_all_passes_of_an_nnx_step_share_the_dropout_mask():
    """With dropout the loss is still one fixed function: rho=0 must equal plain SGD."""
    results = []
    for tx in (chain("sgd"), chain("zo_sam", rho=0.0), chain("sam", rho=0.0)):
        model = NnxNet(nnx.Rngs(0))
        optimizer = Optimizer(model, tx, wrt=nnx.Param)
        for _ in range(3):
            optimizer.apply_loss(model, nnx_loss, X, Y)
        results.append(model.head.kernel[...])
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])


def test_nnx_returns_the_loss_s_own_aux():
    model = NnxNet(nnx.Rngs(0))
    optimizer = Optimizer(model, chain("zo_sam"), wrt=nnx.Param)

    def loss(model, x, y):
        logits = model(x)
        return cross_entropy(logits, y), {"logits": logits}

    value, aux = optimizer.apply_loss(model, loss, X, Y, has_aux=True)
    assert value.shape == ()
    assert aux["logits"].shape == (16, 3)


def test_nnx_trains_only_what_wrt_selects():
    model = NnxNet(nnx.Rngs(0))
    only_head = nnx.All(nnx.Param, nnx.PathContains("head"))
    before = jnp.copy(model.inner.kernel[...])
    head = jnp.copy(model.head.kernel[...])
    optimizer = Optimizer(model, chain("zo_sam"), wrt=only_head)
    optimizer.apply_loss(model, nnx_loss, X, Y)
    np.testing.assert_array_equal(model.inner.kernel[...], before)
    assert not jnp.array_equal(model.head.kernel[...], head)


def test_functional_loss_leaves_the_model_alone():
    model = NnxNet(nnx.Rngs(0))
    graphdef, params, model_state = split(model)
    mean = jnp.copy(model.norm.mean[...])
    loss = functional_loss(nnx_loss, graphdef, model_state)
    value, (after, aux) = loss(params, X, Y)
    assert aux is None
    np.testing.assert_array_equal(model.norm.mean[...], mean)
    assert not jnp.array_equal(after["norm"]["mean"], mean)
    np.testing.assert_array_equal(value, loss(params, X, Y)[0])


class Dropped(nnx.Module):
    """As in Flax's MNIST example: the keys of dropout come with the call."""

    def __init__(self, rngs):
        self.head = nnx.Linear(4, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5)

    def __call__(self, x, rngs):
        return self.head(self.dropout(x, rngs=rngs))


def mnist_loss(model, rngs, batch):
    logits = model(batch["image"], rngs)
    return cross_entropy(logits, batch["label"]), logits


def mnist_steps(optimizer_type, tx, train_step):
    """The model and its keys after three steps in the style of Flax's MNIST example."""
    model, rngs = Dropped(nnx.Rngs(0)), nnx.Rngs(1)
    optimizer = optimizer_type(model, tx, wrt=nnx.Param)
    step = nnx.jit(train_step)
    for _ in range(3):
        step(model, optimizer, rngs, {"image": X, "label": Y})
    return nnx.as_pure(nnx.state((model, rngs)))


def by_flax(model, optimizer, rngs, batch):
    _, grads = nnx.value_and_grad(mnist_loss, has_aux=True)(model, rngs, batch)
    optimizer.update(model, grads)


def by_apply_loss(model, optimizer, rngs, batch):
    optimizer.apply_loss(model, mnist_loss, rngs, batch, has_aux=True)


@pytest.mark.parametrize("name", ["sgd", "sam", "esam"])
def test_random_keys_of_nnx_may_be_arguments_of_the_loss(name):
    first = zosam_jax.esam if name == "esam" else FIRSTS[name]
    sgd = optax.sgd(0.1, momentum=0.9)
    tx = sgd if first is None else optax.chain(first(0.0), sgd)
    found = mnist_steps(Optimizer, tx, by_apply_loss)
    expected = mnist_steps(nnx.Optimizer, sgd, by_flax)
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(*map(jax.tree.leaves, (found, expected)), strict=True):
        assert jnp.array_equal(a, b)


def test_modules_among_the_arguments_are_not_trained_and_share_their_keys():
    rngs = nnx.Rngs(0)
    model, teacher = NnxNet(rngs), NnxNet(nnx.Rngs(5))
    before, count = jnp.copy(teacher.head.kernel[...]), int(teacher.dropout.rngs.count[...])

    def distil(model, others, x):
        difference = model(x) - others["teacher"](x)
        return jnp.mean(difference**2) + 0 * jax.random.uniform(others["rngs"]())

    optimizer = Optimizer(model, chain("sam"), wrt=nnx.Param)
    step = nnx.jit(
        lambda model, optimizer, others, x: optimizer.apply_loss(model, distil, others, x)
    )
    drawn = int(rngs.default.count[...])
    losses = [
        float(step(model, optimizer, {"teacher": teacher, "rngs": rngs}, X)) for _ in range(20)
    ]
    assert losses[-1] < losses[0]
    np.testing.assert_array_equal(teacher.head.kernel[...], before)
    assert int(rngs.default.count[...]) == drawn + 20
    assert int(teacher.dropout.rngs.count[...]) == count + 20


def test_attention_s_values_do_not_hide_the_loss():
    """nnx.MultiHeadAttention has a parameter that is called "value", and so has Adam then."""
    model = nnx.MultiHeadAttention(2, 4, decode=False, rngs=nnx.Rngs(0))
    tx = optax.chain(zosam_jax.sam(0.05), optax.adam(1e-2))
    optimizer = Optimizer(model, sparsity.fixed(tx, None), wrt=nnx.Param)
    images = X[None]
    step = nnx.jit(
        lambda model, optimizer: optimizer.apply_loss(model, lambda m: jnp.mean(m(images) ** 2))
    )
    value = step(model, optimizer)
    assert zosam_jax.value(optimizer.opt_state) == value
    np.testing.assert_allclose(zosam_jax.diagnostics(optimizer.opt_state).epsilon_norm, 0.05, 1e-5)


class StatState(TrainState):
    batch_stats: dict | None = None


def linen_state(tx):
    model = LinenNet()
    variables = model.init(jax.random.key(0), X)
    return StatState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=tx,
        batch_stats=variables["batch_stats"],
    )


@jax.jit
def linen_step(state, x, y):
    def loss(params, x, y):
        variables = {"params": params, "batch_stats": state.batch_stats}
        logits, updated = state.apply_fn(variables, x, mutable=["batch_stats"])
        return cross_entropy(logits, y), updated

    state, (value, updated) = state.apply_loss(loss, has_aux=True, x=x, y=y)
    return state.replace(batch_stats=updated["batch_stats"]), value


@a_few
def test_linen_trains_and_batchnorm_moves_once(name):
    state = linen_state(chain(name))
    state, first = linen_step(state, X, Y)
    dense = linen_state(chain(name)).params["Dense_0"]
    expected = 0.1 * (X @ dense["kernel"] + dense["bias"]).mean(axis=0)
    tolerance = 1e-6 if name in ("sgd", "sam") else 0.05
    moved = state.batch_stats["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(moved, expected, atol=tolerance)
    for _ in range(60):
        state, last = linen_step(state, X, Y)
    assert float(last) < 0.7 * float(first)
    assert int(state.step) == 61
    assert name == "sgd" or zosam_jax.value(state.opt_state) == last


def test_linen_apply_gradients_still_works():
    state = linen_state(optax.sgd(0.1))
    gradient = jax.tree.map(jnp.ones_like, state.params)
    assert int(state.apply_gradients(grads=gradient).step) == 1


def plain_loss(params, x, y):
    return jnp.mean((x @ params["w"] - y) ** 2)


@a_few
def test_a_plain_loop_needs_one_change_to_swap_optimizers(name):
    params = {"w": jnp.ones(4)}
    tx = chain(name)
    value, aux, moved, state = apply_loss(
        tx, plain_loss, params, tx.init(params), x=X, y=Y.astype(float)
    )
    assert aux is None
    assert value.shape == ()
    assert not jnp.array_equal(moved["w"], params["w"])
    assert jax.tree.structure(state) == jax.tree.structure(tx.init(params))


def test_a_line_search_gets_what_it_needs():
    params = {"w": jnp.ones(4)}
    tx = optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(10))
    value, _, moved, _ = apply_loss(tx, plain_loss, params, tx.init(params), x=X, y=Y.astype(float))
    assert plain_loss(moved, X, Y) < value


def test_a_missing_argument_of_the_loss_is_named():
    params = {"w": jnp.ones(4)}
    tx = chain("zo_sam")
    with pytest.raises(TypeError, match=r"loss requires 'y', .* pass y=\.\.\."):
        apply_loss(tx, plain_loss, params, tx.init(params), x=X)


def zero_where_pruned(params, masks):
    masked = sparsity.apply_masks(params, masks)
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), masked, params)
    return all(jax.tree.leaves(equal))


@pytest.mark.parametrize("name", slow_but(["zo_sam"], ["sgd", "zo_sam"]))
def test_nnx_trains_under_masks_that_change(name):
    model = NnxNet(nnx.Rngs(0))
    tx = sparsity.rigl(chain(name), 0.5, total_steps=20, every=2)
    optimizer = Optimizer(model, tx, wrt=nnx.Param)
    optimizer.apply_masks(model)
    before = optimizer.masks
    assert zero_where_pruned(nnx.as_pure(nnx.state(model, nnx.Param)), before)
    step = nnx.jit(lambda model, optimizer: optimizer.apply_loss(model, nnx_loss, X, Y))
    losses = [float(step(model, optimizer)) for _ in range(12)]
    assert losses[-1] < losses[0]
    assert zero_where_pruned(nnx.as_pure(nnx.state(model, nnx.Param)), optimizer.masks)
    assert (before["inner"]["kernel"] != optimizer.masks["inner"]["kernel"]).any()
    assert before["norm"]["scale"] is None


@pytest.mark.parametrize("name", slow_but(["zo_sam"], ["sgd", "zo_sam"]))
def test_linen_trains_under_masks_that_change(name):
    model = LinenNet()
    variables = model.init(jax.random.key(0), X)
    tx = sparsity.set_(chain(name), 0.5, total_steps=20, every=2)
    state = TrainState.create(apply_fn=model.apply, params=variables["params"], tx=tx)
    state = state.apply_masks()
    before = state.masks
    assert zero_where_pruned(state.params, before)

    @jax.jit
    def step(state):
        def loss(params):
            logits, updated = model.apply(
                {"params": params, "batch_stats": variables["batch_stats"]},
                X,
                mutable=["batch_stats"],
            )
            return cross_entropy(logits, Y), updated

        return state.apply_loss(loss, has_aux=True)

    losses = []
    for _ in range(12):
        state, (value, _) = step(state)
        losses.append(float(value))
    assert losses[-1] < losses[0]
    assert zero_where_pruned(state.params, state.masks)
    assert (before["Dense_0"]["kernel"] != state.masks["Dense_0"]["kernel"]).any()
