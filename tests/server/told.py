"""What clients are told of scores, asked as clients ask, and held against what is stored."""

from __future__ import annotations

from typing import Any

import numpy as np
from openai import OpenAI

from activation_logging import Entry
from tests.fixtures.server import RunningServer

ALL = {"activation_scores": "all"}
SHOWN = ("token", "layer", "pool", "mean", "prompt")
"""The probes of every server; see :mod:`tests.server.live`."""
KNOW_PROMPT = frozenset({"token", "layer", "prompt"})

Told = dict[str, dict[str, Any]]


def client(server: RunningServer) -> OpenAI:
    return OpenAI(base_url=server.base_url, api_key=server.key or "none", max_retries=0)


def asking(stop: Any = None, **options: Any) -> dict[str, Any]:
    """The extra body of a request that asks for all scores."""
    arguments = ALL if stop is None else {**ALL, "activation_stop": stop}
    return {"vllm_xargs": arguments, **options}


class Stream:
    """A streamed answer, put together again.

    Attributes:
        told: the scores of each choice.
        chunks: of each choice, how many tokens had a score after each chunk.
        tokens: how many there were, of an answer with ``return_token_ids``.
        reasons: ``finish_reason`` and ``stop_reason`` of each choice.
    """

    def __init__(self, chunks: Any) -> None:
        self.id = ""
        self.told: dict[int, Told] = {}
        self.chunks: dict[int, list[int]] = {}
        self.tokens: dict[int, list[int]] = {}
        self.texts: dict[int, str] = {}
        self.reasons: dict[int, tuple[str, Any]] = {}
        for chunk in chunks:
            self.id = chunk.id
            for choice in chunk.choices:
                self._take(choice)

    def _take(self, choice: Any) -> None:
        index, delta = choice.index, getattr(choice, "delta", None)
        text = choice.text if delta is None else delta.content
        self.texts[index] = self.texts.get(index, "") + (text or "")
        told = self.told.setdefault(index, {name: {"tokens": []} for name in SHOWN})
        scores = choice.model_extra["activation_scores"]
        assert scores.keys() == told.keys()
        for name, found in scores.items():
            assert "prompt" not in told[name] or "prompt" not in found, "told twice"
            assert ("answer" in found) == (choice.finish_reason is not None)
            tokens = told[name]["tokens"] + found["tokens"]
            told[name] |= {**found, "tokens": tokens}
        assert all("prompt" in one for one in told.values()), "the first chunk lacks it"
        self.chunks.setdefault(index, []).append(len(told["token"]["tokens"]))
        ids = choice.model_extra.get("token_ids") or ()
        tokens = self.tokens.setdefault(index, [])
        tokens.append(len(ids) + (tokens[-1] if tokens else 0))
        if choice.finish_reason is not None:
            self.reasons[index] = choice.finish_reason, choice.model_extra.get("stop_reason")


def check_told(told: Told, entry: Entry) -> None:
    """Hold what a client was told against the scores that its entry has.

    Raises:
        AssertionError: a number differs, or is not where it should be.
    """
    assert list(told) == list(SHOWN)
    prompt, response = entry.num_tokens
    first, stored = int(entry.positions[0]), entry.scores
    for name, scores in told.items():
        assert scores.keys() == {"prompt", "tokens", "answer"}
        assert len(scores["tokens"]) == response, (name, scores, entry.key)
        at = dict(enumerate(stored[name], first))
        _same(scores["tokens"], [at.get(prompt + i, np.nan) for i in range(response)], name)
        before = at[prompt - 1] if name in KNOW_PROMPT else np.nan
        _same([scores["prompt"]], [before], name)
        own = stored[name][np.isfinite(stored[name])]
        if name in {"token", "layer"}:
            own = own[1:]
        _same([scores["answer"]], [own.max() if len(own) else np.nan], name)


def _same(told: Any, stored: Any, name: str) -> None:
    numbers = np.array([np.nan if one is None else one for one in told])
    # JSON has the float32 as it is stored, and no digit is lost on the way.
    assert np.array_equal(numbers, np.array(stored, np.float64), equal_nan=True), (name, told)
