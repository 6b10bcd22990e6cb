"""Things found by name: our own, and those that other packages offer by entry points.

There are five registries, each beside the protocol of what it holds:

====================================  ==========================================
:mod:`activation_logging.benchmarks`  ``registry.BENCHMARKS``: questions to ask
:mod:`activation_logging.judges`      ``registry.JUDGES``: what makes a verdict of an answer
:mod:`activation_logging.detectors`   ``registry.DETECTORS``: what makes a score of an answer
:mod:`activation_logging.export`      ``registry.FORMATS``: what a store is exported to
:mod:`activation_logging.replay`      ``registry.QUANTITIES``: what one pass over an answer gives
====================================  ==========================================

Another package adds to one of them in its ``pyproject.toml``::

    [project.entry-points."activation_logging.detectors"]
    my_probe = "my_package.probes:MY_PROBE"
"""

from __future__ import annotations

from functools import cached_property
from importlib import import_module
from typing import TYPE_CHECKING, Generic, TypeVar

from activation_logging.errors import PluginError, UnknownName

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from importlib.metadata import EntryPoint

T = TypeVar("T")


class Registry(Generic[T]):
    """Named things of one kind. Nothing is imported before it is asked for.

    Args:
        what: what one of them is called in a sentence, such as ``"detector"``.
        kind: the type that each must have.
        group: the entry points' group.
        ours: where each of our own is, ``"module:attribute"`` by name, in the order to list them.
    """

    def __init__(self, what: str, kind: type[T], group: str, ours: Mapping[str, str]) -> None:
        self.what = what
        self.group = group
        self._kind = kind
        self._ours = dict(ours)
        self._added: dict[str, T] = {}

    def names(self) -> tuple[str, ...]:
        """Every name: ours in their order, then other packages', then what this program added."""
        return tuple(dict.fromkeys([*self._ours, *sorted(self._theirs), *self._added]))

    def __contains__(self, name: object) -> bool:
        return name in self.names()

    def __iter__(self) -> Iterator[T]:
        """Each of them, loaded, in the order of :meth:`names`."""
        return (self.get(name) for name in self.names())

    def get(self, name: str) -> T:
        """The thing of this name.

        Raises:
            UnknownName: there is none; the text lists the names.
            PluginError: another package offers it, and it cannot be loaded; or two offer it.
        """
        if name in self._added:
            return self._added[name]
        points = self._theirs.get(name, [])
        if len(points) + (name in self._ours) > 1:
            packages = ", ".join(["activation-logging"] * (name in self._ours) + _packages(points))
            raise PluginError(
                f"the {self.what} {name!r} is offered more than once ({packages}): uninstall all "
                "but one"
            )
        if name in self._ours:
            module, _, attribute = self._ours[name].partition(":")
            return self._checked(name, getattr(import_module(module), attribute))
        if not points:
            raise UnknownName(
                f"no {self.what} is called {name!r}; known are {', '.join(self.names())}"
            )
        try:
            found = points[0].load()
        except Exception as error:
            raise PluginError(
                f"the {self.what} {name!r} of {_packages(points)[0]} cannot be loaded "
                f"({points[0].value}: {error!r}): mend or uninstall that package"
            ) from error
        return self._checked(name, found, _packages(points)[0])

    def add(self, name: str, thing: T) -> None:
        """Make one known to this program alone, in a notebook for example.

        Raises:
            PluginError: the name is taken, or the thing is of another type.
        """
        if name in self.names():
            raise PluginError(f"there is a {self.what} called {name!r} already")
        self._added[name] = self._checked(name, thing)

    def remove(self, name: str) -> None:
        """Forget one that :meth:`add` made known."""
        del self._added[name]

    def _checked(self, name: str, found: object, package: str = "") -> T:
        if not isinstance(found, self._kind):
            origin = f" of {package}" if package else ""
            raise PluginError(
                f"the {self.what} {name!r}{origin} is a {type(found).__name__}, not a "
                f"{self._kind.__module__}.{self._kind.__qualname__}"
            )
        return found

    @cached_property
    def _theirs(self) -> dict[str, list[EntryPoint]]:
        from importlib.metadata import entry_points  # ten milliseconds, for those that look

        found: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            found.setdefault(point.name, []).append(point)
        return found


def _packages(points: list[EntryPoint]) -> list[str]:
    return [f"{p.dist.name} {p.dist.version}" if p.dist else p.value for p in points]
