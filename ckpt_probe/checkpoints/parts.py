"""Files that are parts of one model, known by their names: shards that can be put together, and parts that cannot."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.errors import DataError, listed

SHARD = re.compile(r"(.*?)([-_.]?)(\d+)([-_]of[-_])(\d+)((?:\.\w+)+)", re.IGNORECASE)
"""One of N files with different tensors: model-00001-of-00002.safetensors."""
STEPS = re.compile(r"(?<![a-z])(global_?)?(step|iter|iteration|epoch|ep|fold)s?", re.IGNORECASE)
"""Words after which N of M counts something else than shards."""
RANK = re.compile(r"(?<![a-z])(rank|tp|mp|pp|part|shard)s?([-_.]?)(\d+)", re.IGNORECASE)
COUNTED_FROM_ONE = frozenset({"part", "shard"})
FOLDER = re.compile(r"pytorch_model_fsdp_\d+|(mp|tp|pp)_rank_\w+|rank[-_]?\d+")
"""A folder within a checkpoint's, in which accelerate and Megatron keep the model, or one part of it a process."""


@dataclass(frozen=True)
class Layout:
    """The files among which a program divides a model.

    Attributes:
        names: Pattern of their names.
        what: Description of the files, for messages.
        remedy: Advice for the user, for messages.
        complete: Name of the file that contains the complete model if it is the only one; None without such a name.
    """

    names: re.Pattern[str]
    what: str
    remedy: str
    complete: str | None = None


DEEPSPEED = "consolidate it with DeepSpeed's zero_to_fp32.py, or with the program that trained it, and use the output"
LAYOUTS = (
    Layout(
        re.compile(r"consolidated\.\d+\.pth"),
        "in Meta's layout, each file with slices of its tensors",
        "convert it with transformers' convert_llama_weights_to_hf.py and use the output",
        "consolidated.00.pth",
    ),
    Layout(
        re.compile(r"(zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt"),
        "sharded by DeepSpeed",
        DEEPSPEED,
        "mp_rank_00_model_states.pt",
    ),
    Layout(
        re.compile(r"(layer_\d+-model_\d+|(layer_\d+_)?expert_\d+_mp_rank_\d+)[-_]model_states\.pt"),
        "sharded by DeepSpeed into layers or experts",
        DEEPSPEED,
    ),
    Layout(re.compile(r"hf_model_\d{4}_\d+\.pt"), "in torchtune's layout", "save it as safetensors with torchtune"),
    Layout(
        re.compile(r"__\d+_\d+\.distcp"),
        "of torch.distributed.checkpoint, whose .metadata is missing",
        "copy the whole directory, .metadata too",
    ),
    Layout(
        re.compile(r".+\.(safetensors|bin|pt|pth|ckpt)\.(part|split)?[-_.]?(\d+|a[a-z])"),
        "cut into pieces",
        "join the pieces in their order with cat",
    ),
)


def is_part(name: str) -> bool:
    """Return whether a file of this name may be a part that only another program can put together."""
    return any(layout.names.fullmatch(name) for layout in LAYOUTS)


def shard_name(name: str) -> re.Match[str] | None:
    """Return the match of `SHARD` if a file is called as one of several shards is, else None."""
    match = SHARD.fullmatch(name)
    if match is None or int(match[5]) < 2 or STEPS.fullmatch(re.split(r"[-_.]", match[1])[-1]):
        return None
    return match


def require_whole(folder: Path, names: Iterable[str]) -> None:
    """Raise DataError if files of a folder are parts of a model that only another program can put together."""
    names = sorted(names)
    for layout in LAYOUTS:
        parts = [name for name in names if layout.names.fullmatch(name)]
        if parts and parts != [layout.complete]:
            _refuse(folder, parts, layout.what, layout.remedy)
    parts = parts_by_rank(names)
    if parts:
        remedy = "put it together with the program that wrote it; if each file holds the whole model, name one"
        _refuse(folder, parts, "with one file for each process", remedy)


def parts_by_rank(names: Iterable[str]) -> list[str]:
    """Return names that differ in the number of a process or part alone, else an empty list.

    These count from 0, parts also from 1; other numbers are no parts, such as the ranks of several adapters.
    """
    groups: dict[str, list[tuple[int, str]]] = {}
    for name in names:
        match = RANK.search(name)
        if match is not None and shard_name(name) is None:
            template = RANK.sub(r"\1\2*", name)
            first = int(match[3]) - (match[1].lower() in COUNTED_FROM_ONE)
            groups.setdefault(template, []).append((first, name))
    parts = (group for group in groups.values() if len(group) > 1 and min(group)[0] <= 0)
    return [name for _, name in next(parts, [])]


def shards_beside(file: Path) -> list[Path] | None:
    """Return all shards of the model that a file is a shard of, else None.

    Raises:
        DataError: If one of the N is missing.
    """
    match = shard_name(file.name)
    if match is None:
        return None
    stem, separator, number, of, count, suffix = match.groups()

    def shard(position: int) -> Path:
        return file.with_name(f"{stem}{separator}{position:0{len(number)}}{of}{count}{suffix}")

    start = 0 if shard(0).is_file() else 1
    shards = []
    for position in range(start, start + int(count)):
        # A claim of millions of shards ends with the first that is missing.
        if not shard(position).is_file():
            raise DataError(f"{file}: one of {count} shards of a model, of which {shard(position).name} is missing")
        shards.append(shard(position))
    return shards


def _refuse(folder: Path, parts: list[str], what: str, remedy: str) -> None:
    raise DataError(f"{folder / parts[0]}: one part of a model {what} (here are {listed(parts, 4)}); {remedy}")
