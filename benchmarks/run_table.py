"""The table of a folder of run folders that differ in optimizer and seed.

    python benchmarks/run_table.py RUNS [--output FILE.json]

Test accuracy after the last epoch in percent, mean ± standard deviation over seeds; the paired
difference to SGD with its standard error, over the seeds that both have; training cost in
MACs of dense SGD; median images per second.
"""

import argparse
import json
import math
import statistics
from pathlib import Path


def rows(runs: Path) -> list[dict[str, object]]:
    summaries = [json.loads(path.read_text()) for path in sorted(runs.glob("*/summary.json"))]
    cells: dict[tuple[str, float], dict[int, dict]] = {}
    for summary in summaries:
        rho = 0.0 if summary["optimizer"] == "sgd" else summary["rho"]
        cells.setdefault((summary["optimizer"], rho), {})[summary["seed"]] = summary
    base = cells["sgd", 0.0]
    table = []
    for (name, rho), found in cells.items():
        accuracies = [100 * s["test_accuracy"] for s in found.values()]
        paired = [
            100 * (found[seed]["test_accuracy"] - base[seed]["test_accuracy"])
            for seed in found.keys() & base.keys()
        ]
        table.append(
            {
                "optimizer": name,
                "rho": rho,
                "seeds": sorted(found),
                "accuracies": accuracies,
                "mean": statistics.fmean(accuracies),
                "sd": spread(accuracies),
                "difference": statistics.fmean(paired),
                "standard_error": spread(paired) / len(paired) ** 0.5,
                "training_cost": statistics.fmean(s["training_cost"] for s in found.values()),
                "images_per_second": statistics.median(
                    s["images_per_second"] for s in found.values()
                ),
                "data_wait": statistics.median(s["data_wait"] for s in found.values()),
            }
        )
    return table


def spread(values: list[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else float("nan")


def known(value: object) -> object:
    return None if isinstance(value, float) and math.isnan(value) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    table = rows(options.runs)
    print("| optimizer | ρ | seeds | test accuracy (%) | minus SGD | cost | images/s |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        print(
            f"| {row['optimizer']} | {row['rho']:g} | {len(row['seeds'])} | {row['mean']:.2f} ± "
            f"{row['sd']:.2f} | {row['difference']:+.2f} ± {row['standard_error']:.2f} | "
            f"{row['training_cost']:.3f} | {row['images_per_second']:,.0f} |"
        )
    if options.output is not None:
        # JSON has no NaN: the spread of one seed is unknown.
        plain = [{k: known(v) for k, v in row.items()} for row in table]
        options.output.write_text(json.dumps(plain, indent=2) + "\n")


if __name__ == "__main__":
    main()
