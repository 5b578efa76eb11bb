"""What a caller asks of an analysis, beside the data."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from ckpt_probe.errors import UsageError
from ckpt_probe.keywords import as_sequence
from ckpt_probe.metrics.stochastic import MOST, Sampling
from ckpt_probe.moments import Moments
from ckpt_probe.moments.accumulator import MEMORY, checked_precision
from ckpt_probe.moments.families import chosen

ENTRY_POINTS = "ckpt_probe.metrics"


@dataclass(frozen=True)
class Settings:
    """Options of `analyze`: what is computed, how far sampling goes, how much memory it may take.

    only: families of metrics (`analyze --list-metrics`), such as ("nc", "class"); others are neither computed nor in
    the record; the usual ones where None. centred: also MIR and HDR of features less their mean. orders: Rényi's,
    beside 1. tolerance: relative standard error of MIR at which sampling stops, budget: seconds after which it does
    (None: never), seed: where its signs come from; all three matter only where no exact route fits `memory` bytes.
    exact_limit: largest side of a joint matrix that is solved exactly, a larger one being sampled (None: 12,000, or as
    `memory` allows). probes: how many sampling takes at most, even if it is then short of the tolerance. min_samples: a
    class of fewer is left out of what is read from class means. precision: "float64", or "float32" for products of rows
    in single precision: less time, about six digits. outside: dumps of data of classes that were not trained on, one of
    the same name for each dump that is read, or a single one, for NC5. per_class: one record a class as well. spectra:
    the eigenvalues behind every entropy as well. portrait: what a page draws beside the record. layers: one record of
    each layer of a dump that has several, in execution order, the penultimate one last.
    """

    centred: bool = False
    orders: tuple[float, ...] = ()
    tolerance: float = 1e-3
    budget: float | None = None
    seed: int = 0
    memory: int = MEMORY
    per_class: bool = False
    spectra: bool = False
    portrait: bool = False
    only: Iterable[str] | None = None
    min_samples: int = 1
    precision: str = "float64"
    layers: bool = True
    outside: Path | str | None = None
    exact_limit: int | None = None
    probes: int = MOST

    def __post_init__(self) -> None:
        object.__setattr__(self, "orders", as_sequence(self.orders))

    @property
    def sampling(self) -> Sampling:
        """Tolerance, budget, seed and probes. Raises UsageError where one has no meaning."""
        return Sampling(self.tolerance, self.budget, self.seed, self.probes)

    @cached_property
    def families(self) -> frozenset[str]:
        """The families of metrics asked for, with those of other packages. Raises UsageError for an unknown one."""
        names = self.only.split(",") if isinstance(self.only, str) else self.only
        found = chosen(names, others=self.of_packages)
        asked = {"centred": self.centred, "nc5": self.outside is not None}
        return found | {name for name, wanted in asked.items() if wanted}

    @cached_property
    def of_packages(self) -> tuple[str, ...]:
        """Names of the metrics that installed packages register."""
        return tuple(entry_points(group=ENTRY_POINTS).names)

    def check(self) -> None:
        """Raise UsageError for a setting that has no meaning."""
        _ = self.sampling, self.families, checked_precision(self.precision)
        if self.exact_limit is not None and self.exact_limit < 1:
            raise UsageError(f"exact_limit: expected at least 1, found {self.exact_limit}")
        if self.min_samples < 1:
            raise UsageError(f"min_samples: expected at least 1, found {self.min_samples}")

    def moments(self, classes: int | None) -> Moments:
        """An accumulator of what these settings need; metrics of other packages get all of it."""
        self.check()
        only = None if self.families & set(self.of_packages) else self.families
        return Moments(classes, memory=self.memory, only=only, precision=self.precision)

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it, to be compared with another's."""
        asked = asdict(self) | {"orders": list(self.orders), "only": sorted(self.families)}
        asked["outside"] = None if self.outside is None else str(self.outside)
        del asked["centred"]
        return asked
