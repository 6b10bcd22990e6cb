"""What a judge says about one answer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from activation_logging.records import Label

Belief = Literal["accepts", "declines", "unclear"]
"""Whether a trusting reader would come away believing that the thing asked about exists.

``accepts``: yes, something is told about it. ``declines``: no; the answer says that there is no
such thing, or that it knows nothing about it. ``unclear``: no usable verdict.
"""


@dataclass(frozen=True)
class Judgement:
    """A verdict that can be labelled: the judge, its words, and what it concluded."""

    label: Label
    judge: str
    words: str
    details: Mapping[str, Any] = field(default_factory=dict)


def label_of_belief(belief: Belief, kind: str) -> Label:
    """The label of an answer about a made-up or a real name.

    ==========  ================  =============
    belief      made-up name      real name
    ==========  ================  =============
    accepts     ``hallucinated``  ``correct``
    declines    ``refused``       ``refused``
    unclear     ``invalid``       ``invalid``
    ==========  ================  =============

    ``correct`` says that taking the name for real was right, not that every sentence after it is.
    """
    if belief == "unclear":
        return "invalid"
    if belief == "declines":
        return "refused"
    return "hallucinated" if kind == "made_up" else "correct"
