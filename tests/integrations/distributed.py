"""What each of two processes runs (gloo, on the CPU): python distributed.py KIND FOLDER RANK."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

SAMPLES, WORLD = 151, 2
"""An odd number of samples: a sampler hands one of them out twice."""


def samples(dtype: torch.dtype = torch.float64) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(SAMPLES) % 3
    centres = 2 * torch.randn(3, 6, generator=generator)
    inputs = centres[labels] + torch.randn(SAMPLES, 6, generator=generator)
    return TensorDataset(inputs.to(dtype), labels)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double().eval()


def join(folder: Path, rank: int) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=WORLD)


def plain(folder: Path, rank: int) -> Any:
    """The record of an evaluation, then the error of one in which the second process meets NaN."""
    from ckpt_probe.errors import CkptProbeError
    from ckpt_probe.integrations import Probe
    from ckpt_probe.integrations.ranks import own_rows

    join(folder, rank)
    model = DistributedDataParallel(network())
    data = samples()
    loader = DataLoader(data, batch_size=20, sampler=DistributedSampler(data, shuffle=False))
    probe = Probe(model, folder / "records.jsonl")
    told = ""
    for step, factor in ((0, 1.0), (1, torch.nan if rank == 1 else 1.0)):
        try:
            with torch.no_grad(), probe.evaluation("test", step, limit=own_rows(loader)) as evaluation:
                for inputs, labels in loader:
                    model(inputs * factor)
                    evaluation.update(labels)
        except CkptProbeError as error:
            told = str(error)
    try:
        Probe(model, folder / "records.jsonl")
    except CkptProbeError as error:
        told += f"; {error}"
    return {"told": told}


def main() -> None:
    kind, folder, rank = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(WORLD)}
    found = {"plain": plain}[kind](folder, rank)
    (folder / f"{rank}.json").write_text(json.dumps(found))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
