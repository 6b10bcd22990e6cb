"""The store under orders of events that nobody has thought of."""

from __future__ import annotations

from tests.faults.machine import StoreMachine, options

TestStore = StoreMachine.TestCase
# Each starts and kills processes for some ten seconds; `make torture` has many more.
TestStore.settings = options(4, steps=25)
