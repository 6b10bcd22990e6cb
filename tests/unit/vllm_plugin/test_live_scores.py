"""What a client is told of an answer step by step, and when a probe ends it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from activation_logging.errors import RequestOptionError
from activation_logging.score_options import ScoreOptions
from activation_logging.vllm_plugin.live_scores import LiveAnswer, check_options, finals
from activation_logging.vllm_plugin.scored_answers import join
from tests.fixtures.live_probes import attention, probe, project, serve

PROMPT = 5
SERVED = serve(
    span=probe(),
    made_up=probe("answer", "prompt_last"),
    first=probe("answer", "response_first"),
    last=probe("answer", "response_last"),
    mean=probe("answer", "response_mean"),
    looks=attention(),
    shadow=probe(),
)
SHOWN = ["span", "made_up", "first", "last", "mean", "looks"]


def options(**asked: Any) -> ScoreOptions:
    return ScoreOptions.parse({f"activation_{name}": value for name, value in asked.items()})


def rows_of(*logits: float) -> np.ndarray[Any, Any]:
    """Rows that a linear probe finds these log-odds in, the last prompt token's first."""
    return np.array([[logit, np.sin(logit), 0, 0] for logit in logits])


def p(logit: float) -> float:
    return float(np.float32(1 / (1 + np.exp(-logit))))


def answer(rows: np.ndarray[Any, Any], served: Any = SERVED, **asked: Any) -> LiveAnswer:
    found = LiveAnswer(served, options(**(asked or {"scores": "all"})), PROMPT)
    if len(rows):
        found.take(PROMPT - 1, project(served, rows))
    return found


def told_step_by_step(rows: np.ndarray[Any, Any], **asked: Any) -> list[dict[str, Any]]:
    """What comes with each token, where row ``i`` arrives with token ``i``."""
    live = answer(rows[:0], **asked)
    steps = []
    for number, columns in enumerate(project(SERVED, rows)):
        live.take(PROMPT - 1 + number, columns[None])
        steps.append(live.tell(number + 1, finished=number == len(rows) - 1))
    return steps


