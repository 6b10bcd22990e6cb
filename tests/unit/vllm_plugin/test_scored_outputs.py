"""Scores on vLLM's own outputs: its processor, its queues, and columns that come over the wire."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.outputs import CompletionOutput, RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector, RequestState

from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.score_options import ScoreOptions
from activation_logging.vllm_plugin import scored_outputs
from activation_logging.vllm_plugin.score_link import Block, Columns, ScoreInbox, ScoreOutbox
from activation_logging.vllm_plugin.scored_answers import AnswerScores, join
from activation_logging.vllm_plugin.scored_outputs import LiveScores, ScoredQueue, scores_of
from tests.fixtures.live_probes import probe, project, serve
from tests.unit.vllm_plugin.test_live_scores import p, rows_of

PROMPT = [5, 6, 7]
SERVED = serve(span=probe(), made_up=probe("answer", "prompt_last"), shadow=probe())
DELTA, FINAL = RequestOutputKind.DELTA, RequestOutputKind.FINAL_ONLY


class Engine:
    """vLLM's output processor with live scores, and a worker's end of the wire."""

    def __init__(self, served: ServedProbes = SERVED) -> None:
        self.live = LiveScores(served, ScoreInbox())
        self.outbox = ScoreOutbox()
        self.processor = OutputProcessor(None, log_stats=False)
        self.finals: list[Any] = []
        self.live.on_final = self.finals.append
        self.noted = AnswerScores(["span", "made_up"])

    def ask(self, name: str = "r", kind: Any = FINAL, queue: Any = None, **asked: Any) -> Any:
        """Add a request, and return its queue."""
        options = ScoreOptions.parse({f"activation_{key}": value for key, value in asked.items()})
        params = SamplingParams(max_tokens=100, output_kind=kind, detokenize=False)
        request = EngineCoreRequest(
            request_id=name,
            prompt_token_ids=PROMPT,
            mm_features=None,
            sampling_params=params,
            pooling_params=None,
            arrival_time=0.0,
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            external_req_id=name,
        )
        self.live.accept(name, len(PROMPT), options)
        self.processor.add_request(request, None, None, 0, queue)

        def note(output: Any, part: bool) -> None:
            for one in output.outputs:
                self.noted.add(0, "turn", scores_of(one), part=part)

        self.live.attach(self.processor.request_states[name], queue, note)
        return queue

    def send(self, *rows: Any, name: str = "r", first: int = 0, **how: Any) -> None:
        """What a worker sends of some rows, or columns; ``first`` is the number of the first."""
        given = rows and isinstance(rows[0], np.ndarray)
        columns = rows[0] if given else project(SERVED, rows_of(*rows))
        block = Block(name, len(PROMPT) - 1 + first, columns)
        given = {"probes": SERVED.digest, "part": 0, "parts": 1, "ended": False, **how}
        self.outbox.send(self.live.address, Columns(**given, blocks=[block]))

    def step(self, *tokens: int, name: str = "r", finish: Any = None) -> Any:
        """VLLM's outputs of a step, and the requests that the engine must be told to abort."""
        output = EngineCoreOutput(name, list(tokens), finish_reason=finish)
        ended = self.live.before([output], self.processor.request_states)
        processed = self.processor.process_outputs([output])
        return processed.request_outputs, [*processed.reqs_to_abort, *ended]

    def close(self) -> None:
        self.live.close()
        self.outbox.close(0)


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    monkeypatch.setattr(scored_outputs, "PATIENCE_S", 60.0)  # of a machine that is busy
    found = Engine()
    yield found
    found.close()


