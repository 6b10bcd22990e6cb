"""Names that a model invents, asked for over HTTP and looked up everywhere.

A model is asked for ten names at a time, as JSON by a schema, at temperature 1 and with another
seed each time. What is not just a name does not count, nor does a name that was there before, nor
one that any list or paragraph on this machine knows.
"""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from activation_logging.benchmarks.endpoint import check_endpoint, client, openai_package
from activation_logging.benchmarks.sources.known import is_known, mentioned
from activation_logging.errors import BenchmarkError
from activation_logging.text import brief, fold

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from activation_logging.benchmarks.endpoint import Role
    from activation_logging.benchmarks.options import Inventor

PROMPT = (
    "Invent {count} names of {things}. They must be new: nothing that exists or was ever written "
    "about is called so. Answer with a JSON object that has the {count} names as a list under "
    '"names".'
)
THINGS = {
    "person": "people, with given name and surname",
    "place": "towns, rivers, mountains and islands",
    "work": "novels, films and paintings",
    "species": "animals and plants, in English",
    "medicine": "medicines",
}
TEMPERATURE = 1.0

_COUNT = 10
_MAX_TOKENS = 400
_AT_ONCE = 8
_LEAST_YIELD = 1  # names that an answer must bring on average, or the model is given up
_PATIENCE = 16  # answers that it has in any case
_SPARE = 1.2  # the paragraphs, which are read once for all, take some away
_TIMEOUT_S = 300.0

_WORD = r"[^\W\d_](?:[\w'\u2019-]*[^\W_])?"
_NAME = re.compile(rf"{_WORD}(?: {_WORD}){{0,4}}")
_SMALL = frozenset(
    {"a", "and", "at", "by", "de", "du", "for", "from", "in", "la", "of", "on", "the", "to", "van",
     "von", "with"}
)  # fmt: skip
_WORDS = {"person": (2, 4), "place": (1, 4), "work": (1, 5), "species": (1, 3), "medicine": (1, 2)}
"""The fewest and the most words of a name; a longer line is a sentence."""
_CAPITALISED = frozenset({"person", "place", "work"})
_FORMAT = {
    "type": "json_schema",
    "json_schema": {
        "name": "names",
        "schema": {
            "type": "object",
            "properties": {
                "names": {
                    "type": "array",
                    # Small models write sentences where nothing bounds them.
                    "items": {
                        "type": "string",
                        "pattern": "^[A-Za-z][A-Za-z'-]{1,14}( [A-Za-z][A-Za-z'-]{1,14}){0,4}$",
                    },
                    "minItems": _COUNT,
                    "maxItems": _COUNT,
                }
            },
            "required": ["names"],
            "additionalProperties": False,
        },
    },
}


class Invention(NamedTuple):
    """A name, the model that invented it, and the seed that it did so with."""

    name: str
    model: str
    seed: int


