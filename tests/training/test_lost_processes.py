"""A process of several that is lost ends the others in time, with a sentence and status 1."""

import lost_processes
import pytest

from zosam_jax.training import supervision


@pytest.mark.long
@pytest.mark.slow
def test_killed_processes():
    result = lost_processes.campaign(2, 0)
    assert result["failures"] == []


# As JAX has said it.
TOLD = """Use error polling to propagate the following error to all tasks: UNAVAILABLE: The \
following tasks are unhealthy (stopped sending heartbeats):
{}
The tasks have crashed. Check the task logs for an earlier error"""


@pytest.mark.parametrize(
    ("told", "which"),
    [
        (TOLD.format(2), "process 2 has"),
        (TOLD.format("1\n3"), "process 1, 3 has"),
        (
            "DEADLINE_EXCEEDED: Deadline Exceeded\n\n"
            "RPC: /xla.coordination.CoordinationService/RegisterTask",
            "not all processes have joined within 60 s: begin them together",
        ),
        ("UNAVAILABLE: Connection reset by peer", "process 0 has"),
    ],
)
def test_the_lost_process_is_named(told, which):
    assert supervision._lost(told).startswith(which)
