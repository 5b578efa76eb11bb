"""Order of the checkpoints or dumps of a run by training step, and steps in file names."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import groupby
from pathlib import Path

from ckpt_probe.errors import listed

KEYWORDS = (
    (re.compile(r"(?:step|(?<![a-z])iter(?:ation)?|(?<=-)ba)s?([-_=. ]?)(?=\d)", re.IGNORECASE), "name"),
    (re.compile(r"(?:ckpt|checkpoint)([-_=. ]?)(?=\d)", re.IGNORECASE), "name"),
    (re.compile(r"(?:epoch|(?<![a-z])ep)s?([-_=. ]?)(?=\d)", re.IGNORECASE), "epoch in the name"),
)
"""Words before a step, and the source of a step that follows them; the first that is in a name decides.

Composer writes ep1-ba500.
"""
STEPS, CHECKPOINTS = KEYWORDS[0][0], KEYWORDS[1][0]
GROUPED = re.compile(r"\d{1,3}([_,'. ])\d{3}(?:\1\d{3})*(?![\da-z])", re.IGNORECASE)
"""A number in groups of thousands."""
VALUE = re.compile(
    r"(\d+)(\.\d+)?(?:e\+?(\d{1,2})|([km]))?(?:steps?|iters?)?"
    r"(?=$|[^\da-z]|(?:epoch|ep|step|iter)s?[-_=. ]?\d)(?![.,']\d)(?!_\d+[km](?![a-z]))",
    re.IGNORECASE,
)
"""A number with at most a fraction, an exponent or a suffix, and nothing after it that might belong to it."""
ANOTHER_NUMBER = re.compile(r"[-_]\d+(?![.\d])")
BARE = re.compile(r"(?<![a-z\d])\d+(?![a-z\d])", re.IGNORECASE)
NO_STEP = re.compile(
    r"(?<![a-z])(seed|fold|rank|part|shard|split|run|trial|exp|experiment|version|ver|rev|task|client|worker|node|gpu|"
    r"layer|head|class|classes|consolidated|cifar|dim|width|depth|size|res|bs)s?[-_=. ]?$",
    re.IGNORECASE,
)
"""Words before numbers that count something else."""
DATE = re.compile(r"(19|20)\d\d(0[1-9]|1[0-2])([0-2]\d|3[01])|\d{10,}")
"""A date (YYYYMMDD), or a time in seconds."""


INITIAL = re.compile(
    r"(.*[-_. ])?(init|initial|initiali[sz](ed|ation)|untrained|start)([-_. ]?(model|checkpoint|ckpt|weights))?",
    re.IGNORECASE,
)
"""Names of the weights before the first step."""


@dataclass(frozen=True)
class Member:
    """Checkpoint or dump of a series.

    Attributes:
        path: Path of the file or directory.
        name: Name in the series.
        step: Training step, None if unknown.
        step_source: Source of the step ("metadata", "trainer_state.json", "name", "epoch in the name", …).
        also: Names of other files of the series with the same weights, which are not members themselves.
    """

    path: Path
    name: str
    step: int | None
    step_source: str | None = None
    also: tuple[str, ...] = ()


def step_from_name(name: str) -> int | None:
    """Return the training step that a name spells, its epoch if it spells no step, else its only number.

    `step-000500` → 500, `step_1.5k` → 1500, `epoch=3-step=1000` → 1000, `epoch_12` → 12, `final` → None.
    """
    spelled = named_step(name)
    return None if spelled is None else spelled[0]


def named_step(name: str) -> tuple[int, str] | None:
    """Return the step that a name spells and its source: "name", "epoch in the name" or "number in the name".

    None if a number is ambiguous (`step_1.000`, `checkpoint_1_500`) or counts something else (a date, a size, a seed).
    """
    for pattern, source in KEYWORDS:
        matches = list(pattern.finditer(name))
        if matches:
            step = _numeral(name[matches[-1].end() :], pattern, separator=matches[-1][1])
            return None if step is None else (step, source)
    bare = BARE.search(name)
    # Beside other numbers it may be an image size (vit_patch16_224) or part of a date.
    if bare is None or len(re.findall(r"\d+", name)) > 1 or NO_STEP.search(name[: bare.start()]) or _is_date(bare[0]):
        return None
    return int(bare[0]), "number in the name"


def step_warnings(members: Sequence["Member"]) -> list[str]:
    """Return a warning for each step that several members of a series have, and if some steps are epochs."""
    with_steps = sorted((m for m in members if m.step is not None), key=lambda m: m.step or 0)
    warnings = []
    for step, group in groupby(with_steps, key=lambda m: m.step):
        names = [f"{m.name} ({m.step_source})" if m.step_source else m.name for m in group]
        if len(names) > 1:
            warnings.append(f"warning: step {step:,} is the step of {len(names)} checkpoints: {listed(names)}")
    epochs = [m.name for m in with_steps if (m.step_source or "").startswith("epoch")]
    if 0 < len(epochs) < len(with_steps):
        warnings.append(f"warning: the steps of {listed(epochs)} are epochs, those of the other checkpoints are not")
    return warnings


def in_order(members: Iterable[Member]) -> list[Member]:
    """Sort members by step, then by name with numbers in numerical order.

    Members without a step are last, unless their names say that they are the first.
    """

    def rank(member: Member) -> tuple[int, int]:
        if member.step is not None:
            return 1, member.step
        return (0 if INITIAL.fullmatch(member.name) else 2), 0

    return sorted(members, key=lambda m: (rank(m), natural(m.name), str(m.path)))


def natural(name: str) -> list[tuple[int, str]]:
    """Return a sort key for a name that compares numbers in it numerically."""
    parts = re.split(r"(\d+)", name)
    # By length and digits, because Python refuses to convert thousands of digits.
    return [(len(part.lstrip("0")) + 1, part.lstrip("0")) if part.isdecimal() else (0, part) for part in parts]


def _numeral(text: str, keyword: re.Pattern[str], *, separator: str) -> int | None:
    """Return the integer at the start of a text, None if it may be read in more than one way."""
    grouped = GROUPED.match(text)
    if grouped is not None:
        # A sign that also separates fields of names may do so here: epoch 1, batch 500.
        certain = grouped[1] in ",'" or (grouped[1] == "_" and keyword is STEPS and separator in set("-=. "))
        return int(re.sub(r"\D", "", grouped[0])) if certain else None
    match = VALUE.match(text)
    if match is None:
        return None
    digits, fraction, exponent, suffix = match.groups()
    suffix = (suffix or "").lower()
    # fairseq writes checkpoint_EPOCH_STEP; 350M is a size of models.
    other = ANOTHER_NUMBER.match(text, match.end()) or _is_date(digits) or suffix == "m"
    if (other and keyword is CHECKPOINTS) or (fraction and not exponent and not suffix):
        return None
    power = int(exponent or {"": 0, "k": 3, "m": 6}[suffix])
    value = Decimal(f"{digits}{fraction or ''}e{power}")
    return int(value) if value < 2**63 and value == value.to_integral_value() else None


def _is_date(digits: str) -> bool:
    return DATE.fullmatch(digits) is not None
