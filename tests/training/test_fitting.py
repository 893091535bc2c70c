"""zosam_jax.fit: networks of any library, data of any kind, losses and optimizers of one's own."""

import functools
import io
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from rich.console import Console
from small_runs import QUIET, metrics

import zosam_jax
from zosam_jax.data.dataset import from_arrays
from zosam_jax.training import sources
from zosam_jax.training.callbacks import Callback
from zosam_jax.training.checkpoints import UnfitCheckpointError
from zosam_jax.training.run_folder import UnreadableRunError

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(40, 6))
Y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
TRAIN, TEST = (X[:32], Y[:32]), (X[32:], Y[32:])


class Nnx(nnx.Module):
    def __init__(self, rngs, width=4, num_classes=3):
        self.hidden = nnx.Linear(6, width, rngs=rngs)
        self.norm = nnx.BatchNorm(width, rngs=rngs)
        self.drop = nnx.Dropout(0.2, rngs=rngs)
        self.out = nnx.Linear(width, num_classes, rngs=rngs)

    def __call__(self, x):
        return self.out(self.drop(nnx.relu(self.norm(self.hidden(x)))))


class Linen(linen.Module):
    @linen.compact
    def __call__(self, x, train: bool):
        x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
        return linen.Dense(3)(linen.Dropout(0.2, deterministic=not train)(x))


class Equinox(eqx.Module):
    hidden: eqx.nn.Linear
    norm: eqx.nn.BatchNorm
    drop: eqx.nn.Dropout
    out: eqx.nn.Linear

    def __init__(self, key):
        first, last = jax.random.split(key)
        self.hidden = eqx.nn.Linear(6, 4, key=first)
        self.norm = eqx.nn.BatchNorm(4, "batch", mode="batch")
        self.drop = eqx.nn.Dropout(0.2)
        self.out = eqx.nn.Linear(4, 3, key=last)

    def __call__(self, x, state, key):
        x, state = self.norm(self.hidden(x), state)
        return self.out(self.drop(jax.nn.relu(x), key=key)), state


def equinox_with_state(key):
    return eqx.nn.make_with_state(Equinox)(key)


def init(key):
    return {"w": jax.random.normal(key, (6, 3)) / 3, "b": jnp.zeros(3)}


def apply(params, x):
    return x @ params["w"] + params["b"]


NETWORKS = {
    "nnx class": Nnx,
    "nnx module": Nnx(nnx.Rngs(5)),
    "nnx factory": functools.partial(Nnx, width=5),
    "linen": Linen(),
    "equinox": eqx.nn.MLP(6, 3, 4, 1, key=jax.random.key(0)),
    "equinox with state": equinox_with_state,
    "functions": (init, apply),
}


def fit(model, data=TRAIN, *, test=TEST, **options):
    base = {"batch_size": 16, "epochs": 2, "optimizer": "sgd", "mesh": "data=1", "console": QUIET}
    return zosam_jax.fit(model, data, test=test, **{**base, **options})


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


# Each is compiled anew; the others are trained in further tests.
QUICK = ("nnx class", "equinox", "functions")
CASES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NETWORKS]


@pytest.mark.parametrize("name", CASES)
def test_networks_of_all_libraries_train_and_come_back(name, tmp_path):
    model = NETWORKS[name]
    sparse = {"sparse": "random", "sparsity": 0.5} if name != "functions" else {}
    result = fit(model, output=tmp_path / "run", **sparse)
    assert [record.epoch for record in result.history] == [1, 2]
    assert 0 < result.summary["inference_cost"] <= 1
    assert (result.masks is None) == (not sparse)
    with zosam_jax.open_run(str(tmp_path / "run"), model=model) as run:
        probabilities = run.predict(X[32:])
        assert np.mean(probabilities.argmax(-1) == Y[32:]) == run.summary["test_accuracy"]
        np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
        same(result.masks, run.masks)
    again = fit(model, output=tmp_path / "run", **sparse)
    np.testing.assert_equal(again.summary, result.summary)


def test_the_model_of_a_result_gives_what_was_evaluated(tmp_path):
    x = jnp.asarray(TEST[0], jnp.float32)
    for name in ("nnx class", "linen", "functions"):
        result = fit(NETWORKS[name], output=tmp_path / name)
        accuracy = np.mean(np.argmax(result.model(x), -1) == TEST[1])
        assert accuracy == result.summary["test_accuracy"]


class CrashError(Exception):
    pass


class Crash(Callback):
    def __init__(self, after):
        self.after, self.steps = after, 0

    def on_step(self, run):
        self.steps += 1
        if self.steps == self.after:
            raise CrashError


class Loader:
    """Batches in an order that depends on the epoch, as a data loader has them."""

    def __init__(self):
        self.epoch = 0

    def __len__(self):
        return 2

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(32).reshape(2, 16)
        return iter([(X[part], Y[part]) for part in order])


