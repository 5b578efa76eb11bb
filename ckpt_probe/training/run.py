"""Manage the directory of a run: its configuration, checkpoints, metrics and state for resuming."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ckpt_probe.config import TrainingConfig
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.files import read_object, write_text


class RunDirectory:
    """The files of a run.

    Attributes:
        path: The directory.
        config: The resolved configuration, in JSON.
        metrics: The log: a JSON line for each logged step, and for each split at each checkpoint.
        state: The state from which a run is resumed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config, self.metrics = path / "config.json", path / "metrics.jsonl"
        self.state = path / "state.safetensors"

    def checkpoint(self, step: int) -> Path:
        """Return the path of the checkpoint after `step` updates."""
        return self.path / "checkpoints" / f"step-{step:06d}.safetensors"


def open_run(path: Path, config: TrainingConfig, *, resume: bool, overwrite: bool) -> RunDirectory:
    """Create or clear the directory of a run.

    Raises:
        UsageError: As in `require_free`.
    """
    require_free([path], [config], resume=resume, overwrite=overwrite)
    run = RunDirectory(path)
    if resume and run.config.exists():
        return run
    if overwrite:
        _clear(run)
    settings = config.model_dump(mode="json", by_alias=True)
    write_text(run.config, json.dumps(settings, indent=2) + "\n", overwrite=True)
    return run


def require_free(paths: Sequence[Path], configs: Sequence[TrainingConfig], *, resume: bool, overwrite: bool) -> None:
    """Check that runs can start or be resumed in their directories, without writing anything.

    Args:
        paths: Directories of the runs.
        configs: Configurations of the runs.
        resume: Whether to resume them.
        overwrite: Whether to remove earlier runs.

    Raises:
        UsageError: If a directory is a file, or is not empty and neither `resume` nor `overwrite` is set; if `resume`
            is set and the configuration differs or is missing; or if `overwrite` would remove a checkpoint from which
            one of the runs starts.
    """
    starts = [Path(config.start.checkpoint) for config in configs if config.start is not None]
    for path, config in zip(paths, configs, strict=True):
        run = RunDirectory(path)
        if path.exists() and not path.is_dir():
            raise UsageError(f"{path}: a file; expected a directory for the run, so choose another name")
        left = _written(run)
        if resume and run.config.exists():
            _require_same(run.config, config.model_dump(mode="json", by_alias=True))
        elif resume and left:
            problem = f"cannot be resumed, because {run.config.name} is missing; start over with `overwrite=True`"
            raise UsageError(f"{left[0]}: {problem}")
        elif not resume and not overwrite and path.is_dir() and any(path.iterdir()):
            raise UsageError(f"{path}: exists already; `resume=True` continues it, `overwrite=True` starts over")
        read = next((file for file in left for start in starts if start.exists() and file.samefile(start)), None)
        if overwrite and read is not None:
            raise UsageError(f"{read}: the run starts from this file and would remove it; choose another directory")


def forget_after(run: RunDirectory, step: int) -> None:
    """Remove the lines of metrics.jsonl after `step`, and an incomplete last one; they will be written again."""
    if not run.metrics.exists():
        return
    try:
        lines = run.metrics.read_text(encoding="utf-8").splitlines(keepends=True)
        earlier = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{run.metrics}: a damaged or foreign line ({error}); train again with `overwrite=True`"
        ) from error
    write_text(run.metrics, "".join(earlier), overwrite=True)


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings in a run's configuration file.

    Raises:
        DataError: If it cannot be read, or is not a configuration.
    """
    with error_context(after="; train again with `overwrite=True`"):
        return read_object(path, "the configuration of a run")


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    before, now = _flat(read_settings(path)), _flat(settings)
    changed = [
        f"{key} {before.get(key)!r} → {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(f"{path}: `resume=True` needs the same configuration, which changed: {'; '.join(changed)}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _written(run: RunDirectory) -> list[Path]:
    """Return all files that a run has written except its configuration."""
    checkpoints = sorted((run.path / "checkpoints").glob("step-*.safetensors"))
    return [file for file in (run.state, *checkpoints, run.metrics) if file.exists()]


def _clear(run: RunDirectory) -> None:
    # Other files in the directory are not removed. The configuration is removed last, so that files of a partly removed
    # run are not mistaken for those of another configuration.
    for file in (*_written(run), run.config):
        file.unlink(missing_ok=True)
