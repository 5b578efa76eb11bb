"""What a caller asks of an analysis, beside the data."""

from dataclasses import asdict, dataclass
from typing import Any

from ckpt_probe.metrics.stochastic import Sampling
from ckpt_probe.moments.accumulator import MEMORY


@dataclass(frozen=True)
class Settings:
    """Options of `analyze`: what is computed beside the record, how far sampling goes, how much memory it may take.

    centred: also MIR and HDR of features less their mean. orders: Rényi's, beside 1. tolerance: relative standard
    error of MIR at which sampling stops, budget: seconds after which it does (None: never), seed: where its signs
    come from; all three matter only where no exact route fits `memory` bytes. per_class: one record a class as well.
    spectra: the eigenvalues behind every entropy as well.
    """

    centred: bool = False
    orders: tuple[float, ...] = ()
    tolerance: float = 1e-3
    budget: float | None = None
    seed: int = 0
    memory: int = MEMORY
    per_class: bool = False
    spectra: bool = False

    @property
    def sampling(self) -> Sampling:
        """Tolerance, budget and seed. Raises UsageError where one has no meaning."""
        return Sampling(self.tolerance, self.budget, self.seed)

    def to_json(self) -> dict[str, Any]:
        """As JSON keeps it, to be compared with another's."""
        return {**asdict(self), "orders": list(self.orders)}
