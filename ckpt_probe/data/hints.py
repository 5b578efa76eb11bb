"""What data may ask about the model that will see them: how images are prepared, and how text becomes tokens."""

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckpt_probe.errors import DataError
from ckpt_probe.files import read_object

CONFIG = "config.json"


@dataclass(frozen=True)
class ModelHints:
    """A model by its name, as `--model` has it (`timm:resnet18`, `hf:DIR`, …), its arguments, and where it lies.

    directory: that of the checkpoint, where its configuration, image processor and tokenizer may be, or one above.
    arguments_source: who names the arguments of the data, for descriptions.
    complete: adds the sizes that the checkpoint's tensors show to the arguments, which takes a while.
    """

    name: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    directory: Path | None = None
    arguments_source: str = "argument"
    complete: Callable[[], Mapping[str, Any]] | None = None

    def sized_arguments(self) -> Mapping[str, Any]:
        """Return the model's arguments with its image size and channels, wherever the checkpoint shows them."""
        return self.arguments if self.complete is None else self.complete()

    @property
    def source(self) -> str:
        """What stands before the colon of the name: timm, torchvision, hf; "" where there is none."""
        kind, colon, _ = (self.name or "").partition(":")
        return kind if colon else ""

    @property
    def place(self) -> str:
        """What stands behind the colon of the name."""
        return (self.name or "").partition(":")[2]

    def holding(self, *names: str) -> Path | None:
        """The first directory of the model's own files with one of these in it: that of `hf:DIR`, or as `directory`.

        A trainer keeps them beside each checkpoint, or once in the directory of all of them.
        """
        named = [Path(self.place)] if self.source == "hf" else []
        near = [] if self.directory is None else [self.directory, self.directory.resolve().parent]
        return next((place for place in [*named, *near] if any((place / name).is_file() for name in names)), None)

    def configuration(self) -> Mapping[str, Any]:
        """The model's config.json, by the same rule; nothing where there is none, or it cannot be read."""
        directory = self.holding(CONFIG)
        return {} if directory is None else read_configuration(directory)


def read_configuration(directory: Path) -> Mapping[str, Any]:
    """What a directory's config.json says; nothing where it cannot be read: whoever builds the model says why."""
    with suppress(DataError):
        return read_object(directory / CONFIG, "a model's configuration")
    return {}
