"""The directory of evaluated positions: plan, records so far, and the summary at the end; other files of a path."""

import json
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_probe.addresses import without_credentials
from ckpt_probe.analysis import Record
from ckpt_probe.analysis.records import number, read_lines
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.files import code_hash, read_object, write_text

DUMPS = "dumps"
INFLUENCES = "influences"
PLAN_FILE = "plan.json"
POINTS_FILE = "points.jsonl"
REQUEST, CODE = "request", "code"
"""Entries of the plan's file beside the plan: the call, which may differ for one plan, and a hash of the code."""
AXES = {"path": ("alpha",), "plane": ("x", "y")}
"""Names of a position's coordinates, by kind."""
SUMMARIES: dict[str, dict[str, type | tuple[type, ...]]] = {
    "path": {"summary": list, "distance": (int, float), "length": (int, float)},
    "plane": {"marks": list, "summary": list, "axes": dict, "xs": list, "ys": list},
}
"""Entries of the file that is written when all positions are evaluated, and their types, by kind."""
DAMAGED = "`overwrite=True` computes all of it again"
PAUSE = 20
"""Factor between the time that writing the records took and the least time until they are written again."""


@dataclass
class Ledger:
    """Reads and writes plan.json, points.jsonl and, once finished, path.json or plane.json of a directory.

    Attributes:
        path: The directory.
        kind: "path" or "plane".
        aligned: File of B in A's order.
        midpoint: File of the midpoint of a curve.
        training: Run that trains the midpoint.
    """

    path: Path
    kind: str
    _due: float = field(default=0.0, init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        self.aligned, self.midpoint = self.path / "aligned.safetensors", self.path / "midpoint.safetensors"
        self.training = self.path / "curve"

    @property
    def finished(self) -> bool:
        """Return whether all positions are evaluated."""
        return self._summary_file(self.kind).exists()

    @property
    def begun(self) -> bool:
        """Return whether the directory contains records."""
        return (self.path / POINTS_FILE).exists()

    def require_free(self, *, overwrite: bool, resume: bool) -> None:
        """Raise UsageError if the directory contains results that may be neither replaced nor continued."""
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"{self.path}: a file; expected a directory for the {self.kind}")
        other = next((kind for kind in AXES if kind != self.kind and self._summary_file(kind).exists()), None)
        if other is not None:
            raise UsageError(f"{self.path}: contains a {other}; choose another name")
        if self.finished and not overwrite and not resume:
            advice = "`overwrite=True` replaces it, `resume=True` returns it, or choose another name"
            raise UsageError(f"{self.path}: contains a finished {self.kind}; {advice}")

    def prepare(self, plan: Record, *, request: Record, overwrite: bool, inputs: Sequence[Path] = ()) -> None:
        """Make the directory ready for a plan, after `require_free`: continue an earlier call, or write the plan.

        Args:
            plan: Settings of the path or plane.
            request: The call, for the command that makes the results again.
            overwrite: Whether to remove the files of an earlier call.
            inputs: Files that are read.

        Raises:
            UsageError: If the earlier call had another plan, naming the settings that differ, or an unknown one; if it
                is not finished and other code computed its records; or if an input would be removed.
        """
        if overwrite:
            self._clear(inputs)
        plan = without_credentials(plan)
        begun = self.begun or any(file.exists() for file in (self.aligned, self.midpoint, self.training))
        if begun and (self.path / PLAN_FILE).exists():
            self._require_same(plan)
        elif self.begun:
            raise UsageError(f"{self.path}: contains points of an unknown {self.kind}; `overwrite=True` replaces them")
        else:
            content = {**plan, CODE: code_hash(), REQUEST: request}
            write_text(self.path / PLAN_FILE, json.dumps(content, indent=2) + "\n", overwrite=True)

    def finish(self, records: Sequence[Record], summary: Record) -> None:
        """Write all records, and the summary, which marks the directory as finished."""
        self.keep(self.sorted(records))
        text = json.dumps({"plan": self._plan(), **summary}, indent=2, allow_nan=False) + "\n"
        write_text(self._summary_file(self.kind), text, overwrite=True)

    def summary(self) -> Record:
        """Read the summary. Raises DataError if the file cannot be read or lacks an entry."""
        file = self._summary_file(self.kind)
        summary = _object(file, f"the summary of a {self.kind}")
        for name, kind in SUMMARIES[self.kind].items():
            if not isinstance(summary.get(name), kind):
                raise DataError(f"{file}: {name} is missing or damaged; {DAMAGED}")
        return summary

    def sorted(self, records: Sequence[Record]) -> list[Record]:
        """Return the records by position: along a path, or row by row from the lowest of a plane."""
        return sorted(records, key=lambda record: self.position_of(record)[::-1])

    def position_of(self, record: Record) -> tuple[float, ...]:
        """Return the coordinates of a record."""
        return tuple(record[axis] for axis in AXES[self.kind])

    def label_of(self, position: Sequence[float]) -> str:
        """Return the text by which messages name a position, such as "alpha 0.25" or "x 1, y 0.5"."""
        return ", ".join(f"{axis} {value:g}" for axis, value in zip(AXES[self.kind], position, strict=True))

    def points(self, splits: Collection[str] | None = None) -> list[Record]:
        """Read the records, in the order in which they were written.

        Args:
            splits: The only splits that a record may have; None allows any.

        Raises:
            DataError: If a line is not the record of a position, naming the line.
        """
        if not self.begun:
            return []
        file = self.path / POINTS_FILE
        with error_context(after=f"; {DAMAGED}"):
            records = read_lines(file)
            for line, record in enumerate(records, 1):
                self._require_point(record, f"{file}: record {line}", splits)
        return records

    def keep(self, records: Sequence[Record]) -> None:
        """Write the records so far."""
        started = time.monotonic()
        text = "".join(json.dumps(record, allow_nan=False) + "\n" for record in records)
        write_text(self.path / POINTS_FILE, text, overwrite=True)
        now = time.monotonic()
        self._due = now + PAUSE * (now - started)

    def keep_in_time(self, records: Sequence[Record]) -> None:
        """Write the records so far, unless they were written a moment ago."""
        if time.monotonic() >= self._due:
            self.keep(records)

    def dump(self, alpha: float) -> Path:
        """Return the name of the dump of one point."""
        return self.path / DUMPS / f"alpha-{alpha:.6f}.h5"

    def influences(self, alpha: float) -> Path:
        """Return the name of the file with the influences of rows on loss and accuracy at one point."""
        return self.path / INFLUENCES / f"alpha-{alpha:.6f}.npz"

    def _summary_file(self, kind: str) -> Path:
        return self.path / f"{kind}.json"

    def _plan(self) -> Record:
        return _object(self.path / PLAN_FILE, f"the plan of a {self.kind}")

    def _require_point(self, record: Record, where: str, splits: Collection[str] | None) -> None:
        if any(number(record, name, where) is None for name in AXES[self.kind]):
            raise DataError(f"{where}: no {' and '.join(AXES[self.kind])}, which a point of a {self.kind} has")
        absent = [name for name in ("split", "loss", "accuracy") if name not in record]
        if absent:
            raise DataError(f"{where}: no {absent[0]}, which every point has")
        if splits is not None and record["split"] not in splits:
            raise DataError(f"{where}: split {record['split']!r}, where only {', '.join(splits)} is evaluated")
        for name in ("loss", "accuracy"):
            number(record, name, where)

    def _require_same(self, plan: Record) -> None:
        # Written and read once, so that tuples are lists, which the stored plan has.
        earlier, plan = self._plan(), json.loads(json.dumps(plan))
        changed = [f"{key} {earlier.get(key)!r} / {plan[key]!r}" for key in plan if earlier.get(key) != plan[key]]
        if changed:
            difference = f"(stored / now): {'; '.join(changed)}; `overwrite=True` replaces them"
            raise UsageError(f"{self.path}: contains points of another {self.kind} {difference}")
        if not self.finished and earlier.get(CODE) != code_hash():
            raise UsageError(
                f"{self.path}: contains points of an unfinished {self.kind} from another version of ckpt-probe or of "
                "its libraries, whose numbers may differ; `overwrite=True` computes them again"
            )

    def _clear(self, inputs: Sequence[Path]) -> None:
        # Only files that a path or its training writes; the user may keep others in the directory.
        run, dumps, influences = self.training, self.path / DUMPS, self.path / INFLUENCES
        checkpoints = run / "checkpoints"
        # The plan is last, so that files left by a kill still have their plan.
        ours = [self._summary_file(self.kind), self.path / POINTS_FILE, self.path / PLAN_FILE]
        if self.kind == "path":
            written = [*dumps.glob("alpha-*.h5"), *influences.glob("alpha-*.npz"), self.aligned, self.midpoint]
            written += [*checkpoints.glob("step-*.safetensors")]
            written += [run / name for name in ("state.safetensors", "metrics.jsonl", "config.json")]
            ours = [*written, *ours]
        for file in ours:
            if file.exists() and any(path.exists() and file.samefile(path) for path in inputs):
                raise UsageError(f"{file}: this path reads the file and would overwrite it; choose another directory")
        for file in ours:
            file.unlink(missing_ok=True)
        for folder in (dumps, influences, checkpoints, run) if self.kind == "path" else ():
            with suppress(OSError):  # absent, or it contains the user's files
                folder.rmdir()


def _object(file: Path, what: str) -> Record:
    with error_context(after=f"; {DAMAGED}"):
        return read_object(file, what)
