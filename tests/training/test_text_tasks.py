"""Runs on texts: the next token, masked ones and classes; resumed, sparse, opened, refused."""

import dataclasses
import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from small_runs import QUIET, CrashError, crashing, final_state, metrics, run_once

import zosam_jax
from zosam_jax import cli, data, models
from zosam_jax.data.packing import FILLER
from zosam_jax.models import BERT, GPT2
from zosam_jax.training import build, fitting, text
from zosam_jax.training.config import TrainConfig, replacing, start_of
from zosam_jax.training.problem import Problem

VERSE = "abcdefghijklmnopqrstuvwxyz"
SMALL = {
    "context": 16,
    "batch_size": 8,
    "epochs": 2,
    "mesh": "data=1",
    "checkpoint_minutes": 0.0,
    "learning_rate": 1e-2,
}


@pytest.fixture(autouse=True)
def _small_models(monkeypatch):
    """The models by name, of one narrow block."""
    sizes = {"dim": 16, "depth": 1, "heads": 2}
    monkeypatch.setitem(models.TEXT_MODELS, "gpt2-micro", functools.partial(GPT2, **sizes))
    monkeypatch.setitem(models.TEXT_MODELS, "bert-micro", functools.partial(BERT, **sizes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Verses to predict, verses in two classes of several lengths, sums with scores."""
    path = tmp_path_factory.mktemp("texts")
    for split, lines in {"train": 40, "validation": 8, "test": 8}.items():
        (path / "verses").mkdir(exist_ok=True)
        (path / "verses" / f"{split}.txt").write_text((VERSE + "\n") * lines)
        for kind in ("classes", "scores"):
            (path / kind).mkdir(exist_ok=True)
            (path / kind / f"{split}.jsonl").write_text(
                "".join(f"{json.dumps(row)}\n" for row in rows_of(kind, lines))
            )
    return path


def rows_of(kind, count):
    for n in range(count):
        word = "yes" if n % 2 else "no"
        label = word if kind == "classes" else float(n % 2) + 0.25
        yield {"text": word * (1 + n % 5), "second": "or" if n % 3 else None, "label": label}


def config_of(task, folder, output=None, **changes):
    kind = "classes" if task == "classify" else "verses"
    options = {"dataset": "folder", "data_dir": folder / kind, "optimizer": "adamw", **SMALL}
    return replacing(start_of(task), {**options, "output": output, **changes})


def finished(config):
    run_once(config)
    return json.loads((config.output / "summary.json").read_text())


# ----------------------------------------------------------------------------- what they learn


def test_a_decoder_learns_a_verse_and_says_it(folder, tmp_path, capsys):
    config = config_of("lm", folder, tmp_path / "run", epochs=8, learning_rate=3e-2)
    summary = finished(config)
    found = summary["measures"]
    assert found["perplexity"] == pytest.approx(math.exp(summary["test_loss"]))
    assert found["bits_a_byte"] == pytest.approx(
        summary["test_loss"] / math.log(2) * 217 / 216, rel=1e-3
    )
    assert found["perplexity"] < 3
    assert summary["test_accuracy"] is None
    with zosam_jax.open_run(config.output) as run:
        said = run.generate("abcd", tokens=20)
        assert said == run.generate("abcd", tokens=20)
        assert said in f"{VERSE}\n" * 3
        drawn = {run.generate("abcd", tokens=20, temperature=3.0, seed=s) for s in range(3)}
        assert len(drawn) == 3
        assert run.generate("a", temperature=2.0, seed=1) == run.generate(
            "a", temperature=2.0, seed=1
        )
        with pytest.raises(ValueError, match="tokens=0 must be"):
            run.generate("a", tokens=0)
        with pytest.raises(ValueError, match="trained with task='lm': what it says"):
            run.predict("abcd")
    cli.main(["predict", str(config.output), "--text", "abcd", "--tokens", "20", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows == [{"text": "abcd", "continuation": said}]


def test_each_token_is_drawn_from_what_the_network_says_of_those_before(folder, tmp_path):
    """Also where the window has moved on: of a long prompt only its end counts."""
    config = config_of("lm", folder, tmp_path / "run", epochs=1)
    run_once(config)
    with zosam_jax.open_run(config.output) as run:
        prompt = VERSE + "abc"
        row = np.frombuffer(prompt.encode(), np.uint8)[-16:].astype(np.int32)[None]
        likeliest = int(jnp.argmax(run.model(row)[0, -1]))
        assert run.generate(prompt, tokens=1) == data.tokenizer(None).decode([likeliest])
        assert run.generate(prompt[-16:], tokens=9) == run.generate(prompt, tokens=9)


def test_an_encoder_finds_masked_tokens(folder, tmp_path):
    summary = finished(config_of("mlm", folder, tmp_path / "run", epochs=8, learning_rate=3e-2))
    assert summary["measures"]["perplexity"] < 12  # of 259 tokens
    with (
        zosam_jax.open_run(tmp_path / "run") as run,
        pytest.raises(ValueError, match="only networks of task='lm' go on"),
    ):
        run.generate("a")


@pytest.mark.parametrize("model", ["bert-micro", "gpt2-micro"])
def test_texts_are_classified(model, folder, tmp_path, capsys):
    config = config_of(
        "classify", folder, tmp_path / "run", epochs=8, learning_rate=2e-2, model=model
    )
    summary = finished(config)
    assert summary["test_accuracy"] == summary["measures"]["accuracy"] == 1.0
    assert summary["measures"]["f1"] == summary["measures"]["matthews"] == 1.0
    with zosam_jax.open_run(config.output) as run:
        found = run.predict(["yes", ("no", "or")])
        np.testing.assert_array_equal(found.argmax(axis=1), [1, 0])
        with pytest.raises(ValueError, match="must be a text, a pair of texts"):
            run.predict([3, 4])
    lines = tmp_path / "lines.txt"
    lines.write_text("yes\n\nno\tor\n")
    cli.main(["predict", str(config.output), str(lines), "--text", "nono", "--csv"])
    table = [line.split(",")[:2] for line in capsys.readouterr().out.splitlines()]
    assert table == [["text", "class"], ["nono", "no"], ["yes", "yes"], ["no\tor", "no"]]


def test_scores_of_texts_are_a_regression(folder, tmp_path):
    config = config_of("classify", folder, tmp_path / "run", data_dir=folder / "scores", epochs=8)
    summary = finished(config)
    assert summary["measures"].keys() == {"pearson", "spearman"}
    assert summary["measures"]["pearson"] > 0.9
    assert summary["test_accuracy"] is None


def test_measures_by_hand():
    found, labels = np.array([0, 1, 1, 1, 0]), np.array([0, 1, 0, 1, 1])
    assert text.agreement(found, labels, 2) == pytest.approx(
        {"accuracy": 0.6, "f1": 4 / 6, "matthews": (2 * 1 - 1) / math.sqrt(3 * 3 * 2 * 2)}
    )
    three = text.agreement(np.array([0, 1, 2, 2]), np.array([0, 1, 2, 1]), 3)
    assert three["f1"] == pytest.approx((1 + 2 / 3 + 2 / 3) / 3)
    constant = text.agreement(np.zeros(4, int), np.array([0, 1, 0, 1]), 2)
    assert constant == {"accuracy": 0.5, "f1": 0.0, "matthews": 0.0}
    scores = text.correlations(np.array([1.0, 2.0, 9.0]), np.array([1.0, 2.0, 3.0]))
    assert scores["spearman"] == pytest.approx(1.0)
    assert 0.9 < scores["pearson"] < 1.0


# --------------------------------------------------------------------------------------- feeds


def test_rows_come_in_batches_as_long_as_theirs_each_once(folder):
    problem = Problem(config_of("classify", folder).problem)
    feed = problem.feed
    seen = []
    batches = list(feed.epoch(3, 1))
    assert len(batches) == problem.steps_per_epoch == 5
    shapes = {rows.shape for rows, _ in feed.batch_shapes()}
    for rows, labels in batches:
        assert rows.shape in shapes
        assert rows.shape[1] <= 16
        seen += [
            (tuple(t for t in row if t >= 0), int(y))
            for row, y in zip(rows.tolist(), labels, strict=True)
        ]
    train = feed.dataset.train
    there = [
        (tuple(t for t in row if t >= 0), int(y))
        for row, y in zip(train.images.tolist(), train.labels, strict=True)
    ]
    assert sorted(seen) == sorted(there)
    assert len({rows.shape for rows, _ in batches}) > 1
    again = [np.asarray(rows) for rows, _ in feed.epoch(3, 1, start=2)]
    for one, (other, _) in zip(again, batches[2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_fills_a_row_up_changes_nothing(folder):
    problem = Problem(config_of("classify", folder).problem)
    network = problem.init(0)
    rows, _ = problem.feed.raw(0, 8)
    longest = int((rows != FILLER).sum(axis=1).max())
    whole = problem.apply(*network, jnp.asarray(rows))
    cut = problem.apply(*network, jnp.asarray(rows[:, :longest]))
    np.testing.assert_allclose(whole, cut, rtol=1e-5, atol=1e-6)
    loss = problem.evaluate(network, "test").loss
    test = problem.feed.dataset.test
    each = problem.losses_of_examples(network.model_state)(
        network.params, problem.as_examples(jnp.asarray(test.images), jnp.asarray(test.labels))
    )
    assert loss == pytest.approx(float(each.mean()), rel=1e-5)


def test_gaps_are_others_in_each_step_and_the_same_in_all_passes_of_one(folder):
    problem = Problem(config_of("mlm", folder).problem)
    batch, key = next(problem.feed.epoch(0, 0)), jax.random.key(0)
    first, again, other = (
        problem.examples(problem.feed.arrays, batch, jnp.asarray(step), key) for step in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.images, again.images)
    assert (first.images != other.images).any()
    assert (np.sum(np.asarray(first.labels) >= 0, axis=1) == 2).all()


def test_nothing_is_decayed_but_kernels(folder):
    """Not norms and biases, nor embeddings: without a gradient they stay as they are."""
    config = config_of("classify", folder, learning_rate=0.1, weight_decay=0.5, warmup=0.0)
    problem = Problem(config.problem)
    network = problem.init(0)
    tx = build.transformation(problem.config, "adamw", None, 10)
    zero = jax.tree.map(jnp.zeros_like, network.params)
    updates, _ = tx.update(zero, tx.init(network.params), network.params)
    for path, update in jax.tree.leaves_with_path(updates):
        assert bool(jnp.any(update != 0)) == (path[-1].key == "kernel"), path


# -------------------------------------------------------------------------------------- resume

CASES = {
    "lm": {"optimizer": "zo_sam", "dropout": 0.1},
    "mlm": {"optimizer": "adamw", "ema_decay": 0.9},
    "classify": {"optimizer": "sam", "accumulate": 2, "sparse": "rigl", "sparsity": 0.5},
}


@pytest.mark.parametrize("task", CASES)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(task, folder, tmp_path, monkeypatch):
    whole = config_of(task, folder, tmp_path / "whole", **CASES[task])
    run_once(whole)
    broken = dataclasses.replace(whole, output=tmp_path / "broken")
    for after in (2, 4):
        with monkeypatch.context() as patch:
            crashing(patch, after)
            with pytest.raises(CrashError):
                run_once(broken)
    run_once(broken)
    assert metrics(broken.output) == metrics(whole.output)
    jax.tree.map(np.testing.assert_array_equal, final_state(broken), final_state(whole))


# --------------------------------------------------------------------------------------- sparse


@pytest.mark.slow
@pytest.mark.parametrize("structure", ["heads,neurons"])
def test_units_of_a_decoder_go(structure, folder, tmp_path):
    config = config_of(
        *("lm", folder, tmp_path / "run"),
        **{"sparse": "magnitude", "sparsity": 0.5, "structure": structure, "epochs": 1},
    )
    summary = finished(config)
    assert summary["parameters"] < summary["dense_parameters"]
    with zosam_jax.open_run(config.output) as run:
        assert isinstance(run.generate("a", tokens=2), str)


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task": "lm", "model": "resnet8"}, "does not go with task='lm': choose one of gpt2 and"),
        ({"task": "mlm", "model": "gpt2"}, "task='mlm': choose one of bert-base and bert-micro"),
        ({"model": "gpt2"}, "model='gpt2' does not go with task='image'"),
        ({"task": "lm", "context": 4}, "context=4 must be at least 8 tokens"),
        ({"context": 64}, "context=64 goes with tasks of texts, not with task='image'"),
        ({"task": "lm", "mixup": 0.1}, "mixup=0.1 goes with task='image', not with task='lm'"),
        ({"task": "lm", "label_noise": 0.1}, "label_noise=0.1 goes with labels, not with task="),
        ({"dropout": 0.1}, "dropout=0.1 goes with gpt2, gpt2-micro, bert-base and bert-micro"),
        ({"task": "lm", "sparse": "synflow", "sparsity": 0.5}, "and tokens are none"),
        ({"task": "lm", "sparse": "grasp", "sparsity": 0.5}, "by images of each class"),
    ],
)
def test_options_that_do_not_go_with_texts_are_named(options, said):
    start = start_of(options.get("task", "image"))
    with pytest.raises(ValueError, match=said):
        replacing(start, options)


def test_an_unknown_task_is_named(capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--task", "poetry"])
    assert "task='poetry' is not known" in capsys.readouterr().out


def test_files_that_are_too_short_are_named(folder, tmp_path, capsys):
    short = tmp_path / "short.txt"
    short.write_text("a few\nwords\nhere\nand\nthere\nand\nthat\nis\nall\nof\nit\n")
    with pytest.raises(SystemExit) as caught:
        cli.main(
            ["train", "--task", "lm", "--dataset", str(short), "--output", str(tmp_path / "r")]
        )
    assert caught.value.code == 2
    assert f"split of {short} has" in " ".join(capsys.readouterr().out.split())


def test_a_run_does_not_go_on_with_other_texts(folder, tmp_path):
    config = config_of("lm", folder, tmp_path / "run", epochs=1, data_dir=tmp_path)
    for split in ("train", "test"):
        (tmp_path / f"{split}.txt").write_text(f"{VERSE}\n" * 20)
    run_once(config)
    (config.output / "summary.json").unlink()
    with fitting.Fitting(config, QUIET):
        pass
    (tmp_path / "test.txt").write_text(f"{VERSE}!\n" * 20)
    with pytest.raises(ValueError, match="holds other texts than when the run in"):
        fitting.Fitting(config, QUIET)


@pytest.fixture
def letters(tmp_path):
    """A tokenizer of the verse's letters."""
    known = {"</s>": 0, **{letter: n for n, letter in enumerate(f"{VERSE}\n", start=1)}}
    path = tmp_path / "tokenizer.json"
    tokenizers.Tokenizer(tokenizers.models.BPE(known, [])).save(str(path))
    return path


def test_a_vocabulary_that_does_not_fit_what_is_started_from_is_named(folder, tmp_path, letters):
    first = config_of("lm", folder, tmp_path / "first", epochs=1)
    run_once(first)
    other = config_of("lm", folder, tmp_path / "other", init=first.output, tokenizer=letters)
    with pytest.raises(
        ValueError, match=r"tokens \(259, 16\), not \(28, 16\).*the vocabulary must"
    ):
        fitting.checked_problem(other, ["adamw"])
    same = config_of("lm", folder, tmp_path / "same", init=first.output)
    network = fitting.checked_problem(same, ["adamw"]).init(1)
    np.testing.assert_array_equal(network.params["tokens"], final_state(first)[0]["tokens"])


def test_a_run_keeps_its_tokenizer(folder, tmp_path, letters):
    run_once(config_of("lm", folder, tmp_path / "run", epochs=1, tokenizer=letters))
    letters.unlink()
    with zosam_jax.open_run(tmp_path / "run") as run:
        said = run.generate("a", tokens=5, temperature=1.0)
        assert set(said.replace(" ", "")) <= set(f"{VERSE}\n")


def test_a_network_of_ones_own_on_texts(folder, tmp_path):
    blocks = data.next_tokens(
        data.load_texts("folder", folder / "verses"), data.tokenizer(None), 16
    )

    def network(rngs, num_classes):
        return GPT2(num_classes, 16, dim=8, depth=1, heads=2, rngs=rngs)

    found = zosam_jax.fit(
        network,
        blocks,
        task="lm",
        optimizer="adamw",
        epochs=1,
        batch_size=8,
        output=tmp_path / "run",
        console=QUIET,
    )
    assert found.summary["measures"]["perplexity"] > 1
    with pytest.raises(ValueError, match="task='lm' takes texts: a data set made by"):
        zosam_jax.fit(network, data.load("digits"), task="lm", output=tmp_path / "no")


def test_the_default_is_images():
    assert TrainConfig() == start_of("image")
    assert TrainConfig().task == "image"
