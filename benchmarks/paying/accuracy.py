"""Gathers the runs of accuracy.toml: accuracy, MACs and parameters of weights and channels pruned.

    python benchmarks/paying/accuracy.py runs/paying --output OUTPUT.json

A row for each run. Printed is a table of test accuracies in percent, mean ± sample standard
deviation over seeds; MACs and parameters are those of the trained network relative to the dense one
(pruned single weights count as skipped, though no kernel here skips them).
"""

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path
from typing import Any

DENSE = ("dense", 0.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    """What is compared of each finished run."""
    found = []
    for path in sorted(folder.glob("*/summary.json")):
        summary = json.loads(path.read_text())
        config = json.loads((path.parent / "config.json").read_text())
        is_dense = config["sparse"] == "none"
        removed = "channels" if config["structure"] else "weights"
        found.append(
            {
                "optimizer": config["optimizer"],
                "removed": "dense" if is_dense else removed,
                "sparsity": 0.0 if is_dense else config["sparsity"],
                "seed": config["seed"],
                "test_accuracy": summary["test_accuracy"],
                "macs": summary["inference_cost"],
                "parameters": summary["parameters"] / summary["dense_parameters"],
            }
        )
    return found


def table(found: list[dict[str, Any]]) -> str:
    """The accuracies in Markdown: a line for each network, a column for each optimizer."""
    cells: dict[tuple[str, float], dict[str, list[dict[str, Any]]]] = defaultdict(dict)
    for row in found:
        network = cells[row["removed"], row["sparsity"]]
        network.setdefault(row["optimizer"], []).append(row)
    optimizers = list(dict.fromkeys(row["optimizer"] for row in found))
    lines = [
        f"| pruned | MACs | parameters | {' | '.join(optimizers)} |",
        "|---" * (3 + len(optimizers)) + "|",
    ]
    for (removed, sparsity), network in sorted(cells.items(), key=lambda cell: cell[0][::-1]):
        first = next(iter(network.values()))[0]
        name = "nothing" if (removed, sparsity) == DENSE else f"{sparsity:.0%} of {removed}"
        accuracies = [_spread(network.get(optimizer, [])) for optimizer in optimizers]
        lines.append(
            f"| {name} | {first['macs']:.2f} | {first['parameters']:.2f} "
            f"| {' | '.join(accuracies)} |"
        )
    return "\n".join(lines)


def _spread(of_seeds: list[dict[str, Any]]) -> str:
    values = [100 * row["test_accuracy"] for row in of_seeds]
    if len(values) < 2:
        return "–"
    return f"{statistics.fmean(values):.2f} ± {statistics.stdev(values):.2f}"


def main() -> None:
    """Reads the options, gathers and writes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, help="the output folder of the sweep")
    parser.add_argument("--output", type=Path, help="JSON file for the rows")
    options = parser.parse_args()
    found = rows(options.runs)
    print(table(found))
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
