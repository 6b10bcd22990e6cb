"""Choosing entries by what they are: the command line and the HTTP routes share this."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from activation_logging.errors import EntryNotFound, SettingsError
from activation_logging.records import LABELS, Status

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from activation_logging.store.entry import Entry
    from activation_logging.store.reader import Store

_NAMED = 5

STATUSES: tuple[Status, ...] = get_args(Status)


class LabelFilter(NamedTuple):
    """A label, given by one evaluator or, with ``name=None``, by any."""

    name: str | None
    label: str

    @classmethod
    def parse(cls, text: str) -> LabelFilter:
        """Read ``LABEL`` or ``NAME=LABEL``.

        Raises:
            SettingsError: the label is not one of :data:`LABELS`.
        """
        name, equals, label = text.rpartition("=")
        if label not in LABELS:
            raise SettingsError(
                f"label: {label[:80]!r} is not one of {', '.join(LABELS)} "
                "(write LABEL, or NAME=LABEL for one evaluator)"
            )
        return cls(name if equals else None, label)

    def matches(self, entry: Entry) -> bool:
        """Whether the entry carries this label."""
        return any(
            found.label == self.label and self.name in (None, name)
            for name, found in entry.evaluations.items()
        )


def select(
    store: Store,
    *,
    model: str | None = None,
    status: str | None = None,
    label: str | None = None,
    tags: Mapping[str, str] | None = None,
    among: Iterable[Entry] | None = None,
    newest_first: bool = True,
    limit: int | None = None,
    offset: int = 0,
) -> Iterator[Entry]:
    """The entries that match every filter given, in order of writing.

    Args:
        store: where to look.
        model: the model's name as it was served, or the last part of it (after the last ``/``).
        status: one of :data:`STATUSES`.
        label: ``LABEL`` or ``NAME=LABEL``, see :class:`LabelFilter`.
        tags: every one of these tags must be there with this value.
        among: look at these only, in this order.
        newest_first: begin with the entry that was written last.
        limit: at most so many entries; None for all.
        offset: leave out so many matching entries first.

    Raises:
        SettingsError: a filter has a value that cannot be; raised at once, not while iterating.
    """
    if status is not None and status not in STATUSES:
        raise SettingsError(f"status: {status[:80]!r} is not one of {', '.join(STATUSES)}")
    for name, number in (("limit", limit), ("offset", offset)):
        if number is not None and number < 0:
            raise SettingsError(f"{name}: {number} is negative")
    wanted = None if label is None else LabelFilter.parse(label)
    found = store.entries(newest_first=newest_first) if among is None else among
    matching = (
        entry
        for entry in found
        if (model is None or model in (entry.model, entry.model.rpartition("/")[2]))
        and (not tags or tags.items() <= entry.tags.items())
        and (wanted is None or wanted.matches(entry))
        and (status is None or entry.status == status)
    )
    return islice(matching, offset, None if limit is None else offset + limit)


def parse_conditions(texts: Iterable[str]) -> dict[str, Any]:
    """Read ``FIELD=VALUE`` texts as keyword arguments of :func:`select`.

    The fields are ``model``, ``status``, ``label`` (``label=NAME=LABEL`` for one evaluator's)
    and ``tag`` (``tag=NAME=VALUE``, which may come several times).

    Raises:
        SettingsError: a text is no such thing, or a field comes twice.
    """
    found: dict[str, Any] = {}
    tags: dict[str, str] = {}
    for text in texts:
        name, _, value = text.partition("=")
        if name == "tag" and "=" in value:
            tag, _, wanted = value.partition("=")
            tags[tag] = wanted
        elif name in ("model", "status", "label") and value and name not in found:
            found[name] = value
        else:
            raise SettingsError(
                f"where: {text[:80]!r} is not model=..., status=..., label=[NAME=]LABEL or "
                "tag=NAME=VALUE, or comes twice"
            )
    return {**found, "tags": tags} if tags else found


def find(store: Store, text: str) -> list[Entry]:
    """The entries that a person means: a key, a request id, or the beginning of one key.

    ``<beginning>#2`` is the third answer to the prompt whose hash begins so, ``<beginning>`` the
    first.

    Raises:
        EntryNotFound: there is none, or the beginning fits several keys; the message names some.
    """
    if text in store:
        return [store[text]]
    choices = store.for_request(text)
    if choices:
        return choices
    start, mark, number = text.partition("#")
    similar = [key for key in store if start and key.startswith(start)]
    # What `ls` prints: the beginning of the hash, and which answer to that prompt is meant.
    keys = [key for key in similar if key.partition("#")[1:] == (mark, number)]
    if not mark:
        keys = keys or similar
    if len(keys) > 1:
        named = ", ".join(keys[:_NAMED]) + (", ..." if len(keys) > _NAMED else "")
        raise EntryNotFound(f"{len(keys)} entries begin with {text[:100]!r}: {named}")
    if not keys:
        raise EntryNotFound(
            f"no entry of {store.path} has the key or request id {text[:100]!r}, nor begins so"
        )
    return [store[keys[0]]]
