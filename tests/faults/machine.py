"""A store against a plain dictionary, under whatever order of events Hypothesis thinks of.

One process writes, as a server would, and can be killed; this one reads, labels, deletes,
repairs, compacts and merges. Every answer is named once and for all, so that its rows are known.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from activation_logging.store import Store, StoreWriter, open_store
from activation_logging.store.compact import compact
from activation_logging.store.layout import prompt_key
from activation_logging.store.merge import merge
from activation_logging.store.prune import prune
from activation_logging.store.repair import (
    check_segments,
    find_unmatched,
    page_problems,
    remove_unmatched,
    remove_unreferenced,
)
from activation_logging.verify import verify
from tests.faults.answers import capture_of, document_of, rows_of
from tests.faults.children import CONTEXT

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

PROMPTS = ("one", "two", "three")
# What is drawn, and which rules there are, may not depend on what a kill has left.
PICK = st.integers(0, 999)
LABELS = ("correct", "hallucinated", "refused", "invalid")


def options(examples: int, *, steps: int) -> settings:
    """So many orders of events, of so many steps at most."""
    return settings(
        max_examples=examples,
        stateful_step_count=steps,
        deadline=None,
        # Hypothesis would keep it in the work tree; a failure prints how to repeat it anyway.
        database=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
    )


class Half(NamedTuple):
    """What one side of a request sends: an entry, or the rows of ``rows`` under its own name."""

    kind: str
    name: str
    rows: str
    prompt: str


@dataclass
class Answer:
    """What the dictionary knows of an entry; without ``capture`` it is pending."""

    name: str
    rows: str
    prompt: str
    writer: int
    labels: dict[str, str] = field(default_factory=dict)
    pruned: bool = False


def serve(path: Path, connection: Connection) -> None:
    """The writing process: does as it is told, until it is told to close or is killed."""
    writer = StoreWriter(path, role="child")
    while True:
        command, half = connection.recv()
        if command == "flush":
            writer.flush()
        elif command == "close":
            writer.close()
            connection.send("done")
            return
        elif half.kind == "entry":
            writer.put_entry(document_of(half.name, rows=half.rows, prompt=half.prompt))
        else:
            writer.put_capture(capture_of(half.name, writer, rows=half.rows))
        connection.send("done")


class StoreMachine(RuleBasedStateMachine):
    """The rules; ``entries`` and ``captures`` are the dictionary that the store must equal."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.path = self.folder / "a.lmdb"
        self.entries: dict[str, Answer] = {}
        self.captures: dict[str, tuple[str, int]] = {}
        self.repeats: dict[str, int] = {}
        self.gone: set[str] = set()
        self.sent: list[Half] = []
        self.count = self.writer = 0
        self.start_writer()
        self.store: Store = open_store(self.path, writable=True)

    # --- the writing process -----------------------------------------------------------

    def start_writer(self) -> None:
        self.writer += 1
        self.connection, there = CONTEXT.Pipe()
        self.process = CONTEXT.Process(target=serve, args=(self.path, there), daemon=True)
        self.process.start()
        there.close()
        self.tell("flush")

    def tell(self, command: str, half: Half | None = None) -> None:
        self.connection.send((command, half))
        assert self.connection.recv() == "done"

    def flush(self) -> None:
        self.tell("flush")
        for half in self.sent:
            self.arrived(half, self.writer)
        self.sent.clear()

    def arrived(self, half: Half, writer: int) -> None:
        if half.kind == "rows":
            self.captures[half.name] = (half.rows, writer)
            return
        number = self.repeats.get(half.prompt, 0)
        self.repeats[half.prompt] = number + 1
        key = prompt_key(half.prompt) + (f"#{number}" if number else "")
        self.entries[key] = Answer(half.name, half.rows, half.prompt, writer)

    @rule(
        prompt=st.sampled_from(PROMPTS),
        order=st.sampled_from([("entry", "rows"), ("rows", "entry"), ("entry",), ("rows",)]),
    )
    def put(self, prompt: str, order: tuple[str, ...]) -> None:
        self.count += 1
        name = f"n{self.count}"
        for kind in order:
            self.send(Half(kind, name, name, prompt))

    def send(self, half: Half) -> None:
        self.tell("put", half)
        self.sent.append(half)

    @rule(pick=PICK, prompt=st.sampled_from(PROMPTS))
    def put_with_shared_rows(self, pick: int, prompt: str) -> None:
        """As with vLLM's prefix cache: only rows that the same writer has written."""
        if not self.own_rows():
            self.put(prompt, ("rows", "entry"))
        self.flush()
        rows = self.own_rows()
        shared = rows[pick % len(rows)]
        self.count += 1
        for kind in ("rows", "entry"):
            self.send(Half(kind, f"n{self.count}", shared, prompt))

    def own_rows(self) -> list[str]:
        return sorted(
            name
            for name, (rows, by) in self.captures.items()
            if by == self.writer and rows == name and name not in self.gone
        )

    @rule()
    def complete_what_waits(self) -> None:
        self.flush()
        for answer in self.entries.values():
            if answer.name not in self.captures and answer.writer == self.writer:
                self.send(Half("rows", answer.name, answer.rows, answer.prompt))

    @rule(after=st.sampled_from([0.0, 0.02, 0.12]), then_repair=st.booleans())
    def kill(self, after: float, *, then_repair: bool) -> None:
        time.sleep(after)
        self.process.kill()
        self.process.join()
        self.connection.close()
        killed = self.writer
        # Only now may one look: a commit that was killed at its very end shows when the next
        # writer takes over the lock.
        self.start_writer()
        there = [self.is_there(half) for half in self.sent]
        kept = there.count(True)
        assert there == [True] * kept + [False] * (len(there) - kept), "in the order sent"
        for half in self.sent[:kept]:
            self.arrived(half, killed)
        self.sent.clear()
        if then_repair:
            self.repair()

    def is_there(self, half: Half) -> bool:
        if half.kind == "entry":
            return bool(self.store.for_request(half.name))
        name = f"{half.name}-internal".encode()
        return self.store.snapshot().get(b"~captures", name) is not None

    # --- this process ------------------------------------------------------------------

    @rule(pick=PICK, name=st.sampled_from("ab"), label=st.sampled_from(LABELS))
    def label(self, pick: int, name: str, label: Any) -> None:
        for key in self.one_of_them(pick):
            self.store.put_evaluation(key, name=name, label=label)
            self.entries[key].labels[name] = label

    @rule(pick=PICK)
    def delete(self, pick: int) -> None:
        self.flush()
        for key in self.one_of_them(pick):
            self.store.delete(key)
            self.forget(key)
        self.compare(self.store)

    @rule(pick=PICK)
    def prune(self, pick: int) -> None:
        """Its rows go, and those that another answer shares stay."""
        self.flush()
        for key in self.one_of_them(pick):
            answer = self.entries[key]
            had_rows = answer.name in self.captures and not answer.pruned
            assert prune(self.store, [key], "pruned by a test") == had_rows
            answer.pruned = answer.pruned or had_rows
            # Their writer does not share them again: it may remove them at any time.
            self.gone.add(answer.rows)
        self.compare(self.store)

    @rule(pick=PICK)
    def delete_before_a_kill(self, pick: int) -> None:
        """The rows stay for as long as their writer lives, which then cannot remove them."""
        self.delete(pick)
        self.kill(0.0, then_repair=True)

    def one_of_them(self, pick: int) -> list[str]:
        """One key, if there is any."""
        keys = sorted(self.entries)
        return keys[pick % len(keys) :][:1] if keys else []

    def forget(self, key: str) -> None:
        answer = self.entries.pop(key)
        self.captures.pop(answer.name, None)
        if all(other.prompt != answer.prompt for other in self.entries.values()):
            self.repeats.pop(answer.prompt)

    @rule()
    def reopen(self) -> None:
        self.store.close()
        gc.collect()
        self.store = open_store(self.path, writable=True)

    @rule()
    def repair(self) -> None:
        """What dead writers left half goes; what the living one has sent stays."""
        self.flush()
        for half in list(find_unmatched(self.store)):
            if half.final:
                assert remove_unmatched(self.store, [half])
        remove_unreferenced(
            self.store, [one.segment for one in check_segments(self.store).unreferenced]
        )
        for key, answer in list(self.entries.items()):
            if answer.name not in self.captures and answer.writer != self.writer:
                self.forget(key)
        named = {answer.name for answer in self.entries.values()}
        for name, (_, by) in list(self.captures.items()):
            if name not in named and by != self.writer:
                del self.captures[name]
        waiting = [key for key, a in self.entries.items() if a.name not in self.captures]
        orphans = self.captures.keys() - named
        assert len(verify(self.store).problems) == len(waiting) + len(orphans)

    @rule()
    def compact(self) -> None:
        self.flush()
        self.tell("close")
        self.process.join()
        self.store.close()
        gc.collect()
        compact(self.path)
        self.start_writer()
        self.store = open_store(self.path, writable=True)

    @rule()
    def merge(self) -> None:
        """Twice into a new store, which then holds every entry under its own key."""
        self.flush()
        target = self.folder / "merged.lmdb"
        assert merge([self.path], target).entries == len(self.entries)
        assert merge([self.path], target).duplicates == len(self.entries)
        with open_store(target) as store:
            self.compare(store)
        del store
        gc.collect()
        shutil.rmtree(target)

    @rule()
    def read(self) -> None:
        self.flush()
        self.compare(self.store)

    def compare(self, store: Store) -> None:
        assert set(store) == set(self.entries)
        assert [entry.key for entry in store.entries()] == list(self.entries)
        for key, answer in self.entries.items():
            entry = store[key]
            assert (entry.request_id, entry.prompt) == (answer.name, answer.prompt)
            assert {n: e.label for n, e in entry.evaluations.items()} == answer.labels
            if answer.pruned:
                assert (entry.status, entry.status_reason) == ("unkept", "pruned by a test")
            elif answer.name in self.captures:
                assert entry.status == "complete"
                assert np.array_equal(entry.activations, rows_of(answer.rows))
            else:
                assert entry.status == "pending"
        for prompt in PROMPTS:
            answers = [key for key, a in self.entries.items() if a.prompt == prompt]
            assert [entry.key for entry in store.for_prompt(prompt)] == answers

    @invariant()
    def nothing_is_gone(self) -> None:
        assert len(self.store) >= len(self.entries)

    def teardown(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()
        self.store.close()
        gc.collect()
        assert page_problems(self.path) == []
        shutil.rmtree(self.folder)
