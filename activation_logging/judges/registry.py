"""What a judge is, and which judges there are.

To add one, write a module that holds a :class:`Judge` and list it in :data:`JUDGES`, or offer it
from another package by an entry point::

    [project.entry-points."activation_logging.judges"]
    my_judge = "my_package.my_judge:JUDGE"

``--judge my_judge`` then judges the answers of any benchmark.
"""

from __future__ import annotations

from dataclasses import dataclass
from inspect import isawaitable
from typing import TYPE_CHECKING, get_args

from activation_logging.errors import LabelError, PluginError
from activation_logging.judges.verdict import Answer, Kind, Verdict
from activation_logging.records import LABELS
from activation_logging.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


@dataclass(frozen=True)
class Judge:
    """Something that gives a verdict on an answer.

    Attributes:
        identity: name and version, such as ``rules/1``. Every verdict carries it, and one run
            never mixes the verdicts of two identities.
        decide: from an answer to its verdict, made with :meth:`.Verdict.on`; a function or a
            coroutine function.
        kinds: the kinds of question whose answers it can judge.
    """

    identity: str
    decide: Callable[[Answer], Verdict | Awaitable[Verdict]]
    kinds: tuple[Kind, ...] = get_args(Kind)

    async def __call__(self, answer: Answer) -> Verdict:
        """The verdict on an answer.

        Raises:
            PluginError: the verdict has no known label or invalid spans, or is another judge's or
                on another text.
        """
        found = self.decide(answer)
        verdict = await found if isawaitable(found) else found
        if verdict.label not in LABELS:
            raise PluginError(f"the judge {self.identity!r} gave the unknown label {verdict.label}")
        given = (verdict.judge, verdict.place, verdict.answer)
        if given != (self.identity, answer.place, answer.digest):
            raise PluginError(
                f"the judge {self.identity!r} gave a verdict of {verdict.judge!r} on "
                f"{verdict.place}, asked for one on {answer.place}"
            )
        try:
            return verdict.checked_on(answer)
        except LabelError as error:
            raise PluginError(f"the judge {self.identity!r} gave invalid spans: {error}") from None


JUDGES = Registry(
    "judge",
    Judge,
    "activation_logging.judges",
    {
        "rules": "activation_logging.judges.rules:RULES",
        "gold": "activation_logging.judges.gold:GOLD",
        "typed": "activation_logging.judges.typed:TYPED",
    },
)
