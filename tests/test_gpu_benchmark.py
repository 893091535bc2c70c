"""benchmarks/gpu: its time, its rows and what goes on after an end; all of it, small, is slow."""

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path

import jax
import numpy as np
import pytest
import run as gpu_run
import throughput
from cells import ROWS, Budget, Cell, CutOffError, Rows, Work
from device_tests import outcomes
from long_training import (
    config_of,
    epoch_program,
    order_of,
    padded,
    restored,
    run_of,
    saved,
    stacked,
    unstacked,
)

from zosam_jax.data import from_arrays
from zosam_jax.training.problem import Problem

SCRIPT = Path(gpu_run.__file__)
ROOT = SCRIPT.parents[2]
NOWHERE = {"platform": "none"}


def cell(name="one", rows=("a", "b"), minutes=1.0, work=None, goes_on=False):
    return Cell(2, name, rows, minutes, work, goes_on)


def work_of(tmp_path, **options):
    return Work(cell(**options), Rows(tmp_path), Budget(1), None, tmp_path, True)


@pytest.fixture
def without_device(monkeypatch):
    monkeypatch.setattr("cells.machine", lambda: NOWHERE)


@pytest.fixture
def children(monkeypatch):
    """Cells run here instead of in processes: name → (rows that it leaves, status, stderr)."""
    found, began = {}, []

    def child(self, cell, seconds):
        began.append(cell.name)
        names, status, told = found[cell.name]
        if status is None:
            raise subprocess.TimeoutExpired("run.py", seconds)
        for name in names:
            self._work(cell).add(name)
        return subprocess.CompletedProcess([], status, stderr=told)

    monkeypatch.setattr(gpu_run.Schedule, "_child", child)
    return found, began


def schedule(tmp_path, minutes=60.0, clock=lambda: 0.0):
    options = Namespace(data_dir=None, output=tmp_path, tiny=False)
    return gpu_run.Schedule(Rows(tmp_path), Budget(minutes, clock), options)


def test_a_budget_ends():
    now = 0.0
    budget = Budget(2.0, lambda: now)
    assert budget.seconds == 120
    now = 90.0
    assert budget.seconds == 30
    now = 500.0
    assert budget.seconds == 0


def test_rows_are_kept_at_once_and_say_where_they_were_made(tmp_path):
    work = work_of(tmp_path)
    work.add("a", precision="bfloat16", seed=3, value=1.5)
    (line,) = (tmp_path / ROWS).read_text().splitlines()
    row = json.loads(line)
    assert (row["cell"], row["row"], row["part"], row["tiny"]) == ("one", "a", 2, True)
    assert (row["precision"], row["seed"], row["value"]) == ("bfloat16", 3, 1.5)
    assert row["device"] == jax.devices()[0].device_kind
    assert row["jax"] == jax.__version__
    assert {"backend", "driver", "platform"} <= set(row)
    assert work.missing == ["b"]


def test_a_line_that_was_cut_off_is_dropped(tmp_path, without_device):
    work_of(tmp_path).add("a")
    with (tmp_path / ROWS).open("a") as file:
        file.write('{"cell": "one", "row": "b", "val')
    work = work_of(tmp_path)
    assert work.missing == ["b"]
    work.add("b")
    assert [row["row"] for row in Rows(tmp_path).all()] == ["a", "b"]


def test_what_fails_becomes_a_row_and_the_rest_goes_on(tmp_path, without_device):
    work = work_of(tmp_path)
    for name in work.missing:
        with work.attempting(name, precision="float32"):
            if name == "a":
                raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory\nwhile allocating 1 byte")
            work.add(name)
    first, second = work.rows.all()
    assert first["error"] == (
        "RuntimeError: RESOURCE_EXHAUSTED: Out of memory while allocating 1 byte"
    )
    assert first["precision"] == "float32"
    assert "error" not in second
    with pytest.raises(CutOffError), work.attempting("c"):
        raise CutOffError("later")
    assert len(work.rows.all()) == 2


