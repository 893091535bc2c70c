"""Training on images that are read from the disk as they are needed."""

import json

import numpy as np
import pytest
from PIL import Image

from zosam_jax import cli

SIDE = 24


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """An ImageNet-like folder of two classes that can be told apart: dark and bright noise."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for split, count in (("train", 48), ("val", 10)):
        for name, level in (("bright", 180), ("dark", 60)):
            path = root / split / name
            path.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(level - 40, level + 40, (SIDE, SIDE + 4, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(path / f"{i}.JPEG")
    return root


def train(folder, out, *options):
    cli.main(
        [
            *["train", "--dataset", "folder", "--data-dir", str(folder), "--output", str(out)],
            *["--stream", "--image-size", "8", "--model", "lenet-300-100", "--mesh", "data=1"],
            *["--batch-size", "16", "--epochs", "4", "--learning-rate", "0.05", *options],
        ]
    )
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_stream_is_learned_and_the_last_incomplete_test_batch_counts(folder, tmp_path):
    lines = train(folder, tmp_path / "run", "--randaugment", "--mixup", "0.2")
    assert lines[-1]["step"] == 4 * (96 // 16)
    assert lines[-1]["test_accuracy"] > 0.9
    # 20 test images: accuracies are twentieths.
    assert (lines[-1]["test_accuracy"] * 20) == pytest.approx(
        round(lines[-1]["test_accuracy"] * 20)
    )


@pytest.mark.slow
def test_a_stream_is_resumed_where_it_stopped(folder, tmp_path, monkeypatch):
    whole = train(folder, tmp_path / "whole", "--randaugment", "--checkpoint-minutes", "0")
    from zosam_jax.training.callbacks import ProgressLogger  # noqa: PLC0415

    class CrashError(Exception):
        pass

    def on_step(self, run):
        if run.progress.total_steps == 9:
            raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(ProgressLogger, "on_step", on_step)
        with pytest.raises(CrashError):
            train(folder, tmp_path / "run", "--randaugment", "--checkpoint-minutes", "0")
    lines = train(folder, tmp_path / "run", "--randaugment", "--checkpoint-minutes", "0")
    for line, expected in zip(lines, whole, strict=True):
        assert line["train_loss"] == expected["train_loss"]
        assert line["test_accuracy"] == expected["test_accuracy"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--sparse", "grasp"], "sparse='grasp' does not go with stream"),
        (["--crop-and-flip"], "crop_and_flip=True does not go with stream"),
        (["--validation-fraction", "0.1"], "validation_fraction=0.1 does not go with stream"),
        (["--batch-size", "97"], "batch_size=97 is more than the 96 training images"),
    ],
)
def test_what_does_not_go_with_a_stream_is_refused(options, sentence, folder, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        train(folder, tmp_path / "run", *options)
    assert caught.value.code == 2
    captured = capsys.readouterr()
    assert sentence in " ".join((captured.out + captured.err).replace("│", " ").split())


def test_a_broken_image_ends_the_run_by_name(folder, tmp_path, capsys):
    broken = tmp_path / "images"
    for split in ("train", "val"):
        for name in ("bright", "dark"):
            target = broken / split / name
            target.mkdir(parents=True)
            for source in sorted((folder / split / name).iterdir())[:16]:
                (target / source.name).write_bytes(source.read_bytes())
    victim = broken / "train" / "dark" / "1.JPEG"
    victim.write_bytes(victim.read_bytes()[:100])
    with pytest.raises(SystemExit) as caught:
        train(broken, tmp_path / "run")
    assert caught.value.code == 2
    assert str(victim) in capsys.readouterr().out
