"""The finding in a sentence or two, and the rows of the report's table that they compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = Mapping[str, Any]


def headline(document: Mapping[str, Any]) -> str:
    """The finding: how good the probe is, before the answer too, and if the words alone tell less.

    The second sentence is about the state before the first word of the answer, which nothing of
    the answer can give away. The first is about that state where it was found to be the best.
    """
    data, text = document["data"], text_control(document)
    probe, before = main_probe(document), probe_before_answer(document)
    is_before = probe["position"] == "prompt_last"
    first = (
        f"{'Before the first word, a' if is_before else 'A'} linear probe tells "
        f"{data['positive']} from {data['negative']} answers with AUROC "
        f"{probe['auroc']['value']:.2f}{_beside_words(probe, text)}."
    )
    if before is None or is_before:
        return first
    auroc = before["auroc"]["value"]
    return f"{first} Before the first word, it is {auroc:.2f}{_beside_words(before, text)}."


def _beside_words(probe: Row, text: Row | None) -> str:
    """How a probe compares with the words; nothing where that was not measured."""
    over = probe["over_text"]
    if text is None or over is None or over["low"] is None:
        return ""
    alone = f"{text['auroc']['value']:.2f}"
    if over["low"] > 0:
        return f", more than the words alone tell ({alone})"
    if over["high"] < 0:
        return f", less than the words alone tell ({alone})"
    return f", not clearly different from what the words alone tell ({alone})"


def main_probe(document: Mapping[str, Any]) -> Row:
    """The first probe of the table: the linear one, where each fold's validation part chose."""
    return next(row for row in document["detectors"] if row["role"] == "probe")


def probe_before_answer(document: Mapping[str, Any]) -> Row | None:
    """The first other probe at ``prompt_last``, which has read no token of the answer."""
    rows = [row for row in document["detectors"] if row["role"] == "probe"]
    return next((row for row in rows[1:] if row["position"] == "prompt_last"), None)


def text_control(document: Mapping[str, Any]) -> Row | None:
    """The control that ``over_text`` compares with: the one row without such a comparison."""
    rows = [row for row in document["detectors"] if row["over_text"] is None]
    return rows[0] if len(rows) == 1 else None
