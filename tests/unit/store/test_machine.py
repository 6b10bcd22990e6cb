"""The store under orders of events that nobody has thought of."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from tests.unit.store.faults.machine import StoreMachine

TestStore = StoreMachine.TestCase
# The database of examples would lie in the work tree; a failure prints how to repeat it anyway.
TestStore.settings = settings(
    # Each starts and kills processes for some ten seconds; `make torture` has many more.
    max_examples=4,
    stateful_step_count=25,
    deadline=None,
    database=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow],
)
