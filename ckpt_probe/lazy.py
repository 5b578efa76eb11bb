"""Names of a package that load when they are first used, so that importing it costs milliseconds (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, home_of: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a function for `__getattr__` of a package that imports names when they are first used.

    Args:
        package: Name of the package.
        home_of: Module below the package that defines each name.

    Returns:
        The function; it raises AttributeError for an unknown name.
    """

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(f"{package}.{home_of[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return load
