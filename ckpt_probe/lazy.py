"""Names of a package that load when they are first used, so that importing it costs milliseconds (PEP 562)."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_names(package: str, home_of: Mapping[str, str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package: each name, and the module below the package where it lives.

    A name whose home ends in it is that module itself. Raises AttributeError for a name that has no home.
    """

    def load(name: str) -> Any:
        if name not in home_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = import_module(f"{package}.{home_of[name]}")
        value = home if home.__name__.endswith(f".{name}") else getattr(home, name)
        setattr(sys.modules[package], name, value)
        return value

    return load
