"""Looks definitions up in a package's sources, without importing them."""

from __future__ import annotations

import ast
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from pathlib import Path


class _Definition(NamedTuple):
    """A definition, and the module that it is in. Base classes are looked up in that module."""

    module: str
    node: ast.AST


class Sources:
    """The modules below a folder. Each is parsed on first use."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parsed = cache(self._parse)
        self._set_by = cache(_attributes)

    def has(self, module: str) -> bool:
        return self._file(module).is_file()

    def find(self, module: str, symbol: str) -> bool:
        """Whether a module has a symbol in the notation of :data:`.SYMBOLS`."""
        path, _, parameters = symbol.partition("(")
        owner, _, member = path.partition(".")
        found = self._lookup(module, owner)
        if found is not None and member:
            found = self._member(found, member)
        if found is None or "(" not in symbol:
            return found is not None
        wanted = [name for name in parameters.rstrip(")").split(", ") if name]
        return _takes(found.node, wanted)

    def _lookup(self, module: str, name: str) -> _Definition | None:
        """The definition of a module's top-level name; imports are followed."""
        if not self.has(module):
            return None
        node = self._parsed(module).get(name)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else _Definition(module, node)
        origin = self._origin(module, node)
        wanted = next(alias.name for alias in node.names if (alias.asname or alias.name) == name)
        found = self._lookup(origin, wanted)
        # A module, or an import from another package, exists but has no definition to inspect.
        is_opaque = not self.has(origin) or self.has(f"{origin}.{wanted}")
        return _Definition(module, node) if found is None and is_opaque else found

    def _member(self, owner: _Definition, name: str) -> _Definition | None:
        """A method, field or attribute of a class or of one of its bases."""
        if not isinstance(owner.node, ast.ClassDef):
            return None
        node = _names(owner.node.body).get(name)
        if node is None and name in self._set_by(owner.node):
            node = owner.node
        if node is not None:
            return _Definition(owner.module, node)
        for base in owner.node.bases:
            found = self._lookup(owner.module, base.id) if isinstance(base, ast.Name) else None
            inherited = None if found is None else self._member(found, name)
            if inherited is not None:
                return inherited
        return None

    def _file(self, module: str) -> Path:
        folder = self._root.joinpath(*module.split("."))
        package = folder / "__init__.py"
        return package if package.is_file() else folder.with_suffix(".py")

    def _parse(self, module: str) -> Mapping[str, ast.stmt]:
        return _names(ast.parse(self._file(module).read_bytes()).body)

    def _origin(self, module: str, node: ast.ImportFrom) -> str:
        """The absolute name of the module that a ``from`` import names."""
        if not node.level:
            return node.module or ""
        parts = module.split(".")
        is_package = self._file(module).name == "__init__.py"
        kept = parts[: len(parts) - node.level + is_package]
        return ".".join([*kept, *([node.module] if node.module else [])])


def _names(body: Iterable[ast.stmt]) -> dict[str, ast.stmt]:
    """Names that statements define or import. A definition takes precedence over an assignment."""
    found: dict[str, ast.stmt] = {}
    for node in _flat(body):
        if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            found[node.name] = node
        elif isinstance(node, ast.ImportFrom):
            found.update({alias.asname or alias.name: node for alias in node.names})
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, node)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, node)
    return found


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements, and those inside ``if``, ``try`` and ``with``."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try, ast.With)):
            for inner in ("body", "orelse", "handlers", "finalbody"):
                for part in getattr(node, inner, ()):
                    yield from _flat(part.body if isinstance(part, ast.ExceptHandler) else [part])


def _attributes(owner: ast.ClassDef) -> frozenset[str]:
    """Attributes that the methods of a class set on ``self``."""
    return frozenset(
        node.attr
        for node in ast.walk(owner)
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id == "self"
    )


def _takes(node: ast.AST, wanted: Sequence[str]) -> bool:
    """Whether a function has exactly these parameters; with ``...``, at least these, in order."""
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return False
    arguments = node.args
    every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    names = [argument.arg for argument in every if argument.arg not in ("self", "cls")]
    if list(wanted[-1:]) != ["..."]:
        return names == list(wanted)
    return [name for name in names if name in wanted] == list(wanted[:-1])
