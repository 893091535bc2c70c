"""How soon is an accuracy reached? Epochs, time and cost up to it."""

import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from zosam_jax.errors import check_number


class Reached(NamedTuple):
    """Where a run first reached its target.

    Attributes:
      epoch: completed epochs then; of a lottery's later rounds, those of the round.
      seconds: since the start of the run, compilation included.
      training_cost: MACs since the start of the run, in epochs of the dense network with
        SGD.
    """

    epoch: int
    seconds: float
    training_cost: float


def reach(
    records: Iterable[Mapping[str, Any]], target: float, field: str = "test_accuracy"
) -> Reached | None:
    """The first record whose `field` is at least `target`, or None if there is none.

    Epochs that were not evaluated (NaN, or null in metrics.jsonl) are passed over, so that the
    answer is late by up to the interval between evaluations.

    Args:
      records: a run's lines of metrics.jsonl in their order, as mappings (`record._asdict()` of an
        EpochRecord).
      target: what is to be reached; for accuracies a fraction.
      field: one that grows while the network learns.

    Returns:
      Where that record stands in epochs, seconds and cost.

    Raises:
      ValueError, TypeError: for a target that is no finite number, or above 1 for an accuracy, and
        for a field that the records lack.
    """
    check_number("target", target, above=-math.inf, inclusive=False)
    if field.endswith("accuracy") and target > 1:
        raise ValueError(f"target={target!r} must be at most 1: accuracies are fractions.")
    for record in records:
        if field not in record:
            raise ValueError(
                f"field={field!r} is not in the records; choose from "
                f"{', '.join(map(repr, record))}."
            )
        value = record[field]
        if value is not None and value >= target:  # a NaN is not
            return Reached(record["epoch"], record["seconds"], record["training_cost"])
    return None
