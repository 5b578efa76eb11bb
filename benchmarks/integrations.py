"""What a probe adds to an evaluation of Hugging Face's Trainer, whose model takes 10 ms a batch to forward.

A BERT of one layer and D features classifies texts in batches of 32, its texts being as long as makes a batch take the
time asked for. Evaluations without and with the probe take turns; both hold all that the Trainer does (gathering
logits, its own metrics and log). The cost has two parts: a share of each batch, and the reading of the record once at
the end, whose time depends on D and C alone and so counts less the longer the evaluation. All times are this process's
own processor time, which a busy machine distorts less.

Run: OMP_NUM_THREADS=1 python benchmarks/integrations.py [--batches 500] [--repeats 5] [--milliseconds 10]
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForSequenceClassification, PrinterCallback, Trainer, TrainingArguments
from transformers.utils import logging

from ckpt_probe.integrations import TrainerProbe

BATCH, WANTED = 32, 0.03
SHAPES = ((128, 4), (128, 10), (256, 2), (256, 10), (384, 10))
"""Features and classes."""


class Timed(TrainerProbe):
    """A probe that knows how long the record took."""

    seconds = 0.0

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        started = time.process_time()
        super().on_evaluate(*args, **kwargs)
        self.seconds = time.process_time() - started


def model(features: int, classes: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": features, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 4 * features, "num_labels": classes}
    config = BertConfig(vocab_size=1000, **sizes)
    return BertForSequenceClassification(config).eval()


def forward_seconds(network: BertForSequenceClassification, length: int) -> float:
    """Median seconds of a batch of texts of so many words."""
    words, spent = torch.randint(1000, (BATCH, length)), []
    with torch.no_grad():
        for _ in range(12):
            started = time.process_time()
            network(words)
            spent.append(time.process_time() - started)
    return statistics.median(spent[2:])


def fitting_length(network: BertForSequenceClassification, seconds: float) -> int:
    """The shortest texts whose batch takes that long."""
    return next(length for length in range(4, 512, 2) if forward_seconds(network, length) >= seconds)


def evaluate(trainer: Trainer) -> float:
    """Seconds of one whole evaluation."""
    started = time.process_time()
    trainer.evaluate()
    return time.process_time() - started


def measure(features: int, classes: int, batches: int, repeats: int, seconds: float, where: Path) -> None:
    """Evaluations without and with a probe in turn, and their ratio."""
    network = model(features, classes)
    length = fitting_length(network, seconds)
    words = torch.randint(1000, (batches * BATCH, length))
    data = [{"input_ids": text, "labels": number % classes} for number, text in enumerate(words)]
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": BATCH}
    plain, probed = (
        Trainer(network, TrainingArguments(str(where / name), **options), eval_dataset=data)  # pyright: ignore[reportArgumentType]
        for name in "ab"
    )
    for trainer in (plain, probed):
        # What it prints would hide what is printed here.
        trainer.remove_callback(PrinterCallback)
    probe = Timed(probed, where / f"{features}-{classes}.jsonl")
    probed.add_callback(probe)
    for trainer in (plain, probed):
        evaluate(trainer)
    without, with_probe, reading = [], [], []
    for _ in range(repeats):
        without.append(evaluate(plain))
        with_probe.append(evaluate(probed))
        reading.append(probe.seconds)
    before, read = statistics.median(without), statistics.median(reading)
    streaming = statistics.median((a - r) / b - 1 for a, b, r in zip(with_probe, without, reading, strict=True))
    verdict = "" if streaming < WANTED else f"   MORE THAN {WANTED:.0%}"
    print(
        f"D {features}  C {classes:2}  {length} words, {1e3 * before / batches:.1f} ms a batch, {before:.2f} s in all: "
        f"the probe adds {streaming:+.1%} to the batches{verdict}, and {read:.2f} s at the end ({read / before:+.1%})",
        flush=True,
    )


def main() -> None:
    """Measure each shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=10)
    asked = parser.parse_args()
    logging.set_verbosity_error()
    print(f"{torch.get_num_threads()} threads; evaluations of {asked.batches} batches of {BATCH}")
    with tempfile.TemporaryDirectory() as where:
        for features, classes in SHAPES:
            measure(features, classes, asked.batches, asked.repeats, asked.milliseconds / 1e3, Path(where))


if __name__ == "__main__":
    main()