class TestOutputs:
    def test_the_last_one_has_all(self, engine: Engine) -> None:
        engine.ask(scores="span,made_up")
        for number, logit in enumerate((-2.0, 3.0, 1.0)):
            engine.send(logit, first=number)
            outputs, _ = engine.step(9, finish=FinishReason.LENGTH if number == 2 else None)
        (output,) = outputs[0].outputs
        assert output.activation_scores == {
            "span": {"prompt": p(-2), "tokens": [p(3), p(1), None], "answer": p(3)},
            "made_up": {"prompt": p(-2), "tokens": [None] * 3, "answer": p(-2)},
        }

    def test_each_part_has_its_own(self, engine: Engine) -> None:
        engine.ask(kind=DELTA, scores="span")
        told = []
        for number, logit in enumerate((-2.0, 3.0, 1.0)):
            engine.send(logit, first=number)
            outputs, _ = engine.step(9, finish=FinishReason.STOP if number == 2 else None)
            told.append(outputs[0].outputs[0].activation_scores["span"])
        assert told == [
            {"prompt": p(-2), "tokens": []},
            {"tokens": [p(3)]},
            {"tokens": [p(1), None], "answer": p(3)},
        ]

    def test_who_does_not_ask_gets_vllms_own(self, engine: Engine) -> None:
        queue = engine.ask(queue=RequestOutputCollector(FINAL, "r"))
        assert type(queue) is RequestOutputCollector
        assert type(engine.processor.request_states["r"]) is RequestState
        engine.step(9, finish=FinishReason.STOP)
        assert vars(queue.get_nowait().outputs[0]).keys() == {
            *CompletionOutput(0, "", [], None, None).__dict__
        }

    def test_rows_may_come_a_little_later_than_the_token(self, engine: Engine) -> None:
        engine.ask(kind=DELTA, scores="span")
        later = threading.Timer(0.1, engine.send, (-2.0,))
        later.start()
        outputs, _ = engine.step(9)
        later.join()
        assert outputs[0].outputs[0].activation_scores["span"] == {"prompt": p(-2), "tokens": []}

    def test_rows_that_never_come_are_waited_for_once(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, our_log: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 0.05)
        engine.ask(kind=DELTA, scores="span")
        engine.step(9)
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 3600.0)
        engine.step(9)
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 0.05)
        outputs, _ = engine.step(9, finish=FinishReason.STOP)
        told = outputs[0].outputs[0].activation_scores["span"]
        assert told == {"prompt": None, "tokens": [None] * 3, "answer": None}
        assert "the scores of 1 answers do not arrive in time" in our_log.text

    def test_the_last_rows_of_a_late_answer_are_waited_for_again(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 0.05)
        engine.ask(scores="span")
        engine.step(9)
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 60.0)
        later = threading.Timer(0.3, engine.send, (-2.0, 3.0))
        later.start()
        outputs, _ = engine.step(9, finish=FinishReason.LENGTH)
        later.join()
        told = outputs[0].outputs[0].activation_scores["span"]
        assert told == {"prompt": p(-2), "tokens": [p(3), None], "answer": p(3)}

    def test_a_way_that_is_blocked_does_not_keep_every_answer_waiting(
        self, engine: Engine, monkeypatch: pytest.MonkeyPatch, our_log: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 0.001)
        for number in range(32):
            engine.ask(f"blocked {number}", scores="span")
            engine.step(9, name=f"blocked {number}")
        assert our_log.text.count("do not arrive in time") == 6
        monkeypatch.setattr(scored_outputs, "PATIENCE_S", 60.0)
        assert self.told_of_late_rows(engine, "next") == {"tokens": []}
        engine.ask("there", scores="span")
        engine.send(-2.0, name="there")
        self.wait_for(engine, "there")
        engine.step(9, name="there")
        assert self.told_of_late_rows(engine, "again") == {"prompt": p(-2), "tokens": []}

    @staticmethod
    def told_of_late_rows(engine: Engine, name: str) -> Any:
        engine.ask(name, kind=DELTA, scores="span")
        later = threading.Timer(1.0, engine.send, (-2.0,), {"name": name})
        later.start()
        outputs, _ = engine.step(9, name=name)
        later.join()
        return outputs[0].outputs[0].activation_scores["span"]

    @staticmethod
    def wait_for(engine: Engine, name: str) -> None:
        deadline = time.monotonic() + 60
        while not engine.live._answers[name].num_rows and time.monotonic() < deadline:
            engine.live.collect(0.1)

    def test_probes_that_stay_go_on_while_others_are_replaced(self, engine: Engine) -> None:
        """Scores and stops, of an answer that came with the old ones."""
        others = serve(new=probe(), span=probe(), made_up=probe("answer", "response_first"))
        engine.ask(kind=DELTA, scores="span,made_up", stop=STOP)
        engine.send(-2.0)
        engine.step(9)
        engine.live.expect(others)
        for number, logit in enumerate((3.0, 1.0), 1):
            columns = project(others, rows_of(logit))
            engine.send(columns, first=number, probes=others.digest)
            outputs, _ = engine.step(9)
        output = outputs[0].outputs[0]
        assert output.stop_reason == "activation:span"
        assert output.activation_scores == {
            "span": {"tokens": [p(1)], "answer": p(3)},
            # It has said what it says before the change.
            "made_up": {"tokens": [None], "answer": p(-2)},
        }

    def test_columns_of_other_probes_are_no_scores(self, engine: Engine) -> None:
        engine.ask(kind=DELTA, scores="span")
        engine.send(-2.0)
        engine.step(9)
        engine.send(3.0, first=1, probes="of others")
        outputs, _ = engine.step(9, finish=FinishReason.STOP)
        assert outputs[0].outputs[0].activation_scores["span"] == {
            "tokens": [None, None],
            "answer": None,
        }

    def test_an_aborted_answer_has_what_is_known(self, engine: Engine) -> None:
        queue = engine.ask(kind=DELTA, queue=RequestOutputCollector(DELTA, "r"), scores="span")
        engine.send(-2.0)
        engine.step(9)
        engine.processor.abort_requests(["r"], internal=True)
        told = queue.get_nowait().outputs[0].activation_scores["span"]
        assert told == {"prompt": p(-2), "tokens": [None], "answer": None}


