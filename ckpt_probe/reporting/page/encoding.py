"""Contents → the JSON that a page holds: arrays as bytes, each kept once; text as a page may show it."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import printable
from ckpt_probe.reporting.contents import Contents
from ckpt_probe.reporting.plots.description import Frames, Line, LinePlot, TableRows

MOST_CHARACTERS = 4000
"""Largest number of characters of a text in a page; longer texts are cut and end in an ellipsis."""

ARRAYS = {
    (Line, "x"): "f8",
    (Frames, "values"): "f4",
    **{(Line, name): "f4" for name in ("y", "low", "high", "errors")},
    (TableRows, "pictures"): "u1",
}
"""Types of fields that are arrays of numbers. Positions may be steps, which float32 cannot represent exactly."""


def encoded(contents: Contents, more: Mapping[str, Any]) -> str:
    """Encode a report and further values as JSON that is safe inside a script element."""
    arrays = _Arrays()
    data = {**arrays.object(contents), **{name: arrays.value(value) for name, value in more.items()}}
    text = json.dumps({**data, "arrays": arrays.texts}, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Escape everything that could be a tag, a comment or an entity of HTML; the JSON value is the same.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class _Arrays:
    """Encoder of dataclasses that collects arrays in base64, equal arrays once."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self._indices: dict[str, int] = {}

    def object(self, instance: Any) -> dict[str, Any]:
        """Encode a dataclass as its fields and the name of its class ("kind")."""
        result: dict[str, Any] = {"kind": type(instance).__name__}
        for field in fields(instance):
            kind = ARRAYS.get((type(instance), field.name))
            value = getattr(instance, field.name)
            result[field.name] = self.value(value) if kind is None or value is None else self.array(value, kind)
        if isinstance(instance, Frames):
            result["shape"] = list(instance.values.shape)
        if isinstance(instance, TableRows) and instance.pictures is not None:
            result["shape"] = list(instance.pictures.shape)
        if isinstance(instance, LinePlot):
            result["names"] = {_text(name): _text(label) for name, label in instance.names.items()}
        return result

    def value(self, value: Any) -> Any:
        """Encode a value of the contents for JSON."""
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, np.ndarray):
            return self.array(value, "f4")
        if is_dataclass(value):
            return self.object(value)
        if isinstance(value, Mapping):
            return {_text(str(name)): self.value(part) for name, part in value.items()}
        if isinstance(value, Sequence):
            return [self.value(part) for part in value]
        return value

    def array(self, values: Any, kind: str) -> dict[str, Any]:
        """Encode numbers as little-endian bytes, rounded to the precision of `kind`."""
        with np.errstate(over="ignore"):
            text = base64.b64encode(np.asarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")
        index = self._indices.setdefault(text, len(self.texts))
        if index == len(self.texts):
            self.texts.append(text)
        return {"array": index, "type": kind}


def _text(text: str) -> str:
    text = without_credentials(text)
    return printable(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")