def test_cells_run_in_order_and_what_is_there_is_not_made_again(tmp_path, children, without_device):
    found, began = children
    found |= {"one": (["a", "b"], 0, ""), "two": (["a"], 0, "")}
    cells = [cell(), cell("two", ["a"])]
    for said in ("done", "there already"):
        plan = schedule(tmp_path)
        plan.run(cells)
        assert plan.said == {"one": said, "two": said}
    assert began == ["one", "two"]


def test_what_does_not_fit_the_time_left_is_skipped_and_named(tmp_path, children, without_device):
    found, began = children
    found |= {"short": (["a"], 0, ""), "later": ([], 75, "noise\ncut off after epoch 3\n")}
    plan = schedule(tmp_path, minutes=4.5)
    plan.run(
        [cell("long", minutes=5), cell("short", ["a"]), cell("later", minutes=90, goes_on=True)]
    )
    assert plan.said == {
        "long": "skipped: takes about 5 minutes, and 4.5 are left",
        "short": "done",
        # One that goes on next time is begun whatever it takes.
        "later": "cut off after epoch 3",
    }
    assert began == ["short", "later"]
    assert [row["cell"] for row in Rows(tmp_path).all()] == ["short"]


def test_a_process_that_dies_leaves_rows_and_one_that_is_cut_off_none(
    tmp_path, children, without_device
):
    found, _ = children
    found |= {"dies": (["a"], -6, "noise\nCUDA_ERROR_ILLEGAL_ADDRESS\n\n"), "hangs": ([], None, "")}
    plan = schedule(tmp_path)
    plan.run([cell("dies"), cell("hangs")])
    assert plan.said["dies"] == "1 of 2 rows are errors"
    assert plan.said["hangs"].startswith("cut off at the end of the time")
    first, second = Rows(tmp_path).all()
    assert "error" not in first
    assert second["error"] == "the process ended with status -6: CUDA_ERROR_ILLEGAL_ADDRESS"
    assert second["row"] == "b"


def test_rows_of_throughput_are_of_what_they_say():
    """Every one has its options, and nothing is computed to find out."""
    for row in throughput.ROWS:
        name, *how = row.split()
        if name == "draw":
            continue
        config = throughput.NETWORKS[0].config("float32", **throughput.options_of(row))
        assert config.optimizers == ("sgd",) if name in throughput.PARTS else ("sgd", name)
        told = (config.distribution, config.batching, config.batch_fraction)
        assert {str(value) for value in told if value is not None} == {
            "0.5" if word == "half" else word for word in how
        }


def test_shares_are_of_sgds_images_a_second():
    cost = {"time_ratio": 1.25, "time_ratio_quartiles": (1.0, 2.0), "milliseconds": 5.0}
    cost |= dict.fromkeys(("flops", "compile_seconds", "compile_ratio", "temp_bytes"), 1)
    cost |= dict.fromkeys(("forward_passes", "backward_passes", "memory_ratio"), 1)
    memory = Namespace(argument_size_in_bytes=9, output_size_in_bytes=8, alias_size_in_bytes=7)
    entry = Namespace(memory=memory)
    of_zo_sam = throughput.figures({**cost, "optimizer": "zo_sam normal map"}, entry, 64)
    assert of_zo_sam["share_of_sgd"] == 0.8
    assert of_zo_sam["share_of_sgd_quartiles"] == [0.5, 1.0]
    assert of_zo_sam["images_per_second"] == 12800
    assert of_zo_sam["share_in_the_paper"] == 0.767
    assert (of_zo_sam["argument_bytes"], of_zo_sam["output_bytes"]) == (9, 1)
    of_half = throughput.figures({**cost, "optimizer": "sam half"}, entry, 64)
    assert of_half["share_in_the_paper"] is None
    # A direction that is drawn sees no images.
    of_draw = throughput.figures({**cost, "optimizer": "draw normal"}, entry, 64)
    assert "images_per_second" not in of_draw


def test_a_wrong_folder_of_data_is_said_before_anything_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["run.py", "--output", str(tmp_path), "--data-dir", "nowhere"])
    with pytest.raises(SystemExit):
        gpu_run.main()
    assert "part 3 trains on Fashion-MNIST, or pass --parts without 3: nowhere" in (
        capsys.readouterr().err
    )
    assert not Rows(tmp_path).all()


