"""Other packages: which version is installed, and which extra brings a missing one."""

from __future__ import annotations

from importlib.util import find_spec

from activation_logging.errors import ExtraMissing


def require(extra: str, *modules: str) -> None:
    """Raise ExtraMissing unless all of these top-level modules are installed.

    Args:
        extra: the extra of this package that brings them.
        modules: names as imported.
    """
    for name in modules:
        if find_spec(name) is None:
            raise ExtraMissing(
                f"this needs the package {name!r}, which is not installed: "
                f"pip install 'activation-logging[{extra}]'"
            )


def version_of(package: str) -> str | None:
    """The version of an installed package, by its name on the index; None without it."""
    from importlib import metadata  # ten milliseconds, which only few commands need

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
