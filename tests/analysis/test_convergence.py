"""When a run gets there, from records written by hand."""

import math

import pytest

from zosam_jax.analysis.convergence import Reached, reach


def records(accuracies, **more):
    """One for each epoch from 1, two seconds and half a dense epoch long."""
    return [
        {
            "epoch": epoch,
            "seconds": 2.0 * epoch,
            "training_cost": 0.5 * epoch,
            "test_accuracy": accuracy,
            **more,
        }
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]


@pytest.mark.parametrize(
    ("target", "epoch"), [(0.0, 2), (0.6, 2), (0.61, 4), (0.8, 4), (0.81, None), (1.0, None)]
)
def test_the_first_epoch_at_or_above_the_target(target, epoch):
    """Epochs that were not evaluated have NaN, or None in JSON; falling back later is no matter."""
    found = reach(records([math.nan, 0.6, None, 0.8, 0.3]), target)
    assert found == (None if epoch is None else Reached(epoch, 2.0 * epoch, 0.5 * epoch))


def test_another_field():
    rows = records([0.9, 0.9], validation_accuracy=0.2)
    assert reach(rows, 0.2, field="validation_accuracy").epoch == 1
    assert reach(rows, 0.3, field="validation_accuracy") is None
    assert reach(rows, 4.0, field="seconds").epoch == 2


def test_no_records_reach_nothing():
    assert reach([], 0.5) is None


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="target=90 must be at most 1: accuracies are fractions"):
        reach(records([0.9]), 90)
    with pytest.raises(ValueError, match="target=nan must be a finite number"):
        reach(records([0.9]), math.nan)
    with pytest.raises(TypeError, match="target='high' must be a number"):
        reach(records([0.9]), "high")
    with pytest.raises(ValueError, match="field='accuracy' is not in the records; choose from 'ep"):
        reach(records([0.9]), 0.5, field="accuracy")