class TestTold:
    LOGITS = (-2.0, 0.5, 3.0, -1.0)
    """Of an answer of four tokens: the prompt's last, and the first three of the answer."""

    def test_of_tokens_one_step_later(self) -> None:
        steps = [step["span"] for step in told_step_by_step(rows_of(*self.LOGITS))]
        assert steps == [
            {"prompt": p(-2), "tokens": []},
            {"tokens": [p(0.5)]},
            {"tokens": [p(3)]},
            {"tokens": [p(-1), None], "answer": p(3)},
        ]

    def test_of_answers_at_their_own_place(self) -> None:
        steps = told_step_by_step(rows_of(*self.LOGITS))
        whole = steps[0]
        for step in steps[1:]:
            whole = join(whole, step)
        one, last = p(0.5), p(-1)
        mean = p(np.mean(self.LOGITS[1:]))
        nothing = [None] * 4
        assert whole["made_up"] == {"prompt": p(-2), "tokens": nothing, "answer": p(-2)}
        assert whole["first"] == {"prompt": None, "tokens": [one, *nothing[1:]], "answer": one}
        assert whole["last"] == {"prompt": None, "tokens": [None, None, last, None], "answer": last}
        assert whole["mean"]["tokens"] == [None, None, pytest.approx(mean, rel=1e-6), None]
        assert whole["looks"]["answer"] == whole["looks"]["tokens"][2] is not None
        assert list(whole) == SHOWN

    def test_an_answer_of_one_token_has_no_state_of_its_own(self) -> None:
        (step,) = told_step_by_step(rows_of(-2.0))
        assert step["span"] == {"prompt": p(-2), "tokens": [None], "answer": None}
        assert step["made_up"] == {"prompt": p(-2), "tokens": [None], "answer": p(-2)}
        assert step["mean"] == {"prompt": None, "tokens": [None], "answer": None}

    def test_an_answer_that_never_ran(self) -> None:
        told = answer(rows_of()).tell(0, finished=True)
        assert told["span"] == told["made_up"] == {"prompt": None, "tokens": [], "answer": None}

    def test_what_is_late_comes_later_and_what_never_comes_is_null(self) -> None:
        columns = project(SERVED, rows_of(*self.LOGITS))
        live = answer(rows_of())
        assert live.tell(1, finished=False)["span"] == {"tokens": []}
        live.take(PROMPT - 1, columns[:2])
        assert live.tell(3, finished=False)["span"] == {"prompt": p(-2), "tokens": [p(0.5)]}
        assert live.tell(4, finished=True)["span"] == {"tokens": [None] * 3, "answer": None}

    def test_rows_that_come_too_early_wait_for_their_token(self) -> None:
        live = answer(rows_of(*self.LOGITS))
        assert live.tell(2, finished=False)["span"]["tokens"] == [p(0.5)]
        assert live.tell(3, finished=False)["span"]["tokens"] == [p(3)]

    def test_a_gap_is_not_filled_with_what_comes_after(self) -> None:
        columns = project(SERVED, rows_of(*self.LOGITS))
        live = answer(rows_of())
        live.take(PROMPT - 1, columns[:1])
        live.take(PROMPT + 1, columns[2:])
        assert live.num_rows == 1

    def test_rows_computed_again_replace_the_old_ones(self) -> None:
        columns = project(SERVED, rows_of(*self.LOGITS))
        live = answer(rows_of())
        live.take(0, np.full((PROMPT + 1, SERVED.num_columns), 9.0))
        live.take(PROMPT - 1, columns)
        assert live.tell(4, finished=True)["span"]["tokens"] == [p(0.5), p(3), p(-1), None]

    def test_parts_of_several_stages_are_summed(self) -> None:
        columns = project(SERVED, rows_of(*self.LOGITS))
        live = answer(rows_of())
        live.take(PROMPT - 1, 3 * columns, 1, 2)
        assert live.num_rows == 0
        live.take(PROMPT - 1, -2 * columns[:2], 0, 2)
        assert live.num_rows == 2
        live.take(PROMPT + 1, -2 * columns[2:], 0, 2)
        told = live.tell(4, finished=True)["span"]["tokens"]
        assert told[:3] == pytest.approx([p(0.5), p(3), p(-1)], rel=1e-6)

    def test_what_is_not_finite_is_null(self) -> None:
        rows = rows_of(*self.LOGITS)
        rows[2] = np.nan
        told = answer(rows).tell(4, finished=True)["span"]
        assert told["tokens"] == [p(0.5), None, p(-1), None]

    @settings(deadline=None)
    @given(st.lists(st.floats(-5, 5), min_size=1, max_size=40), st.data())
    def test_whatever_the_steps_the_whole_is_the_same(
        self, logits: list[float], data: st.DataObject
    ) -> None:
        columns, total = project(SERVED, rows_of(*logits)), len(logits)
        live, told, tokens = answer(rows_of()), {}, 0
        while tokens < total:
            new = data.draw(st.integers(1, total - tokens))
            live.take(PROMPT - 1 + tokens, columns[tokens : tokens + new])
            tokens += new
            told = join(told, live.tell(tokens, finished=tokens == total))
        assert told == answer(rows_of(*logits)).so_far(total, finished=True)
        assert {len(one["tokens"]) for one in told.values()} == {total}


