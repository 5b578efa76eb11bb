"""Cost of a probe in an evaluation of Hugging Face's Trainer whose model takes 10 ms per batch.

A BERT of one layer and D features classifies texts in batches of 32; the length of the texts is chosen so that a
forward pass takes the requested time. In each evaluation batches without and with the probe take turns, with
alternating order within the pairs, so that a drift of the machine's speed does not distort their difference. The cost
has two parts: the time added to a batch, relative to all that the Trainer does for one (loading, forward pass,
gathering logits); and the computation of the record at the end, whose time depends on D and C only. The first is the
median of the differences of pairs, with its 95 % interval, plus the mean time of the moments, which are summed once in
a few hundred batches. All times are processor times of this process.

Run: OMP_NUM_THREADS=1 python benchmarks/integrations.py [--batches 200] [--evaluations 5] [--milliseconds 10]
"""

import argparse
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers.models.bert.configuration_bert import BertConfig
from transformers.models.bert.modeling_bert import BertForSequenceClassification
from transformers.trainer import Trainer
from transformers.trainer_callback import PrinterCallback
from transformers.training_args import TrainingArguments
from transformers.utils import logging

from ckpt_probe.integrations import TrainerProbe
from ckpt_probe.moments.quality import Gathering

BATCH, WANTED = 32, 0.03
SHAPES = ((64, 4), (64, 10), (128, 4), (128, 10), (256, 2), (256, 10))
"""Numbers of features and classes."""


class Timed(TrainerProbe):
    """A probe that measures the seconds of the moments and of the record."""

    seconds = summing = 0.0

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        started, before = time.process_time(), self.summing
        super().on_evaluate(*args, **kwargs)
        self.seconds = time.process_time() - started - (self.summing - before)

    def watch_sums(self) -> None:
        """Add up the seconds of every update of moments from now on."""
        finish = Gathering.finish

        def finish_timed(gathering: Gathering) -> None:
            started = time.process_time()
            finish(gathering)
            self.summing += time.process_time() - started

        Gathering.finish = finish_timed  # pyright: ignore[reportAttributeAccessIssue]


def model(features: int, classes: int) -> BertForSequenceClassification:
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": features, "num_hidden_layers": 1, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 4 * features, "num_labels": classes}
    config = BertConfig(vocab_size=1000, **sizes)
    return BertForSequenceClassification(config).eval()


def forward_seconds(network: BertForSequenceClassification, length: int) -> float:
    """Return the median seconds of a batch of texts of `length` words."""
    words, spent = torch.randint(1000, (BATCH, length)), []
    with torch.no_grad():
        for _ in range(12):
            started = time.process_time()
            network(words)
            spent.append(time.process_time() - started)
    return statistics.median(spent[2:])


def fitting_length(network: BertForSequenceClassification, seconds: float) -> int:
    """Return the smallest length of texts whose batch takes at least the given seconds."""
    return next(length for length in range(4, 512, 2) if forward_seconds(network, length) >= seconds)


class Alternating:
    """Batches without and with a probe in turn, in pairs of alternating order, and the seconds of each."""

    def __init__(self, bare: Callable[..., Any], probed: Callable[..., Any]) -> None:
        self._steps = bare, probed
        self._number = 0
        self.spent: tuple[list[float], list[float]] = ([], [])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        pair, second = divmod(self._number, 2)
        index = (pair + second) % 2
        self._number += 1
        started = time.process_time()
        result = self._steps[index](*args, **kwargs)
        self.spent[index].append(time.process_time() - started)
        return result


def median_with_interval(values: list[float]) -> tuple[float, float, float]:
    """Return the median, and the two numbers between which the true median lies with 95 % (sign test)."""
    ordered, count = sorted(values), len(values)
    below = max(0, math.floor(count / 2 - 0.98 * math.sqrt(count)))
    return statistics.median(ordered), ordered[below], ordered[-1 - below]


def measure(features: int, classes: int, arguments: argparse.Namespace, directory: Path) -> None:
    """Print the time that the probe adds to a batch, and the time of the record at the end."""
    network = model(features, classes)
    length = fitting_length(network, arguments.milliseconds / 1e3)
    words = torch.randint(1000, (arguments.batches * BATCH, length))
    data = [{"input_ids": text, "labels": number % classes} for number, text in enumerate(words)]
    options = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "per_device_eval_batch_size": BATCH}
    trainer = Trainer(network, TrainingArguments(str(directory), **options), eval_dataset=data)  # pyright: ignore[reportArgumentType]
    trainer.remove_callback(PrinterCallback)  # Its output would hide the table of this benchmark.
    bare = trainer.prediction_step
    probe = Timed(trainer, directory / "records.jsonl", overwrite=True)
    trainer.add_callback(probe)
    probe.watch_sums()
    turns = Alternating(bare, trainer.prediction_step)
    trainer.prediction_step = turns
    evaluations, reading, summing = [], [], []
    for _ in range(arguments.evaluations + 1):
        started, before = time.process_time(), probe.summing
        trainer.evaluate()
        reading.append(probe.seconds)
        summing.append(probe.summing - before)
        evaluations.append(time.process_time() - started - reading[-1] - summing[-1])
    # The first evaluation warms up.
    without, probed = (spent[arguments.batches // 2 :] for spent in turns.spent)
    differences = median_with_interval([b - a for a, b in zip(without, probed, strict=True)])
    # Half of the batches of an evaluation run without the probe.
    batch = statistics.median(evaluations[1:]) / arguments.batches - differences[0] / 2
    sums = statistics.median(summing[1:]) / (arguments.batches / 2)
    added, low, high = (value + sums for value in differences)
    at_end = statistics.median(reading[1:])
    share = added / batch
    verdict = "" if share < WANTED else f"   MORE THAN {WANTED:.0%}"
    enough = f"{at_end / batch / (WANTED - share):.0f} batches and more" if share < WANTED else "no number of batches"
    print(
        f"D {features}  C {classes:2}  {length} words, {1e3 * batch:.1f} ms a batch: the probe adds {1e3 * added:.2f} "
        f"[{1e3 * low:.2f}, {1e3 * high:.2f}] ms to it, {share:.1%} [{low / batch:.1%}, {high / batch:.1%}]{verdict} "
        f"({1e3 * sums:.2f} ms of it moments), and {1e3 * at_end:.0f} ms at the end: together {WANTED:.0%} or less of "
        f"{enough}",
        flush=True,
    )


def main() -> None:
    """Measure every shape."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batches", type=int, default=200)
    parser.add_argument("--evaluations", type=int, default=5)
    parser.add_argument("--milliseconds", type=float, default=10)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    print(
        f"{torch.get_num_threads()} threads; {arguments.evaluations} evaluations of "
        f"{arguments.batches} batches of {BATCH}"
    )
    for features, classes in SHAPES:
        with tempfile.TemporaryDirectory() as directory:
            measure(features, classes, arguments, Path(directory))


if __name__ == "__main__":
    main()
