"""Material of a report: what its sources contain, read from their files or computed from their dumps."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ckpt_probe.analysis import Comparison, Settings, read_series
from ckpt_probe.analysis.records import by_run
from ckpt_probe.analysis.series import without_failed
from ckpt_probe.analysis.similarity import layer_similarities, step_similarities, stored_rows_of_series
from ckpt_probe.dumps import open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.findings import Findings
from ckpt_probe.findings.findings import main_findings
from ckpt_probe.paths import PlaneResult
from ckpt_probe.predictions import Predictions, read_predictions
from ckpt_probe.progress import Progress
from ckpt_probe.reporting.comparison import differences, grouped
from ckpt_probe.reporting.plots.layers import GROUPS, OfRun, is_of_weights
from ckpt_probe.reporting.plots.runs import Run, run_of_readings, run_of_records
from ckpt_probe.reporting.sources import PathContents, Source, read_path, read_plane, records_of
from ckpt_probe.scheduling import Workers
from ckpt_probe.trajectories.layout import WeightOptions
from ckpt_probe.trajectories.series import WeightSurvey, survey_weights, verdict_of

TITLE = "What happened in these runs"
"""Default heading of the page."""

MIR_ROWS = 256
"""Default number of rows for MIR between layers; 10 layers take 0.3 s with 256 rows and 20 s with 2,048."""


@dataclass
class Material:
    """Material of a report: its options, and what its sources contain, as far as they are read.

    Attributes:
        title: Heading of the page.
        class_names: Names of classes 0, 1, …; empty for those of the dumps.
        splits: Splits to analyze; empty for all.
        memory: Memory limit for the analysis of one dump, in bytes.
        workers: Number of processes that analyze dumps.
        cache: Whether to use the cache of records.
        mir_rows: Number of stored rows for MIR between layers; 0 leaves it out.
        data: Name of the data of the dumps, to show names and pictures of examples; None for none.
        data_arguments: Arguments of the data; None for those in the dump if it names the same data.
        runs: Runs with their records.
        similar: Similarities of layers.
        weights: Measurements of weights, by the name of the source.
        missing: Reasons for missing similarities of layers.
        predictions: Predictions of each run, one for each split.
        without_predictions: Reasons for missing predictions.
        left_out: Why dumps of a run, or a source, are left out, by its name.
        paths: Paths by the name of the source.
        planes: Planes by the name of the source.
    """

    title: str = TITLE
    class_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    memory: int = Settings().memory
    workers: int = 1
    cache: bool = True
    mir_rows: int = MIR_ROWS
    data: str | None = None
    data_arguments: Mapping[str, Any] | None = None
    runs: list[Run] = field(default_factory=list)
    similar: list[OfRun] = field(default_factory=list)
    weights: dict[str, WeightSurvey] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    predictions: list[list[Predictions]] = field(default_factory=list)
    without_predictions: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    paths: dict[str, PathContents] = field(default_factory=dict)
    planes: dict[str, PlaneResult] = field(default_factory=dict)

    @property
    def settings(self) -> Settings:
        """Settings of the analysis of dumps, with everything that a report shows."""
        return Settings(per_class=True, portrait=True, errors=True, memory=self.memory, layers=True)

    @cached_property
    def findings(self) -> dict[str, Findings]:
        """Return the findings about the main metrics of each run, or of each group if the runs belong to groups."""
        return {
            group: main_findings(group, {run.seed or run.name: run.records for run in members})
            for group, members in grouped(self.runs).items()
        }

    @cached_property
    def differences(self) -> list[Comparison]:
        """Return the comparisons of the groups on every metric; empty without groups."""
        return differences(self.runs) if self.has_groups else []

    @property
    def has_groups(self) -> bool:
        """Return whether the report is drawn by group: at least one run belongs to a group of several seeds."""
        return any(run.group is not None for run in self.runs)


def read_source(source: Source, material: Material, progress: Progress) -> None:
    """Read a source into the material of a report; raise DataError if it cannot be read."""
    if source.kind == "path":
        material.paths[source.name] = read_path(source)
    elif source.kind == "plane":
        material.planes[source.name] = read_plane(source)
    elif source.kind == "records":
        _read_records(source, material, progress)
    elif source.kind == "checkpoints":
        measuring = WeightOptions(workers=Workers(material.workers), cache=material.cache)
        material.weights[source.name] = survey = survey_weights(source.path, measuring, progress)
        run = run_of_records(source.name, survey.network, material.class_names)
        material.runs.append(replace(run, group=source.group, seed=source.seed))
    else:
        _read_dumps(source, material, progress)


def _read_records(source: Source, material: Material, progress: Progress) -> None:
    records = records_of(source)
    groups = [record for record in records if any(record.get(name) is not None for name in GROUPS)]
    if any(map(is_of_weights, records)):
        network = [record for record in records if record not in groups]
        material.weights[source.name] = WeightSurvey(network, groups)
    elif source.checkpoints is not None:
        verdict = verdict_of(source.checkpoints, material.cache, progress)
        material.weights[source.name] = WeightSurvey([], [], sentences=(verdict,))
    others = [record for record in records if record not in groups] if groups else records
    for (group, seed), of_run in by_run(others).items():
        name = source.name if group is None else f"{group}/{seed}" if seed else group
        position = (source.group, source.seed) if group is None else (group if seed else None, seed)
        run = run_of_records(name, of_run, material.class_names)
        material.runs.append(replace(run, group=position[0], seed=position[1]))


def _read_dumps(source: Source, material: Material, progress: Progress) -> None:
    splits, workers = material.splits or None, Workers(material.workers)
    results = read_series(
        source.path, material.settings, splits=splits, workers=workers, cache=material.cache, progress=progress
    )
    readings, failed = without_failed(results, progress)
    if failed is not None:
        material.left_out[source.name] = failed
    with open_dump(open_dump_series(source.path)[0].path) as dump:
        names = material.class_names or dump.class_names or ()
    run = replace(run_of_readings(source.name, readings, names), group=source.group, seed=source.seed)
    material.runs.append(run)
    if run.layered:
        _compare_layers(source, run, material, progress)
    try:
        material.predictions.append(read_predictions(source.path, splits, run=source.name, progress=progress))
    except DataError as error:
        material.without_predictions.append(str(error))


def _compare_layers(source: Source, run: Run, material: Material, progress: Progress) -> None:
    members = [member for member in open_dump_series(source.path) if member.name in run.checkpoints]
    splits = list(dict.fromkeys(str(record["split"]) for record in run.layered))
    with progress.task("similarities of layers", len(splits) * len(members), "dumps") as bar:
        for split in splits:
            try:
                stored, names = stored_rows_of_series([member.path for member in members], split)
                similar: list[OfRun] = []
                for member, rows in zip(members, stored, strict=True):
                    at = run.checkpoints.index(member.name)
                    similar.append((source.name, at, layer_similarities(rows, split, "cka")))
                    if material.mir_rows:
                        of_mir = layer_similarities(rows.thinned(material.mir_rows), split, "mir")
                        similar.append((source.name, at, of_mir))
                    bar.advance()
                for layer in stored[0].layers if len(stored) > 1 else ():
                    similar.append((source.name, 0, step_similarities(stored, names, split, "cka", layer)))
                material.similar += similar
            except DataError as error:
                material.missing.append(str(error))