class TestStops:
    def fires(self, logits: list[float], served: Any = SERVED, **stop: Any) -> int | None:
        """The number of tokens that are left when the probe ends the answer."""
        live = answer(rows_of(), served, stop=stop)
        columns = project(served, rows_of(*logits))
        for number, row in enumerate(columns):
            live.take(PROMPT - 1 + number, row[None])
            reason = live.stop(number + 1)
            if reason is not None:
                assert reason == f"activation:{stop['probe']}"
                return number
        return None

    @pytest.mark.parametrize(
        ("tokens", "left"), [(1, 2), (2, 5), (3, None)], ids=["one", "two", "three"]
    )
    def test_tokens_in_a_row(self, tokens: int, left: int | None) -> None:
        logits = [9.0, -1.0, 3.0, -1.0, 3.0, 3.0, -1.0]
        assert self.fires(logits, probe="span", above=0.9, tokens=tokens) == left

    def test_above_is_not_equal(self) -> None:
        assert self.fires([0.0, 0.0, 0.0], probe="span", above=0.5) is None
        assert self.fires([0.0, 0.0, 0.1], probe="span", above=0.5) == 2

    @pytest.mark.parametrize("logit", [0.1, 0.2, 0.3, 1.0, 2.0])
    def test_above_is_not_what_was_told(self, logit: float) -> None:
        """Clients know the rounded number."""
        told = p(logit)
        assert self.fires([logit], probe="made_up", prompt_above=told) is None
        for name in ("span", "first", "last", "mean", "looks"):
            assert self.fires([9.0, logit], probe=name, above=told) is None
            assert self.fires([9.0, logit], probe=name, above=float(np.nextafter(told, 0))) == 1

    def test_before_the_first_token(self) -> None:
        assert self.fires([1.0, -5.0], probe="made_up", prompt_above=0.7) == 0
        assert self.fires([1.0, -5.0], probe="span", prompt_above=0.7) == 0
        assert self.fires([-1.0, 5.0, 5.0], probe="span", prompt_above=0.7) is None

    def test_of_what_has_been_written_so_far(self) -> None:
        assert self.fires([9.0, -3.0, 1.0, 9.0], probe="mean", above=0.6) == 3
        assert self.fires([9.0, -3.0, 1.0, 1.0], probe="mean", above=0.6) is None

    @pytest.mark.parametrize("name", ["first", "last", "mean", "looks"])
    def test_of_what_was_computed_again(self, name: str) -> None:
        """After a preemption: the rows that stand count, and none of them twice."""
        columns = project(SERVED, rows_of(9.0, -3.0, 1.0, 4.0, 2.5))
        said = float(SERVED[name].running(columns[1:])[-1])
        for above, reason in ((said - 1e-6, f"activation:{name}"), (said + 1e-6, None)):
            live = answer(rows_of(9.0, -9.0, -9.0, -9.0), stop={"probe": name, "above": above})
            assert live.stop(2) is live.stop(4) is None
            live.take(PROMPT - 1, columns)
            assert live.stop(5) == reason

    def test_a_probe_ends_an_answer_once(self) -> None:
        live = answer(rows_of(3.0, 3.0), stop={"probe": "span", "prompt_above": 0.5})
        assert live.stop(1) == live.stop(2) == "activation:span"

    def test_rows_of_a_step_too_many_do_not_count(self) -> None:
        live = answer(rows_of(-1.0, 5.0), stop={"probe": "span", "above": 0.5})
        assert live.stop(1) is None
        assert live.stop(2) == "activation:span"

    def test_all_tokens_that_are_left_have_been_read(self) -> None:
        asked = {"scores": "span", "stop": {"probe": "span", "above": 0.5, "tokens": 2}}
        live = answer(rows_of(-1.0, 2.0, 3.0), **asked)
        assert live.stop(3) == "activation:span"
        assert live.tell(2, finished=True)["span"] == {
            "prompt": p(-1),
            "tokens": [p(2), p(3)],
            "answer": p(3),
        }

    def test_before_the_first_there_is_only_the_prompt(self) -> None:
        asked = {"scores": "all", "stop": {"probe": "made_up", "prompt_above": 0.5}}
        live = answer(rows_of(1.0), **asked)
        assert live.stop(1) == "activation:made_up"
        told = live.tell(0, finished=True)
        assert told["made_up"] == {"prompt": p(1), "tokens": [], "answer": p(1)}
        assert told["span"] == {"prompt": p(1), "tokens": [], "answer": None}


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"scores": "shadow"}, "no probe 'shadow'; choose among first, last"),
        ({"stop": {"probe": "shadow", "above": 0.5}}, "activation_stop: .* no probe 'shadow'"),
        ({"stop": {"probe": "made_up", "above": 0.5}}, "nothing of the answer's tokens"),
        ({"stop": {"probe": "mean", "prompt_above": 0.5}}, r"before the first .*response_mean"),
        ({"stop": {"probe": "looks", "prompt_above": 0.5}}, "reads the answer"),
    ],
)
def test_what_a_probe_cannot_say(asked: Any, says: str) -> None:
    with pytest.raises(RequestOptionError, match=says):
        check_options(options(**asked), SERVED)


def test_what_it_can() -> None:
    check_options(options(scores="all", stop={"probe": "span", "above": 0, "tokens": 9}), SERVED)
    check_options(options(stop={"probe": "made_up", "prompt_above": 1}), SERVED)


def test_final_scores_have_the_shadows_too() -> None:
    found = finals(SERVED, project(SERVED, rows_of(-2.0, 0.5, 3.0)))
    assert list(found) == [*SHOWN, "shadow"]
    assert found["shadow"] == (p(-2), p(3))
    assert found["made_up"] == (p(-2), p(-2))
    assert finals(SERVED, project(SERVED, rows_of()[:0].reshape(0, 4)))["span"] == (None, None)