def inventions(
    domains: Sequence[str], inventors: Sequence[Inventor], n: int, seed: int
) -> dict[str, list[Invention]]:
    """``n`` names for each domain that nothing here knows, the inventors' taking turns.

    Raises:
        BenchmarkError: a model's server does not answer, or it invents too few usable names.
        PackageError, ExtraMissing: a list of names is not on this machine.
    """
    asking = [_asker(inventor) for inventor in inventors]
    taken: set[str] = set()
    shares = [n // len(inventors) + (at < n % len(inventors)) for at in range(len(inventors))]
    asked = [
        (share, _Invented(inventor.model, ask, domain, seed, taken))
        for domain in domains
        for share, inventor, ask in zip(shares, inventors, asking, strict=True)
    ]
    while unread := [name for share, one in asked for name in one.fill(share)]:
        in_texts = mentioned(unread)
        for _, one in asked:
            one.drop(in_texts)
    found: dict[str, list[Invention]] = {}
    for domain in domains:
        own = [one.names[:share] for share, one in asked if one.domain == domain]
        turns = itertools.chain.from_iterable(itertools.zip_longest(*own))
        found[domain] = [invention for invention in turns if invention is not None]
    return found


@dataclass
class _Invented:
    """What one model has invented for one domain so far.

    Attributes:
        model: its name.
        ask: gives its answer to a prompt, with a seed.
        taken: the names of all models and domains, folded.
        dropped: how many lines were of no use, by the reason.
    """

    model: str
    ask: Callable[[str, int], str]
    domain: str
    seed: int
    taken: set[str]
    names: list[Invention] = field(default_factory=list)
    asked: int = 0
    dropped: Counter[str] = field(default_factory=Counter)

    def fill(self, count: int) -> list[str]:
        """Ask until there are ``count`` names, and some to spare; the names that are new.

        Raises:
            BenchmarkError: the server fails, or most answers bring nothing of use.
        """
        before = len(self.names)
        while len(self.names) < count and before < count:
            self._ask_more(int(_SPARE * count) + 1)
        return [invention.name for invention in self.names[before:]]

    def drop(self, names: frozenset[str]) -> None:
        """Take out names that turned out to be known."""
        kept = [invention for invention in self.names if invention.name not in names]
        self.dropped["stand in a paragraph"] += len(self.names) - len(kept)
        self.names = kept

    def _ask_more(self, count: int) -> None:
        patience = _PATIENCE + count // _LEAST_YIELD
        if self.asked >= patience:
            why = ", ".join(f"{number} {reason}" for reason, number in self.dropped.most_common())
            raise BenchmarkError(
                f"{self.model} invented only {len(self.names)} usable names for the "
                f"domain {self.domain} in {self.asked} answers (of all else {why or 'nothing'}"
                "): lower --N, leave the domain out, or name another --generator"
            )
        wanted = -(-(count - len(self.names)) // _COUNT)
        first = 1_000_000 * self.seed + self.asked  # another run's seed gives other answers
        seeds = range(first, first + min(wanted, patience - self.asked))
        prompt = PROMPT.format(count=_COUNT, things=THINGS[self.domain])
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            answers = list(pool.map(lambda number: self.ask(prompt, number), seeds))
        self.asked += len(seeds)
        for number, answer in zip(seeds, answers, strict=True):
            said = names_in(answer)
            self.dropped["answers are no list of names"] += said is None
            for name in said or ():
                self._take(name, number)

    def _take(self, name: str, number: int) -> None:
        if not is_name(name, self.domain):
            self.dropped["are no names"] += 1
        elif fold(name) in self.taken:
            self.dropped["were there before"] += 1
        elif is_known(name):
            self.dropped["are known"] += 1
        else:
            self.taken.add(fold(name))
            self.names.append(Invention(name, self.model, number))


def _asker(inventor: Inventor) -> Callable[[str, int], str]:
    """A function from a prompt and a seed to the model's answer.

    Raises:
        BenchmarkError: the server does not answer or does not serve the model.
    """
    role: Role = "server" if inventor.is_tested else "generator"
    endpoint = check_endpoint(inventor.base_url, inventor.model, role=role)
    asking = client(inventor.base_url, role=role, timeout=_TIMEOUT_S)
    # Inventing is no part of what is measured: a server that logs leaves it out.
    extra = {"vllm_xargs": {"activation_logging": "off"}} if endpoint.is_vllm else {}

    def ask(prompt: str, seed: int) -> str:
        try:
            said = asking.chat.completions.create(
                model=inventor.model,
                messages=[{"role": "user", "content": prompt}],
                max_tokens=_MAX_TOKENS,
                temperature=TEMPERATURE,
                seed=seed,
                response_format=cast("Any", _FORMAT),
                extra_body=extra,
            )
        except openai_package().APIError as error:
            raise BenchmarkError(
                f"{inventor.model} at {inventor.base_url} failed while it invented names: "
                f"{brief(error)}"
            ) from None
        return (said.choices[0].message.content or "") if said.choices else ""

    return ask


def names_in(answer: str) -> list[str] | None:
    """The texts in ``{"names": [...]}``; None if an answer is anything else.

    >>> names_in('{"names": ["Orla Vantresk"]}')
    ['Orla Vantresk']
    """
    try:
        said = json.loads(answer)
    except (ValueError, RecursionError):
        return None
    names = said.get("names") if isinstance(said, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        return None
    return names


def is_name(text: str, domain: str) -> bool:
    """Whether a text is just a name: words of letters, not too many, capitalised where names are.

    >>> is_name("Orla Vantresk", "person"), is_name("Orla, a singer", "person")
    (True, False)
    """
    fewest, most = _WORDS[domain]
    words = text.split()
    if not (_NAME.fullmatch(text) and fewest <= len(words) <= most):
        return False
    if domain not in _CAPITALISED:
        return True
    big = [word for word in words if word.lower() not in _SMALL]
    return bool(big) and not any(word[0].islower() for word in (words[0], *big))
