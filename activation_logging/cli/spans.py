"""The spans of an answer that were judged, in its text and as a list."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.text import Text

from activation_logging.cli.rendering import as_row, shorten, table
from activation_logging.errors import InputMissing, LabelError
from activation_logging.printable import lines
from activation_logging.records import Span

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from activation_logging.store import Entry

# Of spans that overlap, the first of these gives the colour.
_STYLES = {"contradicted": "red", "unverifiable": "yellow", "supported": "green"}
_TEXT = 40


class Judged(NamedTuple):
    """A span, and the evaluator that judged it."""

    evaluator: str
    span: Span


def judged_spans(entry: Entry) -> list[Judged]:
    """The spans of all evaluators, in the order of the text; a longer one before those within."""
    found = [
        Judged(name, span) for name, label in entry.evaluations.items() for span in label.spans
    ]
    return sorted(found, key=lambda one: (one.span.start, -one.span.end))


def marked(response: str, spans: Sequence[Judged], *, styled: bool) -> Text:
    """The text of an answer with its spans underlined, coloured by their labels.

    Without ``styled`` they stand between marks with their number in the list, from 1:
    ``born in [1>1867<1]``.
    """
    begins: dict[int, list[int]] = {}
    ends: dict[int, list[int]] = {}
    for number, (_, span) in enumerate(spans):
        begins.setdefault(span.start, []).append(number)
        ends.setdefault(span.end, []).append(number)
    within: Counter[str] = Counter()
    shown, at = Text(), 0
    for place in sorted({*begins, *ends, len(response)}):
        color = next((_STYLES[label] for label in _STYLES if within[label]), None)
        style = f"underline {color}" if styled and color else ""
        shown.append(lines(response[at:place]), style)
        at = place
        for number in reversed(ends.get(place, ())):
            within[spans[number].span.label] -= 1
            shown.append("" if styled else f"<{number + 1}]")
        for number in begins.get(place, ()):
            within[spans[number].span.label] += 1
            shown.append("" if styled else f"[{number + 1}>")
    return shown


def spans_table(response: str, spans: Sequence[Judged]) -> Table:
    """What each span claims, whether it is so, and what would be right."""
    made = table(">", "span of", "characters", "label", "text", "claim", "gold", "source")
    for number, (evaluator, span) in enumerate(spans, 1):
        place = f"{span.start} to {span.end}"
        text = shorten(response[span.start : span.end], _TEXT)
        label = Text(span.label, style=_STYLES[span.label])
        said = (span.claim or "", span.gold or "", span.source or "")
        made.add_row(*as_row((number, evaluator, place, label, text, *said)))
    return made


def as_records(entry: Entry) -> list[dict[str, Any]]:
    """The spans for JSON, with their text and the indices of the response tokens they touch.

    ``tokens`` is None where the places of the tokens are not known.
    """
    response = entry.response
    return [
        {
            "evaluator": name,
            **span.as_json(),
            "text": response[span.start : span.end],
            "tokens": _tokens(entry, span),
        }
        for name, span in judged_spans(entry)
    ]


def _tokens(entry: Entry, span: Span) -> list[int] | None:
    try:
        return [int(index) for index in entry.span_tokens(span)]
    except (InputMissing, LabelError):
        return None
