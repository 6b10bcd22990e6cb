"""Which characters of a short answer are the answer given, where no list knows it.

"The capital city of Jordan is Amiya Palace." answers "Amiya Palace", and "Laoistan is the capital
city of Laos." answers "Laoistan": the side of the verb that does not say the question again.
"""

from __future__ import annotations

import re

from activation_logging.judges.rules import denies
from activation_logging.text import fold

_SENTENCE = re.compile(r"(?<=[.!?;])(?<!\bSt\.)\s+|\n+")
_VERB = re.compile(
    r"\s+(?:is|was|are|were)(?:\s+(?:called|named|known as|located in|in))?\s+", re.IGNORECASE
)
_CLAUSE = re.compile(r"\s*(?:,\s|\(|;\s|\s[-\u2013\u2014]\s|\b(?:which|who|that|where)\b)")
_AROUND = " \t\r\n.,:;!?\"'*`()[]\u201c\u201d\u2018\u2019"
_SHORT = 3  # letters of words that say nothing of what is asked


def sentences(text: str) -> list[tuple[int, str]]:
    """The sentences of a text, each with its first character's place."""
    starts = [0, *(match.end() for match in _SENTENCE.finditer(text))]
    ends = [*(match.start() for match in _SENTENCE.finditer(text)), len(text)]
    return [(start, text[start:end]) for start, end in zip(starts, ends, strict=True)]


def given_answer(text: str, question: str) -> tuple[int, int]:
    """The place of the answer that the first sentence with a word gives.

    >>> text = "Laoistan is the capital city of Laos."
    >>> text[slice(*given_answer(text, "What is the capital city of Laos?"))]
    'Laoistan'

    Args:
        text: with a letter or a digit somewhere.
        question: what was asked, which the answer may say again.
    """
    start, sentence = next(found for found in sentences(text) if re.search(r"\w", found[1]))
    asked = {word for word in fold(question).split() if len(word) > _SHORT}
    verb = _VERB.search(sentence)
    if verb is None:
        return _trimmed(text, start, start + _clause_end(sentence))
    subject, rest = sentence[: verb.start()], sentence[verb.end() :]
    predicate = rest[: _clause_end(rest)]
    again = [len(asked & set(fold(side).split())) for side in (subject, predicate)]
    if again[1] > again[0]:
        return _trimmed(text, start, start + len(subject))
    return _trimmed(text, start + verb.end(), start + verb.end() + len(predicate))


def given_denial(text: str) -> tuple[int, int]:
    """The place of the sentence that says that there is no such thing; of all, if only they do."""
    found = next((one for one in sentences(text) if denies(one[1])), (0, text))
    return _trimmed(text, found[0], found[0] + len(found[1]))


def _clause_end(sentence: str) -> int:
    """Where the first clause ends; the whole sentence if it has no words before that."""
    match = _CLAUSE.search(sentence)
    return match.start() if match and re.search(r"\w", sentence[: match.start()]) else len(sentence)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Without quotes, blanks and punctuation around it, if anything is left then."""
    part = text[start:end]
    left = len(part) - len(part.lstrip(_AROUND))
    kept = part.strip(_AROUND)
    return (start + left, start + left + len(kept)) if kept else (start, end)
