"""The directory of a run: its configuration, checkpoints, metrics and resume state."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckpt_probe.config import TrainingConfig
from ckpt_probe.errors import DataError, UsageError
from ckpt_probe.files import write_text


@dataclass(frozen=True)
class RunDirectory:
    """Where a run keeps what."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration, JSON."""
        return self.path / "config.json"

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged step, and one for each split at each checkpoint."""
        return self.path / "metrics.jsonl"

    @property
    def state(self) -> Path:
        """What `--resume` goes on from."""
        return self.path / "state.safetensors"

    def checkpoint(self, step: int) -> Path:
        """The checkpoint after `step` updates."""
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"


def open_run(path: Path, config: TrainingConfig, *, resume: bool, overwrite: bool) -> RunDirectory:
    """The directory of a run, ready to be written to.

    Raises UsageError where it holds something and neither `resume` nor `overwrite` is set, or where `resume` is set
    and the configuration there differs, naming what does, or is missing beside what a run wrote.
    """
    run = RunDirectory(path)
    settings = config.model_dump(mode="json", by_alias=True)
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path}: a file, where the run's directory is to be")
    if resume and run.config.exists():
        _require_same(run.config, settings)
        return run
    if resume and (left := _written(run)):
        raise UsageError(f"{left[0]}: of which configuration is not known, {run.config.name} is missing; --overwrite")
    if path.is_dir() and any(path.iterdir()) and not resume:
        if not overwrite:
            raise UsageError(f"{path}: exists already; --resume goes on with it, --overwrite starts it anew")
        _clear(run)
    write_text(run.config, json.dumps(settings, indent=2) + "\n", overwrite=True)
    return run


def forget_after(run: RunDirectory, step: int) -> None:
    """Drop the lines of metrics.jsonl after `step`, and a last one that was cut off: they will be written again."""
    if not run.metrics.exists():
        return
    kept = [line for line in run.metrics.read_text().splitlines(keepends=True) if _at_most(line, step)]
    write_text(run.metrics, "".join(kept), overwrite=True)


def _at_most(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and json.loads(line)["step"] <= step
    except json.JSONDecodeError:
        return False


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    try:
        earlier = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}); train again with --overwrite") from error
    before, now = _flat(earlier), _flat(settings)
    changed = [
        f"{key} {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(f"{path}: --resume with another configuration: {'; '.join(changed)}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _written(run: RunDirectory) -> list[Path]:
    """What a run has written but for its configuration."""
    checkpoints = sorted((run.path / "checkpoints").glob("step-*.safetensors"))
    return [file for file in (run.state, *checkpoints, run.metrics) if file.exists()]


def _clear(run: RunDirectory) -> None:
    # Only what a run writes is removed: anything else in the directory is its owner's. The configuration goes last: as
    # long as something is left it says of which run, so that another one does not go on from there.
    for file in (*_written(run), run.config):
        file.unlink(missing_ok=True)
