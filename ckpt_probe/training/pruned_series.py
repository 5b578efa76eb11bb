"""Prune one checkpoint at increasing sparsities, each at once, or step by step with training in between."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import partial
from itertools import pairwise
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import Tensor

from ckpt_probe.checkpoints import Checkpoint, CheckpointMetadata, open_checkpoint, save_checkpoint
from ckpt_probe.config import StartSettings, TrainingConfig, load_config
from ckpt_probe.data import functions_named as data_functions
from ckpt_probe.data import load_data
from ckpt_probe.errors import DataError, UsageError, error_context
from ckpt_probe.files import write_text
from ckpt_probe.keywords import as_sequence
from ckpt_probe.models import build_model, find_head
from ckpt_probe.models import functions_named as model_functions
from ckpt_probe.plugins import require_named
from ckpt_probe.progress import NullProgress, Progress
from ckpt_probe.remote import resolve
from ckpt_probe.series import step_from_name
from ckpt_probe.training.loop import train
from ckpt_probe.training.pruning import count_zeros, prunable, prune_state, require_sparsity
from ckpt_probe.training.run import RunDirectory, read_settings

Source = Callable[[], AbstractContextManager[Checkpoint]]
"""Opens the checkpoint to prune, within a `with` block."""

STEM = "sparsity-"
PRUNED_FOLDER = "pruned"
RETRAIN_FOLDER = "retrain"
PROVENANCE = "ckpt_probe.pruning"
"""Key of the metadata of a pruned checkpoint that describe its source and the settings."""
METRICS = "ckpt_probe.metrics"


@dataclass(frozen=True)
class PrunedLevel:
    """The result for one sparsity.

    Attributes:
        sparsity: Requested fraction of zeros.
        path: Checkpoint.
        zeros: Number of zeros among the prunable weights.
        weights: Number of prunable weights.
        accuracy: Accuracy by split, from the metadata; empty unless retrained.
        written: Whether the checkpoint was written by this call.
    """

    sparsity: float
    path: Path
    zeros: int
    weights: int
    accuracy: dict[str, float]
    written: bool


@dataclass(frozen=True)
class PruneSummary:
    """The levels in increasing order of sparsity."""

    levels: tuple[PrunedLevel, ...]


def prune(
    checkpoint: Path | str,
    out: Path | str,
    sparsities: float | Sequence[float],
    *,
    scope: str = "global",
    keep_classifier: bool = False,
    classifier: str | None = None,
    retrain: TrainingConfig | Path | str | None = None,
    device: str = "auto",
    state_key: str | None = None,
    base: Path | str | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> PruneSummary:
    """Write `out`/sparsity-0.500.safetensors and so on: the checkpoint pruned to each sparsity by `prune_state`.

    Without `retrain` each result is pruned from the checkpoint itself. With it, each is pruned from the previous
    result, stored in `out`/pruned, and trained further from there (weights are not rewound) in `out`/retrain; the last
    checkpoint of that run is the result. Existing results of the same checkpoint and settings are not computed again,
    and an interrupted retraining continues.

    Args:
        checkpoint: Checkpoint to prune.
        out: Directory of the results.
        sparsities: Fractions of zeros, in [0, 1).
        scope: "global" or "layer", as in `prune_state`.
        keep_classifier: Whether to leave the last linear layer unpruned.
        classifier: Name of the last linear layer, if it cannot be found from the checkpoint's model and data.
        retrain: Configuration of the training after each pruning, or its TOML file.
        device: Device of the training.
        state_key: As in `open_checkpoint`.
        base: As in `open_checkpoint`.
        overwrite: Whether to remove earlier results in `out`.
        progress: Where progress and notes go.

    Returns:
        The results in increasing order of sparsity.

    Raises:
        UsageError: If a sparsity is outside [0, 1) or occurs twice, or `out` contains results of another pruning and
            `overwrite` is false.
        DataError: If the checkpoint cannot be read or pruned, or the training fails.
    """
    progress, directory = progress or NullProgress(), Path(out)
    retrain = load_config(retrain) if isinstance(retrain, Path | str) else retrain
    source: Source = partial(open_checkpoint, resolve(checkpoint), state_key=state_key, base=resolve(base))
    names = _names(as_sequence(sparsities) or ())
    weights = _weights(source, keep_classifier, classifier)
    _prepare(directory, resolve(checkpoint), names, overwrite=overwrite)
    if retrain is not None and retrain.start is not None:
        progress.message(f"[start] {retrain.start.checkpoint} is ignored: training starts from the pruned checkpoints")
    settings = None if retrain is None else retrain.model_dump(mode="json", by_alias=True, exclude={"start"})
    levels: list[PrunedLevel] = []
    content: str | None = None
    with progress.task("sparsities", len(names), "sparsities") as bar:
        for name, sparsity in names.items():
            path = directory / f"{name}.safetensors"
            content = content or _content_hash(source)
            # A result with the same source and settings need not be computed again.
            provenance = {
                "checkpoint": content,
                "sparsity": sparsity,
                "scope": scope,
                "weights": weights,
                "retrain": settings,
            }
            written = not _complete(path, provenance)
            if written and retrain is not None:
                _retrain(source, path, provenance, retrain, device, progress)
            elif written:
                _prune_file(source, path, provenance)
            if retrain is not None:
                source, content = partial(open_checkpoint, path), None
            levels.append(_level(path, sparsity, weights, written=written))
            bar.advance(sparsity=sparsity)
    return PruneSummary(tuple(levels))


def _names(sparsities: Sequence[float]) -> dict[str, float]:
    """Return file names without suffix, in increasing order, all with the same number of digits (at least three)."""
    if not sparsities:
        raise UsageError("sparsity: expected at least one")
    for sparsity in sparsities:
        require_sparsity(sparsity)
    # abs, because -0.0 is in [0, 1) too, and would be written with its sign.
    ordered = sorted(abs(float(sparsity)) for sparsity in sparsities)
    repeated = [a for a, b in pairwise(ordered) if a == b]
    if repeated:
        raise UsageError(f"sparsity: {repeated[0]:g} occurs twice")
    digits = max(3, *(-int(Decimal(repr(sparsity)).as_tuple().exponent) for sparsity in ordered))
    return {f"{STEM}{sparsity:.{digits}f}": sparsity for sparsity in ordered}


def _content_hash(source: Source) -> str:
    with source() as opened:
        return opened.content_hash()


def _weights(source: Source, keep_classifier: bool, classifier: str | None) -> list[str]:
    with source() as opened:
        tensors = prunable(opened.state_dict())
        if not keep_classifier:
            return tensors
        names = [f"{layer}.weight" for layer in (classifier or _classifier(opened)).split("+")]
    absent = next((name for name in names if name not in tensors), None)
    if absent is not None:
        raise UsageError(f"{opened.path}: no classifier weights {absent!r}; name the layer with `classifier=`")
    return [tensor for tensor in tensors if tensor not in names]


def _classifier(opened: Checkpoint) -> str:
    metadata = opened.metadata
    if metadata.classifier is not None:
        return metadata.classifier
    if metadata.model is None or metadata.data is None:
        raise UsageError(f"{opened.path}: names no model and data to find its classifier with; use `classifier=`")
    named = [*model_functions(metadata.model), *data_functions(metadata.data)]
    require_named(named, None, opened.path, "`classifier=`, the name of the layer")
    data = load_data(metadata.data, metadata.data_arguments)
    inputs, _ = next(iter(data.splits.values())).batch(slice(0, 2))
    with error_context(f"{opened.path}: "):
        return find_head(build_model(metadata.model, metadata.model_arguments), inputs).name


def _prepare(directory: Path, source: Path, names: dict[str, float], *, overwrite: bool) -> None:
    if directory.exists() and not directory.is_dir():
        raise UsageError(f"{directory}: a file; expected a directory for the pruned checkpoints")
    if overwrite:
        if directory.resolve() in source.resolve().parents:
            raise UsageError(f"{source}: `overwrite=True` would remove it before it is read; choose another directory")
        _clear(directory)
        return
    width = len(next(iter(names)))
    others = [file.name for file in sorted(directory.glob(f"{STEM}*.safetensors")) if len(file.stem) != width]
    if others:
        fault = f"contains {others[0]}, named with another number of digits"
        raise UsageError(f"{directory}: {fault}; `overwrite=True` removes it")


def _clear(directory: Path) -> None:
    # Runs first: a run that outlived the checkpoint it began from would be taken for that of the next one.
    try:
        for run in directory.glob(f"{RETRAIN_FOLDER}/{STEM}*"):
            rmtree(run)
        for file in (*directory.glob(f"{PRUNED_FOLDER}/{STEM}*.safetensors"), *directory.glob(f"{STEM}*.safetensors")):
            file.unlink()
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be removed: {error.strerror}") from error


def _prune_file(source: Source, target: Path, provenance: dict[str, Any]) -> None:
    """Write a pruned checkpoint, without the metrics of the source, which has other weights."""
    sparsity = provenance["sparsity"]
    with source() as opened:
        state, metadata, strings = opened.state_dict(), opened.metadata, opened.raw_metadata
    with error_context(f"{opened.path}: "):
        state, weights = prune_state(state, sparsity, scope=provenance["scope"], names=provenance["weights"])
    # At sparsity 0 nothing is masked: a weight that happens to be zero is free to grow.
    masked = dict.fromkeys([*metadata.pruned, *(weights if sparsity else ())])
    step = step_from_name(opened.path.stem) if metadata.step is None else metadata.step
    metadata = replace(metadata, step=step, metrics={}, pruned=list(masked))
    strings = {name: text for name, text in strings.items() if name != METRICS}
    _save(target, state, metadata, strings, provenance)


def _retrain(
    source: Source,
    target: Path,
    provenance: dict[str, Any],
    retrain: TrainingConfig,
    device: str,
    progress: Progress,
) -> None:
    """Prune a checkpoint, train it further and write the last checkpoint of that run."""
    pruned = target.parent / PRUNED_FOLDER / target.name
    if not _complete(pruned, provenance):
        _prune_file(source, pruned, provenance)
    # The resolved path, so that the configuration does not depend on how the directory is spelled.
    start = StartSettings.model_validate({"from": str(pruned.resolve())})
    run = RunDirectory(target.parent / RETRAIN_FOLDER / target.stem)
    _follow(run, start)
    config = retrain.model_copy(update={"start": start})
    summary = train(config, run.path, resume=True, device=device, progress=progress)
    with open_checkpoint(run.checkpoint(summary.last_step)) as opened:
        _save(target, opened.state_dict(), opened.metadata, opened.raw_metadata, provenance)


def _follow(run: RunDirectory, start: StartSettings) -> None:
    """Update the path of a run's start if the series, of which both are part, has been moved."""
    if not run.config.exists():
        return
    settings, beside = read_settings(run.config), Path(start.checkpoint)
    stated = settings.get("start") or {}
    before = Path(str(stated.get("from")))
    if before != beside and before.parts[-2:] == beside.parts[-2:]:
        moved = {**settings, "start": {**stated, "from": start.checkpoint}}
        write_text(run.config, json.dumps(moved, indent=2) + "\n", overwrite=True)


