"""Random requests, and what may happen to them: aborts in every state, flushes, drains, resets."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from activation_logging.detectors.probe_parcel import pack
from activation_logging.detectors.served_probes import ServedProbes
from activation_logging.probe_list import parse_probes
from tests.schedules.engine import VOCABULARY
from tests.schedules.probes import INNER
from tests.schedules.told import Told

if TYPE_CHECKING:
    from collections.abc import Sequence

_STOPS = ("e", " the", "qu", "\n", "on")


@dataclass
class Driven:
    """What has been done to an engine so far."""

    accepted: int = 0
    off: int = 0
    steps: int = 0
    happened: Counter[str] = field(default_factory=Counter)


class Traffic:
    """Drives one engine with requests drawn from ``seed``.

    Args:
        engine: the engine.
        seed: of everything that is drawn.
        probes: lists of probes that take each other's place, the first of which it has.
        live: whether some requests ask for scores while they are answered.
    """

    def __init__(self, engine: Any, seed: int, probes: Sequence[str], *, live: bool) -> None:
        self._engine = engine
        self._live = live
        self.told = Told()
        self._probes = probes
        self._random = random.Random(seed)
        self._scheduler = engine.engine_core.engine_core.scheduler
        self._prefixes = [self._tokens(self._random.randrange(16, 90)) for _ in range(6)]
        self._number = 0
        self._worker = engine.model_executor.driver_worker.worker
        self.driven = Driven(happened=self._worker.happened)

    def run(self, count: int) -> Driven:
        """Send ``count`` requests, and go on until all have ended."""
        target = self.driven.accepted + self.driven.off + count
        while self.driven.accepted + self.driven.off < target:
            while len(self._scheduler.waiting) < 5 and self._random.random() < 0.7:
                self._ask()
            self._step()
        while self._engine.has_unfinished_requests():
            self._step()
        return self.driven

    def leave(self) -> None:
        """What a server does when it is told to end: requests are in flight, some preempted."""
        for _ in range(12):
            self._ask()
        for _ in range(self._random.randrange(1, 30)):
            self._step()
        self._engine.output_processor.tap._abort_all()
        self._engine.output_processor.tap.flush()
        self.driven.happened["drained"] += 1

    def _step(self) -> None:
        self.told.take(self._engine.step())
        self.driven.steps += 1
        draw = self._random.random()
        if draw < 0.04 or (draw < 0.1 and self._preempted()):
            self._abort()
        elif draw < 0.045:
            self._engine.output_processor.tap.flush()
            self.driven.happened["flushed"] += 1
        elif draw < 0.047:
            core = self._engine.engine_core.engine_core
            core.reset_prefix_cache(reset_running_requests=True)
            self.driven.happened["reset"] += 1
        elif draw < 0.055 and len(self._probes) > 1:
            self._reload(self._random.choice(self._probes))

    def _reload(self, listed: str) -> None:
        served = ServedProbes.load(parse_probes(listed))
        assert self._worker.check_activation_probes(pack(served)) is None
        self._worker.use_activation_probes()
        self.driven.happened["reloaded"] += 1

    def _ask(self) -> None:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        draw = self._random
        options = self._options()
        kind = draw.choice(tuple(RequestOutputKind))
        params = SamplingParams(
            n=draw.choice((1, 1, 1, 1, 3)),
            max_tokens=draw.choice((1, 2, draw.randrange(3, 20), draw.randrange(20, 90))),
            stop=[draw.choice(_STOPS)] if draw.random() < 0.3 else None,
            ignore_eos=draw.random() < 0.2,
            extra_args=options,
            output_kind=kind,
        )
        if not params.stop and draw.random() < 0.2:
            params.detokenize = False
        self._number += 1
        self.told.ask(f"request-{self._number}", in_parts=kind == RequestOutputKind.DELTA)
        prompt = {"prompt_token_ids": self._prompt()}
        self._engine.add_request(f"request-{self._number}", prompt, params)
        if options is not None and options.get("activation_logging") == "off":
            self.driven.off += params.n
        else:
            self.driven.accepted += params.n

    def _options(self) -> dict[str, Any] | None:
        draw = self._random.random()
        if draw < 0.1:
            return {"activation_logging": "off"}
        if draw < 0.15:
            return {"activation_layers": self._random.choice((str(INNER), "last"))}
        if draw < 0.3:
            return {"activation_tokens": self._random.choice(("all", "prompt", "response"))}
        if draw < 0.6 and self._live:
            return self._scores()
        return None

    def _scores(self) -> dict[str, Any]:
        asked: dict[str, Any] = {"activation_scores": "all"}
        draw = self._random.random()
        if draw < 0.2:
            asked["activation_stop"] = {"probe": "prompt", "prompt_above": 0.8}
        elif draw < 0.5:
            name = self._random.choice(("token", "pair", "pool", "mean"))
            above, tokens = self._random.uniform(0.5, 0.95), self._random.choice((1, 2, 4))
            asked["activation_stop"] = {"probe": name, "above": above, "tokens": tokens}
        return asked

    def _prompt(self) -> list[int]:
        """Half of them begin as others do, whole or in part."""
        draw = self._random
        begin = draw.choice(self._prefixes) if draw.random() < 0.5 else []
        begin = begin[: draw.choice((len(begin), draw.randrange(len(begin) + 1)))]
        return begin + self._tokens(draw.randrange(1, 60))

    def _tokens(self, count: int) -> list[int]:
        return [self._random.randrange(3, VOCABULARY) for _ in range(count)]

    def _preempted(self) -> list[Any]:
        requests = self._scheduler.requests.values()
        return [each for each in requests if each.status.name == "PREEMPTED"]

    def _abort(self) -> None:
        """Abort a request, preempted ones with preference: there are few of them."""
        requests, preempted = list(self._scheduler.requests.values()), self._preempted()
        chosen = preempted if preempted and self._random.random() < 0.7 else requests
        if not chosen:
            return
        request = self._random.choice(chosen)
        state = request.status.name.lower()
        if state == "running" and request.num_output_tokens == 0:
            state = "prefilling"
        self.driven.happened[f"aborted while {state}"] += 1
        self._engine.abort_request([request.request_id], internal=True)
