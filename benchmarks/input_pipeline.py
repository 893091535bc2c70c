"""Images per second of the input pipelines alone, without any model.

    python benchmarks/input_pipeline.py --output benchmarks/results/input_pipeline.json

On the device: `crop_and_flip` of batches of 128 out of 50,000 images of 32×32×3 in uint8, in jit.
The stream: JPEG files of 500×375 pixels (smooth colours under fine grain, quality 90: about as many
bytes as ImageNet's have) in a temporary folder, to batches of 224×224, for several numbers of
worker processes, with and without RandAugment. The seconds to the first batch include the start of
the workers; the rate is that of the batches after it.
"""

import dataclasses
import io
import itertools
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import tyro
from PIL import Image

from zosam_jax.data.augmentation import crop_and_flip
from zosam_jax.data.records import LabelledImage
from zosam_jax.data.stream import Stream


@dataclasses.dataclass
class Options:
    """Images per second of the input pipelines alone."""

    workers: tuple[int, ...] = (0, 1, 2, 4, 8)
    """The numbers of worker processes; 0 reads in this process, with threads."""
    batch_size: int = 128
    """Of both pipelines."""
    batches: int = 20
    """Batches timed, after the first, for each row of the stream."""
    image_size: int = 224
    """Height and width that the stream crops to."""
    files: int = 256
    """JPEG files written; they are read again and again, from the system's memory."""
    rounds: int = 20
    """Repetitions of 20 batches on the device; the median counts."""
    output: Path | None = None
    """A JSON file for the rows."""


class Folder:
    """The files of a folder, as often as it takes for `count` images."""

    num_classes = 1000

    def __init__(self, folder: Path, count: int) -> None:
        self.paths = sorted(folder.iterdir())
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> LabelledImage:
        with Image.open(self.paths[index % len(self.paths)]) as image:
            return LabelledImage(image.convert("RGB"), index % self.num_classes)


def write_jpegs(folder: Path, count: int) -> float:
    """Writes `count` images and returns their mean number of bytes."""
    rng = np.random.default_rng(0)
    sizes = []
    for i in range(count):
        colours = Image.fromarray(rng.integers(256, size=(12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(colours.resize((500, 375), Image.Resampling.BICUBIC), np.float32)
        pixels = smooth + rng.normal(0, 20, smooth.shape)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
        (folder / f"{i:05}.jpg").write_bytes(file.getvalue())
        sizes.append(len(file.getvalue()))
    return statistics.mean(sizes)


def on_the_device(options: Options) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    images = jax.device_put(rng.integers(256, size=(50_000, 32, 32, 3), dtype=np.uint8))
    indices = jax.device_put(rng.integers(50_000, size=options.batch_size))
    augment = jax.jit(crop_and_flip)
    seconds = []
    for round_number in range(options.rounds + 1):
        keys = jax.block_until_ready(jax.random.split(jax.random.key(round_number), 20))
        started = time.perf_counter()
        jax.block_until_ready([augment(images, indices, key) for key in keys])
        if round_number:  # the first round compiles
            seconds.append(time.perf_counter() - started)
    rates = [20 * options.batch_size / s for s in seconds]
    low, middle, high = statistics.quantiles(rates, n=4)
    return {
        "pipeline": "crop_and_flip, 32×32×3",
        "images_per_second": middle,
        "images_per_second_quartiles": [low, high],
    }


def streamed(folder: Path, workers: int, randaugment: bool, options: Options) -> dict[str, Any]:
    records = Folder(folder, (options.batches + 1) * options.batch_size)
    stream = Stream(
        records,
        records,
        image_size=options.image_size,
        randaugment=randaugment,
        workers=workers,
    )
    started = time.perf_counter()
    batches = stream.epoch(0, 0, batch_size=options.batch_size)
    next(batches)
    first = time.perf_counter() - started
    # The others' first batches are ready at once: they are no measure of the rate.
    ahead = min(max(workers, 1), options.batches // 2)
    for _ in itertools.islice(batches, ahead):
        pass
    timed = time.perf_counter()
    images = sum(len(labels) for _, labels in batches)
    seconds = time.perf_counter() - timed
    closing = time.perf_counter()
    stream.close()
    return {
        "pipeline": "stream, JPEG 500×375 to "
        f"{options.image_size}×{options.image_size}" + (", RandAugment" if randaugment else ""),
        "workers": workers,
        "images_per_second": images / seconds,
        "seconds_to_first_batch": first,
        "seconds_to_close": time.perf_counter() - closing,
    }


def main() -> None:
    options = tyro.cli(Options)
    rows = [on_the_device(options)]
    print(f"{rows[0]['pipeline']}: {rows[0]['images_per_second']:,.0f} images/s", flush=True)
    with tempfile.TemporaryDirectory() as name:
        mean_bytes = write_jpegs(Path(name), options.files)
        for randaugment, workers in itertools.product((False, True), options.workers):
            row = streamed(Path(name), workers, randaugment, options)
            rows.append(row)
            print(
                "{pipeline}, {workers} workers: {images_per_second:,.0f} images/s, first batch "
                "after {seconds_to_first_batch:.1f} s, closed in {seconds_to_close:.1f} s".format(
                    **row
                ),
                flush=True,
            )
    if options.output:
        machine = {
            "jax": jax.__version__,
            "device": jax.devices()[0].device_kind,
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "batch_size": options.batch_size,
            "jpeg_bytes": round(mean_bytes),
        }
        options.output.write_text(json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
