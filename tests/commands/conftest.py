"""Runs of a sweep that take no time: folders as `zosam train` leaves them, without any training."""

from typing import get_type_hints

import pytest

from zosam_jax.commands import processes
from zosam_jax.training import run_folder
from zosam_jax.training.contents import Summary
from zosam_jax.training.progress import EpochRecord


def accuracy(config):
    """The closer ρ to 0.03, or the weight decay to 0.003, the better; each seed a bit better."""
    tuned = config.weight_decay - 0.003 if config.rho is None else config.rho - 0.03
    return 0.8 - abs(tuned) + 0.01 * (config.seed % 10)


@pytest.fixture
def trained(monkeypatch):
    """Replaces the processes; the names of the runs that were made, in order."""
    names = []

    def launch(self, cell, share, claim):
        del share, claim
        names.append(cell.name)
        with self._runs.log_file(cell).open("a") as log:
            if cell.config.learning_rate >= 1e30:
                log.write("zosam: the loss of step 1 (epoch 1) is not finite\n")
                return 2
            if cell.config.seed == 13:
                log.write("zosam: seed=13 is unlucky\n")
                return 2
        leave(self._runs.folder(cell), cell.config)
        return 0

    monkeypatch.setattr(processes._Work, "_launch", launch)
    monkeypatch.setattr(processes, "_accelerators", lambda: ("cpu", 1))
    monkeypatch.setattr(processes, "_cores", lambda: [0])
    return names


def leave(folder, config):
    """The files of a finished run of one epoch."""
    value = accuracy(config)
    known = {
        "test_accuracy": value,
        "validation_accuracy": value if config.validation_fraction else float("nan"),
        "seconds": 1.0,
        "images_per_second": 50.0 if config.optimizer == "sam" else 100.0,
    }
    folder.write_options(config)
    record = (
        dict.fromkeys(EpochRecord._fields, 0.0)
        | {"round": 0, "epoch": 1, "step": 4, "bad_steps": 0}
        | known
    )
    record |= {"epsilon_norm": 0.5, "slope": float("nan")}
    folder.append_metrics(EpochRecord(**record))
    summary = {name: 0 if kind is int else 0.0 for name, kind in get_type_hints(Summary).items()}
    names = {"sparse": config.sparse, "optimizer": config.optimizer, "steps": 4}
    folder.write_json(run_folder.SUMMARY, summary | known | names | {"measures": {}})
