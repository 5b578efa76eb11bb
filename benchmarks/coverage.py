"""Coverage of 95 % intervals: how often value − bias ± 1.96 standard errors contains the value of the population.

    python benchmarks/coverage.py --family gaussian --draws 500

Five families of labelled rows: Gaussian classes, heavy tails, uneven classes, near collapse, and fewer rows than
features. The value of the population is that of 500,000 rows. For each metric the table has the coverage of the plain
and of the corrected interval, the mean of the corrected value minus that of the population in units of its standard
deviation over draws, the mean standard error over this standard deviation, and the share of draws whose record states
that the bias or the error of the metric does not hold.
"""

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ckpt_probe.analysis.context import Context
from ckpt_probe.analysis.record import compute_from_blocks
from ckpt_probe.analysis.settings import Settings
from ckpt_probe.moments import DetailedRecord
from ckpt_probe.moments.selection import chosen_families

POPULATION = 500_000


@dataclass(frozen=True)
class Family:
    """Labelled rows.

    Attributes:
        samples: Number of rows N.
        features: Number of features D.
        shares: Shares of the classes, (C,).
        noise: Standard deviation of the rows of a class in each dimension.
        fixed: Whether each class has N/C rows in every draw.
        freedom: Degrees of freedom of Student's t; Gaussian if None.
    """

    samples: int
    features: int
    shares: tuple[float, ...]
    noise: float = 1.0
    fixed: bool = False
    freedom: float | None = None

    @property
    def classes(self) -> int:
        """Return the number of classes."""
        return len(self.shares)

    def centres(self) -> Tensor:
        """Return the class means, (C, D)."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn(self.classes, self.features, generator=generator, dtype=torch.float64)

    def weights(self) -> Tensor:
        """Return classifier weights near the class means, (C, D)."""
        generator = torch.Generator().manual_seed(2)
        centres = self.centres()
        return centres + 0.3 * torch.randn(centres.shape, generator=generator, dtype=torch.float64)

    def draw(self, samples: int, seed: int) -> tuple[Tensor, Tensor]:
        """Return rows (n, D) and labels (n,)."""
        random = np.random.default_rng(seed)
        if self.fixed:
            labels = np.arange(samples) % self.classes
        else:
            labels = random.choice(self.classes, samples, p=np.array(self.shares) / sum(self.shares))
        noise = random.standard_normal((samples, self.features))
        if self.freedom is not None:
            noise *= np.sqrt((self.freedom - 2) / random.chisquare(self.freedom, samples))[:, None]
        rows = self.centres().numpy()[labels] + self.noise * noise
        return torch.from_numpy(rows), torch.from_numpy(labels)


SIX = (1.0,) * 6
FAMILIES = {
    "gaussian": Family(600, 16, SIX, fixed=True),
    "tails": Family(600, 16, SIX, freedom=5),
    "uneven": Family(600, 16, (20, 10, 8, 5, 2, 1)),
    "collapse": Family(600, 16, SIX, noise=0.14),
    "wide": Family(96, 128, (1.0,) * 4, noise=0.3),
}


def record_of(family: Family, rows: Tensor, labels: Tensor, *, errors: bool) -> DetailedRecord:
    """Compute the record of rows with all metrics of one split, and NC5."""
    blocks = [(part, each, None) for part, each in zip(rows.split(50_000), labels.split(50_000), strict=True)]
    families = set(chosen_families(None)) | {"nc5"}
    settings = Settings(only=families, errors=errors)
    context = Context(outside_mean=family.centres().sum(dim=0) + 1)
    return compute_from_blocks(lambda: blocks, family.weights(), settings=settings, context=context)


def records_of(family: Family, seeds: Iterable[int]) -> list[dict[str, Any]]:
    """Return the records with errors of a draw for each seed."""
    return [record_of(family, *family.draw(family.samples, seed), errors=True).record for seed in seeds]


def coverage(truth: dict[str, Any], records: list[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return for each metric: name, true value, coverage plain and corrected, z, ratio of errors, share stated."""
    table = []
    for name in [key.removesuffix("_stderr") for key in records[0] if key.endswith("_stderr")]:
        usable = [r for r in records if r[f"{name}_stderr"] is not None and r[name] is not None]
        if not usable or truth[name] is None:
            table.append((name, "no standard error: " + reason_of(records[0], f"{name}_stderr")))
            continue
        value = np.array([float(r[name]) for r in usable])
        error = np.array([float(r[f"{name}_stderr"]) for r in usable])
        bias = np.array([float(r[f"{name}_bias"] or 0) for r in usable])
        # Metrics without a bias have a reason for it in every record.
        doubts = [
            (r[f"{name}_bias"] is not None and reason_of(r, f"{name}_bias")) or reason_of(r, f"{name}_stderr")
            for r in usable
        ]
        plain, corrected = (np.abs(v - float(truth[name])) <= 1.96 * error for v in (value, value - bias))
        away = value - bias - float(truth[name])
        spread = max(away.std(), 1e-300)
        stated = np.mean([bool(doubt) for doubt in doubts])
        numbers = (plain.mean(), corrected.mean(), away.mean() / spread, error.mean() / spread, stated)
        table.append((name, f"{truth[name]:.4f}", *(f"{number:.2f}" for number in numbers)))
    return table


def reason_of(record: dict[str, Any], name: str) -> str:
    """Return the reason that the record states for a name, or an empty text."""
    for part in (record["missing"] or "").split("; "):
        names, _, reason = part.partition(": ")
        if name in names.split(", "):
            return reason
    return ""


def main() -> None:
    """Print the table of one family."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES, required=True)
    parser.add_argument("--draws", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    family = FAMILIES[arguments.family]
    truth = record_of(family, *family.draw(POPULATION, 10**6), errors=False).record
    table = coverage(truth, records_of(family, range(arguments.draws)))
    print(f"{arguments.family}, {arguments.draws} draws")
    print("| metric | population | plain | corrected | z | s.e./spread | stated |")
    print("|---|---|---|---|---|---|---|")
    for row in table:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()
