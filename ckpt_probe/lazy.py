"""Names of a package that load when they are first used, so that importing it costs milliseconds (PEP 562)."""

import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any


def lazy_names(package: str, file: str, **earlier: str) -> tuple[list[str], Callable[[str], Any]]:
    """Return `__all__` of a package, and a function for its `__getattr__` that imports names when they are first used.

    The names are those that its stub, `__init__.pyi`, imports: one in each line `from MODULE import NAME as NAME`.

    Args:
        package: Name of the package.
        file: Path of its `__init__.py`.
        **earlier: Modules of earlier names, which are not listed.

    Returns:
        The names, and the function; it raises AttributeError for an unknown name.
    """
    with open(f"{file}i", encoding="utf-8") as stub:  # noqa: PTH123 - pathlib takes longer to load than a small package
        home_of = {line.split()[3]: line.split()[1] for line in stub if line.startswith("from ")}

    def load(name: str) -> Any:
        home = home_of.get(name) or earlier.get(name)
        if home is None:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(import_module(home), name)
        setattr(sys.modules[package], name, value)
        return value

    return sorted(home_of), load
