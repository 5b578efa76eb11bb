"""Find the checkpoints in a directory, among other files that trainers write, and put together the parts of one."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ckpt_probe.errors import DataError, listed
from ckpt_probe.files import read_object

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
"""Suffixes of checkpoints in a directory; the format of a file that the caller names is recognised by its bytes."""
TRAINER_FILES = re.compile(
    r"state\.safetensors|training_args\.bin|(optimi[sz]er|scheduler|scaler|sampler|rng_state|random_states|dl_state_dict|"
    r"custom_checkpoint|quantizer|ema_optimizer|optim|distrib_optim|lr_scheduler|"
    r"(recipe|train|trainer|training)_state)s?([-_.]?\d+)*\.\w+|(opt|train)\.pt|.*_optim_states\.pt|"
    r".+[-_.](optimi[sz]er|scheduler|scaler)(_state)?\.\w+",
)
"""State for resuming a run (ours, and that of Trainer, accelerate and DeepSpeed), without weights of a model."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
HUGGING_FACE = re.compile(r"(\w+_)?model(\.safetensors|\.bin)(\.index\.json)?")
CONSOLIDATED = re.compile(r"consolidated(\.\d+)?\.(safetensors|pth)")
"""Weights in the layout of Meta or Mistral, which repositories have in addition to those of Hugging Face."""
FURTHER = re.compile(r"(model|pytorch_model)_\d+(\.safetensors|\.bin)")
"""The second model of a state that accelerate saved, and those after it; their numbers are no steps."""
RANDOM_STATES = "random_states_"
"""Start of the name of a file that accelerate saves in every state."""
VARIANT = re.compile(r"\.(fp16|bf16|fp32|float16|bfloat16|float32)(?=[.-])")
"""Part of the name of a copy in another dtype."""
DISTRIBUTED = ".metadata"
DISTCP = ".distcp"
PIPELINE = "model_index.json"
"""File of diffusers' pipelines, in whose folders lie several models."""
CONFIG = "config.json"
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
FOLDER = re.compile(r"pytorch_model_fsdp_\d+|(mp|tp|pp)_rank_\w+|rank[-_]?\d+")
"""A folder within a checkpoint's, in which accelerate and Megatron keep the model, or one part of it a process."""


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


def checkpoint_in(folder: Path) -> Path:
    """Return the file by which the only checkpoint in a directory is opened: weights, an index, or `.metadata`.

    Raises:
        DataError: If no checkpoint or several are in it, and as `checkpoints_in`.
    """
    folder = snapshot_in(folder)
    files = checkpoints_in(folder)
    if len(files) == 1:
        return files[0]
    if not files:
        raise DataError(f"{folder}: no checkpoint found in this directory; name the file")
    names = listed([file.name for file in files])
    raise DataError(f"{folder}: a directory with {len(files)} checkpoints; name one: {names}")


def checkpoints_in(folder: Path) -> list[Path]:
    """Return the files in a directory by which its checkpoints are opened, in the order of their names.

    Shards count as one checkpoint, by their index or else by the first; so does a model in several formats, dtypes or
    layouts. Without any file, the directory of accelerate or Megatron with the model counts.

    Raises:
        DataError: For a shard that is missing, for parts of a model that only another program can put together, for
            an adapter beside a whole model, and for several models in a pipeline or in a state of accelerate.
    """
    if (folder / DISTRIBUTED).is_file():
        return [folder / DISTRIBUTED]
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    files = [name for name in names if (folder / name).is_file()]
    indices = [name for name in files if name.endswith(INDICES)]
    shards = {file for index in indices for file in listed_shards(folder / index).values()}
    weights = [
        name for name in files if (name.endswith(SUFFIXES) or is_part(name)) and not TRAINER_FILES.fullmatch(name)
    ]
    # Shards that an index does not list are left from an earlier save, and no loader reads them.
    weights = [name for name in weights if name not in shards and _index_of(name) not in indices]
    weights = sorted(_without_copies([*indices, *weights]))
    if any(is_further_model(folder / name) for name in weights):
        raise DataError(f"{folder}: several models that accelerate saved in one state: {listed(weights, 4)}; name one")
    require_whole(folder, weights)
    _require_one_kind(folder, weights)
    if weights:
        return list(dict.fromkeys((shards_beside(folder / name) or [folder / name])[0] for name in weights))
    if PIPELINE in files:
        raise DataError(f"{folder}: a pipeline of several models ({PIPELINE}); name the folder of one of them")
    inside = [name for name in names if FOLDER.fullmatch(name) and (folder / name).is_dir()]
    if len(inside) > 1:
        raise DataError(
            f"{folder / inside[0]}: one of {len(inside)} parts of a model, or one of several models, in folders of "
            f"their own ({listed(inside, 4)}); convert it with the program that wrote it, or name one if it is whole"
        )
    return checkpoints_in(folder / inside[0]) if inside else []


