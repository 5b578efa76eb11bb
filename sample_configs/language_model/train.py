"""A small GPT-2 on the King James Bible, with its own tokenizer and a checkpoint at each of 45 log-spaced steps.

The text is the output of Debian's program `bible` (packages bible-kjv and bible-kjv-text; the translation of 1611 is in
the public domain). Every twentieth chapter is for testing. Text, tokenizer and, for each seed, a directory of
checkpoints are written below --out; finished seeds are skipped.

Run: python sample_configs/language_model/train.py --out runs/language_model --seeds 0 1 2
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.utils.data import TensorDataset
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

VOCABULARY = 2048
CONTEXT = 128
BATCH = 8
CHECKPOINTS = 45
END = "<end>"


def main() -> None:
    """Write the text, train the tokenizer, then a model for each seed."""
    parser = argparse.ArgumentParser(description="A small GPT-2 with checkpoints.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--bible", help="The program, where it is not on the path; options may follow it.")
    parser.add_argument("--text", type=Path, help="A text whose paragraphs are the documents, in place of the Bible.")
    arguments = parser.parse_args()
    documents = paragraphs(arguments.text) if arguments.text else chapters(arguments.bible or "bible")
    training = write_texts(documents, arguments.out / "text")
    tokenizer = tokenizer_of(training)
    ids = torch.tensor(tokenizer.encode(END.join(training)))
    windows = ids[: len(ids) // CONTEXT * CONTEXT].view(-1, CONTEXT)
    print(f"{len(training)} documents, {len(ids):,} tokens of {len(tokenizer)}", flush=True)
    for seed in arguments.seeds:
        train(arguments.out / f"seed-{seed}", seed, tokenizer, windows, arguments)


def chapters(program: str) -> list[str]:
    """Return the chapters of the Bible without the numbers of the verses."""
    words = [*program.split(), "-l1000000", "gen1:1-rev22:21"]
    if shutil.which(words[0]) is None:
        sys.exit(
            f"{words[0]}: no such program; install Debian's bible-kjv and bible-kjv-text, or give --bible or --text"
        )
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    chapters_of_text = re.split(r"^\S.* \d+$", printed, flags=re.MULTILINE)
    return [
        " ".join(re.sub(r"^ *\d+ ", "", line) for line in part.strip().split("\n"))
        for part in chapters_of_text
        if part.strip()
    ]


def paragraphs(file: Path) -> list[str]:
    """Return the blocks between blank lines of a text file."""
    return [part for part in re.split(r"\n\s*\n", file.read_text(encoding="utf-8")) if part.strip()]


def write_texts(documents: list[str], out: Path) -> list[str]:
    """Write one file of documents per split, in the format of `text:`, and return those of the training split."""
    splits = {"train": [d for i, d in enumerate(documents) if i % 20], "test": documents[::20]}
    out.mkdir(parents=True, exist_ok=True)
    for name, documents_of_split in splits.items():
        lines = [json.dumps({"text": document}) + "\n" for document in documents_of_split]
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return splits["train"]


def tokenizer_of(documents: list[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer on the training split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], show_progress=False)
    tokenizer.train_from_iterator(documents, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, model_max_length=CONTEXT)


def train(
    out: Path, seed: int, tokenizer: PreTrainedTokenizerFast, windows: torch.Tensor, arguments: argparse.Namespace
) -> None:
    """Train a model with AdamW, a warm-up of a twentieth of the steps, then a cosine to zero."""
    if (out / f"checkpoint-{arguments.steps}").exists():
        return
    set_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=CONTEXT, n_embd=arguments.width, n_layer=arguments.layers, n_head=4,
        bos_token_id=0, eos_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model = GPT2LMHeadModel(config)
    training = TrainingArguments(
        output_dir=str(out), max_steps=arguments.steps, per_device_train_batch_size=BATCH, learning_rate=2e-3,
        weight_decay=0.1, warmup_steps=arguments.steps // 20, lr_scheduler_type="cosine", logging_steps=50, seed=seed,
        save_strategy="no", save_only_model=True, report_to=[], use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    checkpoint_steps = AtLogSteps(arguments.steps)
    rows = TensorDataset(windows)
    trainer = Trainer(
        model,
        training,
        train_dataset=rows,
        data_collator=inputs_of,
        processing_class=tokenizer,
        callbacks=[checkpoint_steps],
    )
    model.save_pretrained(out / "checkpoint-0")
    tokenizer.save_pretrained(out / "checkpoint-0")
    trainer.train()


def inputs_of(rows: list[tuple[torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Return the model's inputs: the tokens, and the tokens as labels, which the model shifts itself."""
    ids = torch.stack([row for (row,) in rows])
    return {"input_ids": ids, "labels": ids}


class AtLogSteps(TrainerCallback):
    """A callback that saves at steps whose logarithms are about evenly spaced, including the last one."""

    def __init__(self, last: int) -> None:
        self.steps = log_steps(last, CHECKPOINTS - 1)

    def on_step_end(self, args, state, control, **kwargs):
        control.should_save = state.global_step in self.steps
        return control


def log_steps(last: int, count: int) -> set[int]:
    """Return `count` integers from 1 to `last`, fewer if there are not as many."""
    points = count
    while len(steps := {round(last ** (i / (points - 1))) for i in range(points)}) < min(count, last):
        points += 1
    return steps


if __name__ == "__main__":
    main()
