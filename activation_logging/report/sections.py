"""The sections of the page, each a function of the document."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from activation_logging.report.tokens import KINDS
from activation_logging.report.wording import find, ranges, stacked

if TYPE_CHECKING:
    from collections.abc import Mapping

CONTROLS = ("length", "text_only", "prompt_only")


def detectors(document: Mapping[str, Any]) -> str:
    text = find(document, "text_only")
    mark = text["auroc"]["value"] if text else None
    rows = "".join(_detector_row(row, mark) for row in document["detectors"])
    left_out = "".join(
        f"<li><b>{escape(name)}</b> left out: {escape(reason)}.</li>"
        for name, reason in document["detectors_left_out"].items()
    )
    return (
        '<h2 id="detectors">Detectors</h2>'
        "<p>Every answer was scored by detectors that were fitted on answers about other things. "
        "Below each figure stands its 95 % interval. The dashed line is the text-only control: a "
        "probe that does no better has only learned which words go with which label.</p>"
        '<div class="card scroll"><table><thead><tr><th>Detector</th><th>Where</th>'
        '<th class="number">AUROC</th><th>0.4 to 1</th><th class="number">Over text</th>'
        '<th class="number">AUPRC</th><th class="number">Accuracy</th><th class="number">ECE</th>'
        f"</tr></thead><tbody>{rows}</tbody></table></div>"
        + (f'<ul class="plain soft">{left_out}</ul>' if left_out else "")
    )


def _detector_row(row: Mapping[str, Any], mark: float | None) -> str:
    over, better = "", ""
    if row["over_text"]:
        low = row["over_text"]["low"]
        better = "better" if low is not None and low > 0 else "worse"
        over = stacked(row["over_text"], signed=True)
    control = ' class="control"' if row["name"] in CONTROLS else ""
    where = ""
    if row["layer"]:
        plural = "s" if "," in row["layer"] else ""
        where = f"layer{plural} {escape(row['layer'])}<small>{escape(row['position'])}</small>"
    return (
        f"<tr{control}><td><b>{escape(row['title'])}</b><small>{escape(row['source'])}</small></td>"
        f"<td>{where}</td>"
        f'<td class="number">{stacked(row["auroc"])}</td>'
        f"<td>{_whisker(row['auroc'], mark)}</td>"
        f'<td class="number {better}">{over}</td><td class="number">{stacked(row["auprc"])}</td>'
        f'<td class="number">{stacked(row["accuracy"])}</td>'
        f'<td class="number">{stacked(row["ece"])}</td></tr>'
    )


def _whisker(interval: Mapping[str, float | None], mark: float | None) -> str:
    """A dot with its interval on an axis from 0.4 to 1, drawn without any script."""

    def at(value: float | None) -> float:
        return round(150 * (min(max(value or 0.0, 0.4), 1.0) - 0.4) / 0.6, 1)

    value, low, high = (at(interval[name]) for name in ("value", "low", "high"))
    line = f'<line class="text" x1="{at(mark)}" x2="{at(mark)}" y1="0" y2="18"/>' if mark else ""
    return (
        f'<svg class="whisker" viewBox="0 0 150 18" aria-hidden="true">'
        f'<line x1="0" x2="150" y1="9" y2="9"/>{line}'
        f'<line class="bar" x1="{low}" x2="{high}" y1="9" y2="9"/>'
        f'<circle cx="{value}" cy="9" r="4"/></svg>'
    )


def where(document: Mapping[str, Any]) -> str:
    place = document["place"]
    left_out = "".join(
        f"<li><b>{escape(name)}</b> left out: {escape(reason)}.</li>"
        for name, reason in document["positions_left_out"].items()
    )
    return (
        '<h2 id="where">Where in the network, where in the answer</h2>'
        f"<p>A linear probe at every layer and position. On average over the validation parts, "
        f"<b>layer {place['layer']}</b> at <b>{escape(str(place['position']))}</b> is best. "
        f"Layer 0 is the embedding, layer {document['data']['num_layers']} comes after the final "
        "norm.</p>"
        '<div class="card"><div data-chart="layers" id="layers"></div></div>'
        '<div class="card"><div data-chart="sweep" id="sweep"></div></div>'
        + (f'<ul class="plain soft">{left_out}</ul>' if left_out else "")
    )


def curves(_document: Mapping[str, Any]) -> str:
    return (
        '<h2 id="curves">Curves</h2><p class="note">Averaged over the test folds.</p>'
        '<div class="pair"><div class="card"><h3>ROC</h3>'
        '<div data-chart="roc" id="roc"></div></div>'
        '<div class="card"><h3>Precision and recall</h3>'
        '<div data-chart="precision-recall" id="precision-recall"></div></div></div>'
    )


def scores(document: Mapping[str, Any]) -> str:
    options = "".join(
        f'<option value="{row["name"]}">{escape(row["title"])}</option>'
        for row in document["detectors"]
    )
    first = document["detectors"][0]["name"]
    return (
        '<h2 id="scores">Scores and calibration</h2>'
        f'<p><label>Detector <select id="which">{options}</select></label></p>'
        '<div class="pair"><div class="card"><h3>Scores by label</h3>'
        f'<div data-chart="histogram/{first}" id="histogram"></div></div>'
        '<div class="card"><h3>Calibration</h3>'
        f'<div data-chart="calibration/{first}" id="calibration"></div></div></div>'
    )


def pca(document: Mapping[str, Any]) -> str:
    place = document["place"]
    return (
        '<h2 id="map">The two classes on a map</h2>'
        f'<p class="note">First two principal components of layer {place["layer"]}, '
        f"{escape(str(place['position']))}, standardised. Nothing here is fitted to the labels.</p>"
        '<div class="card"><div data-chart="pca" id="pca"></div></div>'
    )


def transfer(document: Mapping[str, Any]) -> str:
    transfer = document["transfer"]
    head = '<h2 id="transfer-section">Transfer</h2>'
    if "values" not in transfer:
        return f'{head}<p class="soft">Left out: {escape(transfer["left_out"])}.</p>'
    shared = sum(map(sum, transfer["shared_entities_left_out"]))
    notes = [f"The tag is <code>{escape(transfer['tag'])}</code>; the diagonal is cross-validated."]
    if shared:
        notes.append(
            f"{shared} times an answer was left out of a fit because what it is about is in the "
            "test part too."
        )
    notes += [
        f"{escape(value)} left out: {escape(reason)}."
        for value, reason in transfer["values_left_out"].items()
    ]
    return (
        f"{head}<p>Fitted on one kind of question, tested on another: a probe that has learned "
        "what a hallucination is should pass. Below 0.5 it says the opposite of what is right.</p>"
        '<div class="card"><div data-chart="transfer" id="transfer"></div></div>'
        f'<p class="note">{" ".join(notes)}</p>'
    )


def answers(document: Mapping[str, Any]) -> str:
    data = document["data"]
    parts = [
        "<h2>Answers, token by token</h2>",
        (
            "<p>Every token is coloured by the probe at its own state; point at one for its "
            "numbers. The probe of each answer was fitted without it.</p>"
        ),
        (
            f'<p class="note">{escape(data["negative"])}<span class="scale"></span>'
            f"{escape(data['positive'])}</p>"
        ),
    ]
    for kind, title in KINDS.items():
        examples = [example for example in document["tokens"] if example["kind"] == kind]
        named = title.replace("a positive", f"a {data['positive']}")
        named = named.replace("a negative", f"a {data['negative']}")
        if examples:
            parts.append(f"<h3>{escape(named)}</h3>")
            parts.extend(_answer(example, data["positive"]) for example in examples)
    return f'<section id="answers">{"".join(parts)}</section>'


def _answer(example: Mapping[str, Any], positive: str) -> str:
    side = "positive" if example["label"] == positive else "negative"
    expected = (
        f"<span>expected: {escape(example['expected'])}</span>" if example["expected"] else ""
    )
    notes = []
    if not example["texts_logged"]:
        notes.append("The texts of the tokens were not logged; their ids are shown.")
    if example["cut"]:
        notes.append("Only the first tokens are shown.")
    return (
        f'<article class="card answer"><header><span class="badge {side}">'
        f"{escape(example['label'])}</span><span>probe {example['probability']:.3f}</span>"
        f'{expected}<span class="mono">{example["key"][:12]}</span></header>'
        f'<p class="question">{escape(example["question"])}</p>'
        f'<p class="said">{"".join(map(_token, example["tokens"]))}</p>'
        + "".join(f'<p class="note">{note}</p>' for note in notes)
        + "</article>"
    )


def _token(token: Mapping[str, Any]) -> str:
    score, logprob = token["score"], token["logprob"]
    data = "" if logprob is None else f' data-logprob="{logprob}"'
    text = escape(token["text"])
    if score is None:
        return f'<span class="token none" tabindex="0"{data}>{text}</span>'
    side = "positive" if score >= 0.5 else "negative"
    strength = round(0.75 * abs(2 * score - 1), 3)
    return (
        f'<span class="token" tabindex="0" data-score="{score}"{data} '
        f'style="background:rgba(var(--{side}),{strength})">{text}</span>'
    )


def method(document: Mapping[str, Any]) -> str:
    data, provenance = document["data"], document["provenance"]
    columns = list(document["folds"][0])
    head = "".join(f'<th class="number">{escape(column)}</th>' for column in columns)
    folds = "".join(
        f"<tr><td>{number}</td>"
        + "".join(f'<td class="number">{fold[column]}</td>' for column in columns)
        + f"<td>layer {cell['layer']}, {escape(str(cell['position']))}</td></tr>"
        for number, (fold, cell) in enumerate(
            zip(document["folds"], document["chosen"], strict=True)
        )
    )
    facts = {
        "Answers": f"{data['answers']:,} about {data['entities']:,} things (grouped by "
        + ", ".join(f"{name}: {count}" for name, count in data["grouped_by"].items())
        + ")",
        "Left out": ", ".join(f"{count:,} {why}" for why, count in data["left_out"].items())
        or "none",
        "States": f"layers {ranges(data['layers'])} of {data['hidden_size']} numbers, "
        + ", ".join(data["dtypes"]),
        "Split": (
            f"{provenance['folds']} folds, grouped by what the answer is about, stratified by "
            f"class, seed {provenance['seed']}. Layer, position and threshold come from a "
            "validation part inside each training side"
        ),
        "Figures": (
            "AUROC and AUPRC compare answers within a test fold; accuracy at the threshold with "
            "the best F1 on the validation part; ECE over 10 bins. Intervals: percentiles of "
            f"{provenance['bootstrap_draws']:,} bootstrap draws of whole groups"
        ),
        "Made with": ", ".join(
            f"{name} {provenance[name]}"
            for name in ("activation-logging", "python", "numpy", "scipy", "scikit-learn", "plotly")
            if provenance[name]
        ),
    }
    rows = "".join(
        f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in facts.items()
    )
    return (
        '<h2 id="method">Data and method</h2>'
        f'<div class="card scroll"><table><tbody>{rows}</tbody></table></div>'
        '<div class="card scroll"><table><thead><tr><th>Fold</th>'
        f"{head}<th>chosen place</th></tr></thead><tbody>{folds}</tbody></table></div>"
    )
