"""Options of the records of weights, and the tensors of a series that they are about, with all that does not fit."""

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from ckpt_probe.checkpoints import Checkpoint, Member, open_checkpoint, quantised
from ckpt_probe.checkpoints.statistics import FLOATING
from ckpt_probe.checkpoints.tensors import Layout
from ckpt_probe.errors import UsageError, listed
from ckpt_probe.keywords import suggestion
from ckpt_probe.scheduling import Workers
from ckpt_probe.series import named_step, natural
from ckpt_probe.wrappers import wrapper_note

PARTS = ("audit", "motion", "spectra", "classifier")
ALONE = ("classifier",)
LEVELS = ("network", "block", "tensor")
BUFFER = re.compile(
    r"(?:^|[._])(running_(?:mean|var)|num_batches_tracked|inv_freq|position_ids|token_type_ids|masked_bias|"
    r"relative_position_index|relative_coords_table|attn_mask|anchors?|cos_cached|sin_cached)$"
)
"""Names of tensors that a network computes or counts, and no optimizer changes."""
STACKS = frozenset({"layer", "layers", "block", "blocks", "h", "stage", "stages", "resblocks"})
"""Names of modules that number similar blocks, also inside a numbered stage."""
ENOUGH = 0.5
"""Share of a network's entries in tensors of the usual names and shapes below which it is another network."""


@dataclass(frozen=True)
class WeightOptions:
    """Options of the records of weights, and how checkpoints are opened.

    Attributes:
        parts: Parts to compute, of `PARTS`.
        by: Level of the records: "network", "block" or "tensor".
        state_key: Key of the weights in a pickled checkpoint.
        base: Checkpoint onto which an adapter is merged.
        sample: Number of entries of a checkpoint that are read, in evenly spaced blocks of every tensor; None for all.
        sketch: Whether distances come from sketches of the checkpoints; None for very large series.
        bootstrap: Number of synthetic spectra for the goodness of fit of each tail; 0 leaves it out.
        workers: Workers that share the work.
        cache: Whether to use the cache.
    """

    parts: tuple[str, ...] = PARTS
    by: str = "network"
    state_key: str | None = None
    base: Path | None = None
    sample: int | None = None
    sketch: bool | None = None
    bootstrap: int = 0
    workers: Workers = field(default_factory=Workers)
    cache: bool = True

    def __post_init__(self) -> None:
        unknown = [f"unknown part {part!r}{suggestion(part, PARTS)}; " for part in self.parts if part not in PARTS]
        if unknown or not self.parts:
            raise UsageError(f"`only`: {''.join(unknown[:1])}expected at least one of {', '.join(PARTS)}")
        if self.by not in LEVELS:
            raise UsageError(f"`by={self.by!r}`: expected one of {', '.join(LEVELS)}")
        if self.parts == ALONE and self.by != "network":
            raise UsageError(f"`by={self.by!r}`: the metrics of the classifier are those of the network; leave it out")
        if self.bootstrap < 0:
            raise UsageError(f"`bootstrap={self.bootstrap}`: expected at least 0")

    def open(self, member: Member, stack: ExitStack) -> Checkpoint:
        """Open a checkpoint until `stack` closes it."""
        return stack.enter_context(open_checkpoint(member.path, state_key=self.state_key, base=self.base))


@dataclass(frozen=True)
class Finding:
    """An observation about a series or one of its files.

    Attributes:
        kind: Kind of the observation, such as "copy" or "nan".
        text: Description of one line.
        checkpoints: Names of the checkpoints that it is about.
        tensor: Name of the tensor, if it is about one.
        alarm: Whether something is wrong; otherwise it is only described.
    """

    kind: str
    text: str
    checkpoints: tuple[str, ...] = ()
    tensor: str | None = None
    alarm: bool = True


class Parameters:
    """Tensors of a series that are compared across checkpoints: those that its checkpoints have in common.

    The network is the one of most checkpoints. A checkpoint with less than half of its entries is of another network.

    Args:
        members: Checkpoints in order.
        layouts: Layout of each.
        findings: Earlier observations, which are the first of the result.

    Attributes:
        members: Checkpoints of the network, in order.
        names: Names of floating-point parameters that all of them have, in natural order.
        buffers: Names of floating-point buffers that all of them have, such as running statistics.
        shapes: Shape of each of these tensors.
        findings: Checkpoints and tensors that do not fit.
        excluded: Checkpoints of another network, with the reason.
        partial: Tensors that are not compared, with the reason.
    """

    def __init__(self, members: Sequence[Member], layouts: Sequence[Layout], findings: Sequence[Finding] = ()) -> None:
        self.excluded: dict[str, str] = {}
        tensors = [floating(layout) for layout in layouts]
        usual = dict(Counter(tuple(sorted(of_one.items())) for of_one in tensors).most_common(1)[0][0])
        findings = [*findings]
        for name, of_one in zip((member.name for member in members), tensors, strict=True):
            if _common(of_one, usual) < ENOUGH * max(_entries(usual), _entries(of_one)):
                self.excluded[name] = "its tensors are those of another network"
                text = f"{name} is of another network: {_difference(of_one, usual)}"
                if renamed := wrapper_note(of_one, set(usual), "the others") or wrapper_note(usual, set(of_one), name):
                    self.excluded[name] = "its tensors have the names of a wrapper, or lack them"
                    text = f"{name} is left out: {renamed}, which is not done here; save all with the same names"
                findings.append(Finding("network", text, (name,)))
        inside = [i for i, member in enumerate(members) if member.name not in self.excluded]
        present, all_names = [tensors[i] for i in inside], {name for i in inside for name in tensors[i]}
        shared = {name: shape for name, shape in usual.items() if all(of_one.get(name) == shape for of_one in present)}
        common = sorted(shared, key=natural)
        self.members = chosen = tuple(members[i] for i in inside)
        self.names = tuple(name for name in common if not BUFFER.search(name))
        self.buffers = tuple(name for name in common if BUFFER.search(name))
        self.shapes = shared
        self.partial = {name: _change(name, chosen, present) for name in sorted(all_names - set(common), key=natural)}
        findings += [Finding("layout", f"{name} {reason}", (), name) for name, reason in self.partial.items()]
        findings += _dtypes(chosen, [layouts[i] for i in inside], common)
        findings += _not_parameters([layouts[i] for i in inside])
        for member in filter(_says_another_step, members):
            stated, _ = named_step(member.name) or (0, None)
            text = f"{member.name}: its name says step {stated:,}, its {member.step_source} says {member.step:,}"
            findings.append(Finding("step", text, (member.name,)))
        self.findings = tuple(findings)


