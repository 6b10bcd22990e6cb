"""From a mark to the entries of the answer that it is about: by id, else by the text itself."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from typing import TYPE_CHECKING

from activation_logging.progress import Progress, silent
from activation_logging.store import layout

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from activation_logging.benchmarks.elsewhere.marks import Mark
    from activation_logging.benchmarks.entries import Found, Labels

_ID = "request id"


class NotJoinedError(Exception):
    """No entry is the one that a mark is about; the text is the reason."""


class Joiner:
    """Finds the entries of answers.

    All entries are read once when a prompt is no key: of a chat, others know the question only.
    """

    def __init__(self, labels: Labels, progress: Progress = silent) -> None:
        self._labels = labels
        self._progress = progress
        self._asked: dict[bytes, list[str]] | None = None

    def entries(self, mark: Mark) -> list[Found]:
        """The entries that hold the judged answer: one, or several that hold the same text.

        Raises:
            NotJoinedError: there are none, or several and nothing tells which.
        """
        tried: list[str] = []
        refused: NotJoinedError | None = None
        for way, found in self._ways(mark):
            tried.append(way)
            try:
                if found:
                    return _chosen(found, mark)
            except NotJoinedError as error:
                # An id is certain; a prompt may be a chat's question and another's whole prompt.
                if way == _ID or mark.response is None:
                    raise
                refused = refused or error
        if refused is not None:
            raise refused
        if not tried:
            raise NotJoinedError("nothing in it says which answer it is about")
        raise NotJoinedError(f"no entry has this {' or '.join(tried)}")

    def _ways(self, mark: Mark) -> Iterator[tuple[str, list[Found]]]:
        """What the answer can be looked up by, and what is found, the surest first."""
        known = False
        if mark.request_id is not None:
            known = True
            yield _ID, self._labels.find(mark.request_id)
        if mark.key is not None:
            known = True
            found = self._labels.of_key(mark.key)
            # A key is that of the first answer to its prompt, too: it is meant if no text is given.
            named = [one for one in found if one.key == mark.key and mark.response is None]
            yield "key", named or found
        # The id of another answer must not label this one: its text must be the judged one.
        if mark.prompt is not None and (mark.response is not None or not known):
            exact = self._labels.of_key(layout.prompt_key(mark.prompt))
            if exact:
                yield "prompt", exact
            yield "prompt", self._answers_to(mark.prompt)

    def _answers_to(self, question: str) -> list[Found]:
        if self._asked is None:
            self._asked = defaultdict(list)
            for asked, key in self._labels.questions(self._progress):
                self._asked[_digest(asked)].append(key)
        keys = self._asked.get(_digest(question), ())
        prompts = dict.fromkeys(key.partition("#")[0] for key in keys)
        return [found for prompt in prompts for found in self._labels.of_key(prompt)]


def _chosen(found: Sequence[Found], mark: Mark) -> list[Found]:
    """Those of some entries that hold the judged answer."""
    whole = [one for one in found if one.whole]
    if not whole:
        raise NotJoinedError(f"its answer ended with {found[0].finish_reason!r}")
    if mark.choice is not None and len(whole) > 1:
        whole = [one for one in whole if one.choice == mark.choice]
        if not whole:
            raise NotJoinedError(f"its request has no choice {mark.choice}")
    if mark.response is not None:
        whole = [one for one in whole if one.says(mark.response)]
        if not whole:
            raise NotJoinedError("its entry holds another text")
    if len({one.response for one in whole}) > 1:
        raise NotJoinedError(f"it has {len(whole)} answers; say which by its `response`")
    return whole


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
