"""Tuning: candidates, the choice among them, and what the runs do with it."""

import io
import json
import math
import re

import pytest
from rich.console import Console

from zosam_jax.commands import tuning
from zosam_jax.commands.cells import Tuning
from zosam_jax.commands.processes import Runs
from zosam_jax.commands.sweep import SweepConfig, cells, sweep, tables
from zosam_jax.optimizers import RECORDS
from zosam_jax.training.saved_run import read_config, run_folders

QUIET = Console(quiet=True)
TUNED = """
case = [
    {optimizer = "sgd"},
    {optimizer = "sgd", tune = {weight_decay = [0.003, 0.001, 0.01]}},
    {optimizer = "sam"},
    {optimizer = "sam", rho = 0.05},
]
[train]
model = "lenet-300-100"
keep_every = 1
[grid]
seed = [0, 1]
[tune]
rho = [0.01, 0.03, 0.04]
seeds = 2
"""


TOGETHER = """
case = [
    {optimizer = "sgd", tune = {weight_decay = [0.001, 0.003], batch = [
        {batch_size = 64, epochs = 20}, {batch_size = 128, epochs = 24},
        {batch_size = 32, epochs = 11},
    ]}},
    {optimizer = "sam"},
]
[train]
model = "lenet-300-100"
[grid]
seed = [0]
[tune]
rho = [0.01, 0.03]
ema_decay = [0.0, 0.9, 0.99]
candidates = 4
seeds = 1
"""


def config_of(tmp_path, text, **options):
    path = tmp_path / "sweep.toml"
    path.write_text(text)
    return SweepConfig(file=path, output=tmp_path / "out", **options)


def test_what_a_case_sets_itself_is_not_tuned(tmp_path):
    found = cells(config_of(tmp_path, TUNED))
    assert {cell.method: dict(cell.grid) for cell in found} == {
        "optimizer=sgd": {},
        "optimizer=sgd,weight_decay=tuned": {"weight_decay": [0.001, 0.003, 0.01]},
        "optimizer=sam,rho=tuned": {"rho": [0.01, 0.03, 0.04]},
        "optimizer=sam,rho=0.05": {},
    }


def test_the_default_candidates_are_the_optimizers_own(tmp_path):
    text = "[grid]\noptimizer = ['sgd', 'zo_sam', 'asam']\nradius = ['global', 'layerwise']\n"
    found = {cell.method: cell for cell in cells(config_of(tmp_path, text, tune=True))}
    assert len(found) == 4  # asam has one radius, sgd none
    for radius in ("global", "layerwise"):
        grid = found[f"optimizer=zo_sam,radius={radius},rho=tuned"].grid
        assert tuple(grid["rho"]) == RECORDS["zo_sam"].rho_grid(radius)


def test_a_method_is_tuned_once_from_seeds_of_its_own(tmp_path):
    plan = tables(config_of(tmp_path, TUNED))
    tried = tuning.trials(plan.cells(), Tuning(seeds=2, fraction=0.25))
    assert list(tried) == ["optimizer=sgd,weight_decay=tuned", "optimizer=sam,rho=tuned"]
    runs = [run for trial in tried["optimizer=sam,rho=tuned"] for run in trial.runs]
    assert [(run.config.rho, run.config.seed) for run in runs] == [
        (rho, seed) for rho in (0.01, 0.03, 0.04) for seed in (100, 101)
    ]
    assert runs[0].name == "optimizer=sam,rho=0.01,seed=100"
    assert {run.config.validation_fraction for run in runs} == {0.25}
    assert {run.config.keep_every for run in runs} == {None}


@pytest.mark.parametrize(
    ("means", "chosen", "ends"),
    [
        ([(0.5, 0.9), (0.8, 0.8), (0.7, 0.7)], 2, []),
        ([(0.5, 0.7), (0.6, 0.6), (0.4, 0.4)], 1, ["rho"]),  # a tie: the gentler one
        ([(0.9, math.nan), (0.5, 0.5), (0.6, 0.6)], 3, ["rho"]),  # a diverged run counts as 0
    ],
)
def test_the_best_mean_is_chosen(means, chosen, ends):
    trials = [tuning.Trial({"rho": rho}, (0, 1)) for rho in (1, 2, 3)]
    found = {id(trial): mean for trial, mean in zip(trials, means, strict=True)}
    numbered = [
        tuning.Trial(trial.values, [(id(trial), seed) for seed in trial.runs]) for trial in trials
    ]
    choice = tuning.choose("m", {"rho": [1, 2, 3]}, numbered, lambda run: found[run[0]][run[1]])
    assert choice.chosen == {"rho": chosen}
    assert list(choice.at_the_end) == ends


def test_without_accuracies_the_lowest_loss_is_chosen():
    """A run that diverged has none, which counts as an infinite one."""
    losses = {1: (2.0, 2.0), 2: (1.5, 1.7), 3: (0.1, math.nan)}
    tried = [tuning.Trial({"rho": rho}, [(rho, 0), (rho, 1)]) for rho in losses]
    choice = tuning.choose(
        *("lm", {"rho": [1, 2, 3]}, tried),
        accuracy=lambda run: math.nan,
        loss=lambda run: losses[run[0]][run[1]],
    )
    assert choice.chosen == {"rho": 2}
    assert choice.candidates[1] == {"rho": 2, "validation_losses": [1.5, 1.7]}
    shown = Console(width=100, record=True, file=io.StringIO())
    shown.print(tuning.table([choice]))
    assert "1.6000" in shown.export_text()


