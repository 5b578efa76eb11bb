"""Options of an analysis."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ckpt_probe.keywords import as_sequence, whole_number
from ckpt_probe.metrics.entropy import require_order
from ckpt_probe.metrics.stochastic import MOST, Sampling
from ckpt_probe.moments import Moments
from ckpt_probe.moments.accumulator import MEMORY
from ckpt_probe.moments.checks import checked_precision
from ckpt_probe.moments.entropies.levels import Options
from ckpt_probe.moments.errors.subset import SUBSET_ROWS
from ckpt_probe.moments.selection import chosen_families, package_functions

LEAST_MEMORY = 2**16
"""Memory limit below which sampling would go through the rows again for each few vectors, in bytes."""


@dataclass(frozen=True)
class Settings:
    """Options of `analyze`, apart from the data.

    Attributes:
        centred: Whether to add MIR, HDR and effective rank of the centred features.
        orders: Orders of Rényi entropies to add; order 1 is always computed.
        tolerance: Relative standard error of MIR at which sampling stops. Sampling is used only if no exact
            computation fits into `memory`; `budget`, `seed` and `probes` matter only then.
        budget: Seconds after which sampling stops; None for no limit.
        seed: Seed of the random signs of sampling.
        memory: Memory limit for the moments and matrices of one dump, in bytes.
        per_class: Whether to add one record per class.
        spectra: Whether to add the eigenvalues behind every entropy.
        portrait: Whether to add the data of the drawings on a report page.
        only: Metrics or families of metrics to compute, such as ("nc", "MIR") or "nc1.*,class"; None for the default
            families.
        min_samples: Classes with fewer samples are left out of metrics that use class means.
        precision: "float64", or "float32" to multiply rows in single precision: less time, about six correct digits.
        layers: Whether to add one record per layer, in execution order, with the penultimate layer last.
        outside: Dumps of data of classes that were not trained on, for NC5: a directory with a dump of the same name
            for each analyzed dump, or one dump for all.
        exact_limit: Largest side of a joint matrix that is solved exactly; larger ones are sampled. None for 12,000, or
            as `memory` allows.
        probes: Largest number of random probes of sampling, even if the tolerance is not reached.
        errors: Whether to add the standard error and the bias of each metric, `NAME_stderr` and `NAME_bias`.
        reference: Dump of a model with fresh random weights on the same texts, for `erank.documents_difference`.

    Raises:
        UsageError: If an option is invalid, or the name of a metric unknown.
        DataError: If an order is not positive and finite.
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
    only: str | Iterable[str] | None = None
    min_samples: int = 1
    precision: str = "float64"
    layers: bool = True
    outside: Path | str | None = None
    exact_limit: int | None = None
    probes: int = MOST
    errors: bool = False
    reference: Path | str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "orders", as_sequence(self.orders) or ())
        for order in self.orders:
            require_order(order, "orders")
        _ = self.sampling, self.families, checked_precision(self.precision)
        for name, least in (("exact_limit", 1), ("min_samples", 1), ("memory", LEAST_MEMORY)):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, whole_number(name, getattr(self, name), least))

    @cached_property
    def sampling(self) -> Sampling:
        """Options of sampling."""
        return Sampling(self.tolerance, self.budget, self.seed, self.probes)

    @cached_property
    def families(self) -> frozenset[str]:
        """Families of metrics to compute, including those of other packages."""
        implied = {"centred": self.centred, "nc5": self.outside is not None, "documents": self.reference is not None}
        return chosen_families(self.only) | {name for name, is_set in implied.items() if is_set}

    @property
    def options(self) -> Options:
        """Options of the record of class moments."""
        details = self.per_class or self.spectra or self.portrait
        return Options(
            self.orders, self.memory, self.sampling, self.families, self.min_samples, self.exact_limit, details
        )

    def moments(self, classes: int | None) -> Moments:
        """Return an empty accumulator for the families of metrics; functions of packages need all moments."""
        only = None if self.families & package_functions().keys() else self.families
        return Moments(
            classes,
            memory=self.memory,
            only=only,
            precision=self.precision,
            halves=self.errors,
            subset=SUBSET_ROWS if self.errors else 0,
        )

    def to_json(self) -> dict[str, Any]:
        """Return the options as values of JSON, for comparison with those of a cached record."""
        options = asdict(self) | {"orders": list(self.orders), "only": sorted(self.families)}
        for name in ("outside", "reference"):
            options[name] = None if options[name] is None else str(options[name])
        del options["centred"]  # part of "only"
        return options
