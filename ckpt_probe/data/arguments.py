"""Arguments of data sources, and information about the model that will receive the data."""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError, last_line
from ckpt_probe.files import read_object
from ckpt_probe.plugins import load_pretrained, require_extra

CONFIG = "config.json"


def suggestion(**arguments: Any) -> str:
    """Return data arguments as a keyword for a message; the command line shows it as its option."""
    return f"`data_arguments={arguments!r}`"


def as_list(value: Any) -> list[Any]:
    """Return a value as a list.

    Args:
        value: None (an empty list), a list or tuple, text such as "a,b" or "1,2", which is split, or a single value.
    """
    if value is None:
        return []
    if not isinstance(value, str):
        return list(value) if isinstance(value, list | tuple) else [value]
    try:
        return list(json.loads(f"[{value}]"))
    except ValueError:
        return [part.strip() for part in value.split(",")]


@dataclass(frozen=True)
class ModelHints:
    """The name, arguments and directory of the model that will receive the data.

    Args:
        name: Name of the model, such as `timm:resnet18` or `hf:DIR`.
        arguments: Arguments of the model.
        directory: Directory of the checkpoint; the configuration, image processor and tokenizer may be there or one
            level above.
        arguments_source: Origin of the data arguments, for descriptions.
        complete: Returns the arguments with the sizes that the checkpoint's tensors show; slow.
        script: Arguments of the script of timm or torchvision that trained the model, if it is known.
    """

    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    arguments_source: str = "argument"
    complete: Callable[[], Mapping[str, Any]] | None = None
    script: Mapping[str, Any] = field(default_factory=dict)

    def sized_arguments(self) -> Mapping[str, Any]:
        """Return the model's arguments with the image size and channels that the checkpoint's tensors show."""
        return self.arguments if self.complete is None else self.complete()

    @property
    def source(self) -> str:
        """Return the part of the name before the colon: timm, torchvision, hf; "" if there is no colon."""
        kind, colon, _ = (self.name or "").partition(":")
        return kind if colon else ""

    @property
    def reference(self) -> str:
        """Return the part of the name after the colon: the library's name of the model, or a directory."""
        return (self.name or "").partition(":")[2]

    def directory_with(self, *names: str) -> Path | None:
        """Return the first directory that contains one of these files, None if no directory does.

        Searches DIR of `hf:DIR`, the checkpoint's directory and its parent: trainers save these files beside each
        checkpoint, or once above all of them.
        """
        named = [Path(self.reference)] if self.source == "hf" else []
        near = [] if self.directory is None else [self.directory, self.directory.resolve().parent]
        searched = [*named, *near]
        return next((path for path in searched if any((path / name).is_file() for name in names)), None)

    def configuration(self) -> Mapping[str, Any]:
        """Return the model's config.json, searched like `directory_with`; empty if it is absent or unreadable."""
        directory = self.directory_with(CONFIG)
        return {} if directory is None else read_configuration(directory)


def read_configuration(directory: Path) -> Mapping[str, Any]:
    """Return a directory's config.json, empty if it is absent or unreadable; building the model reports the reason."""
    with suppress(DataError):
        return read_object(directory / CONFIG, "a model's configuration")
    return {}


def load_auto(name: str, directory: Path, problem: str) -> Any:
    """Load a part of a model from its directory with a class of transformers.

    Args:
        name: Name of the class, such as "AutoTokenizer".
        directory: Directory with the part.
        problem: Message if it cannot be read, to which the reason is added.

    Raises:
        DataError: If it cannot be read.
    """
    transformers = require_extra("transformers", "transformers")
    try:
        return load_pretrained(getattr(transformers, name), directory)
    except Exception as error:
        raise DataError(f"{problem}: {last_line(error)}") from error
