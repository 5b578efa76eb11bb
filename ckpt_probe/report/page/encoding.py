"""Contents → the JSON that a page holds: arrays as bytes, each kept once; text as a page may show it."""

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np

from ckpt_probe.addresses import without_credentials
from ckpt_probe.errors import printable
from ckpt_probe.report.contents import Contents
from ckpt_probe.report.plots.description import Frames, Line, LinePlot

MOST_CHARACTERS = 4000
"""Characters of a text that a page holds: sentences and commands are shorter, and what is longer says so."""

ARRAYS = {(Line, "x"): "f8", (Line, "y"): "f4", (Line, "low"): "f4", (Line, "high"): "f4", (Frames, "values"): "f4"}
"""Which fields are arrays of numbers. Positions may be steps, which need more than float32 holds exactly."""


def encoded(contents: Contents, more: Mapping[str, Any]) -> str:
    """All of a report and `more` beside it as JSON that may stand inside a script element, whatever its texts are."""
    arrays = _Arrays()
    data = {**arrays.object(contents), **{name: arrays.value(value) for name, value in more.items()}}
    text = json.dumps({**data, "arrays": arrays.held}, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    # Nothing that HTML could take for a tag, a comment or an entity is left, and JSON reads the same.
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


class _Arrays:
    """Arrays in base64, each different one once."""

    def __init__(self) -> None:
        self.held: list[str] = []
        self._places: dict[str, int] = {}

    def object(self, one: Any) -> dict[str, Any]:
        """A dataclass by its fields; plots say their kind."""
        found: dict[str, Any] = {"kind": type(one).__name__}
        for field in fields(one):
            kind = ARRAYS.get((type(one), field.name))
            value = getattr(one, field.name)
            found[field.name] = self.value(value) if kind is None else self.array(value, kind)
        if isinstance(one, Frames):
            found["shape"] = list(one.values.shape)
        if isinstance(one, LinePlot):
            found["names"] = {_text(name): _text(label) for name, label in one.names.items()}
        return found

    def value(self, value: Any) -> Any:
        """Anything that contents hold, as JSON has it."""
        if isinstance(value, str):
            return _text(value)
        if isinstance(value, np.ndarray):
            return self.array(value, "f4")
        if is_dataclass(value):
            return self.object(value)
        if isinstance(value, Mapping):
            return {_text(str(name)): self.value(one) for name, one in value.items()}
        if isinstance(value, Sequence):
            return [self.value(one) for one in value]
        return value

    def array(self, values: Any, kind: str) -> dict[str, Any]:
        """Numbers, little-endian; what float32 does not hold is the nearest that it does."""
        with np.errstate(over="ignore"):
            text = base64.b64encode(np.asarray(values, dtype=f"<{kind}").tobytes()).decode("ascii")
        place = self._places.setdefault(text, len(self.held))
        if place == len(self.held):
            self.held.append(text)
        return {"array": place, "type": kind}


def _text(text: str) -> str:
    text = without_credentials(text)
    return printable(text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…")
