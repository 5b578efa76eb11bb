"""Find the checkpoints in a directory, among other files that trainers write."""

import re
from collections.abc import Iterator
from pathlib import Path

from ckpt_probe.checkpoints.parts import (
    DISTRIBUTED,
    INDICES,
    SHARD,
    SUFFIXES,
    index_of,
    is_adapter,
    is_further_model,
    is_part,
    listed_shards,
    require_whole,
    shards_beside,
)
from ckpt_probe.errors import DataError, listed

TRAINER_FILES = re.compile(
    r"state\.safetensors|training_args\.bin|(optimi[sz]er|scheduler|scaler|sampler|rng_state|random_states|dl_state_dict|"
    r"custom_checkpoint|quantizer|ema_optimizer|optim|distrib_optim|lr_scheduler|"
    r"(recipe|train|trainer|training)_state)s?([-_.]?\d+)*\.\w+|(opt|train)\.pt|.*_optim_states\.pt|"
    r".+[-_.](optimi[sz]er|scheduler|scaler)(_state)?\.\w+",
)
"""State for resuming a run (ours, and that of Trainer, accelerate and DeepSpeed), without weights of a model."""
HUGGING_FACE = re.compile(r"(\w+_)?model(\.safetensors|\.bin)(\.index\.json)?")
CONSOLIDATED = re.compile(r"consolidated(\.\d+)?\.(safetensors|pth)")
"""Weights in the layout of Meta or Mistral, which repositories have in addition to those of Hugging Face."""
VARIANT = re.compile(r"\.(fp16|bf16|fp32|float16|bfloat16|float32)(?=[.-])")
"""Part of the name of a copy in another dtype."""
PIPELINE = "model_index.json"
"""File of diffusers' pipelines, in whose folders lie several models."""
CONFIG = "config.json"
FOLDER = re.compile(r"pytorch_model_fsdp_\d+|(mp|tp|pp)_rank_\w+|rank[-_]?\d+")
"""A folder within a checkpoint's, in which accelerate and Megatron keep the model, or one part of it a process."""


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
        name
        for name in files
        if (name.lower().endswith(SUFFIXES) or is_part(name)) and not TRAINER_FILES.fullmatch(name)
    ]
    # Shards that an index does not list are left from an earlier save, and no loader reads them.
    weights = [name for name in weights if name not in shards and index_of(name) not in indices]
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


def companions(path: Path) -> Iterator[Path]:
    """Yield small files beside the shards that a loader needs: configuration and tokenizer, no weights, no code."""
    suffixes = {".json", ".txt", ".model", ".jinja"}
    for file in sorted(path.iterdir()):
        if file.suffix in suffixes and not file.name.endswith(".index.json") and not file.name.startswith("."):
            yield file


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
