"""A store of answers whose texts are as bad as texts can be, and its pages."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from starlette.testclient import TestClient

from activation_logging import Derived, Span, open_store
from activation_logging.store import StoreWriter
from activation_logging.view.app import make_app
from activation_logging.view.index import SearchIndex
from tests.fixtures.answers import put_answer
from tests.fixtures.browser import chromium, opened_tab, serving

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from activation_logging import Entry, Store
    from activation_logging.view.state import ViewState

HOSTILE = (
    "</p><script>window.taken = 1</script><img src=x onerror='window.taken=1'>\u202e\"' {{7*7}}"
)
NUMBER = 12


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """The answers, to write to."""
    with open_store(path, writable=True) as opened:
        yield opened


@pytest.fixture
def index(store: Store) -> SearchIndex:
    """The index of all answers."""
    made = SearchIndex(store)
    made.build()
    return made


def words(i: int) -> list[str]:
    """The tokens of an answer; the fourth has a hostile text."""
    return ["It", " is", f" number {i}", HOSTILE if i == 4 else ".", ""]


def build(path: Path) -> None:
    """Twelve answers to ten prompts, labels of two evaluators, scores of one probe."""
    writer = StoreWriter(path, role="test")
    for i in range(NUMBER):
        texts = words(i)
        put_answer(
            writer,
            f"request-{i}",
            layers=(2, 4),
            prompt=HOSTILE if i == 3 else f"What is question {i % 10}?",
            response="".join(texts),
            response_tokens=texts,
            response_ids=(4, 5, 6, 7, 8),
            logprobs=[-0.1, -0.5, -2.0, -0.01, -9999.0],
            top_logprobs=[{4: -0.1, 9: -2.5}, {9: -0.1, 5: -0.5}, {6: -2.0}, {7: -0.01}, {8: -1.0}],
            tags={
                "dataset": "even" if i % 2 == 0 else "odd",
                "sample": HOSTILE if i == 5 else f"{i}",
            },
            model=HOSTILE if i == 6 else "org/model",
            created=1_700_000_000.0 + i,
        )
    writer.close()
    with open_store(path, writable=True) as store:
        for i, entry in enumerate(list(store.entries())):
            label = ("correct", "hallucinated", "refused")[i % 3]
            store.put_evaluation(entry.key, name="rules", label=label, score=i / 10, judge="rules")
            if i < 6:
                other = "correct" if i < 3 else label
                store.put_evaluation(entry.key, name="model", label=other, judge="a model")
            rows = np.full(7, np.nan, np.float32)
            rows[2:] = np.linspace(0.1, 0.05 + i / NUMBER, 5)
            details = {"digest": "0" * 64}
            store.put_derived([Derived(entry.key, "score/made_up", rows, details)])
        entry = next(e for e in store.entries() if e.request_id == "request-4")
        spans = [
            Span(3, 5, "supported", claim=HOSTILE, gold=HOSTILE),
            Span(6, 30, "contradicted", claim="number", gold=HOSTILE),
        ]
        store.put_evaluation(
            entry.key,
            name=f"spans {HOSTILE}"[:100],
            label="hallucinated",
            judge=HOSTILE,
            spans=spans,
        )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "s.lmdb"
    build(made)
    return made


class Pages:
    """A browser without scripts: it keeps cookies, and sends forms as our pages do."""

    def __init__(self, path: Path, **options: object) -> None:
        self.app = make_app(path, **options)
        self.state: ViewState = self.app.state.view
        self.client = TestClient(self.app, base_url="http://localhost", follow_redirects=True)

    def get(self, address: str = "", status: int = 200) -> str:
        answer = self.client.get(f"/activations/{address}", headers={"accept": "text/html"})
        assert answer.status_code == status, answer.text[-2000:]
        return answer.text

    def post(self, address: str, status: int = 200, *, forged: bool = False, **fields: object):
        self.client.get("/activations/static/view.css")
        token = "x" * 32 if forged else self.client.cookies["activations_form"]
        answer = self.client.post(f"/activations/{address}", data={"form_token": token, **fields})
        assert answer.status_code == status, answer.text[-2000:]
        return answer


@pytest.fixture
def pages(path: Path) -> Iterator[Pages]:
    made = Pages(path)
    made.state.index.build()
    yield made
    made.client.close()


# --- A real browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def tab(browser: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    # The pages stay until the browser has left them: a part that comes later would not be answered.
    if "served" in request.fixturenames:
        request.getfixturevalue("served")
    with opened_tab(browser) as opened:
        yield opened


@pytest.fixture
def served(path: Path) -> Iterator[str]:
    """The address of the pages of the store."""
    app = make_app(path)
    app.state.view.index.build()
    with serving(app) as address:
        yield address


@pytest.fixture
def entries(path: Path) -> Iterator[dict[str, Entry]]:
    """The answers by the ids of their requests."""
    with open_store(path) as store:
        yield {entry.request_id: entry for entry in store.entries()}
