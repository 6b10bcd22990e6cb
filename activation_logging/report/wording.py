"""Figures in words: how the page writes a number, and the finding in one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

MINUS = "\N{MINUS SIGN}"


def headline(document: Mapping[str, Any]) -> str:
    """The finding in one sentence: the probe, and whether it knows more than the words do."""
    probe, text = detector(document, "linear_probe"), find(document, "text_only")
    data = document["data"]
    sentence = (
        f"A linear probe tells {data['positive']} from {data['negative']} answers with AUROC "
        f"{probe['auroc']['value']:.2f}"
    )
    over = probe["over_text"]
    if over is None or over["low"] is None or text is None:
        return f"{sentence}."
    alone = f"{text['auroc']['value']:.2f}"
    if over["low"] > 0:
        return f"{sentence}, more than the words alone tell ({alone})."
    if over["high"] < 0:
        return f"{sentence}, less than the words alone tell ({alone})."
    return f"{sentence}, not clearly different from what the words alone tell ({alone})."


def detector(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = find(document, name)
    assert found is not None, name
    return found


def find(document: Mapping[str, Any], name: str) -> Mapping[str, Any] | None:
    return next((row for row in document["detectors"] if row["name"] == name), None)


def ranges(numbers: list[int]) -> str:
    """``0-3, 7``: consecutive numbers as ranges."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts)


def stacked(interval: Mapping[str, float | None], *, signed: bool = False) -> str:
    """The figure, and below it in small its interval."""
    value, low, high = interval["value"], interval["low"], interval["high"]
    sign = "+" if signed else ""
    if value is None:
        return ""
    text = f"{value:{sign}.3f}"
    if low is not None and high is not None:
        text += f"<small>{low:{sign}.3f} to {high:{sign}.3f}</small>"
    return text.replace("-", MINUS)