@pytest.mark.parametrize(
    ("name", "data", "options"),
    [
        pytest.param(
            "linen",
            TRAIN,
            {
                "optimizer": optax.chain(zosam_jax.zo_sam(0.1), optax.adam(0.1)),
                "sparse": "rigl",
                "sparsity": 0.5,
            },
            marks=pytest.mark.slow,
        ),
        (
            "equinox with state",
            Loader(),
            {"optimizer": "zo_sam", "sparse": "set", "num_classes": 3},
        ),
    ],
)
def test_resumed_runs_are_the_uninterrupted_ones(name, data, options, tmp_path):
    options = {"epochs": 3, "checkpoint_minutes": 0.0, **options}
    model = NETWORKS[name]
    whole = fit(model, data, output=tmp_path / "whole", **options)
    for after in (3, 2):
        with pytest.raises(CrashError):
            fit(model, data, output=tmp_path / "run", callbacks=[Crash(after)], **options)
    broken = fit(model, data, output=tmp_path / "run", **options)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    runs = [zosam_jax.open_run(r.path, model=model).run.network for r in (whole, broken)]
    same(*runs)


def test_other_data_than_the_runs_are_refused(tmp_path):
    fit(NETWORKS["functions"], output=tmp_path / "run")
    with pytest.raises(ValueError, match=r"dataset='arrays:\w+' contradicts the run"):
        fit(NETWORKS["functions"], (X[:32], Y[:32][::-1]), output=tmp_path / "run")


def test_other_code_of_the_same_name_is_told_by_its_arrays_and_else_named(tmp_path):
    def made(width, tx, **options):
        model = (lambda key: {"w": jnp.zeros((6, 3)), "v": jnp.zeros(width)}, apply_first)
        return fit(model, optimizer=tx, output=tmp_path / "run", epochs=1, **options)

    def apply_first(params, x):
        return x @ params["w"]

    console = Console(file=io.StringIO(), soft_wrap=True)
    crash = {"callbacks": [Crash(2)], "checkpoint_minutes": 0.0}
    with pytest.raises(CrashError):
        made(2, optax.sgd(0.1), **crash)
    for other, sentence in (
        ((3, optax.sgd(0.1)), r"params\.v is of shape \(2,\) there, and of shape \(3,\) here"),
        ((2, optax.adam(0.1)), r"opt_state\S* is missing there, and of shape \(\) here"),
    ):
        with pytest.raises(UnfitCheckpointError, match=sentence):
            made(*other)
    for begins in ("resumed after step 1, epoch 1", f"{tmp_path / 'run'} is complete"):
        made(2, optax.sgd(0.2), console=console)
        (said,) = (s for s in console.file.getvalue().splitlines() if s.startswith(begins))
        assert re.search(r"only the name .* model='\S*<lambda>', optimizer='optax'$", said)


def test_a_regression_has_losses_and_no_accuracies(tmp_path):
    target = X[:, :1] - 2 * X[:, 1:2]
    model = (lambda key: {"w": jnp.zeros((6, 1))}, lambda params, x: x @ params["w"])
    data, test = (X[:32], target[:32]), (X[32:], target[32:])
    result = fit(model, data, test=test, loss="squared_error", epochs=3, output=tmp_path / "a")
    assert np.isnan(result.summary["test_accuracy"])
    errors = np.square(np.asarray(result.model(jnp.asarray(test[0], jnp.float32))) - test[1])
    assert result.summary["test_loss"] == pytest.approx(errors.mean(), rel=1e-5)
    with zosam_jax.open_run(tmp_path / "a", "best", model=model) as run:
        losses = [record.test_loss for record in run.metrics]
        assert run.run.progress.epoch == 1 + int(np.argmin(losses))
        np.testing.assert_allclose(
            run.predict(test[0])[:, 0], (test[0] @ run.run.network.params["w"])[:, 0], rtol=1e-4
        )
    flat = ((X[:32], target[:32, 0]), (X[32:], target[32:, 0]))
    other = fit(model, flat[0], test=flat[1], loss=optax.l2_loss, epochs=3, output=tmp_path / "b")
    assert other.summary["test_loss"] < errors.mean() / 2 + 10


def test_the_passes_of_a_transformation_are_counted(tmp_path):
    costs = {}
    for name, tx in {
        "sgd": optax.sgd(0.1),
        "sam": optax.chain(zosam_jax.sam(0.1), optax.sgd(0.1)),
        "zo_sam": optax.chain(zosam_jax.zo_sam(0.1), optax.sgd(0.1)),
    }.items():
        result = fit(NETWORKS["functions"], optimizer=tx, epochs=1, output=tmp_path / name)
        costs[name] = result.summary["training_cost"]
        assert result.summary["optimizer"] == "optax"
    assert costs == pytest.approx({"sgd": 1.0, "sam": 2.0, "zo_sam": 5 / 3})