@pytest.mark.parametrize("tiny", [False, True])
def test_names_say_which_row_is_meant(tiny):
    cells = gpu_run.all_cells(tiny)
    assert len({cell.name for cell in cells}) == len(cells)
    for found in cells:
        assert len(set(found.rows)) == len(found.rows) > 0
    # The order of the issue: tests, throughput, long training, products.
    assert [cell.part for cell in cells] == sorted(cell.part for cell in cells)
    assert {cell.part for cell in cells} == {1, 2, 3, 4}
    assert all((ROOT / name).is_file() for cell in cells if cell.part == 1 for name in cell.rows)


def test_the_process_that_plans_takes_no_device(tmp_path):
    """On a GPU it would take most of the memory from those that measure."""
    program = (
        "import run, sys; sys.argv = ['run.py', '--list', '--output', sys.argv[1]]; run.main()\n"
        "from jax._src import xla_bridge; assert not xla_bridge.backends_are_initialized()"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{SCRIPT.parent}"}
    told = subprocess.run(
        command, env=environment, cwd=SCRIPT.parent, capture_output=True, text=True, check=True
    )
    assert "part 2 | step of resnet32, batch 64, bfloat16 | about 5 minutes | 0 of" in told.stdout


def test_outcomes_are_read_from_junit(tmp_path):
    file = tmp_path / "tests.xml"
    file.write_text(
        """<testsuites><testsuite>
        <testcase classname="tests.test_a" name="test_x[1]" time="0.5"/>
        <testcase classname="tests.test_a.TestIt" name="test_y" time="1.5">
          <failure message="AssertionError:&#10;1e-3 &gt; 1e-5">the whole of it</failure></testcase>
        <testcase classname="tests.test_b" name="test_z" time="0">
          <skipped message="needs four devices"/></testcase>
        <testcase classname="" name="tests.test_c" time="0">
          <error message="ImportError"/></testcase>
        </testsuite></testsuites>"""
    )
    found = outcomes(file, [f"tests/test_{name}.py" for name in "abcd"])
    a, b, c, d = found.values()
    assert (a["passed"], a["failed"], a["skipped"], a["seconds"]) == (1, 1, 0, 2.0)
    assert a["failures"] == [{"test": "test_y", "why": "AssertionError: 1e-3 > 1e-5"}]
    assert (b["passed"], b["skipped_because"]) == (0, {"needs four devices": 1})
    assert c["failures"] == [{"test": "tests.test_c", "why": "ImportError"}]
    assert d["error"] == "no test of this file was run."


def images_and_labels(count):
    images = np.random.default_rng(0).integers(0, 256, (count, 28, 28), np.uint8)
    return images, np.arange(count, dtype=np.uint8) % 10


def clothes():
    images, labels = images_and_labels(64)
    split = images[..., None], labels.astype(np.int32)
    return padded(from_arrays(split, split))


def test_images_are_padded_on_all_sides():
    images = clothes().train.images
    assert images.shape == (64, 32, 32, 1)
    np.testing.assert_array_equal(images[:, 2:-2, 2:-2, 0], images_and_labels(64)[0])
    assert not images[:, [0, 1, -2, -1]].any()
    assert not images[:, :, [0, 1, -2, -1]].any()


@pytest.mark.slow
def test_seeds_side_by_side_are_the_same_runs_and_go_on_from_a_checkpoint(tmp_path):
    problem = Problem(config_of(work_of(tmp_path), "zo_sam", 0.0, 0.95), clothes())
    runs = [run_of(problem, "zo_sam", seed) for seed in (0, 1, 2)]
    feed, steps = problem.feed, problem.steps_per_epoch
    alone, together = (epoch_program(runs[0], count, steps) for count in (1, 3))
    ends = []
    for run in runs:
        state = jax.tree.map(jax.numpy.copy, run.state)
        for epoch in range(2):
            state = alone(state, order_of(problem, [run.seed], epoch), feed.arrays)
        ends.append(state)
    state = stacked(problem, [run.state for run in runs])
    # Under a condition of its own each seed would update its masks at every step.
    conditions = [
        program.lower(of, order_of(problem, seeds, 0), feed.arrays)
        .as_text()
        .count("stablehlo.case")
        for program, of, seeds in ((alone, runs[0].state, [0]), (together, state, [0, 1, 2]))
    ]
    assert conditions[0] == conditions[1] > 0
    state = together(state, order_of(problem, [0, 1, 2], 0), feed.arrays)
    saved(tmp_path / "folder" / "runs.npz", state, [{"seconds": 1.0}])
    state, history = restored(tmp_path / "folder" / "runs.npz", state)
    assert history == [{"seconds": 1.0}]
    state = together(state, order_of(problem, [0, 1, 2], 1), feed.arrays)
    assert int(state.opt_state.updates) > 0
    assert alone._cache_size() == together._cache_size() == 1
    for number, end in enumerate(ends):
        own = unstacked(state, number, 3)
        assert int(own.step) == int(end.step) == 2 * steps
        for one, other in zip(jax.tree.leaves(own), jax.tree.leaves(end), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
    assert not np.array_equal(*(jax.tree.leaves(end.params)[0] for end in ends[:2]))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of IDX files."""
    folder = tmp_path_factory.mktemp("data")
    for prefix, count in (("train", 200), ("t10k", 120)):
        images, labels = images_and_labels(count)
        write_idx(folder / f"{prefix}-images-idx3-ubyte", images)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte", labels)
    return folder


@pytest.mark.slow
def test_training_that_is_cut_off_goes_on_from_its_last_epoch(tmp_path, data):
    cells = {cell.part: cell for cell in gpu_run.all_cells(tiny=True)}
    training = cells[3]._replace(rows=["seed 1"])

    def work(folder, times):
        """Whose time is over when it has been asked for so often."""
        clock = iter([0.0] * (1 + times))
        budget = Budget(1, lambda: next(clock, 60.0))
        return Work(training, Rows(tmp_path / folder), budget, data, tmp_path / folder, True)

    with pytest.raises(CutOffError, match=r"cut off after epoch 1 of seeds \[1\]"):
        training.run(work("stopped", 1))
    assert not Rows(tmp_path / "stopped").all()
    training.run(work("stopped", 1))
    training.run(work("whole", 2))
    (found,), (expected,) = (Rows(tmp_path / name).all() for name in ("stopped", "whole"))
    clocks = ("seconds_of_an_epoch", "images_per_second")
    assert {k: v for k, v in found.items() if k not in clocks} == {
        k: v for k, v in expected.items() if k not in clocks
    }
    assert (found["seed"], found["epochs"], len(found["test_accuracies"])) == (1, 2, 2)
    assert not list((tmp_path / "stopped" / "checkpoints").iterdir())


@pytest.mark.slow
@pytest.mark.long
def test_all_of_it_runs_small(tmp_path, data):
    output = tmp_path / "output"
    command = [sys.executable, str(SCRIPT), "--tiny", "--minutes", "60", "--data-dir", str(data)]
    command += ["--output", str(output)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    told = [
        subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    cells = gpu_run.all_cells(tiny=True)
    lines = [f"part {cell.part} | {cell.name} | " for cell in cells]
    expected = [
        "1 of 2 rows are errors" if cell.name == "2:4 products" else "done" for cell in cells
    ]
    assert told[0].splitlines() == [a + b for a, b in zip(lines, expected, strict=True)]
    assert told[1].splitlines() == [f"{line}there already" for line in lines]
    rows = Rows(output).all()
    assert all(row["tiny"] for row in rows)
    assert {row["error"] for row in rows if "error" in row} == {
        row["error"] for row in rows if row["row"] == "sparse"
    }
    for row in rows:
        if row["cell"].startswith("block-sparse"):
            assert max(row["largest_error"].values()) < 0.02
        if row["cell"] == "export for CUDA":
            assert "cuda" in row["platforms"]
            assert row["largest_difference"] < 1e-5


def write_idx(path, array):
    kind = {1: b"\x00\x00\x08\x01", 3: b"\x00\x00\x08\x03"}[array.ndim]
    path.write_bytes(kind + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes())
