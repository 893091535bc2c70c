"""How runs are grouped, named and put in order."""

import pytest
from report.folders import make_run, make_tuning, write

from zosam_jax.report.header import header
from zosam_jax.report.runs import gather
from zosam_jax.report.study import Study


@pytest.fixture
def study_of(tmp_path):
    def study(*many):
        for i, options in enumerate(many):
            make_run(tmp_path / f"{i:03d}", **options)
        return Study(gather([tmp_path])[0])

    return study


def labels(study):
    return [row.label for row in study.rows]


def test_seeds_share_a_cell_and_nothing_else_does(study_of):
    study = study_of(
        {"optimizer": "sgd", "seed": 4},
        {"optimizer": "sgd", "seed": 1},
        {"optimizer": "sgd", "seed": 1, "sparsity": 0.95},
    )
    assert labels(study) == ["rigl 90%", "rigl 95%"]
    assert list(study.cell(study.rows[0], "sgd")) == [1, 4]
    assert list(study.cell(study.rows[1], "sgd")) == [1]
    assert study.seeds == [1, 4]


def test_labels_say_what_varies_among_an_optimizers_runs(study_of):
    study = study_of(
        {"optimizer": "zo_sam", "rho": 0.5},
        {"optimizer": "zo_sam", "rho": 0.25, "num_directions": 4},
        {"optimizer": "sam", "rho": 0.05},
        {"optimizer": "sgd"},
    )
    assert study.optimizers == [
        "sgd",
        "sam",
        "zo_sam, ρ = 0.25, num_directions = 4",
        "zo_sam, ρ = 0.5, num_directions = default",
    ]


def test_the_default_radius_is_the_one_it_stands_for(study_of):
    study = study_of({"optimizer": "sam", "seed": 0}, {"optimizer": "sam", "seed": 1, "rho": 0.02})
    assert study.optimizers == ["sam"]
    assert study.perturbations["sam"]["rho"] == 0.02
    assert study.perturbations["sam"]["radius"] == "layerwise"


def test_plain_optimizers_and_others_share_their_row(study_of):
    study = study_of({"optimizer": "sgd"}, {"optimizer": "sam"}, {"optimizer": "adamw"})
    assert labels(study) == ["sgd, rigl 90%", "adamw, rigl 90%"]
    assert study.compared_in(study.rows[0]) == ["sgd", "sam"]


def test_rows_say_what_varies_among_the_problems(study_of):
    study = study_of(
        {"model": "resnet8", "optimizer": "sgd", "label_noise": 0.2, "sparse": "none"},
        {"model": "resnet8", "optimizer": "sgd", "label_noise": 0.2, "sparse": "mest"},
        {
            "model": "resnet8",
            "optimizer": "sgd",
            "label_noise": 0.2,
            "sparse": "mest",
            "mest_soft_bound": True,
        },
        {"optimizer": "sgd"},
    )
    assert labels(study) == [
        "resnet8, dense, label_noise = 0.2",
        "resnet8, mest 90%, label_noise = 0.2, mest_soft_bound = False",
        "resnet8, mest 90%, label_noise = 0.2, mest_soft_bound = True",
        "lenet-300-100, rigl 90%, label_noise = 0",
    ]


def test_two_sweeps_in_one_report_are_told_apart(tmp_path):
    for sweep, noise in (("clean", 0.0), ("noisy", 0.2)):
        for optimizer in ("sgd", "sam"):
            make_run(tmp_path / sweep / optimizer, optimizer=optimizer, label_noise=noise)
    study = Study(gather([tmp_path / "clean", tmp_path / "noisy"])[0])
    assert labels(study) == ["rigl 90%, label_noise = 0", "rigl 90%, label_noise = 0.2"]
    assert study.duplicates == []
    assert ("other options", "label_noise = 0 or 0.2") in header(study, [], None).facts


def test_dense_networks_are_one_row_however_they_are_asked_for(study_of):
    study = study_of(
        {"sparse": "none", "sparsity": 0.9, "seed": 0, "optimizer": "sgd"},
        {"sparse": "rigl", "sparsity": 0.0, "seed": 1, "optimizer": "sgd"},
    )
    assert labels(study) == ["dense"]


def test_each_base_optimizer_has_its_rows(study_of):
    study = study_of(
        {"optimizer": "sgd"},
        {"optimizer": "sam"},
        {"optimizer": "sam", "base_optimizer": "adamw"},
        {"optimizer": "adamw"},
    )
    assert [(row.label, row.base) for row in study.rows] == [
        ("sgd, rigl 90%", "sgd"),
        ("adamw, rigl 90%", "adamw"),
    ]
    assert study.compared_in(study.rows[1]) == ["adamw", "sam"]


def test_where_a_run_took_place_does_not_matter(study_of, tmp_path):
    study = study_of(
        {"optimizer": "sgd", "output": tmp_path / "here", "seed": 0},
        {"optimizer": "sgd", "mesh": "data=1", "keep_every": 2, "seed": 1},
    )
    assert len(study.cell(study.rows[0], "sgd")) == 2


def test_a_run_made_twice_counts_once(study_of):
    study = study_of(
        {"accuracies": (0.7,), "optimizer": "sgd"}, {"accuracies": (0.8,), "optimizer": "sgd"}
    )
    assert study.values(study.rows[0], "sgd", "test_accuracy") == {0: 0.7}
    assert [one.name for one in study.duplicates] == ["001"]
    assert "seed of 000" in study.duplicates[0].reason
    assert [run.name for run in study.runs] == ["000"]


