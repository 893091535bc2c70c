"""Run folders with chosen numbers, of the same shape as those that training and analysis leave."""

import dataclasses
import json
from pathlib import Path

from zosam_jax.training.config import TrainConfig
from zosam_jax.training.progress import EpochRecord


def write(path, name, content):
    path.mkdir(parents=True, exist_ok=True)
    (path / name).write_text(json.dumps(content))


def write_config(path, **options):
    config = TrainConfig(**{"model": "lenet-300-100", "sparse": "rigl", **options})
    values = dataclasses.asdict(config)
    written = {k: str(v) if isinstance(v, Path) else v for k, v in values.items()}
    write(path, "config.json", {**written, "versions": {}})
    return config


def make_tuning(sweep, **methods):
    """The tuning.json of a sweep: method → (what was chosen, the options at the end of a grid)."""
    choices = [
        {"method": method, "candidates": [], "chosen": chosen, "at_the_end": at_the_end}
        for method, (chosen, at_the_end) in methods.items()
    ]
    write(sweep, "tuning.json", choices)


def make_run(path, accuracies=(0.5, 0.9), *, analysis=None, robustness=None, train=0.97, **options):
    """A complete run whose test accuracy after each epoch is given; None was not evaluated."""
    config = write_config(path, **{"epochs": len(accuracies), **options})
    records = [record(epoch, accuracy, train) for epoch, accuracy in enumerate(accuracies, start=1)]
    path.joinpath("metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    summary = {
        "test_accuracy": accuracies[-1],
        "best_test_accuracy": max(a for a in accuracies if a is not None),
        "chosen_test_accuracy": None,
        "validation_accuracy": None,
        "test_loss": None,
        "ema_test_accuracy": None,
        "train_loss": 0.1,
        "sparse": config.sparse,
        "sparsity": config.sparsity,
        "training_cost": 0.25,
        "inference_cost": 0.1,
        "bad_steps": 0,
        "steps": 10 * len(accuracies),
        "seconds": 2.0 * len(accuracies),
        "images_per_second": 1000.0,
        "data_wait": 0.0,
        "optimizer": config.optimizer,
        "rho": config.rho or 0.0,
        "seed": config.seed,
        "devices": 1,
    }
    write(path, "summary.json", summary)
    if analysis is not None:
        write(path, "analysis.json", {**LOOKED, "train_accuracy": None, **analysis})
    if robustness is not None:
        write(path, "robustness.json", robustness)
    return path


def record(epoch, accuracy, train=0.97, **others):
    """A line of metrics.jsonl; two seconds an epoch."""
    unknown = dict.fromkeys(EpochRecord._fields)
    known = {
        "round": 0,
        "epoch": epoch,
        "step": 10 * epoch,
        "train_loss": 0.1,
        "train_accuracy": train,
        "test_accuracy": accuracy,
        "test_loss": None,
        "sparsity": 0.9,
        "bad_steps": 0,
        "seconds": 2.0 * epoch,
        "images_per_second": 1000.0,
    }
    return {**unknown, **known, **others}


MORE = {"mean_squared_norm": 5.0, "num_batches": 8}


def variance_of(value):
    return {"variance": value, "relative": value / 4, "gradient_norm": 2.0, **MORE}


def aim_of(cosine):
    return {"cosine": cosine, "cosine_sd": 0.01, "ascent_gain": 0.02, "ascent_gain_sd": 0.01}


# How the analysis was made.
LOOKED = {
    **{"checkpoint": 20, "images": 256, "batch_size": 64},
    **{"split": "train", "statistics": "running"},
}


def look(epoch, sharpness, *, perturbs):
    """One of the checkpoints of an analysis."""
    place = {"step": 10 * epoch, "round": 0, "epoch": epoch}
    noise = {"gradient_variance": variance_of(sharpness / epoch)}
    if not perturbs:
        return place | noise
    return place | {
        **noise,
        "perturbed_gradient_variance": variance_of(2 * sharpness),
        "estimator": aim_of(0.1 * epoch),
    }


def make_analysis(sharpness=1.0, *, perturbs=True, plane=True):
    """An analysis whose every measure of sharpness is a multiple of one number."""
    distances = [-1.0, -0.5, 0.0, 0.5, 1.0]
    bowl = [0.1 + sharpness * d**2 for d in distances]
    return {
        **LOOKED,
        "train_accuracy": None,
        "checkpoints": [look(epoch, sharpness, perturbs=perturbs) for epoch in (1, 2)],
        "hessian": {
            "eigenvalues": [10 * sharpness, sharpness],
            "residuals": [0.01, 0.02],
            "trace": 100 * sharpness,
            "trace_error": 1.0,
        },
        "sharpness": {
            "rho": 0.1,
            "average_rho": 0.2,
            "average_rise": 0.1 * sharpness,
            "average_rise_error": 0.01,
            "worst_rise": 0.5 * sharpness,
            "adaptive_rho": 0.5,
            "adaptive_worst_rise": 0.7 * sharpness,
        },
        "surface": {
            "distances": distances,
            "random": bowl,
            "hessian": [2 * loss for loss in bowl],
            "plane": {
                "xs": distances,
                "ys": distances[1:],
                "losses": [
                    [0.1 + sharpness * (x**2 + 3 * y**2) for x in distances] for y in distances[1:]
                ],
                "directions": "random",
            }
            if plane
            else None,
        },
    }


def make_robustness(clean=0.9, mean=0.7):
    return {
        "source": "cifar10-c",
        "images": 100,
        "checkpoint": 20,
        "clean_accuracy": clean,
        "mean_accuracy": mean,
        "delta": clean - mean,
        "severities": [1, 2, 3, 4, 5],
        "corruptions": {
            "fog": [mean + 0.2, mean + 0.1, mean, mean - 0.1, mean - 0.2],
            "snow": [mean + 0.1, mean + 0.1, mean, mean - 0.1, mean - 0.1],
        },
    }
