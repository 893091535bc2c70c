"""Several devices and several processes train as one device does."""

import json
import os
import re
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from zosam_jax.training import devices, step
from zosam_jax.training.config import ProblemConfig
from zosam_jax.training.problem import Problem
from zosam_jax.training.trainer import Run

COUNTS = ("round", "epoch", "step", "sparsity", "training_cost", "bad_steps")


def arguments(out, *options):
    return [
        *[sys.executable, "-m", "zosam_jax", "train", "--output", str(out)],
        *["--train-images", "256", "--epochs", "2", "--learning-rate", "0.03"],
        *["--sparse", "rigl", "--checkpoint-minutes", "0", *options],
    ]


def start(out, *options, count=1):
    flags = f"--xla_backend_optimization_level=0 --xla_force_host_platform_device_count={count}"
    return subprocess.Popen(
        arguments(out, *options),
        env={**os.environ, "XLA_FLAGS": flags},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    text, _ = process.communicate(timeout=300)
    assert process.returncode == 0, text
    return text


def metrics(out):
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_same_curve(one, other):
    assert len(one) == len(other) == 2
    for a, b in zip(one, other, strict=True):
        assert {k: a[k] for k in COUNTS} == {k: b[k] for k in COUNTS}
        np.testing.assert_allclose(a["train_loss"], b["train_loss"], rtol=2e-3)
        np.testing.assert_allclose(a["test_accuracy"], b["test_accuracy"], atol=0.02)


@pytest.mark.slow
def test_a_step_lowers_for_cuda_donates_its_state_and_calls_nothing_on_the_host():
    """Which needs no GPU, and says nothing of how the program runs on one."""
    config = ProblemConfig(
        model="resnet8", precision="bfloat16", sparse="rigl", mesh="data=1", crop_and_flip=True
    )
    problem = Problem(config)
    run = Run(problem, "zo_sam", 0.1, 0)
    jitted = jax.jit(
        lambda *args: step.train_step(problem, run.tx, *args), donate_argnums=0, keep_unused=True
    )
    traced = jitted.trace(run.state, problem.feed.batch_shapes()[0], problem.feed.arrays)
    program = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert not re.findall(r"callback|infeed|outfeed", program)
    donated = len(re.findall(r"tf.aliasing_output|jax.buffer_donor", program))
    assert donated == len(jax.tree.leaves(run.state))


AUGMENTED = ["--crop-and-flip", "--mixup", "0.2", "--random-erasing", "0.2"]


@pytest.fixture(scope="module")
def settings():
    """Moving masks, ZO-SAM and BatchNorm's statistics over all devices, augmented."""
    return [*AUGMENTED, "--model", "resnet8"]


@pytest.fixture(scope="module")
def alone(settings, tmp_path_factory):
    """One device's run."""
    out = tmp_path_factory.mktemp("alone") / "run"
    finish(start(out, *settings))
    return metrics(out)


@pytest.mark.long
@pytest.mark.slow
def test_eight_devices_take_one_device_s_steps(settings, alone, tmp_path):
    text = finish(start(tmp_path / "run", *settings, count=8))
    assert "8 devices" in text
    assert_same_curve(metrics(tmp_path / "run"), alone)


@pytest.mark.long
@pytest.mark.slow
def test_parts_of_a_batch_are_parts_on_every_device(tmp_path):
    options = ["--model", "lenet-300-100", "--accumulate", "4"]
    runs = [start(tmp_path / str(n), *options, count=n) for n in (1, 4)]
    for run in runs:
        finish(run)
    assert_same_curve(metrics(tmp_path / "1"), metrics(tmp_path / "4"))


def two_processes(out, *options):
    """What each says."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    together = ["--coordinator", f"localhost:{port}", "--num-processes", "2", "--process-id"]
    return [finish(p) for p in [start(out, *options, *together, str(i)) for i in range(2)]]


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_remove_units_and_save_what_is_left(tmp_path):
    out = tmp_path / "run"
    searching = ["--model", "lenet-300-100", "--sparse", "slimming", "--search-epochs", "1"]
    texts = two_processes(out, *searching, "--sparsity", "0.5")
    assert "left after 4 steps: 200 of 400 neurons" in texts[0]
    assert (out / "summary.json").is_file()


@pytest.mark.long
@pytest.mark.slow
def test_two_processes_take_one_device_s_steps(settings, alone, tmp_path):
    out = tmp_path / "run"
    texts = two_processes(out, *settings)
    assert "2 devices" in texts[0]
    assert "epoch" not in texts[1]  # one of them reports and writes
    assert_same_curve(metrics(out), alone)
    assert (out / "summary.json").is_file()
    # What two processes saved, one device takes up: the run is complete.
    assert "is complete" in " ".join(finish(start(out, *settings)).split())


@pytest.mark.parametrize(
    ("description", "batch", "sentence"),
    [
        ("data=3", 64, "batch_size=64 must be a multiple of the 3 devices"),
        ("data=99", 64, "mesh='data=99' asks for 99 devices; JAX sees 4"),
        ("model=2", 64, "mesh='model=2' must read data=N"),
        ("data=0", 64, "mesh='data=0' must read data=N"),
    ],
)
def test_an_impossible_mesh_is_refused(description, batch, sentence):
    with pytest.raises(ValueError, match=sentence):
        devices.make_mesh(description, batch)


def test_without_a_mesh_as_many_devices_as_divide_the_batch():
    assert [devices.make_mesh(None, batch).size for batch in (64, 6, 7)] == [
        jax.device_count(),
        3,
        1,
    ]


@pytest.mark.parametrize(
    ("described", "sentence"),
    [
        ((None, 2, None), "coordinator=None"),
        (("localhost:1", None, 0), "needs num_processes and a process_id below it"),
        (("localhost:1", 2, 2), "process_id=2"),
    ],
)
def test_an_incomplete_description_of_the_processes_is_refused(described, sentence):
    with pytest.raises(ValueError, match=sentence):
        devices.join(*described)
