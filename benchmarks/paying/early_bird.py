"""An early-bird ticket against the dense network, search included: wall time and accuracy.

    python benchmarks/paying/early_bird.py --data-dir DIR --output results.json
    python benchmarks/paying/early_bird.py --data texts --output results.json

Of images: those of the family study's vision transformer (benchmarks/family_study/vit-
clean-90.toml), its epochs and optimizer. The network is DeiT-Tiny on whole images of 28×28 pixels,
since a step of the study's own takes 3 ms, hardly more than it takes to start one. Of texts: those
of benchmarks/text/classify.toml, and its encoder, for 12 epochs, which is EarlyBERT. A part of the
heads of each block and 60% of its neurons go, after two epochs of search. For each seed the two
runs take turns. `seconds` is the whole run, with compilation, evaluation and the search;
`training_seconds` are those of its steps alone, search included. Ratios are medians over seeds.
"""

import argparse
import json
import statistics
import tomllib
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from zosam_jax.training import devices, saved_run
from zosam_jax.training.config import TrainConfig
from zosam_jax.training.fitting import FitResult, Fitting

BENCHMARKS = Path(__file__).parents[1]
STUDIES = {
    "images": BENCHMARKS / "family_study" / "vit-clean-90.toml",
    "texts": BENCHMARKS / "text" / "classify.toml",
}
CHANGES: dict[str, dict[str, Any]] = {
    "images": {"model": "deit-tiny", "shrink": 1, "learning_rate": 0.001},
    # EarlyBERT leaves the pooler whole.
    "texts": {
        **{"dataset": "python-docstrings", "model": "bert-micro"},
        **{"epochs": 12, "evaluate_every": 12, "sparse_layers": "blocks"},
    },
}
RUNS: dict[str, dict[str, Any]] = {
    "dense": {"sparse": "none", "sparsity": 0.0},
    # The same number of neurons in every block: one program for all seeds.
    "early-bird": {
        **{"sparse": "early-bird", "sparsity": 0.6, "sparsity_distribution": "uniform"},
        "search_epochs": 2,
    },
}


def figures(result: FitResult, batch_size: int) -> dict[str, float]:
    """What is compared of a run."""
    of_epoch = result.history[0].step * batch_size
    return {
        "seconds": result.summary["seconds"],
        "training_seconds": sum(of_epoch / r.images_per_second for r in result.history),
        "accuracy": result.summary["test_accuracy"],
        "parameters": result.summary["parameters"] / result.summary["dense_parameters"],
        "search_epochs": sum(1 for r in result.history if r.round == 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", choices=list(STUDIES), default="images")
    parser.add_argument("--data-dir")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="OPTION=JSON")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    devices.keep_compiled(None)
    study = tomllib.loads(STUDIES[options.data].read_text())["train"] | CHANGES[options.data]
    study |= {"optimizer": "adamw"}
    study |= {name: json.loads(value) for name, _, value in (s.partition("=") for s in options.set)}
    study = {name: value for name, value in study.items() if name != "base_optimizer"}
    found: dict[str, list[dict[str, float]]] = {name: [] for name in RUNS}
    with TemporaryDirectory() as folder:
        for seed in range(options.seeds):
            for name, changes in RUNS.items():
                given = {**study, **changes, "seed": seed, "output": f"{folder}/{name}-{seed}"}
                if name == "dense":
                    given.pop("sparse_layers", None)
                if options.data_dir:
                    given["data_dir"] = options.data_dir
                config = TrainConfig(**saved_run.typed(given))
                with Fitting(config, Console(quiet=True)) as fitting:
                    found[name].append(figures(fitting.run(), config.batch_size))
                print(seed, name, json.dumps(found[name][-1]), flush=True)
    pairs = list(zip(found["early-bird"], found["dense"], strict=True))
    results: dict[str, Any] = {"options": {k: str(v) for k, v in study.items()}, "runs": found}
    for key in ("seconds", "training_seconds"):
        results[f"ratio of {key}"] = statistics.median(a[key] / b[key] for a, b in pairs)
    results["points of accuracy"] = 100 * statistics.mean(
        a["accuracy"] - b["accuracy"] for a, b in pairs
    )
    print(json.dumps({k: v for k, v in results.items() if k not in ("runs", "options")}, indent=2))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
