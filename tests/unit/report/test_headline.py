"""The headline says which of probe and controls is better, whoever wins."""

from __future__ import annotations

import copy

import pytest

from activation_logging.report.headline import headline

MORE = {"value": 0.1, "low": 0.05, "high": 0.2}
LESS = {"value": -0.1, "low": -0.2, "high": -0.05}
TIE = {"value": 0.0, "low": -0.1, "high": 0.1}
UNKNOWN = {"value": 0.1, "low": None, "high": None}


def row(name, title, auroc, role="control", over_best=None, over_prompt=None, before=False):
    return {
        "name": name,
        "title": title,
        "role": role,
        "auroc": {"value": auroc, "low": auroc - 0.03, "high": auroc + 0.03},
        "over_best_control": over_best,
        "over_prompt": over_prompt,
        "over_text": None,
        "before_answer": before,
    }


def document(over, before_over_best=TIE, before_over_prompt=TIE, *, best="text_only"):
    return {
        "data": {"positive": "hallucinated", "negative": "correct"},
        "trust": {"best_control": best, "prompt_control": "prompt_only"},
        "detectors": [
            row("linear_probe", "Linear probe", 0.812, "probe", over),
            row(
                *("linear_probe_before", "Linear probe, before the answer", 0.734, "probe"),
                *(before_over_best, before_over_prompt, True),
            ),
            row("saplma", "SAPLMA network", 0.99, "probe", MORE),
            row("mean_logprob", "Mean log-probability", 0.7, "signal", TIE),
            row("text_only", "Text only (TF-IDF of prompt and answer)", 0.756),
            row("prompt_only", "Prompt only (TF-IDF of its words)", 0.543, before=True),
        ],
    }


BEST = "the best control (the text alone, 0.76)"


PROBE = "A linear probe tells hallucinated from correct answers with AUROC 0.81"
CONTROL = "A control, the text alone, tells hallucinated from correct answers with AUROC 0.76"


@pytest.mark.parametrize(
    ("over", "first"),
    [
        (MORE, f"{PROBE}, more than {BEST}."),
        (TIE, f"{PROBE}, not clearly different from {BEST}."),
        (LESS, f"{CONTROL}, more than a linear probe (0.81)."),
        (UNKNOWN, f"{PROBE}."),
        (None, f"{PROBE}."),
    ],
    ids=["probe wins", "tie", "control wins", "no interval", "no control"],
)
def test_the_first_sentence_names_the_best_control(over, first):
    found = headline(document(over))
    assert found.startswith(f"{first} Before the first word, a probe reaches 0.73, ")


@pytest.mark.parametrize(
    ("over_prompt", "over_best", "said"),
    [
        (MORE, MORE, "more than the prompt alone (0.54) and more than "),
        (MORE, LESS, "more than the prompt alone (0.54) and less than "),
        (TIE, LESS, "not clearly different from the prompt alone (0.54) and less than "),
        (LESS, LESS, "less than the prompt alone (0.54) and less than "),
    ],
    ids=["probe wins", "answer helps the control", "tie", "control wins only before"],
)
def test_the_last_sentence_compares_with_what_has_read_as_much(over_prompt, over_best, said):
    found = headline(document(MORE, over_best, over_prompt))
    assert "A linear probe tells hallucinated" in found
    last = found.partition(" Before ")[2]
    assert last == f"the first word, a probe reaches 0.73, {said}{BEST}, which reads the answer."


def test_a_log_probability_may_be_the_best_control():
    found = headline(document(LESS, best="mean_logprob"))
    assert found.startswith("A control, mean log-probability, tells ")
    assert "with AUROC 0.70, more than a linear probe" in found


def test_the_prompt_is_named_once_where_it_is_the_best_control():
    found = headline(document(MORE, MORE, MORE, best="prompt_only"))
    assert found.endswith(
        "a probe reaches 0.73, more than the best control (the prompt alone, 0.54)."
    )


def test_without_a_state_before_the_answer_there_is_one_sentence():
    made = document(MORE)
    del made["detectors"][1]
    assert headline(made).count("AUROC") == 1
    assert "Before" not in headline(made)


@pytest.mark.parametrize(("over", "won"), [(MORE, "more"), (TIE, "not clearly"), (LESS, "less")])
def test_the_best_place_may_be_before_the_answer(over, won):
    made = copy.deepcopy(document(over))
    made["detectors"][0].update(before_answer=True, over_prompt=MORE)
    found = headline(made)
    assert found.count("efore the first word") == 1
    if won == "less":
        assert found.startswith("A control, the text alone, tells ")
        assert " Before the first word, a probe reaches 0.81, more than the prompt alone" in found
    else:
        start = "Before the first word, a linear probe tells hallucinated from correct answers with"
        assert found.startswith(f"{start} AUROC 0.81, more than the prompt alone (0.54) and {won}")


@pytest.mark.parametrize("first", [True, False], ids=["reads the answer", "before the answer"])
def test_at_chance_nothing_is_told(first):
    made = document(TIE)
    made["detectors"][0]["auroc"] = {"value": 0.53, "low": 0.48, "high": 0.58}
    made["detectors"][0].update(before_answer=not first, over_prompt=TIE)
    said = "a linear probe does not clearly tell hallucinated from correct answers: its AUROC is"
    found = headline(made)
    assert f"{said} 0.53, not clearly different from" in found[:1].lower() + found[1:]
    assert " tells " not in found


def test_without_controls_nothing_is_compared():
    made = document(None, None, None, best=None)
    made["trust"]["prompt_control"] = None
    assert headline(made) == f"{PROBE}. Before the first word, a probe reaches 0.73."
