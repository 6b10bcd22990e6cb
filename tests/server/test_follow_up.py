"""Follow-up questions on a real server: logged, tagged, asked once, and read back as numbers."""

from __future__ import annotations

import math
from typing import Any

import pytest

from activation_logging.detectors.follow_ups import (
    CHAT_END,
    FollowUps,
    Subject,
    is_follow_up,
    question_about,
)
from activation_logging.detectors.samples import Samples, samples_to
from activation_logging.follow_up import ask_follow_ups
from activation_logging.store.query import select

TAGS = {"dataset": "follow-up"}


@pytest.fixture(scope="module")
def answers(server: Any) -> list[str]:
    """The keys of six answers to a chat and of one to a completion."""
    xargs = {"vllm_xargs": {"activation_tags": TAGS}}
    chat = server.chat("Name a city in Italy.", n=6, temperature=1.2, seed=3, **xargs)
    plain = server.complete("The capital of Peru is", max_tokens=5, **xargs)
    return [entry.key for said in (chat, plain) for entry in server.entries_of(said)]


def test_p_true(server: Any, answers: list[str]) -> None:
    first = ask_follow_ups(server.lmdb_path, "p_true", base_url=server.base_url, tags=TAGS)
    again = ask_follow_ups(server.lmdb_path, "p_true", base_url=server.base_url, tags=TAGS)
    with server.store() as store:
        entries = [store[key] for key in answers]
        texts = {(entry.prompt, entry.response): entry for entry in entries}
        assert (first.subjects, first.asked, first.failures) == (len(texts), len(texts), [])
        assert (again.known, again.asked) == (len(texts), 0)
        follow_ups = FollowUps(store)
        for entry in texts.values():
            logged = [
                found
                for found in select(store, tags={"kind": "p_true"})
                if found.tags["about"] == entry.key
            ]
            assert len(logged) == 1
            assert logged[0].status == "complete"
            # The state from which the word comes, and no other.
            assert len(logged[0].positions) == 1
            assert is_follow_up(logged[0].tags)
            assert not logged[0].evaluations
            if entry.messages is not None:
                # Nobody's question has become an answer to the first one.
                assert len(samples_to(store, entry.prompt, server.model)) == 6
                text = question_about("p_true", [entry]) + CHAT_END
                wanted = share_by_texts(server, text)
                found = follow_ups.probability("p_true", Subject.of(entry), server.model)
                assert found == pytest.approx(wanted, abs=1e-4)


def share_by_texts(server: Any, text: str) -> float | None:
    """P(True) by the tokens' texts, as any client can compute it."""
    said = server.chat(text, max_tokens=1, logprobs=True, top_logprobs=20)
    share = {"true": 0.0, "false": 0.0}
    for top in said["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
        word = top["token"].strip(" (")
        word = {"A": "true", "B": "false"}.get(word, word.lower())
        if word in share and "\n" not in top["token"]:
            share[word] += math.exp(top["logprob"])
    total = sum(share.values())
    return share["true"] / total if total else None


def test_which_answers_mean_the_same(server: Any, answers: list[str]) -> None:
    first = ask_follow_ups(server.lmdb_path, "entails", base_url=server.base_url, tags=TAGS)
    assert (first.subjects, first.failures) == (1, [])
    assert first.asked > 0
    again = ask_follow_ups(server.lmdb_path, "entails", base_url=server.base_url, tags=TAGS)
    assert (again.known, again.asked) == (1, 0)
    with server.store() as store:
        entries = [store[key] for key in answers if store[key].messages is not None]
        groups = Samples(entries, 1, follow_ups=FollowUps(store)).groups
        assert sorted(place for group in groups for place in group) == list(range(6))
        for entry in select(store, tags={"kind": "entails"}):
            assert {entry.tags["about"], entry.tags["beside"]} <= set(answers)
