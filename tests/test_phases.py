"""One optimizer early in a run and another late: one state, two programs, each at its own price."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import RHO, PassCounter, assert_close, mlp_batch, mlp_params, stepper

import zosam_jax

START = 3


def chain(rho, make=zosam_jax.friendly_sam):
    rate = optax.linear_schedule(0.2, 0.05, 5)
    return optax.chain(make(rho), optax.sgd(rate, momentum=0.9))


def test_the_late_phase_goes_on_from_the_early_ones_state():
    """Momentum, schedules and what the ascent remembers; as one program under a schedule of ρ."""
    at, counter = zosam_jax.late_phase(chain(0.0), chain(RHO), START), PassCounter()
    steps = {tx: stepper(tx, counter.loss) for tx in (at(0), at(START))}
    switching = chain(lambda count: jnp.where(count < START, 0.0, RHO))
    whole = stepper(switching)
    params = expected = mlp_params()
    state, other = at(0).init(params), switching.init(params)
    for t in range(2 * START):
        batch = mlp_batch(seed=t)
        params, state = steps[at(t)](params, state, batch)
        expected, other = whole(expected, other, batch)
        length = state[0].diagnostics.epsilon_norm
        np.testing.assert_allclose(length, 0.0 if t < START else RHO, rtol=1e-5)
        if t == START - 1:  # Friendly SAM then remembers what it saw of ascents alone
            other = (other[0]._replace(ascent=state[0].ascent), *other[1:])
    assert_close(params, expected)
    jax.effects_barrier()
    assert counter.passes["backward"] == START + 2 * START


def test_states_that_differ_are_refused():
    at = zosam_jax.late_phase(chain(0.0, zosam_jax.sam), chain(RHO), START)
    with pytest.raises(ValueError, match=r"must have states of one shape, .*FriendlyState"):
        at(0).init(mlp_params())


@pytest.mark.parametrize(("start", "error"), [(0, ValueError), (0.5, TypeError)])
def test_a_start_that_is_no_step_is_refused(start, error):
    with pytest.raises(error, match=f"start={start} must be"):
        zosam_jax.late_phase(chain(0.0), chain(RHO), start)