def test_the_runs_use_what_was_chosen_and_all_images(tmp_path, trained):
    config = config_of(tmp_path, TUNED)
    assert sweep(config, QUIET)
    assert len(trained) == 2 * 3 * 2 + 4 * 2
    assert len(run_folders(config.output)) == 4 * 2  # those of tuning are not among them
    sam = read_config(config.output / "optimizer=sam,rho=tuned,seed=1")
    assert (sam.rho, sam.validation_fraction, sam.keep_every) == (0.03, 0.0, 1)
    sgd = read_config(config.output / "optimizer=sgd,weight_decay=tuned,seed=0")
    assert sgd.weight_decay == 0.003
    told = json.loads((config.output / "tuning.json").read_text())
    assert [choice["chosen"] for choice in told] == [{"weight_decay": 0.003}, {"rho": 0.03}]
    assert [c["validation_accuracies"] for c in told[1]["candidates"]] == [
        pytest.approx([0.78, 0.79]),
        pytest.approx([0.80, 0.81]),
        pytest.approx([0.79, 0.80]),
    ]
    made = len(trained)
    assert sweep(config, QUIET)
    assert len(trained) == made


def test_runs_that_hold_images_out_are_tuned_on_those(tmp_path, trained):
    config = config_of(tmp_path, TUNED.replace("keep_every = 1", "validation_fraction = 0.4"))
    assert sweep(config, QUIET)
    assert {read_config(run).validation_fraction for run in run_folders(config.output)} == {0.4}
    tried = read_config(config.output / "tune" / "optimizer=sam,rho=0.01,seed=100")
    assert (tried.validation_fraction, tried.evaluate_every) == (0.4, tried.epochs)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (TUNED.replace(", 0.01]}", "]}"), "weight_decay=tuned has 2 candidates and optimizer=sam"),
        (
            TUNED.replace("weight_decay = [", "rho = ["),
            "optimizer=sgd,seed=0: rho of its tune would do",
        ),
        (TUNED.replace("[tune]\nrho", "[tune]\nrhos"), "rhos is no option of a sweep's runs"),
        (TUNED.replace("rho = [0.01", "rho = [-1"), "rho=-1 must be"),
        (
            TUNED.replace("rho = [0.01, 0.03, 0.04]", "rho = 0.1"),
            "rho=0.1 in [tune] must be a list",
        ),
        (TUNED.replace("seeds = 2", "seeds = 0"), "seeds=0 must be"),
        (TUNED.replace("keep_every = 1", "stream = true"), "stream=True does not go with tuning"),
        (TOGETHER.replace("candidates = 4", "candidates = 0"), "candidates=0 must be at least 1"),
        (TOGETHER.replace("[0.0, 0.9, 0.99]", "[0.9]"), "ema_decay=tuned has 2 candidates and"),
        (
            TOGETHER.replace(", epochs = 24", ""),
            "batch: all of its tables must set the same options",
        ),
        (TOGETHER.replace("epochs =", "weight_decay ="), "tune: weight_decay stands there twice"),
        (TOGETHER.replace("epochs =", "epoch ="), "epoch is no option of a sweep's runs"),
        (TUNED[: TUNED.index("[tune]")], "needs --tune or a table [tune]"),
    ],
)
def test_what_a_file_gets_wrong(text, sentence, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        sweep(config_of(tmp_path, text, dry_run=True), QUIET)


def test_options_that_go_together_are_tuned_together(tmp_path, trained):
    text = TOGETHER.replace("candidates = 4\n", "")
    assert sweep(config_of(tmp_path, text), QUIET)
    told, _ = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert len(told["candidates"]) == 6
    assert told["chosen"] == {"weight_decay": 0.003, "batch_size": 64, "epochs": 20}
    assert told["at_the_end"] == ["weight_decay"]
    run = read_config(tmp_path / "out" / "optimizer=sgd,weight_decay=tuned,batch=tuned,seed=0")
    assert (run.weight_decay, run.batch_size, run.epochs) == (0.003, 64, 20)
    assert "optimizer=sgd,weight_decay=0.001,batch_size=32,epochs=11,seed=100" in trained


def test_everyone_tries_as_many_of_the_combinations(tmp_path):
    plan = tables(config_of(tmp_path, TOGETHER))
    tried = tuning.trials(plan.cells(), plan.tuning)
    sgd, sam = ([trial.values for trial in trials] for trials in tried.values())
    assert len(sgd) == len(sam) == 4
    every = [{"rho": rho, "ema_decay": decay} for rho in (0.01, 0.03) for decay in (0.0, 0.9, 0.99)]
    numbers = [every.index(values) for values in sam]
    assert numbers == sorted(set(numbers))
    assert numbers != [0, 1, 2, 3]


def test_averaged_weights_are_chosen_by_their_own_accuracy(tmp_path, trained, monkeypatch):
    found = {0.0: 0.5, 0.9: 0.7, 0.99: 0.6}

    def summary(self, cell):
        averaged = found[cell.config.ema_decay]
        plain = {"validation_accuracy": 0.9, "test_accuracy": 0.9, "seconds": 1.0}
        return plain | {"ema_validation_accuracy": averaged}

    monkeypatch.setattr(Runs, "summary", summary)
    text = '[train]\noptimizer = "sgd"\n[tune]\nema_decay = [0.0, 0.9, 0.99]\nseeds = 1\n'
    assert sweep(config_of(tmp_path, text), QUIET)
    (choice,) = json.loads((tmp_path / "out" / "tuning.json").read_text())
    assert choice["chosen"] == {"ema_decay": 0.9}


def test_a_refused_candidate_stops_the_sweep(tmp_path, trained, monkeypatch):
    monkeypatch.setattr(tuning, "_FIRST_SEED", 13)
    with pytest.raises(ValueError, match=re.escape("seed=13: zosam: seed=13 is unlucky")):
        sweep(config_of(tmp_path, TUNED), QUIET)
