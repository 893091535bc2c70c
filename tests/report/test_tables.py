"""Tables: what their entries say, which of them stand out, and numbers as text."""

import pytest
from report.folders import make_run, make_tuning

from zosam_jax.report.estimates import Estimate
from zosam_jax.report.figures import styles
from zosam_jax.report.performance import accuracy, convergence
from zosam_jax.report.runs import gather
from zosam_jax.report.study import Study
from zosam_jax.report.tables import TableCell, against, number, percent, spread, with_gains


@pytest.fixture
def study(tmp_path):
    accuracies = {
        ("sgd", 0.9): (0.80, 0.82, 0.84),
        ("sam", 0.9): (0.83, 0.85, 0.88),
        ("zo_sam", 0.9): (0.79, 0.86),
        ("sgd", 0.95): (0.70, 0.70, 0.76),
        ("sam", 0.95): (0.71, 0.70, 0.75),
    }
    for (optimizer, sparsity), values in accuracies.items():
        for seed, reached in enumerate(values):
            path = tmp_path / f"{optimizer}-{sparsity}-{seed}"
            options = {"optimizer": optimizer, "sparsity": sparsity, "seed": seed}
            make_run(path, (0.75, reached), **options)
    return Study(gather([tmp_path])[0])


def test_entries_are_means_with_spread_and_paired_gains(study):
    table = with_gains(study, "test_accuracy", "caption")
    assert tuple(table.head) == ("", "seeds", "sgd", "sam", "zo_sam")
    first, second, total = table.body
    assert [cell.text for cell in first] == [
        "rigl 90%",
        "3",
        "82.00 ± 2.00",
        "85.33 ± 2.52",
        "82.50 ± 4.95 (n = 2)",
    ]
    # Differences 3, 3, 4; and −1, 4 of the two seeds that zo_sam has.
    assert [cell.note for cell in first[2:]] == ["", "+3.33 ± 0.33", "+1.50 ± 2.50"]
    assert [cell.text for cell in second[3:]] == ["72.00 ± 2.65", "–"]
    assert second[3].note == "+0.00 ± 0.58"
    # Over both rows sam's seeds gain 2, 1.5 and 1.5; zo_sam was run in one of them.
    assert [cell.text for cell in total] == [
        "all cells, paired",
        "3",
        "–",
        "+1.67 ± 0.17",
        "+1.50 ± 2.50 (n = 2)",
    ]
    assert [cell.note for cell in total] == ["", "", "", "", "1 of 2 rows"]


def test_gains_over_another_than_the_base(study):
    table = against(study, "sam", "test_accuracy", "caption")
    assert tuple(table.head) == ("", "seeds", "sgd", "zo_sam")
    assert [[cell.text for cell in line] for line in table.body] == [
        ["rigl 90%", "3", "−3.33 ± 0.33", "−1.50 ± 2.50"],
        ["rigl 95%", "3", "+0.00 ± 0.58", "–"],
        ["all cells, paired", "3", "−1.67 ± 0.17", "−1.50 ± 2.50"],
    ]
    assert not any(cell.bold for line in table.body for cell in line)


def test_a_study_with_the_control_is_compared_with_it(study, tmp_path):
    assert len(accuracy(study, styles(study.optimizers, ["sgd"])).tables) == 1
    control = {"optimizer": "random_weight_perturbation", "sparsity": 0.9, "seed": 0}
    make_run(tmp_path / "control", (0.75, 0.81), **control)
    more = Study(gather([tmp_path])[0])
    tables = accuracy(more, styles(more.optimizers, ["sgd"])).tables
    assert [cell.text for cell in tables[1].body[0]] == ["rigl 90%", "1", "−1.00", "+2.00", "−2.00"]


def test_the_best_is_bold_where_it_stands_out(study):
    table = with_gains(study, "test_accuracy", "caption")
    assert [[cell.bold for cell in line] for line in table.body] == [
        [False, False, False, True, False],
        [False] * 5,
        [False, False, False, True, False],
    ]