STOP = {"probe": "span", "above": 0.5, "tokens": 2}


class TestStops:
    def test_after_tokens_in_a_row(self, engine: Engine) -> None:
        engine.ask(scores="span", stop=STOP)
        for number, logit in enumerate((5.0, 1.0, -1.0, 1.0)):
            engine.send(logit, first=number)
            assert engine.step(10 + number) == ([], [])
        engine.send(1.0, first=4)
        outputs, aborted = engine.step(14)
        (output,) = outputs[0].outputs
        assert (output.finish_reason, output.stop_reason) == ("stop", "activation:span")
        assert output.token_ids == [10, 11, 12, 13]
        assert output.activation_scores["span"]["tokens"] == [p(1), p(-1), p(1), p(1)]
        assert aborted == ["r"]
        assert not engine.processor.request_states

    def test_before_the_first_token(self, engine: Engine) -> None:
        engine.ask(stop={"probe": "made_up", "prompt_above": 0.5})
        engine.send(1.0)
        outputs, aborted = engine.step(10)
        (output,) = outputs[0].outputs
        assert (output.token_ids, output.text) == ([], "")
        assert (output.finish_reason, output.stop_reason) == ("stop", "activation:made_up")
        assert not hasattr(output, "activation_scores")
        assert aborted == ["r"]

    def test_an_answer_that_ends_by_itself_then_needs_no_abort(self, engine: Engine) -> None:
        engine.ask(stop=STOP)
        engine.send(5.0, 1.0, 1.0)
        engine.step(10)
        engine.step(11)
        outputs, aborted = engine.step(12, finish=FinishReason.LENGTH)
        assert outputs[0].outputs[0].stop_reason == "activation:span"
        assert outputs[0].outputs[0].token_ids == [10, 11]
        assert aborted == []

    def test_of_one_choice_leaves_the_others(self, engine: Engine) -> None:
        engine.ask("a", stop=STOP)
        engine.ask("b", stop=STOP)
        for name, logit in (("a", 1.0), ("b", -1.0)):
            engine.send(1.0, logit, logit, name=name)
            for token in range(3):
                _, aborted = engine.step(token, name=name)
            assert aborted == ([name] if name == "a" else [])
        assert list(engine.processor.request_states) == ["b"]

    def test_vllms_routes_do_not_skip_the_chunk_of_an_empty_answer(self, engine: Engine) -> None:
        queue = engine.ask(
            kind=DELTA,
            queue=RequestOutputCollector(DELTA, "r"),
            stop={"probe": "made_up", "prompt_above": 0.5},
        )
        engine.send(1.0)
        engine.step(10)
        output = queue.get_nowait().outputs[0]
        assert output.token_ids == []
        assert not (not output.text and not output.token_ids)


