"""The file by which a model is opened, and its parts: shards, and parts that only another program can put together."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.errors import DataError, listed
from ckpt_probe.files import read_object

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
"""Suffixes of checkpoints in a directory; the format of a file that the caller names is recognised by its bytes."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
DISTRIBUTED = ".metadata"
DISTCP = ".distcp"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER, SHARDS = "adapter", "shards"
INDICES = (".safetensors.index.json", ".bin.index.json")
NUMBERED = re.compile(r"(.*?)([-_.]?)(\d+)([-_]of[-_])(\d+)((?:\.\w+)+)", re.IGNORECASE)
"""One of N files with different tensors: model-00001-of-00002.safetensors."""
OTHER_COUNTS = re.compile(r"(?<![a-z])(global_?)?(step|iter|iteration|epoch|ep|fold)s?", re.IGNORECASE)
"""Words after which N of M counts something else than shards."""
RANK = re.compile(r"(?<![a-z])(rank|tp|mp|pp|part|shard)s?([-_.]?)(\d+)", re.IGNORECASE)
COUNTED_FROM_ONE = frozenset({"part", "shard"})
FURTHER = re.compile(r"(model|pytorch_model)_\d+(\.safetensors|\.bin)")
"""The second model of a state that accelerate saved, and those after it; their numbers are no steps."""
RANDOM_STATES = "random_states_"
"""Start of the name of a file that accelerate saves in every state."""


@dataclass(frozen=True)
class Division:
    """The files among which a program divides a model.

    Attributes:
        names: Pattern of their names.
        description: Description of the files, for messages.
        remedy: Advice for the user, for messages.
        complete: Name of the file that contains the complete model if it is the only one; None without such a name.
    """

    names: re.Pattern[str]
    description: str
    remedy: str
    complete: str | None = None


@dataclass(frozen=True)
class ModelFiles:
    """The files of a model.

    Attributes:
        file: The file by which it is opened: of shards, their index or the first.
        kind: How it is opened by its name: ADAPTER, DISTRIBUTED, one of INDICES, SHARDS and its suffix, or that.
        shards: The files with its tensors; of a model without shards, the file itself.
        homes: Name of each tensor with the name of its file, by the index; None without one.
    """

    file: Path
    kind: str
    shards: tuple[Path, ...]
    homes: Mapping[str, str] | None = None

    def require_listed(self, names: Mapping[str, Iterable[str]]) -> None:
        """Check that every tensor is in one shard, which is the one that the index states.

        Args:
            names: Names of the tensors in each file.

        Raises:
            DataError: If a tensor is in two shards, which have parts of its rows or are of different models, or if
                shards and index differ.
        """
        homes: dict[str, str] = {}
        for file, inside in names.items():
            for name in inside:
                if name in homes:
                    raise DataError(
                        f"{self.file}: tensor {name!r} is present twice, in {homes[name]} and {file}: they are not "
                        "shards of one model, or each has a slice of it; put it together with the program that wrote it"
                    )
                homes[name] = file
        for name, file in (self.homes or {}).items():
            if homes.get(name) != file:
                raise DataError(f"{self.file}: says that tensor {name!r} is in {file}, but it is not")
        unlisted = next((name for name in homes if name not in (self.homes or homes)), None)
        if unlisted is not None:
            raise DataError(f"{self.file}: does not list tensor {unlisted!r} of {homes[unlisted]}")


DEEPSPEED = "consolidate it with DeepSpeed's zero_to_fp32.py, or with the program that trained it, and use the output"
DIVISIONS = (
    Division(
        re.compile(r"consolidated\.\d+\.pth"),
        "in Meta's layout, each file with slices of its tensors",
        "convert it with transformers' convert_llama_weights_to_hf.py and use the output",
        "consolidated.00.pth",
    ),
    Division(
        re.compile(r"(zero_pp_rank_\d+_)?mp_rank_\d+_model_states\.pt"),
        "sharded by DeepSpeed",
        DEEPSPEED,
        "mp_rank_00_model_states.pt",
    ),
    Division(
        re.compile(r"(layer_\d+-model_\d+|(layer_\d+_)?expert_\d+_mp_rank_\d+)[-_]model_states\.pt"),
        "sharded by DeepSpeed into layers or experts",
        DEEPSPEED,
    ),
    Division(re.compile(r"hf_model_\d{4}_\d+\.pt"), "in torchtune's layout", "save it as safetensors with torchtune"),
    Division(
        re.compile(r"__\d+_\d+\.distcp"),
        "of torch.distributed.checkpoint, whose .metadata is missing",
        "copy the whole directory, .metadata too",
    ),
    Division(
        re.compile(r".+\.(safetensors|bin|pt|pth|ckpt)\.(part|split)?[-_.]?(\d+|a[a-z])"),
        "cut into pieces",
        "join the pieces in their order with cat",
    ),
)


