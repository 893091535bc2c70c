"""Test accuracy of the whole SAM family, each method at a radius chosen on validation images.

    python -m benchmarks.family_study run DATA_DIR RESULTS    # as many processes as there are cores
    python -m benchmarks.family_study report RESULTS > RESULTS/README.md

Every method tries its grid of radii, five multiples of its default, with the same seeds, and takes
the one with the best mean accuracy on validation images (whose labels are as noisy as those to
train on). It is then trained from other seeds, at that radius and at its default one, and tested at
the end. A seed fixes initial weights, masks and data order, so that methods are compared in pairs;
images and wrong labels are the same in all runs. SGD also runs 1.15 and 2 times as long, to be
compared at equal wall time.

The rows of a problem and a method are in RESULTS/PROBLEM/METHOD.jsonl, which the process at work on
them keeps locked: start as many processes as there are cores, and the same command again resumes.
`tune` stops before the test images. XLA_FLAGS=--xla_cpu_multi_thread_eigen=false gives each process
one core.
"""

import argparse
from pathlib import Path

from benchmarks.family_study.methods import METHODS
from benchmarks.family_study.problems import PROBLEMS
from benchmarks.family_study.report import report
from benchmarks.family_study.study import work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    for name in ("tune", "run"):
        worker = commands.add_parser(name)
        worker.add_argument("data", type=Path, help="folder of Fashion-MNIST's files")
        worker.add_argument("results", type=Path)
        worker.add_argument("--problems", nargs="+", default=tuple(PROBLEMS), choices=PROBLEMS)
        worker.add_argument("--methods", nargs="+", default=tuple(METHODS), choices=METHODS)
        worker.add_argument("--seeds", type=int, default=5)
        worker.add_argument("--tuning-seeds", type=int, default=2)
        worker.set_defaults(command=work, only_tune=name == "tune")
    printer = commands.add_parser("report")
    printer.add_argument("results", type=Path)
    printer.set_defaults(command=report)
    options = parser.parse_args()
    options.command(options)


if __name__ == "__main__":
    main()