class TestFinals:
    def test_of_every_answer_whoever_asked(self, engine: Engine) -> None:
        engine.ask()
        engine.step(9)
        engine.step(9, finish=FinishReason.STOP)
        assert engine.live.finish("r", 2) is None
        engine.send(-2.0, 3.0, 9.0, ended=True)
        self.wait(engine)
        # The last row is one step too many.
        both = p(-2), p(3)
        assert engine.finals == [{"span": both, "made_up": (p(-2), p(-2)), "shadow": both}]

    def test_that_the_worker_knows_of_first(self, engine: Engine) -> None:
        engine.ask()
        engine.send(-2.0, 3.0, ended=True)
        deadline = time.monotonic() + 60
        while not engine.live._last and time.monotonic() < deadline:
            engine.live.before([], {})
        assert not engine.finals
        engine.live.finish("r", 2)
        assert engine.finals[0]["span"] == (p(-2), p(3))

    def test_of_a_stopped_answer_count_all_of_its_tokens(self, engine: Engine) -> None:
        engine.ask(stop={"probe": "span", "above": 0.5})
        engine.send(-2.0)
        engine.step(9)
        engine.send(3.0, first=1)
        engine.step(9)
        assert engine.live.finish("r", 1) == "activation:span"
        engine.send(-2.0, 3.0, ended=True)
        self.wait(engine)
        assert engine.finals[0]["span"] == (p(-2), p(3))

    def test_after_changes_that_workers_refused(self, engine: Engine) -> None:
        for number in range(40):
            engine.live.expect(serve(**{f"refused_{number}": probe()}))
        engine.ask()
        engine.live.finish("r", 2)
        engine.send(-2.0, 3.0, ended=True)
        self.wait(engine)
        assert engine.finals[0]["span"] == (p(-2), p(3))

    def test_after_all_probes_were_removed(self, engine: Engine) -> None:
        nothing = serve()
        engine.live.load(nothing)
        engine.ask()
        engine.live.finish("r", 2)
        engine.send(np.empty((2, 0)), ended=True, probes=nothing.digest)
        self.wait(engine)
        assert engine.finals == [{}]

    def test_strangers_leave_nothing(self, engine: Engine) -> None:
        engine.send(-2.0, ended=True, name="stranger")
        engine.send(-2.0, name="stranger")
        engine.ask()
        engine.live.finish("r", 1)
        engine.send(-2.0, ended=True)
        self.wait(engine)
        live = engine.live
        assert [live._answers, live._open, live._ended, live._last] == [{}, set(), {}, {}]

    def wait(self, engine: Engine) -> None:
        deadline = time.monotonic() + 60
        while not engine.finals and time.monotonic() < deadline:
            engine.live.before([], {})


class TestQueues:
    @settings(deadline=None)
    @given(st.lists(st.integers(0, 3), min_size=2, max_size=30))
    def test_merged_outputs_have_merged_scores(self, taken: list[int]) -> None:
        """Two choices are put in turn; the route takes what there is now and then."""
        queue = RequestOutputCollector(DELTA, "r")
        queue.__class__ = ScoredQueue
        seen = AnswerScores(["span"])
        queue.note = lambda output, part: [
            seen.add(one.index, "turn", scores_of(one), part=part) for one in output.outputs
        ]
        expected: list[dict[str, Any]] = [{}, {}]
        count = [0, 0]
        for number, take in enumerate(taken):
            index, last = number % 2, number >= len(taken) - 2
            told: dict[str, Any] = {"tokens": [number / 64]}
            if not count[index]:
                told = {"prompt": 0.5, **told}
            if last:
                told["answer"] = 0.25
            output = CompletionOutput(index, "x", [number], None, None)
            output.activation_scores = {"span": told}
            expected[index] = join(expected[index], {"span": told})
            count[index] += 1
            queue.put(RequestOutput("r", None, PROMPT, None, [output], last))
            if take == 0:
                queue.get_nowait()
        if queue.output is not None:
            assert asyncio.run(queue.get()).finished
        assert [seen.whole(index) for index in range(2)] == expected

    def test_an_error_passes(self) -> None:
        queue = RequestOutputCollector(DELTA, "r")
        queue.__class__ = ScoredQueue
        queue.note = lambda *_: pytest.fail("nothing was given out")
        output = CompletionOutput(0, "x", [1], None, None)
        queue.put(RequestOutput("r", None, PROMPT, None, [output], False))
        queue.put(ValueError("gone"))
        with pytest.raises(ValueError, match="gone"):
            queue.get_nowait()
        assert queue.get_nowait() is None


def test_rounding_is_that_of_the_store() -> None:
    assert p(0.3) == float(np.float32(p(0.3)))