def is_further_model(file: Path) -> bool:
    """Return whether a file is one of several models of a state that accelerate saved, and not the first."""
    match = FURTHER.fullmatch(file.name)
    if match is None or not (file.parent / f"{match[1]}{match[2]}").is_file():
        return False
    return any(entry.name.startswith(RANDOM_STATES) for entry in file.parent.iterdir())


def opening_file(file: Path) -> Path:
    """Return the file by which the model of a file is opened: of shards, their index or the first.

    Raises:
        DataError: If a shard is missing, or if the file is a part that only another program can put together.
    """
    if file.suffix == DISTCP and (file.parent / DISTRIBUTED).is_file():
        return file.parent / DISTRIBUTED
    if not (is_part(file.name) or shard_name(file.name)) or not file.is_file():
        return file
    index = file.parent / (_index_of(file.name) or "")
    if index.is_file():
        return index if file.name in listed_shards(index).values() else file
    shards = shards_beside(file)
    if shards is None:
        require_whole(file.parent, (entry.name for entry in file.parent.iterdir() if is_part(entry.name)))
    return file if shards is None else shards[0]


def kind_of(file: Path) -> str:
    """Return how a file is opened by its name: ADAPTER, DISTRIBUTED, one of INDICES, SHARDS and its suffix, or that."""
    if is_adapter(file):
        return ADAPTER
    if file.name == DISTRIBUTED:
        return DISTRIBUTED
    index = next((suffix for suffix in INDICES if file.name.endswith(suffix)), None)
    return index or (f"{SHARDS}{file.suffix}" if shard_name(file.name) else file.suffix)


def model_name(file: Path) -> str:
    """Return the name of the model in a file by which it is opened: without suffix and number of a shard."""
    if file.name == DISTRIBUTED:
        return file.parent.name
    if file.name.endswith(".index.json"):
        return file.name.partition(".")[0]
    if shard := shard_name(file.name):
        return shard[1]
    known = (suffix for suffix in sorted(SUFFIXES, key=len, reverse=True) if file.name.endswith(suffix))
    return file.name.removesuffix(next(known, file.suffix))


def snapshot_in(folder: Path) -> Path:
    """Return the snapshot of a model in Hugging Face's cache, if its folder models--OWNER--NAME is this one.

    Raises:
        DataError: If there are several snapshots and `refs/main` names none of them.
    """
    snapshots = folder / "snapshots"
    if not folder.name.startswith("models--") or not snapshots.is_dir():
        return folder
    commits = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    reference = folder / "refs" / "main"
    main = None
    if reference.is_file():
        with reference.open("rb") as file:
            # No more than the hash of a commit is read.
            main = file.read(64).decode(errors="replace").strip()
    chosen = [entry for entry in commits if entry.name == main] or commits
    if len(chosen) == 1:
        return chosen[0]
    names = listed([entry.name for entry in commits]) or "none"
    raise DataError(f"{folder}: a folder of Hugging Face's cache; name one of its snapshots in {snapshots}: {names}")


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
        if not _exists(shard):
            raise DataError(f"{index}: names the shard {file[:200]}, which is missing")
        _require_inside(index, shard)
    return wanted


def shards_of(path: Path) -> tuple[list[Path], Mapping[str, str] | None]:
    """Return the shards of an index or of the first shard, and for an index the name of each tensor's file.

    Raises:
        DataError: As in `listed_shards` and `shards_beside`.
    """
    if not path.name.endswith(INDICES):
        return shards_beside(path) or [path], None
    homes = listed_shards(path)
    return [path.parent / file for file in dict.fromkeys(homes.values())], homes


