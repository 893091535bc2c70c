"""`zosam bench`: rows and their ratios, passes counted in the traced step, honest compile times."""

import io
import json
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import optax
import pytest
from rich.console import Console
from rich.table import Table

from zosam_jax import cli
from zosam_jax.analysis.estimator import PerturbationQuality
from zosam_jax.commands.bench import BenchConfig, command, entries
from zosam_jax.commands.steps import Steps
from zosam_jax.training import passes
from zosam_jax.training.passes import Passes

SMALL = ["--model", "lenet-300-100", "--batch-size", "16", "--image-shape", "8", "8", "1"]
SMALLEST = {"model": "lenet-300-100", "batch_size": 4, "image_shape": (8, 8, 1)}
PROMISED = (
    "optimizer",
    "time_ratio",
    "memory_ratio",
    "compile_ratio",
    "flops_ratio",
    "forward_passes",
    "backward_passes",
    "cosine",
    "ascent_gain_ratio",
)
ROWS = ["sgd", "sam", "zo_sam", "forward_pass"]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """The rows of a run, and what it printed."""
    file = tmp_path_factory.mktemp("bench") / "new" / "rows.json"
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr(Console, "print", lambda self, *content, **_: printed.extend(content))
        cli.main(
            ["bench", *SMALL, "--rounds", "3", "--optimizers", *ROWS[1:], "--output", str(file)]
        )
    return json.loads(file.read_text()), next(x for x in printed if isinstance(x, Table))


def row(result, name):
    return next(row for row in result[0] if row["optimizer"] == name)


@pytest.mark.slow
def test_every_row_has_what_is_promised(result):
    assert [row["optimizer"] for row in result[0]] == ROWS
    for found in result[0]:
        assert set(PROMISED) <= set(found)
        for name in PROMISED[1:7]:
            assert math.isfinite(found[name])
            assert found[name] > 0 or name == "backward_passes"
        climbs = found["optimizer"] in ("sam", "zo_sam")
        for name in ("cosine", "ascent_gain_ratio"):
            assert (found[name] is not None) == climbs


@pytest.mark.slow
def test_the_table_shows_the_rows(result):
    rows, table = result
    columns = [list(column.cells) for column in table.columns]
    assert columns[0] == ROWS
    assert [cell.split()[0] for cell in columns[1]] == [f"{r['time_ratio']:.2f}" for r in rows]
    for index, name in ((2, "milliseconds"), (7, "cosine"), (8, "ascent_gain_ratio")):
        form = ".1f" if index == 2 else ".3g"
        shown = ["–" if r[name] is None else format(r[name], form) for r in rows]
        assert columns[index] == shown


@pytest.mark.slow
def test_ratios_are_to_sgd_and_gains_to_sam(result):
    for name in ("time_ratio", "memory_ratio", "compile_ratio", "flops_ratio"):
        assert row(result, "sgd")[name] == 1
    assert row(result, "sam")["ascent_gain_ratio"] == pytest.approx(1, rel=1e-3)
    assert row(result, "sam")["flops_ratio"] == pytest.approx(2, abs=0.1)
    assert row(result, "sam")["cosine"] > 0.5
    # One random direction of equal length among 50,000 weights does not climb as far.
    assert abs(row(result, "zo_sam")["ascent_gain_ratio"]) < 0.2
    assert abs(row(result, "zo_sam")["cosine"]) < 0.1


