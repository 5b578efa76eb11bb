"""Which files of a directory are checkpoints, and which are what trainers write beside them."""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ckpt_probe.errors import DataError, listed
from ckpt_probe.files import read_object
from ckpt_probe.remote import whole

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".pt.tar")
"""By which a file in a directory is taken for a checkpoint; a file that is named is known by its bytes."""
OF_TRAINERS = re.compile(
    r"state\.safetensors|training_args\.bin|(optimi[sz]er|scheduler|scaler|sampler|rng_state|random_states|dl_state_dict|"
    r"custom_checkpoint|quantizer|ema_optimizer)s?([-_.]?\d+)*\.\w+|.*_optim_states\.pt",
)
"""State that is resumed from (ours, and what Trainer, accelerate and DeepSpeed keep), and no weights of a model."""
SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}\.(safetensors|bin)")
PART = re.compile(r"(zero_pp_rank_\d+_)?mp_rank_(\d+)_model_states\.pt")
"""DeepSpeed's: one file a process, of which a single one holds a whole model unless it is of ZeRO stage 3."""
DISTRIBUTED = ".metadata"
WITHIN_ACCELERATE = "pytorch_model_fsdp_0"
CONFIG = "config.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
INDICES = (".safetensors.index.json", ".bin.index.json")


def checkpoint_in(folder: Path) -> Path:
    """The file by which the one checkpoint in a directory is opened: weights, an index of shards, or `.metadata`.

    Raises DataError where there are none or several, listing them.
    """
    found = checkpoints_in(folder)
    if len(found) == 1:
        return found[0]
    inside = folder / WITHIN_ACCELERATE / DISTRIBUTED
    if not found and inside.is_file():
        return inside
    if not found:
        raise DataError(f"{folder}: no checkpoint found in this directory; name the file")
    names = listed([file.name for file in found])
    raise DataError(f"{folder}: a directory with {len(found)} checkpoints; name one: {names}")


def checkpoints_in(folder: Path) -> list[Path]:
    """Files that lie in a directory and by which its checkpoints are opened, in the order of their names.

    Shards count as one, by their index; where the same weights lie in both formats of Hugging Face's libraries, only
    safetensors does. Raises DataError for shards whose index is absent, and for parts of a model that DeepSpeed has not
    put together.
    """
    if (folder / DISTRIBUTED).is_file():
        return [folder / DISTRIBUTED]
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(".") and entry.is_file())
    indices = [name for name in names if name.endswith(INDICES)]
    shards = {file for index in indices for file in listed_shards(folder / index).values()}
    weights = [name for name in names if name.endswith(SUFFIXES) and not OF_TRAINERS.fullmatch(name)]
    # Shards that an index does not list are left from an earlier save, and no loader reads them.
    weights = [name for name in weights if name not in shards and _index_of(name) not in indices]
    _require_whole(folder, weights)
    return [folder / name for name in sorted(_once([*indices, *weights]))]


def listed_shards(index: Path) -> Mapping[str, str]:
    """Name of each tensor → name of the file beside the index that it is in.

    Raises DataError for what is no index, and where a file is absent or anywhere else than beside the index, also by a
    link.
    """
    weight_map = read_object(whole(index), "an index of shards").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DataError(f"{index}: not an index of shards (it lists no tensor)")
    wanted = {str(name): str(file) for name, file in weight_map.items()}
    for file in dict.fromkeys(wanted.values()):
        shard = index.parent / file
        if Path(file).name != file or file in {"", ".", ".."} or "\\" in file:
            raise DataError(f"{index}: names the shard {file!r}, which is outside its directory")
        if not _is_there(shard):
            raise DataError(f"{index}: names the shard {file[:200]}, which is missing")
        _require_inside(index, shard)
    return wanted


def config_beside(file: Path) -> Path | None:
    """The directory of a file, where a `config.json` in it may say what model the weights are of."""
    return file.parent if (file.parent / CONFIG).is_file() else None


def companions(path: Path) -> Iterator[Path]:
    """Small files beside the shards that a loader wants too: configuration and tokenizer, no weights, no code."""
    kept = {".json", ".txt", ".model", ".jinja"}
    for file in sorted(path.iterdir()):
        if file.suffix in kept and not file.name.endswith(".index.json") and not file.name.startswith("."):
            yield file


def _is_there(shard: Path) -> bool:
    try:
        return shard.is_file()
    except OSError:
        # A name too long for any file.
        return False


def _require_inside(index: Path, shard: Path) -> None:
    """A hub's cache links all files of a model, index and shards, to one folder; anything else is not followed."""
    where = shard.resolve().parent
    if where not in {index.parent.resolve(), index.resolve().parent}:
        raise DataError(
            f"{index}: names the shard {shard.name}, a link that leads out of its directory, to {shard.resolve()}"
        )


def _index_of(name: str) -> str | None:
    shard = SHARD.fullmatch(name)
    return None if shard is None else f"{shard[1]}.{shard[2]}.index.json"


def is_adapter(file: Path) -> bool:
    """Whether a file is the weights of a PEFT adapter, which its configuration lies beside."""
    return file.name in ADAPTER_WEIGHTS and (file.parent / ADAPTER_CONFIG).is_file()


def _once(names: list[str]) -> Iterable[str]:
    """Without Hugging Face's pickled weights where the same ones lie there as safetensors."""
    twins = {"pytorch_model.bin": "model.safetensors", "adapter_model.bin": "adapter_model.safetensors"}
    twins |= {f"{name}.index.json": f"{twin}.index.json" for name, twin in twins.items()}
    return (name for name in names if twins.get(name) not in names)


def _require_whole(folder: Path, names: list[str]) -> None:
    """Raise DataError where a file is a part of a model: a shard without its index, or one of DeepSpeed's."""
    alone = next((found for name in names if (found := SHARD.fullmatch(name))), None)
    if alone is not None:
        raise DataError(f"{folder / alone[0]}: a shard, whose index {alone[1]}.{alone[2]}.index.json is missing")
    parts = [found for name in names if (found := PART.fullmatch(name))]
    if len(parts) > 1 or any(part[1] for part in parts):
        raise DataError(
            f"{folder / parts[0][0]}: one part of a model sharded by DeepSpeed; consolidate it with "
            "DeepSpeed's zero_to_fp32.py and use its output"
        )
