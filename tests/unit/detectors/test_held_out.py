"""What a study holds out, on real stores: units, lengths, and what cannot be done."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sklearn", reason="the extra 'detect' is not installed")

from activation_logging import open_store
from activation_logging.dataset.examples import select_examples
from activation_logging.detectors import Options
from activation_logging.detectors.held_out import split
from activation_logging.errors import DatasetError
from tests.fixtures.planted import build


def split_store(path, plan, **options):
    with open_store(build(path / "s", **plan)) as store:
        examples, folds = split(select_examples(store, "facts"), Options(**options))
        return examples, folds


def asked_in_six_ways(i, document):
    question = f"Way {i // 2 % 6}: what is thing {i}?"
    document.update(prompt=question, messages=[{"role": "user", "content": question}])


PLAN = {"n": 240, "layers": (4,), "logprobs": False, "response_tokens": False}


def test_templates_are_held_out(tmp_path):
    plan = {**PLAN, "change": asked_in_six_ways}
    examples, folds = split_store(tmp_path, plan, folds_by="template")
    assert len(folds) == 5
    held_out = [name for fold in folds for name in fold.held_out]
    assert sorted(held_out) == [f"Way {way}: what is {{}}?" for way in range(6)]
    for fold in folds:
        ways = [{i // 2 % 6 for i in part.tolist()} for part in (fold.train, fold.test)]
        assert not ways[0] & ways[1]
    assert sum(len(fold.test) for fold in folds) == len(examples) == 240


def test_each_value_of_a_tag_is_held_out_alone(tmp_path):
    def tags_of(i):
        # Kind d has one class, and every tenth answer has no kind.
        kind = "d" if i % 2 and i % 7 == 0 else "abc"[i // 2 % 3]
        return {"entity": f"thing {i}", **({"kind": kind} if i % 10 else {})}

    examples, folds = split_store(tmp_path, {**PLAN, "tags_of": tags_of}, folds_by="tag:kind")
    assert [fold.held_out for fold in folds] == [("a",), ("b",), ("c",)]
    for fold in folds:
        assert {examples.tags[i]["kind"] for i in fold.test} == set(fold.held_out)
    assert examples.left_out["without the tag kind"] == 24
    assert examples.left_out["of a kind with one class only"] > 10
    assert len(examples) + sum(examples.left_out.values()) == 240


def test_lengths_are_matched_and_counted(tmp_path):
    def change(i, document):
        tokens = 3 + i // 2 % 4 + 2 * (i % 2)
        document.update(response_token_ids=list(range(tokens)))

    examples, folds = split_store(tmp_path, {**PLAN, "change": change}, match_length=True)
    lengths = np.array([place.num_response for place in examples.places])
    for length in np.unique(lengths):
        assert examples.y[lengths == length].mean() == 0.5
    assert examples.left_out["without an answer of the other class of their length"] > 0
    assert max(fold.test.max() for fold in folds) == len(examples) - 1


@pytest.mark.parametrize(
    ("plan", "options", "says"),
    [
        ({}, {"folds_by": "domain"}, "not known; choose group, template or tag:NAME"),
        ({}, {"folds_by": "tag:"}, "not known"),
        ({}, {"folds_by": "template"}, "100 of 100 questions cannot be told"),
        ({"tags_of": lambda i: {"template": "one"}}, {"folds_by": "template"}, "only 1 template"),
        ({"tags_of": lambda i: {"template": str(i)}}, {"folds_by": "template"}, "no two of the"),
        ({}, {"folds_by": "tag:colour"}, "no answer has the tag colour; the tags are domain, en"),
        ({"tags_of": lambda i: {"k": "ab"[i % 2]}}, {"folds_by": "tag:k"}, "only 0 k has answers"),
        ({"tags_of": lambda i: {"k": str(i // 4)}}, {"folds_by": "tag:k"}, "25 values"),
        (
            {"tags_of": lambda i: {"k": "ab"[i // 4 % 2], "entity": f"{i % 4} {i // 8}"}},
            {"folds_by": "tag:k"},
            "only 0 answers of a class are left to fit on",
        ),
        (
            {"change": lambda i, d: d.update(response_token_ids=list(range(3 + 5 * (i % 2))))},
            {"match_length": True},
            "differ too much in length to be matched: 0 answers of each",
        ),
    ],
    ids=[
        *("unknown", "no tag named", "no template", "one template", "as many templates"),
        *("no such tag", "a tag that is the class", "too many values", "about the same things"),
        "lengths apart",
    ],
)
def test_what_cannot_be_held_out_is_said(tmp_path, plan, options, says):
    with pytest.raises(DatasetError, match=says):
        split_store(tmp_path, {**PLAN, "n": 100, **plan}, **options)
