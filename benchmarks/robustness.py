"""The attacks on runs, files, disks and processes, and the table of docs/robustness.md.

    python benchmarks/robustness.py            (hours)
    python benchmarks/robustness.py --quick    (half an hour)
    python benchmarks/robustness.py --only "full disks"

Each is a campaign of the tests, of random moments and places from a seed. What they found stands in
benchmarks/results/robustness.json; those that are not run again keep what they found before.
"""

import argparse
import collections
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "robustness.json"
PAGE = ROOT / "docs" / "robustness.md"
START, END = "<!-- table: benchmarks/robustness.py -->", "<!-- end of the table -->"


class Campaign(NamedTuple):
    """A script of the tests, and its arguments for a full and a quick run."""

    script: str
    full: tuple[str, ...]
    quick: tuple[str, ...]


CAMPAIGNS = {
    "killed trainings": Campaign("training/kills.py", ("40", "0"), ("6", "0")),
    "damaged runs": Campaign("training/damaged.py", ("200", "0"), ("10", "0")),
    "crafted files": Campaign("data/hostile.py", ("crafted",), ("crafted",)),
    "damaged files": Campaign("data/hostile.py", ("random", "500", "0"), ("random", "20", "0")),
    "full disks": Campaign("training/disks.py", ("40", "0"), ("3", "0")),
    "lost processes": Campaign("training/lost_processes.py", ("30", "0"), ("6", "0")),
}


def run(campaign: Campaign, arguments: tuple[str, ...]) -> dict[str, Any]:
    """What a campaign prints last: its counts and failures."""
    script = ROOT / "tests" / campaign.script
    done = subprocess.run(
        [sys.executable, str(script), *arguments],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    found = json.loads(done.stdout.splitlines()[-1])
    command = f"tests/{campaign.script} {' '.join(arguments)}"
    return {"command": command, "date": f"{datetime.date.today()}", **found}


def table(results: dict[str, Any]) -> str:
    """One row for each campaign, thing attacked and outcome, as Markdown."""
    lines = ["| | what was attacked | how often | what became of it |", "|---|---|---|---|"]
    failures = 0
    for name, result in results.items():
        outcomes: collections.Counter[tuple[str, str]] = collections.Counter()
        for *attacked, outcome, count in result["counts"]:
            # Those of a run's own files are told apart in the results alone.
            told = ["another file" if ".json" in what else what for what in attacked]
            outcomes[", ".join(told), outcome] += count
        for (attacked, outcome), count in sorted(outcomes.items()):
            lines.append(f"| {name} | {attacked} | {count:,} | {outcome} |")
        failures += len(result["failures"])
    total = sum(row[-1] for result in results.values() for row in result["counts"])
    dates = sorted({result["date"] for result in results.values()})
    summary = f"{total:,} attacks ({' to '.join(dict.fromkeys((dates[0], dates[-1])))}), "
    return f"{summary}{failures} of which did not hold.\n\n" + "\n".join(lines) + "\n"


def write(results: dict[str, Any]) -> None:
    """Saves the results, and puts the table in its place in the page."""
    RESULTS.write_text(json.dumps(results, indent=1) + "\n")
    before, rest = PAGE.read_text().split(START)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{START}\n\n{table(results)}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="fewer of each")
    parser.add_argument("--only", nargs="+", choices=CAMPAIGNS, help="these alone")
    options = parser.parse_args()
    for name, campaign in CAMPAIGNS.items():
        if options.only is None or name in options.only:
            print(name, flush=True)
            found = run(campaign, campaign.quick if options.quick else campaign.full)
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            results[name] = found
            write({known: results[known] for known in CAMPAIGNS if known in results})


if __name__ == "__main__":
    main()