@pytest.mark.parametrize(
    ("arguments", "options", "sentence"),
    [
        ((Nnx, TRAIN), {"test": None}, "test=None: pass held-out examples"),
        ((Nnx, (X, Y[:3])), {}, "train has inputs of shape"),
        ((Nnx, (X, Y - 1)), {}, "train has the label -1"),
        ((Nnx, ({"x": X}, Y)), {}, "train holds object of shape"),
        ((Nnx, {"x": X, "y": Y}), {}, r"data=\{'x': .* is neither \(inputs, targets\)"),
        ((Nnx, (np.where(X > 2, np.nan, X)[:32], Y[:32])), {}, "train has inputs that are NaN"),
        ((Nnx, TRAIN), {"test": (X + np.inf, Y)}, "test has .* infinite, first in example 0"),
        ((Nnx, TRAIN), {"epochs": np.int64(0)}, "epochs=0 must be at least 1"),
        ((None, TRAIN), {}, "model=None: pass a network"),
        (
            (lambda: nnx.Linear(5, 3, rngs=nnx.Rngs(0)), TRAIN),
            {},
            r"<lambda>' fails on a batch of inputs of shape \(2, 6\) and dtype float32: TypeError",
        ),
        ((3, TRAIN), {}, "model=3 is no module of Flax NNX"),
        ((lambda width: None, TRAIN), {}, "needs the argument width"),
        ((Nnx, TRAIN), {"epoch": 3}, "epoch is no option"),
        ((Nnx, TRAIN), {"optimizer": "sgdd"}, "optimizer='sgdd' must be one of"),
        ((Nnx, TRAIN), {"loss": "mse"}, "loss='mse' is not known"),
        ((Nnx, TRAIN), {"loss": "squared_error"}, "takes outputs of the same shape"),
        ((Nnx, TRAIN), {"loss": lambda o, t: o.sum()}, "the loss of each example is expected"),
        (("resnet8", TRAIN), {}, "model='resnet8' takes images"),
        ((functools.partial(Nnx, num_classes=2), TRAIN), {}, "2 outputs and the data 3 classes"),
        (
            (Nnx, TRAIN),
            {"optimizer": optax.sgd(0.1), "learning_rate": 0.2},
            "learning_rate=0.2 goes",
        ),
        ((Nnx, TRAIN), {"crop_and_flip": True}, "crop_and_flip=True is for uint8 images"),
        ((Nnx, TRAIN), {"mixup": 0.1}, "mixup=0.1 is for images"),
        ((Nnx, Loader()), {"batch_size": 8}, "batch_size=8 is not that of the data's batches"),
        ((Nnx, Loader()), {"train_images": 8}, "train_images=8 is for data in memory"),
        ((Nnx, iter([])), {}, "that has a length"),
    ],
)
def test_what_cannot_be_right_is_refused_in_a_sentence(arguments, options, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        fit(*arguments, output=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_a_batch_of_another_size_is_named(tmp_path):
    batches = [(X[:16], Y[:16]), (X[16:26], Y[16:26])]
    with pytest.raises(ValueError, match="batch 1 of the training data has 10 examples"):
        fit(Nnx, batches, num_classes=3, output=tmp_path / "run")


def test_opening_executes_no_code_that_a_folder_names(tmp_path, monkeypatch):
    fit(Nnx, output=tmp_path / "run")
    monkeypatch.setattr(sources, "imported", lambda *_: pytest.fail("imported"))
    with pytest.raises(ValueError, match=r"model='.*:Nnx' is code, which is not executed"):
        zosam_jax.open_run(tmp_path / "run")
    with pytest.raises(FileNotFoundError, match="has no checkpoint of step 3"):
        zosam_jax.open_run(tmp_path / "run", 3, model=Nnx)
    with pytest.raises(ValueError, match="step='newest' must be"):
        zosam_jax.open_run(tmp_path / "run", "newest", model=Nnx)
    (tmp_path / "run" / "data.json").write_text("{}")
    with pytest.raises(UnreadableRunError, match="is damaged"):
        zosam_jax.open_run(tmp_path / "run", model=Nnx)


def test_opened_with_data_it_is_evaluated(tmp_path):
    result = fit(Nnx, output=tmp_path / "run")
    with zosam_jax.open_run(tmp_path / "run", model=Nnx, data=(TRAIN, TEST)) as run:
        accuracy = run.run.problem.accuracy(run.run.network)
    assert accuracy == result.summary["test_accuracy"]
    with zosam_jax.open_run(tmp_path / "run", model=Nnx, data=from_arrays(TRAIN, TEST)) as run:
        assert run.run.problem.accuracy(run.run.network) == accuracy


def test_a_cut_record_of_epochs_is_named(tmp_path):
    path = fit(NETWORKS["functions"], output=tmp_path / "run").path
    lines = (path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (path / "metrics.jsonl").write_text(lines[0])
    with zosam_jax.open_run(path, model=NETWORKS["functions"]) as run:
        assert run.predict(X).shape == (40, 3)
        with pytest.raises(UnreadableRunError, match=r"jsonl is damaged: it ends at step 2; .* 4"):
            _ = run.metrics
