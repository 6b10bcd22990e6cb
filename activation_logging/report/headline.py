"""The finding in a sentence or two, and the rows of the report's table that they compare."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    Row = Mapping[str, Any]

CHANCE = 0.5
"""The AUROC of a detector that tells nothing."""


def headline(document: Mapping[str, Any]) -> str:
    """The finding: how good the probe is, before the answer too, and what does as well without it.

    The probe is compared with the best control, and the control leads the sentence where it wins.
    Nothing "tells" the classes where the interval of its AUROC reaches down to chance.
    The last sentence is about the state before the first word of the answer. It is compared with
    the best control that has read no more than that, and then with the best of all. There is one
    sentence alone where that state was found to be the best and no control wins.
    """
    probe, before = main_probe(document), probe_before_answer(document)
    if not probe["before_answer"]:
        return " ".join([_first(document, probe), *([_before(document, before)] if before else ())])
    if _verdict(probe["over_best_control"]) == "less":
        return f"{_first(document, probe)} {_before(document, probe)}"
    return (
        f"Before the first word, a linear probe {_tells(document, probe)}"
        f"{_beside_both(document, probe)}."
    )


def _first(document: Mapping[str, Any], probe: Row) -> str:
    control, over = best_control(document), _verdict(probe["over_best_control"])
    if control is None or over is None:
        return f"A linear probe {_tells(document, probe)}."
    if over == "less":
        return (
            f"A control, {_named(control)}, {_tells(document, control)}, more than a linear "
            f"probe ({_auroc(probe)})."
        )
    return f"A linear probe {_tells(document, probe)}, {_than(over)} {_best(control)}."


def _before(document: Mapping[str, Any], probe: Row) -> str:
    compared = _beside_both(document, probe)
    return f"Before the first word, a probe reaches {_auroc(probe)}{compared}."


def _tells(document: Mapping[str, Any], row: Row) -> str:
    data, low = document["data"], row["auroc"]["low"]
    classes = f"{data['positive']} from {data['negative']} answers"
    if low is not None and low <= CHANCE:
        return f"does not clearly tell {classes}: its AUROC is {_auroc(row)}"
    return f"tells {classes} with AUROC {_auroc(row)}"


def _beside_both(document: Mapping[str, Any], probe: Row) -> str:
    """How a probe before the answer compares with what has read as much, and with the best."""
    best, prompt = best_control(document), prompt_control(document)
    over_best, over_prompt = _verdict(probe["over_best_control"]), _verdict(probe["over_prompt"])
    parts = []
    if prompt is not None and over_prompt is not None and prompt is not best:
        parts.append(f"{_than(over_prompt)} {_named(prompt)} ({_auroc(prompt)})")
    if best is not None and over_best is not None:
        reads = "" if best["before_answer"] else ", which reads the answer"
        parts.append(f"{_than(over_best)} {_best(best)}{reads}")
    return f", {' and '.join(parts)}" if parts else ""


def _verdict(over: Mapping[str, float | None] | None) -> str | None:
    """``more``, ``less`` or ``tie``; None where nothing was measured."""
    if over is None or over["low"] is None or over["high"] is None:
        return None
    return "more" if over["low"] > 0 else "less" if over["high"] < 0 else "tie"


def _than(verdict: str) -> str:
    return "not clearly different from" if verdict == "tie" else f"{verdict} than"


def _best(control: Row) -> str:
    return f"the best control ({_named(control)}, {_auroc(control)})"


def _auroc(row: Row) -> str:
    return f"{row['auroc']['value']:.2f}"


def _named(row: Row) -> str:
    """A title as it stands within a sentence, without what is in brackets."""
    title: str = row["title"].partition(" (")[0]
    name = f"{title[:1].lower()}{title[1:]}"
    what, only, rest = name.partition(" only")
    return f"the {what} alone" if only and not rest else name


def main_probe(document: Mapping[str, Any]) -> Row:
    """The first probe of the table: the linear one, where each fold's validation part chose."""
    return next(row for row in document["detectors"] if row["role"] == "probe")


def probe_before_answer(document: Mapping[str, Any]) -> Row | None:
    """The first other probe that has read no token of the answer."""
    rows = [row for row in document["detectors"] if row["role"] == "probe"]
    return next((row for row in rows[1:] if row["before_answer"]), None)


def text_control(document: Mapping[str, Any]) -> Row | None:
    """The control that ``over_text`` compares with: the one row without such a comparison."""
    rows = [row for row in document["detectors"] if row["over_text"] is None]
    return rows[0] if len(rows) == 1 else None


def best_control(document: Mapping[str, Any]) -> Row | None:
    """The control that ``over_best_control`` compares with."""
    return _row(document, document["trust"]["best_control"])


def prompt_control(document: Mapping[str, Any]) -> Row | None:
    """The control that ``over_prompt`` compares with; it has read nothing of the answer."""
    return _row(document, document["trust"]["prompt_control"])


def _row(document: Mapping[str, Any], name: str | None) -> Row | None:
    return next((row for row in document["detectors"] if row["name"] == name), None)
