"""Finding and reading run folders."""

import json
import math

import numpy as np
import pytest
from report.folders import (
    aim_of,
    make_analysis,
    make_robustness,
    make_run,
    record,
    variance_of,
    write,
    write_config,
)

from zosam_jax.report.runs import gather

LINES = {"distances": [], "random": [], "hessian": [], "plane": None}
PLANE = {"xs": [0, 1], "ys": [0, 1], "losses": [[1.0, 2.0]] * 2, "directions": "random"}


def without(content, name):
    return {key: value for key, value in content.items() if key != name}


def only_run(path):
    (run,), omissions = gather([path])
    assert not omissions
    return run


def test_folders_of_run_folders_are_searched_and_each_run_counts_once(tmp_path):
    for name in ("sweep/a", "sweep/deeper/b", "c"):
        make_run(tmp_path / name)
    (tmp_path / "sweep" / "notes").mkdir()
    write(tmp_path / "comparison", "config.json", {"optimizers": ["sgd", "sam"], "seeds": 3})
    runs, omissions = gather([tmp_path, tmp_path / "c", tmp_path / "sweep" / "a"])
    assert [run.name for run in runs] == ["c", "sweep/a", "sweep/deeper/b"]
    assert omissions == []


def test_incomplete_and_failed_runs_are_named(tmp_path):
    make_run(tmp_path / "whole")
    make_run(tmp_path / "retried")
    write_config(tmp_path / "killed")
    write_config(tmp_path / "diverged")
    for name in ("diverged", "refused", "retried"):
        failure = {"status": 2, "reason": f"zosam: {name} for a reason.", "options": {}}
        write(tmp_path / ".sweep", f"{name}.failed.json", failure)
    runs, omissions = gather([tmp_path])
    assert [run.name for run in runs] == ["retried", "whole"]
    assert [tuple(one) for one in omissions] == [
        ("diverged", "failed: diverged for a reason."),
        ("killed", "incomplete: it has no summary.json"),
        ("refused", "failed: refused for a reason."),
    ]
    _, omissions = gather([tmp_path / "diverged"])
    assert omissions[0].reason == "failed: diverged for a reason."


@pytest.mark.parametrize("name", ["nowhere", "empty", "file"])
def test_a_path_without_runs_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=rf"runs: .*{name} is neither a run folder"):
        gather([tmp_path / name])


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("config.json", "{"),
        ("config.json", '{"optimizer": "sgd", "momentun": 0.9}'),
        ("summary.json", "[1]"),
        ("metrics.jsonl", "{}\n{"),
        ("metrics.jsonl", ""),
        ("analysis.json", "nothing"),
    ],
)
def test_damaged_files_are_named(tmp_path, file, content):
    path = make_run(tmp_path / "run")
    whole = make_run(tmp_path / "whole")
    (path / file).write_text(content)
    (run,), (omission,) = gather([path, whole])
    assert (run.name, omission.name) == ("whole", "run")
    assert omission.reason.startswith(f"{path / file} is damaged: ")


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("analysis.json", {"hessian": 3}),
        ("analysis.json", {"hessian": 0}),
        ("analysis.json", {"hessian": {"eigenvalues": 3.0}}),
        ("analysis.json", {"hessian": {"trace": "large"}}),
        ("analysis.json", {"checkpoints": {"step": 3}}),
        ("analysis.json", {"checkpoints": [3]}),
        ("analysis.json", {"checkpoints": [{"gradient_variance": variance_of(1.0)}]}),
        ("analysis.json", {"train_accuracy": "high"}),
        ("analysis.json", {"surface": {**LINES, "plane": {"xs": [0, 1], "ys": [0, 1]}}}),
        ("analysis.json", {"surface": {**LINES, "plane": {**PLANE, "losses": [[1.0, 2.0]]}}}),
        ("analysis.json", {"surface": {**LINES, "plane": {**PLANE, "xs": [[0], [1]]}}}),
        ("analysis.json", {"surface": {**LINES, "plane": without(PLANE, "directions")}}),
        (
            "analysis.json",
            {"surface": {**LINES, "distances": [0, 1], "random": [1.0], "hessian": [1.0, 2.0]}},
        ),
        ("robustness.json", {"corruptions": {"fog": [None]}}),
        ("robustness.json", {"corruptions": {"fog": []}}),
        ("robustness.json", {"corruptions": {"fog": 0.5}}),
        ("robustness.json", {"severities": [1], "corruptions": {"fog": [0.5], "snow": [0.5, 0.4]}}),
        ("robustness.json", {"mean_accuracy": "high"}),
        ("metrics.jsonl", [1]),
        ("metrics.jsonl", {"test_accuracy": "high"}),
    ],
)
def test_files_that_say_something_else_are_named(tmp_path, file, content):
    path = make_run(tmp_path / "run")
    whole = {"analysis.json": make_analysis(), "robustness.json": make_robustness()}
    write(path, file, {**whole.get(file, {}), **content} if isinstance(content, dict) else content)
    _, (omission,) = gather([path])
    assert f"run/{file} is damaged: " in omission.reason
    assert "\n" not in omission.reason


def test_an_unknown_accuracy_on_the_training_images_is_the_records(tmp_path):
    run = only_run(make_run(tmp_path / "a", train=0.97, analysis={"train_accuracy": None}))
    assert run.fact("train_accuracy") == 0.97
    run = only_run(make_run(tmp_path / "b", train=0.97, analysis={"train_accuracy": 0.5}))
    assert run.fact("train_accuracy") == 0.5


