"""The finding in one sentence, and the rows of the report's table that it compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = Mapping[str, Any]


def headline(document: Mapping[str, Any]) -> str:
    """The finding in one sentence: how good the probe is, and whether the words alone tell less."""
    probe, text = main_probe(document), text_control(document)
    data, over = document["data"], probe["over_text"]
    sentence = (
        f"A linear probe tells {data['positive']} from {data['negative']} answers with AUROC "
        f"{probe['auroc']['value']:.2f}"
    )
    if text is None or over is None or over["low"] is None:
        return f"{sentence}."
    alone = f"{text['auroc']['value']:.2f}"
    if over["low"] > 0:
        return f"{sentence}, more than the words alone tell ({alone})."
    if over["high"] < 0:
        return f"{sentence}, less than the words alone tell ({alone})."
    return f"{sentence}, not clearly different from what the words alone tell ({alone})."


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
