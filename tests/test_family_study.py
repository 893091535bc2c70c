"""The accuracy study: its statistics against SciPy's and by hand, and one tiny run of it."""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.family_study import study
from benchmarks.family_study.methods import METHODS
from benchmarks.family_study.problems import DIGITS, MLP
from benchmarks.family_study.report import (
    Cell,
    equally_long_sgd,
    interval,
    over_problems,
    paired,
    problem_table,
    rank,
    read,
)


def cell(test, ratio=1.0, length=1.0):
    return Cell(0.1, False, ratio, length, test, test)


def test_differences_are_paired_by_seed():
    assert paired({0: 5.0, 2: 7.0, 3: 1.0}, {2: 4.0, 0: 1.0, 9: 0.0}) == [4.0, 3.0]


def test_the_interval_is_that_of_a_paired_t_test():
    ours, theirs = np.array([81.0, 82.5, 80.2, 83.1]), np.array([80.5, 81.0, 80.4, 81.9])
    test = stats.ttest_rel(ours, theirs)
    low, high = test.confidence_interval(0.95)
    expected = f"+0.75 [{low:+.2f}, {high:+.2f}], p = {test.pvalue:.2g}"
    assert interval(list(ours - theirs)) == expected


def test_equal_differences_have_no_interval():
    assert interval([0.5, 0.5, 0.5]) == "+0.50"
    assert interval([-1.0]) == "-1.00"


def test_over_problems_each_seed_counts_once():
    first, second = cell({0: 1.0, 1: 2.0, 2: 4.0}), cell({0: 3.0, 1: 3.0, 2: 5.0})
    zero = cell({0: 0.0, 1: 0.0, 2: 0.0})
    assert over_problems([(first, zero), (second, zero)]) == interval([2.0, 2.5, 4.5])
    assert over_problems([(first, zero), (second, None)]) == "–"


def test_equal_time_is_the_shortest_sgd_run_that_is_as_long():
    runs = {"sgd": 1.0, "sgd-x1.15": 1.15, "sgd-x2": 2.0}
    table = {name: cell({0: 1.0}, length=length) for name, length in runs.items()}
    times = {1.02: "sgd", 1.1: "sgd-x1.15", 1.3: "sgd-x2", 3.0: "sgd-x2"}
    assert {t: equally_long_sgd(table, cell({0: 1.0}, ratio=t)) for t in times} == times


def test_ranks_begin_with_the_best():
    table = {"a": cell({0: 1.0}), "b": cell({0: 3.0}), "c": cell({0: 2.0})}
    assert [rank(table, name) for name in "abc"] == [3, 1, 2]


def test_tuning_takes_the_best_mean_and_the_gentler_of_equals():
    rows = [
        {"kind": "validation", "rho": rho, "accuracy": accuracy}
        for rho, accuracy in ((0.025, 1), (0.025, 9), (0.05, 6), (0.05, 6), (0.1, 6), (0.1, 6))
    ]
    rows += [{"kind": "test", "rho": 0.025, "accuracy": 100}]
    method = METHODS["sam-global"]._replace(default=0.05, factors=(0.5, 1.0, 2.0))
    assert study.best_rho(rows, method) == 0.05


@pytest.fixture
def tiny(monkeypatch):
    problem = MLP(DIGITS, sparsity=0.9, epochs=1)
    short = {
        "sgd": METHODS["sgd"],
        "random-layerwise": METHODS["random-layerwise"]._replace(factors=(0.5, 1.0)),
    }
    monkeypatch.setitem(study.PROBLEMS, "tiny", problem)
    for name, method in short.items():
        monkeypatch.setitem(METHODS, name, method)


def test_a_study_makes_each_run_once_and_is_reported(tiny, tmp_path, capsys):
    options = argparse.Namespace(
        problems=["tiny"],
        methods=["sgd", "random-layerwise"],
        data=tmp_path,
        results=tmp_path,
        seeds=2,
        tuning_seeds=1,
        only_tune=False,
    )
    study.work(options)
    path = tmp_path / "tiny" / "random-layerwise.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert kinds[:2] == ["validation"] * 2
    assert kinds[-1] == "time"
    tested = {(row["rho"], row["seed"]) for row in rows if row["kind"] == "test"}
    best = study.best_rho(rows, METHODS["random-layerwise"])
    assert tested == {(rho, seed) for rho in {best, 0.2} for seed in (0, 1)}
    assert len({row["accuracy"] for row in rows if row["kind"] == "test"}) > 1
    capsys.readouterr()
    study.work(options)
    assert capsys.readouterr().out == ""
    table = read(tmp_path, "tiny", tuned=True)
    assert table["random-layerwise"].at_edge
    shown = problem_table(table, read(tmp_path, "tiny", tuned=False))
    assert [line.split(" | ")[0] for line in shown.splitlines()[2:]] == [
        "| sgd",
        "| random-layerwise",
    ]


def test_a_locked_file_is_left_to_its_process(tmp_path):
    path = tmp_path / "tiny" / "sgd.jsonl"
    with study.locked(path) as first, study.locked(path) as second:
        assert first is not None
        assert second is None
    with study.locked(path) as again:
        assert again is not None