@pytest.mark.parametrize("shape", [(1, 1), (1, 2), (2, 1)])
def test_a_plane_too_narrow_for_contours_is_left_out(tmp_path, shape):
    ys, xs = (list(range(size)) for size in shape)
    plane = {**PLANE, "xs": xs, "ys": ys, "losses": [[0.5] * len(xs)] * len(ys)}
    run = only_run(make_run(tmp_path / "run", analysis={"surface": {**LINES, "plane": plane}}))
    assert run.analysis.plane is None


def test_facts_have_every_number(tmp_path):
    run = only_run(
        make_run(
            tmp_path / "run",
            (0.5, None, 0.9),
            train=0.97,
            analysis=make_analysis(3.0),
            robustness=make_robustness(0.9, 0.6),
        )
    )
    expected = {
        "test_accuracy": 0.9,
        "generalization_gap": 0.07,
        "final_sparsity": 0.9,
        "training_cost": 0.25,
        "gradient_variance": 1.5,
        "relative_gradient_variance": 0.375,
        "perturbed_gradient_variance": 6.0,
        "estimator_cosine": 0.15,
        "lambda_max": 30.0,
        "trace": 300.0,
        "trace_error": 1.0,
        "sharpness_rho": 0.1,
        "sharpness_worst_rise": 1.5,
        "corrupted_accuracy": 0.6,
        "robustness_delta": 0.3,
        "accuracy_under_fog": 0.6,
    }
    assert {name: run.fact(name) for name in expected} == pytest.approx(expected)
    assert math.isnan(run.fact("chosen_test_accuracy"))
    assert "chosen_test_accuracy" not in run.facts
    assert math.isnan(run.fact("no such thing"))


def test_curves_leave_out_what_is_not_known(tmp_path):
    run = only_run(make_run(tmp_path / "run", (0.5, None, 0.9), analysis=make_analysis(3.0)))
    assert run.test_curve == ((1, 3), (0.5, 0.9))
    assert run.analysis.variance_curve == ((1, 2), (3.0, 1.5))
    assert run.analysis.lines["hessian"].ys == pytest.approx((6.2, 1.7, 0.2, 1.7, 6.2))
    assert run.robustness.severity_curve == ((), ())
    assert run.analysis.plane.losses[0][0] == pytest.approx(0.1 + 3.0 * 1.75)
    assert run.analysis.plane.xs[0] != run.analysis.plane.ys[0]


def test_losses_that_are_not_finite_are_masked(tmp_path):
    analysis = make_analysis(3.0)
    analysis["surface"]["random"][0] = None
    analysis["surface"]["plane"]["losses"][1][2] = None
    run = only_run(make_run(tmp_path / "run", analysis=analysis))
    assert run.analysis.lines["random"].xs == (-0.5, 0.0, 0.5, 1.0)
    assert [tuple(place) for place in np.argwhere(run.analysis.plane.losses.mask)] == [(1, 2)]
    analysis["surface"]["plane"]["losses"] = [[None] * 5] * 4
    assert only_run(make_run(tmp_path / "none", analysis=analysis)).analysis.plane is None


def test_severities_are_those_that_were_measured(tmp_path):
    some = {**make_robustness(), "severities": [1, 3], "corruptions": {"fog": [0.8, 0.4]}}
    assert only_run(make_run(tmp_path / "a", robustness=some)).robustness.severity_curve == (
        (1, 3),
        (0.8, 0.4),
    )
    all_five = only_run(make_run(tmp_path / "b", robustness=make_robustness(0.9, 0.7)))
    assert all_five.robustness.severity_curve.xs == (1, 2, 3, 4, 5)
    assert all_five.robustness.severity_curve.ys == pytest.approx((0.85, 0.8, 0.7, 0.6, 0.55))


@pytest.mark.parametrize("part", ["checkpoints", "hessian", "sharpness", "surface"])
def test_any_part_of_an_analysis_may_be_missing(tmp_path, part):
    analysis = without(make_analysis(2.0), part)
    run = only_run(make_run(tmp_path / "run", analysis=analysis))
    facts = {
        "checkpoints": "gradient_variance",
        "hessian": "lambda_max",
        "sharpness": "sharpness_worst_rise",
    }
    for other, fact in facts.items():
        assert (fact in run.facts) is (other != part)
    assert (run.analysis.plane is None) is (part == "surface")


def test_of_a_lottery_ticket_the_last_round_is_shown(tmp_path):
    path = make_run(tmp_path / "run", sparse="lth")
    rounds = [record(1, 0.95, round=0), record(1, 0.4, round=1), record(2, 0.8, round=1)]
    rounds[2]["seconds"], rounds[2]["training_cost"] = 9.0, 3.0
    path.joinpath("metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rounds))
    run = only_run(path)
    assert run.test_curve == ((1, 2), (0.4, 0.8))
    assert run.reached(0.8) == (2, 9.0, 3.0)
    assert run.reached(0.9) is None


def test_of_a_lottery_ticket_the_last_rounds_checkpoints_are_shown(tmp_path):
    def look(round_, epoch, value):
        noise = {"gradient_variance": variance_of(value), "estimator": aim_of(value / 10)}
        return {"step": 10 * epoch, "epoch": epoch, "round": round_} | noise

    looks = [look(0, 1, 8.0), look(0, 2, 7.0), look(1, 1, 4.0), look(1, 2, 2.0)]
    run = only_run(make_run(tmp_path / "a", sparse="lth", analysis={"checkpoints": looks}))
    assert run.analysis.variance_curve == ((1, 2), (4.0, 2.0))
    assert run.fact("gradient_variance") == 2.0
    assert run.fact("estimator_cosine") == pytest.approx(0.3)
