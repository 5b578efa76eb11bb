"""Program of each of two processes (gloo, on the CPU): python distributed.py KIND FOLDER [RANK]; torchrun sets RANK."""

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
"""An odd number of samples, so that a sampler for two processes repeats one of them."""


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
    """Return the errors of an evaluation in which the second process meets NaN, and of a second run over them."""
    from ckpt_probe.errors import CkptProbeError
    from ckpt_probe.integrations import Probe
    from ckpt_probe.integrations.ranks import count_distinct_rows

    join(folder, rank)
    model = DistributedDataParallel(network())
    data = samples()
    loader = DataLoader(data, batch_size=20, sampler=DistributedSampler(data, shuffle=False))
    probe = Probe(model, folder / "records.jsonl")
    messages = ""
    for step, factor in ((0, 1.0), (1, torch.nan if rank == 1 else 1.0)):
        try:
            with torch.no_grad(), probe.evaluation("test", step, limit=count_distinct_rows(loader)) as evaluation:
                for inputs, labels in loader:
                    model(inputs * factor)
                    evaluation.update(labels)
        except CkptProbeError as error:
            messages = str(error)
    try:
        Probe(model, folder / "records.jsonl")
    except CkptProbeError as error:
        messages += f"; {error}"
    return {"messages": messages}


def hugging_face(folder: Path, rank: int) -> Any:
    """Return the MIR that a Trainer's evaluation logs; the record is written to the folder."""
    from transformers import Trainer, TrainingArguments

    from ckpt_probe.integrations import TrainerProbe

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, inputs: torch.Tensor, labels: torch.Tensor) -> Any:
            logits = self.net(inputs)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    data = samples()
    settings = TrainingArguments(
        str(folder), use_cpu=True, per_device_eval_batch_size=20, report_to="none", disable_tqdm=True
    )
    rows = [{"inputs": inputs, "labels": label} for inputs, label in data]
    trainer = Trainer(Model(), settings, eval_dataset=rows)
    trainer.add_callback(TrainerProbe(trainer, folder / "records.jsonl", split="test"))
    assert settings.world_size == WORLD
    return {"mir": trainer.evaluate()["eval_class.mir"]}


def lightning(folder: Path, rank: int) -> Any:
    """Return the MIR that a validation logs; the record is written to the folder."""
    import lightning.pytorch as pl

    from ckpt_probe.integrations import LightningProbe

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def validation_step(self, batch: Any, _index: int) -> None:
            self.net(batch[0])

    probe = LightningProbe(folder / "records.jsonl")
    trainer = pl.Trainer(
        accelerator="cpu", devices=WORLD, strategy="ddp", callbacks=[probe], logger=False, enable_progress_bar=False
    )
    trainer.validate(Module(), DataLoader(samples(), batch_size=20), verbose=False)
    return {"mir": float(trainer.callback_metrics["validation/class.mir"])}


def torchmetrics(folder: Path, rank: int) -> Any:
    """Return values of a collection: once each process has half of the samples, once only the first has any."""
    from torchmetrics import MetricCollection

    from ckpt_probe.integrations import RecordMetric

    join(folder, rank)
    model, (inputs, labels) = network(), samples().tensors
    with torch.no_grad():
        features = model[:2](inputs)
    computed = {}
    parts = {"together": slice(rank, None, WORLD), "first process alone": slice(rank * SAMPLES, None)}
    for name, part in parts.items():
        metrics = MetricCollection([RecordMetric(model[2])])
        for rows, targets in zip(features[part].split(20), labels[part].split(20), strict=True):
            metrics.update(features=rows, target=targets)
        values = metrics.compute()
        metrics.compute()
        computed[name] = {metric: float(value) for metric, value in values.items()}
    return computed


def main() -> None:
    kind, folder = sys.argv[1], Path(sys.argv[2])
    rank = int(sys.argv[3] if len(sys.argv) > 3 else os.environ["RANK"])
    kinds = {"plain": plain, "hugging_face": hugging_face, "lightning": lightning, "torchmetrics": torchmetrics}
    values = kinds[kind](folder, rank)
    (folder / f"{rank}.json").write_text(json.dumps(values))
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