def block_of(name: str) -> str:
    """Return the block of a tensor: its name up to the number of its block, or that of its module.

    `layer1.0.conv1.weight` → `layer1.0`, `model.layers.3.mlp.up_proj.weight` → `model.layers.3`, `fc.weight` → `fc`.
    """
    *modules, _ = name.split(".") if "." in name else [name, ""]
    end = next((i + 1 for i, part in enumerate(modules) if part.isdigit()), len(modules))
    # Stages of numbered blocks: layers.0.blocks.1.
    while end + 1 < len(modules) and modules[end] in STACKS and modules[end + 1].isdigit():
        end += 2
    return ".".join(modules[:end])


def label_of(member: Member) -> str:
    """Return the step of a checkpoint for a message, or its name if it has none or says another step."""
    return member.name if member.step is None or _says_another_step(member) else f"step {member.step:,}"


def is_matrix(shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is a matrix, or a convolution (out, in, k, …), whose matrix is (out, in · k · …)."""
    return len(shape) >= 2 and min(shape[0], math.prod(shape[1:])) > 1


def floating(layout: Layout) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the floating-point tensors of a checkpoint that are not empty and no codes of others."""
    codes = quantised(layout)
    return {
        name: shape
        for name, (dtype, shape) in layout.items()
        if dtype in FLOATING and math.prod(shape) and name not in codes
    }


def _entries(tensors: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in tensors.values())


def _common(tensors: Mapping[str, tuple[int, ...]], usual: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for name, shape in tensors.items() if usual.get(name) == shape)


def _difference(tensors: Mapping[str, tuple[int, ...]], usual: Mapping[str, tuple[int, ...]]) -> str:
    for name, shape in sorted(tensors.items()):
        if name in usual and usual[name] != shape:
            return f"{name} has shape {shape}, {usual[name]} in most checkpoints"
    absent = sorted(usual.keys() - tensors.keys(), key=natural)
    return f"it has no {listed(absent, 3)}" if absent else f"{len(tensors)} tensors, {len(usual)} in most checkpoints"


def _change(name: str, members: Sequence[Member], present: Sequence[Mapping[str, tuple[int, ...]]]) -> str:
    """Describe the checkpoint at which a tensor appears, disappears or changes its shape."""
    for before, after, member in zip(present, present[1:], members[1:], strict=False):
        if before.get(name) != after.get(name):
            if name not in before:
                return f"appears at {label_of(member)}"
            if name not in after:
                return f"disappears at {label_of(member)}"
            return f"changes its shape at {label_of(member)}: {before[name]} to {after[name]}"
    return "is not in most checkpoints"


def _dtypes(members: Sequence[Member], layouts: Sequence[Layout], names: Sequence[str]) -> list[Finding]:
    changes: dict[tuple[str, str, str], list[str]] = {}
    for before, after, member in zip(layouts, layouts[1:], members[1:], strict=False):
        for name in names:
            if before[name][0] != after[name][0]:
                changes.setdefault((before[name][0], after[name][0], label_of(member)), []).append(name)
    return [
        Finding("dtype", f"{listed(tensors, 3)}: {after} from {at} on, {before} before", (), tensors[0], alarm=False)
        for (before, after, at), tensors in changes.items()
    ]


def _not_parameters(layouts: Sequence[Layout]) -> list[Finding]:
    codes = {name: kind for layout in layouts for name, kind in quantised(layout).items()}
    integers = {
        name
        for layout in layouts
        for name, (dtype, _) in layout.items()
        if dtype not in FLOATING and name not in codes and not BUFFER.search(name)
    }
    findings = []
    if codes:
        name, kind = min(codes.items())
        text = f"quantised, not compared: {len(codes)} tensors, first {name} ({kind})"
        findings.append(Finding("quantised", text, (), name, alarm=False))
    if integers:
        names = sorted(integers, key=natural)
        text = f"not floating-point numbers, not compared: {listed(names, 3)}"
        findings.append(Finding("integer", text, (), names[0], alarm=False))
    return findings


def _says_another_step(member: Member) -> bool:
    step, source = named_step(member.name) or (None, None)
    return source == "name" and member.step not in (None, step)