def require_listed(index: Path, wanted: Mapping[str, str] | None, names: Mapping[str, Iterable[str]]) -> None:
    """Check that every tensor is in one shard, which is the one that the index states.

    Args:
        index: The index, or the first shard.
        wanted: Name of the file of each tensor by the index; None without one.
        names: Names of the tensors in each file.

    Raises:
        DataError: If a tensor is in two shards, which have parts of its rows or are of different models, or if shards
            and index differ.
    """
    homes: dict[str, str] = {}
    for file, inside in names.items():
        for name in inside:
            if name in homes:
                raise DataError(
                    f"{index}: tensor {name!r} is present twice, in {homes[name]} and {file}: they are not shards of "
                    "one model, or each has a slice of it; put it together with the program that wrote it"
                )
            homes[name] = file
    if wanted is None:
        return
    for name, file in wanted.items():
        if homes.get(name) != file:
            raise DataError(f"{index}: says that tensor {name!r} is in {file}, but it is not")
    unlisted = next((name for name in homes if name not in wanted), None)
    if unlisted is not None:
        raise DataError(f"{index}: does not list tensor {unlisted!r} of {homes[unlisted]}")


def is_part(name: str) -> bool:
    """Return whether a file of this name may be a part that only another program can put together."""
    return any(division.names.fullmatch(name) for division in DIVISIONS)


def shard_name(name: str) -> re.Match[str] | None:
    """Return the match of `NUMBERED` if a file is called as one of several shards is, else None."""
    match = NUMBERED.fullmatch(name)
    if match is None or int(match[5]) < 2 or OTHER_COUNTS.fullmatch(re.split(r"[-_.]", match[1])[-1]):
        return None
    return match


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


def _refuse(folder: Path, parts: list[str], description: str, remedy: str) -> None:
    raise DataError(f"{folder / parts[0]}: one part of a model {description} (here are {listed(parts, 4)}); {remedy}")


def config_beside(file: Path) -> Path | None:
    """Return the directory of a file if it has a `config.json`, which may describe the model, else None."""
    return file.parent if (file.parent / CONFIG).is_file() else None


def companions(path: Path) -> Iterator[Path]:
    """Yield small files beside the shards that a loader needs: configuration and tokenizer, no weights, no code."""
    suffixes = {".json", ".txt", ".model", ".jinja"}
    for file in sorted(path.iterdir()):
        if file.suffix in suffixes and not file.name.endswith(".index.json") and not file.name.startswith("."):
            yield file


def _exists(shard: Path) -> bool:
    try:
        return shard.is_file()
    except OSError:
        # The name is too long for a file.
        return False


def _require_inside(index: Path, shard: Path) -> None:
    """Raise DataError if a shard is outside the directory of its index, or of the file that the index links to."""
    directory = shard.resolve().parent
    if directory not in {index.parent.resolve(), index.resolve().parent}:
        raise DataError(
            f"{index}: names the shard {shard.name}, a link that leads out of its directory, to {shard.resolve()}"
        )


def _index_of(name: str) -> str | None:
    shard = SHARD.fullmatch(name)
    return None if shard is None else f"{shard[1]}.{shard[2]}.index.json"


def is_adapter(file: Path) -> bool:
    """Return whether a file contains the weights of a PEFT adapter, with the configuration beside it."""
    return file.name in ADAPTER_WEIGHTS and (file.parent / ADAPTER_CONFIG).is_file()


def _without_copies(names: list[str]) -> Iterator[str]:
    """Yield names without copies: pickled beside safetensors, in another dtype, or in the layout of Meta or Mistral."""
    twins = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
    twins |= {f"{name}.index.json": f"{twin}.index.json" for name, twin in twins.items()}
    stems = {_stem(name) for name in names if not VARIANT.search(name)}
    hugging_face = any(HUGGING_FACE.fullmatch(name) or SHARD.fullmatch(name) for name in names)
    for name in names:
        copy = twins.get(name) in names or (VARIANT.search(name) and _stem(name) in stems)
        if not copy and not (hugging_face and CONSOLIDATED.fullmatch(name)):
            yield name


def _stem(name: str) -> str:
    return re.split(r"\.|-\d+-of-", name)[0]


def _require_one_kind(folder: Path, names: list[str]) -> None:
    """Raise DataError if an adapter is beside other weights, which may contain it already."""
    adapter = next((name for name in names if is_adapter(folder / name)), None)
    others = [name for name in names if name != adapter]
    if adapter is not None and others:
        raise DataError(
            f"{folder}: an adapter ({adapter}) beside the weights {listed(others, 4)}, which may contain it already; "
            "name the one that you mean"
        )