def model_files(path: Path) -> ModelFiles:
    """Return the files of the model that a file is, or is a part of.

    Raises:
        DataError: If a shard is missing, or if the file is a part that only another program can put together.
    """
    if path.suffix == DISTCP and (path.parent / DISTRIBUTED).is_file():
        path = path.parent / DISTRIBUTED
    if path.name == DISTRIBUTED or is_adapter(path):
        return ModelFiles(path, DISTRIBUTED if path.name == DISTRIBUTED else ADAPTER, (path,))
    index = path if path.name.endswith(INDICES) else path.parent / (index_of(path.name) or "")
    if index.is_file():
        homes = listed_shards(index)
        if path == index or path.name in homes.values():
            kind = next(suffix for suffix in INDICES if index.name.endswith(suffix))
            return ModelFiles(index, kind, tuple(index.parent / name for name in dict.fromkeys(homes.values())), homes)
    shards = shards_beside(path) if path.is_file() else None
    if shards is not None:
        return ModelFiles(shards[0], f"{SHARDS}{path.suffix}", tuple(shards))
    if is_part(path.name) and path.is_file():
        require_whole(path.parent, (entry.name for entry in path.parent.iterdir() if is_part(entry.name)))
    return ModelFiles(path, path.suffix.lower(), (path,))


def model_name(file: Path) -> str:
    """Return the name of the model in a file by which it is opened: without suffix and number of a shard."""
    if file.name == DISTRIBUTED:
        return file.parent.name
    if file.name.endswith(".index.json"):
        return file.name.partition(".")[0]
    if shard := shard_name(file.name):
        return shard[1]
    known = [len(suffix) for suffix in SUFFIXES if file.name.lower().endswith(suffix)]
    return file.name[: -max(known)] if known else file.stem


def is_adapter(file: Path) -> bool:
    """Return whether a file contains the weights of a PEFT adapter, with the configuration beside it."""
    return file.name in ADAPTER_WEIGHTS and (file.parent / ADAPTER_CONFIG).is_file()


def is_further_model(file: Path) -> bool:
    """Return whether a file is one of several models of a state that accelerate saved, and not the first."""
    match = FURTHER.fullmatch(file.name)
    if match is None or not (file.parent / f"{match[1]}{match[2]}").is_file():
        return False
    return any(entry.name.startswith(RANDOM_STATES) for entry in file.parent.iterdir())


def is_part(name: str) -> bool:
    """Return whether a file of this name may be a part that only another program can put together."""
    return any(division.names.fullmatch(name) for division in DIVISIONS)


def shard_name(name: str) -> re.Match[str] | None:
    """Return the match of `NUMBERED` if a file is called as one of several shards is, else None."""
    match = NUMBERED.fullmatch(name)
    if match is None or int(match[5]) < 2 or OTHER_COUNTS.fullmatch(re.split(r"[-_.]", match[1])[-1]):
        return None
    return match


def listed_shards(index: Path) -> Mapping[str, str]:
    """Return the name of each tensor with the name of its file, which is in the directory of the index.

    Raises:
        DataError: If the file is not an index, or a shard is missing or outside the directory, also through a link.
    """
    weight_map = read_object(index, "an index of shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{index}: not an index of shards (it lists no tensor)")
    wanted = {str(name): str(file) for name, file in weight_map.items()}
    for file in dict.fromkeys(wanted.values()):
        shard = index.parent / file
        if Path(file).name != file or file in {"", ".", ".."} or "\\" in file:
            raise DataError(f"{index}: names the shard {file!r}, which is outside its directory")
        try:
            present = shard.is_file()
        except OSError:  # the name is too long for a file
            present = False
        if not present:
            raise DataError(f"{index}: names the shard {file[:200]}, which is missing")
        # The index itself may be a link, as in Hugging Face's cache.
        if shard.resolve().parent not in {index.parent.resolve(), index.resolve().parent}:
            raise DataError(
                f"{index}: names the shard {shard.name}, a link that leads out of its directory, to {shard.resolve()}"
            )
    return wanted


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


def require_whole(folder: Path, names: Iterable[str]) -> None:
    """Raise DataError if files of a folder are parts of a model that only another program can put together."""
    names = sorted(names)
    for division in DIVISIONS:
        parts = [name for name in names if division.names.fullmatch(name)]
        if parts and parts != [division.complete]:
            _refuse(folder, parts, division.description, division.remedy)
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


def _refuse(folder: Path, parts: list[str], description: str, remedy: str) -> None:
    raise DataError(f"{folder / parts[0]}: one part of a model {description} (here are {listed(parts, 4)}); {remedy}")


def index_of(name: str) -> str | None:
    """Return the name of the index of a shard, None for another file."""
    shard = SHARD.fullmatch(name)
    return None if shard is None else f"{shard[1]}.{shard[2]}.index.json"