def _save(
    target: Path,
    state: dict[str, Tensor],
    metadata: CheckpointMetadata,
    strings: dict[str, str],
    provenance: dict[str, Any],
) -> None:
    zeros, entries = count_zeros(state, provenance["weights"])
    stated = replace(metadata, sparsity=zeros / entries).to_strings()
    entries_by_name = {**strings, **stated, PROVENANCE: json.dumps(provenance)}
    # Sorted, so that files with the same contents are identical and have the same hash.
    save_checkpoint(target, state, dict(sorted(entries_by_name.items())))


def _complete(path: Path, provenance: dict[str, Any]) -> bool:
    if not path.exists():
        return False
    with open_checkpoint(path) as opened:
        text = opened.raw_metadata.get(PROVENANCE, "{}")
    try:
        earlier = json.loads(text)
        changed = [key for key in provenance if earlier.get(key) != provenance[key]]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: metadata {PROVENANCE} cannot be read ({error})") from error
    if changed:
        advice = "choose another directory, or `overwrite=True`, which removes all pruned checkpoints there"
        raise UsageError(f"{path}: was pruned with another {', '.join(changed)}; {advice}")
    return True


def _level(path: Path, sparsity: float, weights: Sequence[str], *, written: bool) -> PrunedLevel:
    with open_checkpoint(path) as opened:
        zeros, entries = count_zeros({name: opened.read(name) for name in weights}, weights)
        metrics = opened.metadata.metrics
    accuracy = {split: values["accuracy"] for split, values in metrics.items() if "accuracy" in values}
    return PrunedLevel(sparsity, path, zeros, entries, accuracy, written)