def make_family(folder, noise, chosen):
    """A tuned sweep: SAM with a tuned and a fixed radius, and SGD in four ways."""
    ways = {
        "optimizer=sgd": {"optimizer": "sgd"},
        "optimizer=sgd,epochs=12": {"optimizer": "sgd", "epochs": 12},
        "optimizer=sgd,weight_decay=tuned": {"optimizer": "sgd", "weight_decay": 0.004},
        "optimizer=sam,rho=0.02": {"optimizer": "sam", "rho": 0.02},
        "optimizer=sam,rho=tuned": {"optimizer": "sam", "rho": chosen},
    }
    make_tuning(
        folder,
        **{
            "optimizer=sgd,weight_decay=tuned": ({"weight_decay": 0.004}, ["weight_decay"]),
            "optimizer=sam,rho=tuned": ({"rho": chosen}, []),
        },
    )
    for place, (method, options) in enumerate(ways.items()):
        for seed in range(2):
            reached = 0.7 + 0.01 * place + 0.1 * seed
            settings = {"epochs": 6, "label_noise": noise, "seed": seed, **options}
            make_run(folder / f"{method},seed={seed}", (0.5, reached), **settings)
    return folder


FAMILY = [
    "sgd",
    "sgd, weight_decay tuned",
    "sgd, epochs × 2",
    "sam, ρ tuned",
    "sam, ρ = 0.02",
]


def test_a_tuned_sweep_is_one_row_whatever_was_chosen(tmp_path):
    make_family(tmp_path / "clean", 0.0, 0.02)
    make_family(tmp_path / "noisy", 0.3, 0.08)
    study = Study(gather([tmp_path])[0])
    assert labels(study) == ["rigl 90%, label_noise = 0", "rigl 90%, label_noise = 0.3"]
    assert sorted(study.optimizers) == sorted(FAMILY)
    # That tuning chose 0.02 too does not make the two of SAM one.
    assert study.duplicates == []
    assert all(len(cell) == 2 for cell in study.cells.values())
    assert len(study.cells) == 2 * len(FAMILY)
    title = header(study, [], None).title
    assert title == "lenet-300-100 on digits with 0% or 30% of the labels random: rigl 90% (tuned)"


def test_trials_of_tuning_are_no_runs_of_the_study(tmp_path):
    make_family(tmp_path, 0.0, 0.04)
    write(tmp_path / ".sweep", "claim.lock", {})
    make_run(tmp_path / "tune" / "optimizer=sam,rho=0.02,seed=100", optimizer="sam")
    write(tmp_path / "tune" / ".sweep", "optimizer=sam,rho=9,seed=100.failed.json", {"status": 3})
    runs, omissions = gather([tmp_path])
    assert len(runs) == 2 * len(FAMILY)
    assert omissions == []


def test_gains_are_over_the_base_that_is_named(tmp_path):
    runs = gather([make_family(tmp_path, 0.0, 0.04)])[0]
    assert {row.base for row in Study(runs).rows} == {"sgd"}
    study = Study(runs, "sam, ρ = 0.02")
    (row,) = study.rows
    assert (row.base, study.base) == ("sam, ρ = 0.02", "sam, ρ = 0.02")
    ((values, base),) = study.pairs("sgd", "test_accuracy", [row])
    assert values[0] - base[0] == pytest.approx(-0.03)
    with pytest.raises(ValueError, match=r"base='sam' must be one of 'sam, ρ tuned', 'sam, ρ = 0"):
        Study(runs, "sam")
    with pytest.raises(ValueError, match=r"base='adamw' must be one of 'sgd', .*'sam, ρ tuned'"):
        Study(runs, "adamw")


def test_a_base_with_one_column_is_named_by_its_optimizer(tmp_path):
    for rho in (0.1, 0.2):
        make_run(tmp_path / f"sam-{rho}", optimizer="sam", rho=rho, sparsity=rho)
        make_run(tmp_path / f"zo_sam-{rho}", optimizer="zo_sam", sparsity=rho)
    assert Study(gather([tmp_path])[0], "zo_sam").base == "zo_sam"


def test_plain_runs_stay_a_row_where_they_have_company(study_of):
    study = study_of(
        {"optimizer": "sgd", "learning_rate": 0.1},
        {"optimizer": "sam", "learning_rate": 0.1},
        {"optimizer": "sgd", "learning_rate": 0.2},
        {"optimizer": "sam", "learning_rate": 0.2},
        {"optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 0.001},
        {"optimizer": "sgd", "learning_rate": 0.1, "train_images": 100},
    )
    assert labels(study) == [
        "rigl 90%, learning_rate = 0.1, train_images = default",
        "rigl 90%, learning_rate = 0.2, train_images = default",
        "rigl 90%, learning_rate = 0.1, train_images = 100",
    ]
    assert study.compared_in(study.rows[0]) == ["sgd", "sam"]
    assert study.compared_in(study.rows[1]) == ["sgd", "sgd, weight_decay = 0.001", "sam"]


def test_rows_are_named_after_what_tells_them_apart(study_of):
    study = study_of(
        {"optimizer": "sgd", "epochs": 2, "evaluate_every": 2, "batch_size": 32},
        {"optimizer": "sam", "epochs": 2, "evaluate_every": 2, "batch_size": 32},
        {"optimizer": "sam", "epochs": 4, "evaluate_every": 4, "batch_size": 64},
    )
    assert labels(study) == ["rigl 90%, epochs = 2", "rigl 90%, epochs = 4"]