def test_convergence_counts_those_that_arrive(study):
    table = convergence(study, 0.84).tables[0]
    assert tuple(table.head) == (
        "",
        "optimizer",
        "seeds",
        "target (%)",
        "epochs",
        "dense SGD epochs",
        "seconds",
    )
    sgd, sam, _, sparser, _ = ([cell.text for cell in line] for line in table.body)
    # make_run knows no training cost.
    assert sgd == ["rigl 90%", "sgd", "3", "84.00", "2.00 (n = 1)", "–", "4.00 (n = 1)"]
    assert sam[4] == "2.00 ± 0.00 (n = 2)"
    assert sparser == ["rigl 95%", "sgd", "3", "84.00", *["not reached"] * 3]


def test_without_a_target_it_is_99_percent_of_the_base(study):
    table = convergence(study, None).tables[0]
    assert [line[3].text for line in table.body] == [percent(0.99 * 0.82)] * 3 + ["71.28"] * 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.00"),
        (3.14159, "3.14"),
        (-31.4159, "−31.4"),
        (31415.9, "31,416"),
        (0.0031416, "0.00314"),
        (0.00001234, "1.23 × 10⁻⁵"),
        (-2.5e7, "−2.50 × 10⁷"),
        (float("inf"), "inf"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text


def test_a_deviation_has_the_decimals_of_its_mean():
    assert spread(Estimate(31.4159, 0.5772, 3), number) == "31.4 ± 0.6"
    assert spread(Estimate(2.5e7, 1e6, 3), number) == "2.50 × 10⁷ ± 0.10 × 10⁷"
    assert spread(Estimate(0.5, float("nan"), 1), percent, 3) == "50.00 (n = 1)"


def test_many_optimizers_are_lines(tmp_path):
    for i in range(8):
        make_run(tmp_path / f"sam-{i}", (0.5, 0.8), optimizer="sam", rho=0.01 * (1 + i))
    make_run(tmp_path / "sgd", (0.5, 0.75), optimizer="sgd")
    make_run(tmp_path / "sparser", (0.5, 0.7), optimizer="sgd", sparsity=0.95)
    table = with_gains(Study(gather([tmp_path])[0]), "test_accuracy", "caption")
    assert table.head == ["", "rigl 90%", "rigl 95%", "all cells, paired"]
    assert [entry.text for entry in table.body[0]] == ["seeds", "1", "1", "1"]
    assert [entry.text for entry in table.body[1]] == ["sgd", "75.00", "70.00", "–"]
    assert table.body[2][1] == TableCell("80.00", "+5.00")
    assert len(table.body) == 10
    assert not table.total


def test_tuned_values_stand_beside_what_came_of_them(tmp_path):
    make_tuning(tmp_path, **{"optimizer=sam,rho=tuned": ({"rho": 0.08}, ["rho"])})
    for seed, gain in enumerate((0.01, 0.02, 0.015)):
        folder = tmp_path / f"optimizer=sam,rho=tuned,seed={seed}"
        make_run(folder, (0.5, 0.8 + gain), optimizer="sam", rho=0.08, seed=seed)
        make_run(tmp_path / f"optimizer=sgd,seed={seed}", (0.5, 0.8), optimizer="sgd", seed=seed)
    study = Study(gather([tmp_path])[0])
    (table,) = accuracy(study, styles(study.optimizers, ["sgd"])).tables
    assert table.head == ["optimizer", "seeds", "ρ", "accuracy (%)", "gain over sgd"]
    assert table.body == [
        [
            TableCell("sgd"),
            TableCell("3"),
            TableCell("–"),
            TableCell("80.00 ± 0.00"),
            TableCell("–"),
        ],
        [
            *(TableCell("sam"), TableCell("3"), TableCell("0.08", "tuned, end of grid")),
            *(TableCell("81.50 ± 0.50"), TableCell("+1.50 ± 0.29", bold=True)),
        ],
    ]
