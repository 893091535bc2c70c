"""The pictures that a command leaves in a run folder."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zosam_jax.data.dataset import Images
from zosam_jax.training import run_folder
from zosam_jax.training.progress import EpochRecord
from zosam_jax.trees import Array

_EVALUATIONS = {
    "test_accuracy": "test",
    "validation_accuracy": "validation",
    "ema_test_accuracy": "test, averaged weights",
}
_CHANNELS = 8


def curves(path: Path, records: Sequence[EpochRecord], title: str) -> None:
    """Loss and accuracy over the epochs."""
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415

    figure = _figure(9, 3.6)
    left, right = figure.subplots(1, 2)
    epochs = [r.epoch for r in records]
    left.plot(epochs, [r.train_loss for r in records], label="train, as the steps saw it")
    left.set(xlabel="epoch", ylabel="cross-entropy", yscale="log")
    right.plot(
        epochs, [100 * r.train_accuracy for r in records], label="train, as the steps saw it"
    )
    evaluated = [r for r in records if not math.isnan(r.test_accuracy)]
    for name, label in _EVALUATIONS.items():
        values = [100 * getattr(r, name) for r in evaluated]
        if not all(map(math.isnan, values)):
            right.plot([r.epoch for r in evaluated], values, label=label)
    right.set(xlabel="epoch", ylabel="accuracy (%)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False)
    figure.suptitle(title)
    _write(figure, path)


def analysis(path: Path, found: Mapping[str, Any], title: str) -> None:
    """What analysis.json holds, a panel for each part of it; nothing for none."""
    panels: dict[str, Callable[[Any, Any], None]] = {
        "checkpoints": _noise,
        "hessian": _eigenvalues,
        "surface": _lines,
        "plane": _plane,
    }
    parts = {**found, "plane": found.get("surface", {}).get("plane")}
    drawn = [(draw, parts[name]) for name, draw in panels.items() if parts.get(name)]
    if not drawn:
        return
    figure = _figure(3.6 * len(drawn), 3.4)
    for axes, (draw, part) in zip(
        np.atleast_1d(figure.subplots(1, len(drawn))), drawn, strict=True
    ):
        draw(axes, part)
        axes.grid(alpha=0.3)
    figure.suptitle(title)
    _write(figure, path)


def _noise(axes: Any, checkpoints: Sequence[Mapping[str, Any]]) -> None:
    labels = {"gradient_variance": "at θ", "perturbed_gradient_variance": "at θ+ε"}
    last_round = [c for c in checkpoints if c["round"] == checkpoints[-1]["round"]]
    for name, label in labels.items():
        known = [(c["epoch"], _number(c[name]["variance"])) for c in last_round if c.get(name)]
        if known:
            axes.plot(*zip(*known, strict=True), marker="o", label=label)
    axes.set(xlabel="epoch", ylabel="variance of the minibatch gradient", yscale="log")
    axes.legend(frameon=False)


def _eigenvalues(axes: Any, curvature: Mapping[str, Any]) -> None:
    values = list(map(_number, curvature["eigenvalues"]))
    axes.bar(range(1, len(values) + 1), values)
    axes.set(xlabel="largest eigenvalues of the Hessian", ylabel="curvature")
    trace, error = _number(curvature["trace"]), _number(curvature["trace_error"])
    axes.set_title(f"trace {trace:.3g} ± {error:.2g}", fontsize=9)


def _lines(axes: Any, surface: Mapping[str, Any]) -> None:
    for name, label in (("random", "random direction"), ("hessian", "largest curvature")):
        axes.plot(surface["distances"], list(map(_number, surface[name])), label=label)
    axes.set(
        xlabel="distance (curved: × 0.03), in lengths of each filter", ylabel="loss", yscale="log"
    )
    axes.legend(frameon=False)


def _number(value: float | None) -> float:
    """What JSON has as null was not finite."""
    return math.nan if value is None else value


def _plane(axes: Any, plane: Mapping[str, Any]) -> None:
    losses = np.ma.masked_invalid(np.array(plane["losses"], float))  # null becomes NaN
    losses = np.ma.log10(np.ma.maximum(losses, np.finfo(np.float32).tiny))
    filled = axes.contourf(plane["xs"], plane["ys"], losses, levels=15)
    axes.figure.colorbar(filled, ax=axes, label="log₁₀ loss")
    axes.plot(0, 0, "w+")
    axes.set(xlabel="first random direction", ylabel="second", aspect="equal")


def features(path: Path, image: Images, maps: Mapping[str, Array]) -> None:
    """An image, and the channels of each layer with the largest activations, a row for each layer.

    `image` is (height, width, channels), uint8; `maps` are layer → (1, height, width, channels).
    """
    figure = _figure(1.1 * (_CHANNELS + 1), 1.2 * len(maps))
    rows = np.atleast_2d(figure.subplots(len(maps), _CHANNELS + 1))
    for axes in rows.ravel():
        axes.axis("off")
    for row, (layer, values) in zip(rows, maps.items(), strict=True):
        row[0].imshow(image if image.shape[-1] == 3 else image[..., 0], cmap="gray")
        row[0].set_title(layer, fontsize=8)
        channels = np.moveaxis(np.asarray(values)[0], -1, 0)
        if channels.ndim < 3:  # tokens have no place in the image
            continue
        strongest = np.argsort(-np.abs(channels).mean(axis=(1, 2)))[:_CHANNELS]
        for axes, index in zip(row[1:], strongest, strict=False):
            axes.imshow(channels[index], cmap="viridis")
            axes.set_title(str(index), fontsize=7)
    _write(figure, path)


def _write(figure: Any, path: Path) -> None:
    with run_folder.replacing(path) as partial:
        figure.savefig(partial, dpi=150, format="png")


def _figure(width: float, height: float) -> Any:
    # Here, since matplotlib takes a second to import and is needed once, at the end.
    from matplotlib.figure import Figure  # noqa: PLC0415

    return Figure(figsize=(width, height), layout="constrained")