def test_gain_at_equal_cost_is_the_gain_per_extra_time():
    def entry(seconds):
        found = object.__new__(entries.Entry)
        found.seconds, found.passes = seconds, Passes(1, 1)
        found.temp_bytes, found.compile_seconds, found.flops = 1, 1.0, 1.0
        return found

    timed = {
        "sgd": entry([1.0, 2.0, 1.0]),
        "sam": entry([2.0, 4.0, 2.0]),
        "zo_sam": entry([1.5, 3.0, 1.5]),
        "random_weight_perturbation": entry([1.0, 2.1, 0.9]),
    }
    gains = {"sam": 0.4, "zo_sam": 0.1, "random_weight_perturbation": 0.1}
    ascents = {name: [PerturbationQuality(1.0, 0.0, gain)] for name, gain in gains.items()}
    rows = {r.optimizer: r for r in command.step_costs(BenchConfig(), timed, ascents)}
    assert rows["zo_sam"].time_ratio == 1.5
    assert rows["zo_sam"].ascent_gain_ratio == pytest.approx(0.25)
    assert rows["zo_sam"].ascent_gain_per_cost_ratio == pytest.approx(0.5)
    assert rows["sam"].ascent_gain_per_cost_ratio == 1
    # Below SGD's time in one round, above in another: there is no extra time to divide by.
    assert rows["random_weight_perturbation"].ascent_gain_per_cost_ratio is None


def traced(name, **options):
    config = BenchConfig(**SMALLEST, **options)
    problem = entries.BenchProblem(config)
    function, state, _ = entries.parts(problem, name)
    program = jax.make_jaxpr(function)(state, problem.batch, problem.feed.arrays)
    return passes.count(program, 4 * 10)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sgd", (1, 1)),
        ("adamw", (1, 1)),
        ("sam", (2, 2)),
        ("zo_sam", (3, 1)),
        ("random_weight_perturbation", (1, 1)),
        ("forward_pass", (1, 0)),
        ("gradient", (1, 1)),
        ("optax.contrib.sam", (2, 2)),
    ],
)
def test_passes_of_a_step(name, expected):
    assert traced(name) == expected


@pytest.mark.parametrize("batching", ["unroll", "vmap", "map"])
def test_passes_of_three_directions(batching):
    assert traced("zo_sam", num_directions=3, batching=batching) == (7, 1)


def test_passes_under_masks():
    assert traced("sam", sparsity=0.5) == (2, 2)


# ------------------------------------------------------------------- counting, on one matrix


X = jnp.arange(12.0).reshape(4, 3)
KERNEL = jnp.arange(6.0).reshape(3, 2)


def loss(kernel, x=X):
    return jnp.sum(jnp.square(passes.marked_outputs(x @ kernel)))


def counted(function, *args, **options):
    return passes.count(jax.make_jaxpr(function)(*args), 4 * 2, **options)


def in_loop(kernel):
    return jax.lax.scan(lambda k, _: (k - jax.grad(loss)(k), None), kernel, length=5)[0]


def sometimes(kernel):
    return jax.lax.cond(kernel[0, 0] > 0, jax.grad(loss), lambda k: k * loss(k), kernel)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (loss, (1, 0)),
        (jax.grad(loss), (1, 1)),
        (lambda k: loss(k, X[:1]), (0.25, 0)),
        (lambda k: jax.vmap(lambda x: loss(k, x[None]))(X), (1, 0)),
        (lambda k: jax.vmap(jax.grad(loss))(jnp.stack([k, 2 * k, 3 * k])), (3, 3)),
        (lambda k: jax.jvp(loss, (k,), (k,)), (2, 0)),
        (jax.value_and_grad(jax.checkpoint(loss)), (2, 1)),
        (in_loop, (5, 5)),
        (lambda k: jax.lax.fori_loop(0, 3, lambda i, total: total + loss(k), 0.0), (3, 0)),
        (sometimes, (1, 1)),
        (lambda k: (loss(k), k)[1], (0, 0)),
        (jax.hessian(lambda k: loss(k[None] * jnp.ones((3, 1)))), None),
    ],
)
def test_counting(function, expected):
    if expected is None:
        # Second derivatives are counted too: a forward pass of the gradient for each direction.
        assert counted(function, jnp.ones(2)).work > 3
    else:
        assert counted(function, KERNEL) == expected


def test_the_cheapest_step_of_a_program_that_branches():
    assert counted(sometimes, KERNEL, branch=min) == (1, 0)


