"""What a report says and shows, in its order: a reading, sections of plots, and where all of it comes from."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ckpt_probe.analysis import Settings, read_series
from ckpt_probe.analysis.similarity import Similarity, kept_of_series, layer_similarities, step_similarities
from ckpt_probe.dumps import open_dump, open_dump_series
from ckpt_probe.errors import DataError
from ckpt_probe.paths import PlaneResult
from ckpt_probe.progress import NullProgress, Progress, Task
from ckpt_probe.report.plots.description import Axis, Plot
from ckpt_probe.report.plots.layers import LayerLikeness, layer_maps, separation_plots, similarity_plots
from ckpt_probe.report.plots.metrics import axis_along, metric_plots
from ckpt_probe.report.plots.paths import path_plots
from ckpt_probe.report.plots.planes import contour_plots
from ckpt_probe.report.plots.portraits import class_table, matrix_plots, spectrum_plots
from ckpt_probe.report.provenance import Origin, origin_of
from ckpt_probe.report.reading import read_path as read_path_aloud
from ckpt_probe.report.reading import read_plane as read_plane_aloud
from ckpt_probe.report.reading import read_run
from ckpt_probe.report.runs import ORDER, Run, common_axis, positions, run_of_readings, run_of_records
from ckpt_probe.report.sources import DUMP, PATH, PLANE, RECORDS, FoundPath, Source, read_path, read_plane, records_of
from ckpt_probe.scheduling import Workers
from ckpt_probe.series import Member

MIR_ROWS = 256
"""A matrix of L layers takes L² / 2 eigensolves of that many rows: 0.3 s of 10 layers at 256, 20 s at 2,048."""


@dataclass(frozen=True)
class Wishes:
    """What is asked of a report: its title, names of the classes, and how dumps are analyzed.

    mir_rows: of how many of the rows kept of layers their MIR is computed, none where 0.
    """

    title: str = "What happened in these runs"
    class_names: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    memory: int = Settings().memory
    workers: int = 1
    cache: bool = True
    mir_rows: int = MIR_ROWS

    @property
    def settings(self) -> Settings:
        """How dumps are analyzed: everything that a report shows of them, small enough to be kept in the cache."""
        return Settings(per_class=True, portrait=True, memory=self.memory, layers=True)


@dataclass(frozen=True)
class Group:
    """Plots that belong together, under a heading ("" for none)."""

    title: str
    plots: tuple[Plot, ...]


@dataclass(frozen=True)
class Section:
    """A part of a report: what it shows, in a sentence, its groups, and what was left out of it."""

    key: str
    title: str
    lead: str
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    @property
    def plots(self) -> list[Plot]:
        """All of its plots."""
        return [plot for group in self.groups for plot in group.plots]


@dataclass(frozen=True)
class Track:
    """A run on the slider: its checkpoints and where each stands on the common axis, None where nowhere."""

    run: str
    checkpoints: tuple[str, ...]
    places: tuple[float | None, ...]


@dataclass(frozen=True)
class Contents:
    """All of a report. reading: sentences by what they are about. axis: what the slider moves along."""

    title: str
    reading: tuple[tuple[str, tuple[str, ...]], ...]
    sections: tuple[Section, ...]
    axis: Axis
    tracks: tuple[Track, ...]
    origins: tuple[Origin, ...]
    notes: tuple[str, ...] = ()


@dataclass
class _Found:
    """What the sources held, by name."""

    runs: list[Run] = field(default_factory=list)
    similar: list[LayerLikeness] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    """Why similarities of layers are not there."""

    paths: dict[str, FoundPath] = field(default_factory=dict)
    planes: dict[str, PlaneResult] = field(default_factory=dict)


def gather(sources: Sequence[Source], wishes: Wishes | None = None, progress: Progress | None = None) -> Contents:
    """Read every source, and decide what a report of them shows.

    Dumps are analyzed, with the cache beside them. Raises DataError, naming the file, where a source cannot be read or
    nothing in it can be shown.
    """
    wishes, progress = wishes or Wishes(), progress or NullProgress()
    found, origins = _Found(), []
    with progress.task("sources", len(sources), "sources") as bar:
        for source in sources:
            _read(source, found, wishes, progress)
            origins.append(origin_of(source))
            bar.advance()
    if not (found.runs or found.paths or found.planes):
        raise DataError("nothing to report")
    axis = common_axis(found.runs) if found.runs else "step"
    tracks = [Track(run.name, tuple(run.checkpoints), tuple(_places(run, axis))) for run in found.runs]
    sections = [section for section in _sections(found, axis) if section.plots]
    return Contents(
        wishes.title,
        tuple((about, tuple(sentences)) for about, sentences in _reading(found) if sentences),
        tuple(sections),
        axis_along(axis, sorted({place for track in tracks for place in track.places if place is not None})),
        tuple(tracks),
        tuple(origins),
    )


def _read(source: Source, found: _Found, wishes: Wishes, progress: Progress) -> None:
    if source.kind == PATH:
        found.paths[source.name] = read_path(source)
    elif source.kind == PLANE:
        found.planes[source.name] = read_plane(source)
    elif source.kind == RECORDS:
        found.runs.append(run_of_records(source.name, records_of(source), wishes.class_names))
    elif source.kind == DUMP:
        readings = list(
            read_series(
                source.path,
                wishes.settings,
                splits=wishes.splits or None,
                workers=Workers(wishes.workers),
                cache=wishes.cache,
                progress=progress,
            )
        )
        names = wishes.class_names or _class_names(source.path)
        run = run_of_readings(source.name, readings, names)
        found.runs.append(run)
        if run.layered:
            _compare(source, run, found, wishes.mir_rows, progress)


def _compare(source: Source, run: Run, found: _Found, mir_rows: int, progress: Progress) -> None:
    members = open_dump_series(source.path)
    splits = list(dict.fromkeys(str(record["split"]) for record in run.layered))
    with progress.task("similarities of layers", len(splits) * len(members), "dumps") as bar:
        for split in splits:
            try:
                found.similar.append(_similarities(source, run, members, split, mir_rows, bar))
            except DataError as error:
                found.missing.append(str(error))


def _similarities(
    source: Source, run: Run, members: Sequence[Member], split: str, mir_rows: int, bar: Task
) -> LayerLikeness:
    kept, names = kept_of_series([member.path for member in members], split)
    layers = tuple(kept[0].layers)
    cka, mir = [], []
    for one in kept:
        cka.append(_square(layer_similarities(one, split, "cka")))
        if mir_rows:
            mir.append(_square(layer_similarities(one.thinned(mir_rows), split, "mir")))
        bar.advance()
    through = {}
    if len(kept) > 1:
        through = {layer: _square(step_similarities(kept, names, split, "cka", layer)) for layer in layers}
    rows = len(kept[0].indices)
    return LayerLikeness(
        source.name,
        split,
        layers,
        tuple(run.checkpoints.index(member.name) for member in members),
        tuple(names),
        np.stack(cka),
        np.stack(mir) if mir else None,
        rows,
        min(rows, mir_rows),
        through,
    )


def _square(found: Similarity) -> np.ndarray:
    return np.array([[math.nan if value is None else value for value in row] for row in found.values], dtype=float)


def _class_names(path: Path) -> tuple[str, ...]:
    # Dumps of data without named classes have none.
    with open_dump(open_dump_series(path)[0].path) as dump:
        return dump.class_names or ()


def _places(run: Run, axis: str) -> Iterable[float | None]:
    return map(float, range(len(run.checkpoints))) if axis == ORDER else positions(run, axis)


def _sections(found: _Found, axis: str) -> Iterable[Section]:
    groups, notes = metric_plots(found.runs, axis)
    yield Section(
        "metrics",
        "Metrics",
        "Every number of every checkpoint. Solid and filled: train; dashed and hollow: test; dotted: at collapse.",
        tuple(Group(title, tuple(plots)) for title, plots in groups),
        tuple(notes),
    )
    matrices, notes = matrix_plots(found.runs)
    lead = "How the directions of classes stand to each other, of the checkpoint that the slider stands at."
    yield Section("cosines", "Class means and classifier", lead, (Group("", tuple(matrices)),), tuple(notes))
    spectra, notes = spectrum_plots(found.runs)
    lead = "Eigenvalues of each Gram matrix, over its size: at the slider's checkpoint, and through the run."
    yield Section("spectra", "Spectra", lead, (Group("", tuple(spectra)),), tuple(notes))
    table, notes = class_table(found.runs)
    plots = () if table is None else (table,)
    yield Section("classes", "Classes", "Class by class. A heading sorts.", (Group("", plots),), tuple(notes))
    lead = "Every layer of every checkpoint: a number by layer and step, how alike layers are, and how classes part."
    groups = (
        Group("By layer and checkpoint", tuple(layer_maps(found.runs))),
        Group("How alike layers are", tuple(similarity_plots(found.similar))),
        Group("Separation by depth", tuple(separation_plots(found.runs))),
    )
    yield Section("layers", "Layers", lead, tuple(group for group in groups if group.plots), tuple(found.missing))
    lead = "Loss and error between two checkpoints, and how far they rise above the chord: the barrier."
    paths = tuple(Group(title, tuple(plots)) for title, plots in path_plots(found.paths))
    yield Section("paths", "Paths", lead, paths, tuple(_without_metrics(found.paths)))
    planes = tuple(Group(name, tuple(contour_plots(plane, f"plane-{name}"))) for name, plane in found.planes.items())
    yield Section("planes", "Planes", "The loss over a plane of weights, with the checkpoints in it.", planes)


def _without_metrics(paths: dict[str, FoundPath]) -> Iterable[str]:
    if paths:
        yield "metrics along a path are in its points.jsonl; `plot` draws them"
    for name, path in paths.items():
        if not path.told:
            yield f"{name}: not finished; drawn as far as its points go"


def _reading(found: _Found) -> Iterable[tuple[str, list[str]]]:
    for run in found.runs:
        yield run.name, read_run(run.records)
    for name, path in found.paths.items():
        yield name, read_path_aloud(path.summary, path.plan.get("path"))
    for name, plane in found.planes.items():
        yield name, read_plane_aloud(plane.summary, plane.marks)