def test_marked_outputs_are_what_they_were():
    def program(mark):
        return jax.jit(lambda x: 1.0 * mark(x @ KERNEL)).lower(X).as_text()

    assert jnp.array_equal(jax.jit(passes.marked_outputs)(X), X)
    assert program(passes.marked_outputs) == program(lambda x: x)


# ------------------------------------------------------------------------------- the rest


def test_compiling_is_timed_without_the_persistent_cache(tmp_path):
    """The second program is the first again, and still nothing is read from the cache."""
    events = []
    jax.monitoring.register_event_listener(lambda event, **_: events.append(event))
    hit = "/jax/compilation_cache/cache_hits"

    def compile_afresh():
        jax.clear_caches()
        events.clear()
        jax.jit(lambda x: jnp.sin(x) @ jnp.cos(x)).lower(jnp.ones((8, 8))).compile()
        return hit in events

    before = {
        name: jax.config.values[name]
        for name in ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    }
    try:
        jax.config.update("jax_compilation_cache_dir", str(tmp_path))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
        entries.compilation_cache.reset_cache()
        compile_afresh()
        assert compile_afresh()
        with entries.without_compilation_cache():
            assert not compile_afresh()
        assert compile_afresh()
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        entries.compilation_cache.reset_cache()


def test_an_optimizer_without_a_perturbation_is_left_out_and_says_why():
    def refuse(*args, emit, **kwargs):
        raise ValueError(f"emit={emit!r} is not known.")

    problem = entries.BenchProblem(BenchConfig(**SMALLEST))
    sam = entries.run_of(problem, "sam")
    found = {
        "sam": SimpleNamespace(sam_tx=sam.sam_tx, state=sam.state),
        "mezo": SimpleNamespace(sam_tx=SimpleNamespace(update=refuse), state=sam.state),
    }
    console = Console(file=io.StringIO(), width=200)
    assert list(command._perturbations(problem, found, console)) == ["sam"]
    assert console.file.getvalue() == (
        "mezo has no perturbation to measure: emit='perturbation' is not known.\n"
    )


def test_an_optimizer_that_never_perturbs_has_no_ascent():
    """As one that descends along an estimate at θ: its ε is zero. SAM is measured in any case."""
    config = BenchConfig(**SMALLEST)
    problem = entries.BenchProblem(config)
    state = entries.run_of(problem, "sam").state
    still = optax.GradientTransformation(
        None, lambda updates, own, params, **_: (jax.tree.map(jnp.zeros_like, params), own)
    )
    found = {
        name: SimpleNamespace(advance=lambda: 0.0, sam_tx=sam_tx, state=state)
        for name, sam_tx in (("sgd", None), ("mezo", still))
    }
    console = Console(file=io.StringIO())
    with Steps(console) as steps:
        ascents = command._measure_ascents(config, problem, found, console, steps)
    assert list(ascents) == ["sam"]
    assert all(ascent.gain > 0 for ascent in ascents["sam"])


def test_the_default_optimizers_are_few():
    assert len(BenchConfig().optimizers) == 5


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--rounds", "0"], "rounds=0 must be at least 1"),
        (["--batch-size", "0"], "batch_size=0 must be at least 1"),
        (["--image-shape", "8", "0", "1"], "image_shape=(8, 0, 1) must be three integers above 0"),
        (["--rho", "0"], "rho=0.0 must be a finite number greater than 0"),
        (["--sparse", "rigl"], "sparse='rigl' needs a sparsity above 0"),
        (["--sparsity", "0.999999"], "leaves no weight in"),
        (["--optimizers", "lion"], "lion"),
        (["--output", "."], "output='.' is a folder: name a file"),
        (["--rho-warmup", "0.1"], "rho_warmup=0.1 is for train"),
        (["--optimizers", "sam", "--interval", "3"], "interval=3 goes with xsam, look_sam"),
        (["--model", "deit-tiny"], "patch"),
    ],
)
def test_a_wrong_option_ends_in_a_sentence(options, sentence, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(["bench", *SMALL, *options])
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert sentence in " ".join((captured.out + captured.err).replace("│", " ").split())
